//! The seam between kvd and its disks.
//!
//! Whoever moves bytes between memory and a file does it through [`Io`]: submit, poll, wait. One owner, no lock, no
//! hidden thread that decides anything; so the same device code runs over io_uring in the daemon, over a thread pool
//! where a container forbids io_uring, and over a simulated disk that loses, tears and reorders writes in tests.
//!
//! What every implementation promises (the conformance suite in `nixl/tests` checks it for each of them):
//!
//! * **Whole or error.** `Ok` means that every byte of the extent moved. A short read or write is
//!   [`IoError::Short`], never retried behind the caller's back and never reported as success.
//! * **Holds.** An operation owns its memory until the kernel, or the simulated device, is done with it. Dropping an
//!   `Io` waits for what is in flight first.
//! * **Back-pressure.** A full queue gives the operation back; nothing grows.
//! * **No order.** Operations in flight together may run in any order. [`IoKind::Sync`] covers the writes whose
//!   completions had been *taken by `poll`* before it was submitted, and no others.

mod blocking;
mod fault;
mod file;
mod op;
mod random;
mod sim;
mod uring;
mod waker;

use std::sync::Arc;
use std::time::Duration;

pub use blocking::{BlockingIo, BlockingOptions};
pub use fault::{Fault, FaultControl, FaultIo, FaultPlan, FaultRule, FaultTrigger};
pub use file::{DIRECT_ALIGNMENT, FILES_MAX, FileOptions, IoFile, TooManyFiles};
pub use op::{FileId, IoDone, IoError, IoKind, IoOp};
pub use random::Seeded;
pub use sim::{SimDisk, SimIo, SimOptions};
pub use uring::{UringError, UringIo, UringOptions, UringState};
pub use waker::IoWaker;

use crate::sys::Memory;

/// A queue of reads, writes and syncs with a single owner. See the [module documentation](self) for the promises.
pub trait Io {
    /// Takes the operation, or gives it back when the queue is full (poll, then try again).
    ///
    /// An operation that cannot be started for another reason (unknown file, sync with memory) is taken and fails
    /// with its completion, so that there is one path for errors.
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp>;

    /// Starts what was submitted and appends every completion that is ready. Never waits.
    fn poll(&mut self, done: &mut Vec<IoDone>);

    /// Starts what was submitted and sleeps until a completion is ready, a waker was used, or `timeout` is over
    /// (`None`: no limit). May return early; a wake-up that came before the call ends it at once. With nothing in
    /// flight only a wake-up or the timeout ends it.
    fn wait(&mut self, timeout: Option<Duration>);

    /// Operations taken by `submit` whose completion `poll` has not handed out yet.
    fn in_flight(&self) -> usize;

    /// A handle with which any thread ends the owner's `wait`.
    fn waker(&self) -> IoWaker;

    /// Tells the device about memory that will be used often, so that it may pin it once instead of per operation.
    /// `false`: not possible here (no such facility, table full, memlock limit); operations work all the same.
    fn register_memory(&mut self, memory: &Arc<dyn Memory>) -> bool {
        let _ = memory;
        false
    }

    /// Ends a registration; the memory is let go once no operation uses it.
    fn unregister_memory(&mut self, memory: &Arc<dyn Memory>) {
        let _ = memory;
    }
}
