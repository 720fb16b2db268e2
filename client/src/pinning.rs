//! The arena pinned for a device before it is used: a thread of its own maps and pins the tenant's segments, one by one.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvd_nixl::device::Device;
use kvd_proto::wire::session::{Body, ListSegments};

use crate::engine::{Engine, Shared};
use crate::segments::descriptors_max;
use crate::session::{CONTROL_WAIT, Session};

/// Between two looks for segments that the tenant has been given since.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The same after some could not be pinned.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Threads that map and pin: most of it is the kernel's work on page tables.
const HANDS: usize = 4;
/// Between two looks whether the engine goes, or has joined.
const PAUSE: Duration = Duration::from_millis(20);

/// How far pinning ahead has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pinned {
    /// Segments of the arena that are mapped and pinned.
    pub segments: usize,
    /// Segments that the daemon has named.
    pub of: usize,
    /// The device did not take one, or the process has too few descriptors left: such segments are tried again some seconds later,
    /// and pinned when they are used.
    pub failed: bool,
}

/// The same, as threads see it. Relaxed throughout: numbers for people.
#[derive(Debug, Default)]
pub(crate) struct Pinning {
    segments: AtomicUsize,
    of: AtomicUsize,
    failed: AtomicBool,
}

impl Engine {
    /// Maps and pins the tenant's part of the arena for a device, in the background: until then the first use of each segment
    /// takes some milliseconds for that, in which the driver stands still. Goes on for segments that come later and after a
    /// restart of the daemon, where what was pinned stays so. Call it once for a device, as soon as the engine is connected. Each
    /// segment of 64 MiB takes a file descriptor: no more than half of those that the process may have are taken ahead.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn pin_ahead(&self, device: &Device) -> std::io::Result<()> {
        let (shared, device) = (std::sync::Arc::downgrade(&self.shared), device.clone());
        let work = move || pin_ahead(&shared, &device);
        // Nobody waits for it: the driver, which it may be inside of, gives no deadline.
        std::thread::Builder::new().name("kvd-pin".into()).spawn(work).map(drop)
    }

    /// How far [`Engine::pin_ahead`] has come.
    pub fn pinned(&self) -> Pinned {
        let Pinning { segments, of, failed } = &self.shared.pinning;
        let number = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        Pinned { segments: number(segments), of: number(of), failed: failed.load(Ordering::Relaxed) }
    }
}

/// Until the engine goes.
fn pin_ahead(engine: &Weak<Shared>, device: &Device) {
    let (mut looked, mut pause): (Option<Instant>, _) = (None, LOOK_EVERY);
    loop {
        let Some(shared) = engine.upgrade().filter(|shared| !shared.stopping()) else { return };
        let due = looked.is_none_or(|looked| looked.elapsed() >= pause);
        if let Some(session) = shared.session().filter(|session| due && session.terms.lists_segments) {
            looked = Some(Instant::now());
            let all = pin_all(&shared, &session, device);
            shared.pinning.failed.store(!all, Ordering::Relaxed);
            pause = if all { LOOK_EVERY } else { LOOK_AGAIN };
        }
        drop(shared);
        std::thread::sleep(PAUSE);
    }
}

/// Pins all segments that the daemon names now; false where one could not be.
fn pin_all(shared: &Shared, session: &Session, device: &Device) -> bool {
    session.let_go_of_stale_segments();
    let told = match session.control.ask(Body::ListSegments(ListSegments {}), Instant::now() + CONTROL_WAIT) {
        Ok((Body::Segments(told), _)) => told,
        Ok(_) => return true,
        Err(error) => {
            session.control_failed(error);
            return true;
        }
    };
    let pinning = &shared.pinning;
    pinning.of.store(told.segments.len(), Ordering::Relaxed);
    let (next, pinned, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let pin_some = || {
        while let Some(number) = told.segments.get(next.fetch_add(1, Ordering::Relaxed)) {
            if shared.stopping() || session.link.is_down() || refused.load(Ordering::Relaxed) {
                return;
            }
            // One that has gone to another tenant meanwhile, or a daemon that does not answer: seen to at the next look.
            let Ok(segment) = session.segment(*number, Instant::now() + CONTROL_WAIT) else { continue };
            if session.mapped_segments() > descriptors_max() / 2 || segment.pin_for(device).is_none() {
                refused.store(true, Ordering::Relaxed);
                return;
            }
            let pinned = 1 + pinned.fetch_add(1, Ordering::Relaxed);
            pinning.segments.fetch_max(pinned, Ordering::Relaxed);
        }
    };
    // Mostly nothing is new, and one looks.
    let new = told.segments.len().saturating_sub(pinning.segments.load(Ordering::Relaxed));
    std::thread::scope(|scope| {
        for _ in 1..HANDS.min(new) {
            // Where there is no thread to be had fewer do it.
            let _ = std::thread::Builder::new().name("kvd-pin".into()).spawn_scoped(scope, pin_some);
        }
        pin_some();
    });
    pinning.segments.store(pinned.load(Ordering::Relaxed), Ordering::Relaxed);
    !refused.load(Ordering::Relaxed)
}
