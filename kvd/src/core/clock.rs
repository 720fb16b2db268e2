//! The one clock of the daemon's shells.

use kvd_proto::Time;
use rustix::time::{ClockId, clock_gettime};

/// Monotonic time; survives a restart of the daemon within one boot, and no step of the wall clock touches it.
pub(crate) fn now() -> Time {
    let now = clock_gettime(ClockId::Monotonic);
    Time::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
