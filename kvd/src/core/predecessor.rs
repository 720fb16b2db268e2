//! What a daemon that was killed still holds for a moment: the kernel lets go of its locks with the last use of the file, which
//! may outlive the process, an I/O that is under way or memory that somebody looks at.

use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// Opens what may be locked, again and again while it is and a predecessor may be what locks it.
pub(super) fn patiently<T, E>(locked: impl Fn(&E) -> bool, open: impl Fn() -> Result<T, E>) -> Result<T, E> {
    let (started, mut waited) = (Instant::now(), None);
    loop {
        match open() {
            Err(error) if locked(&error) && started.elapsed() < PATIENCE => thread::sleep(PAUSE),
            opened => {
                if let Some(waited) = waited {
                    tracing::info!(?waited, "waited for a lock of a predecessor");
                }
                return opened;
            }
        }
        waited = Some(started.elapsed());
    }
}
