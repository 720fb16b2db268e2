//! Makes arena segments ahead of their use: a segment takes tens of milliseconds, which the core thread does not have.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvd_tiers::SegmentId;
use kvd_tiers::dram::SegmentFiles;

/// Segments kept ready beyond those in use when not all are prefaulted: 256 MiB are a quarter second of stores at 1 GB/s.
const AHEAD: u32 = 4;
/// The pause after a failure, such as a tmpfs that is full.
const RETRY: Duration = Duration::from_secs(1);

/// What the preparer shares with the core and with whoever stops it.
#[derive(Debug, Clone)]
pub(super) struct Preparing {
    pub(super) files: Arc<SegmentFiles>,
    /// One more than the highest segment in use.
    pub(super) assigned: Arc<AtomicU32>,
    pub(super) stop: Arc<AtomicBool>,
    /// Prepare all of them at once.
    pub(super) all: bool,
}

/// Starts the thread. Unpark it after a change of what it shares.
pub(super) fn spawn(preparing: Preparing) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("kvd-prepare".into()).spawn(move || {
        let mut next = 0;
        let mut failing = false;
        // Relaxed: both are hints, and the unpark that follows a change orders them anyway.
        while !preparing.stop.load(Ordering::Relaxed) {
            let segments = preparing.files.segments();
            let wanted = preparing.assigned.load(Ordering::Relaxed).saturating_add(AHEAD).min(segments);
            if next >= if preparing.all { segments } else { wanted } {
                thread::park();
                continue;
            }
            match prepare(&preparing.files, SegmentId(next)) {
                Ok(()) => {
                    next += 1;
                    failing = false;
                }
                Err(error) => {
                    if !failing {
                        tracing::error!(segment = next, error, "an arena segment cannot be prepared");
                    }
                    failing = true;
                    thread::park_timeout(RETRY);
                }
            }
        }
    })
}

fn prepare(files: &SegmentFiles, segment: SegmentId) -> Result<(), String> {
    let open = files.prepare(segment).map_err(|error| error.to_string())?;
    // A new one and one of an earlier version have small pages, which every engine that maps it would have to bring in, and
    // pin, one by one.
    let _ = open.memory().collapse();
    open.memory().populate().map_err(|error| error.to_string())
}
