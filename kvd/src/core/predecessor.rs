//! What a daemon that was killed still holds for a moment: the kernel lets go of its locks with the last use of the file, which
//! may outlive the process, an I/O that is under way or memory that is just taken apart.

use std::thread;
use std::time::Duration;

use crate::core::clock;

const PAUSE: Duration = Duration::from_millis(2);

/// Opens what may be locked, again and again for so long while it is.
pub(super) fn patiently<T, E>(
    patience: Duration,
    locked: impl Fn(&E) -> bool,
    open: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let until = clock::now().after(patience);
    let mut waits = false;
    loop {
        match open() {
            Err(error) if locked(&error) && clock::now() < until => thread::sleep(PAUSE),
            opened => {
                if waits && opened.is_ok() {
                    tracing::info!("a predecessor's lock is free");
                }
                return opened;
            }
        }
        if !std::mem::replace(&mut waits, true) {
            tracing::info!(?patience, "waits for the lock of a predecessor");
        }
    }
}
