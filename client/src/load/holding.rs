//! Slots of all blocks of a load, from each shard that they are copied from: held before the first byte is copied.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::device::PinnedMemory;
use kvd_proto::MissReason;
use kvd_proto::wire::ring::Status;

use super::Source;
use super::copying::{Stop, report};
use super::slots::{Slot, Slots};

/// A block's slot in one source.
pub(super) struct Held {
    pub(super) slot: Slot,
    /// Once a device has used it.
    pub(super) pinned: Option<Arc<PinnedMemory>>,
    /// Checksums of all its units.
    pub(super) sums: Vec<u64>,
    pub(super) lease: u64,
    /// In the lease.
    pub(super) position: u32,
}

/// Waits until blocks of a source lie in the arena: those that do, and why no more. A copy that is not what it should be was
/// reported.
pub(super) fn hold(source: &Source<'_>, blocks: Range<u32>, deadline: Instant) -> (Vec<Held>, Option<Stop>) {
    let mut held: Vec<Held> = Vec::new();
    while held.len() < blocks.len() {
        let position = blocks.start + held.len() as u32;
        let Some(part) = source.found.parts.iter().find(|part| part.blocks.contains(&position)) else {
            return (held, Some(Stop::Miss(source.found.reason().unwrap_or(MissReason::LeaseLost))));
        };
        let asked = position..blocks.end.min(part.blocks.end);
        let first = position - part.blocks.start;
        if let Err(stop) = hold_part(source, part.lease, first, asked.len() as u32, deadline, &mut held) {
            if let Stop::Corrupt(_) = stop {
                // Whether the daemon has heard it or not, the block is none.
                let at = blocks.start + held.len() as u32 - part.blocks.start;
                let _ = report(source, part.lease, at, deadline);
            }
            return (held, Some(stop));
        }
    }
    (held, None)
}

fn hold_part(
    source: &Source<'_>,
    lease: u64,
    first: u32,
    count: u32,
    deadline: Instant,
    held: &mut Vec<Held>,
) -> Result<(), Stop> {
    let asked = source.ask(lease, first, count, deadline, |link| link.call(deadline))?;
    let (mut call, mut slots) = (asked.call, Slots::new(source, asked.session, asked.opened, deadline));
    let mut taken = 0;
    loop {
        let answer = call.next()?;
        while taken < answer.count.min(count) {
            let (slot, _) = slots.open(&call, taken as usize)?;
            let sums = std::mem::take(&mut slots.sums);
            held.push(Held { slot, pinned: None, sums, lease, position: first + taken });
            taken += 1;
        }
        match answer.status {
            Status::Partial => {}
            Status::Ok if taken == count => return Ok(()),
            Status::Ok | Status::Refused | Status::BadRequest => {
                return Err(Stop::Miss(answer.reason.unwrap_or(MissReason::LeaseLost)));
            }
        }
    }
}
