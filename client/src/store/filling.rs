//! Slots being filled, and what the commit will say of them.

use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::device::RecordMove;
use kvd_nixl::sys::copy::Units;
use kvd_proto::wire::slab::{Granted, put_commit};

use crate::convoy::Convoy;
use crate::layout::{BlockMemory, Place};
use crate::link::CallError;
use crate::segments::Segment;
use crate::session::Session;
use crate::view::{Opened, View};

/// The slots of one batch.
pub(super) struct Filling<'a> {
    /// What a device copies, each with the number of its grant. The first to go: slots and leases outlive it.
    pub(super) convoy: Convoy<'a, u32>,
    pub(super) view: &'a View,
    pub(super) session: &'a Session,
    pub(super) opened: Opened,
    pub(super) segments: Vec<(u32, Arc<Segment>)>,
    pub(super) commit: Vec<u8>,
    pub(super) count: u32,
}

impl<'a> Filling<'a> {
    /// Copies a block into its slot, or gives it to a device.
    pub(super) fn fill(
        &mut self,
        granted: &Granted,
        source: &BlockMemory<'a>,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let segment = self.segment(granted.segment, deadline)?;
        let (inner, meta_bytes) = (&self.view.inner, self.opened.meta_bytes);
        let payload_bytes = inner.payload_bytes as usize;
        let slot = (meta_bytes + payload_bytes <= granted.slot_bytes as usize)
            .then(|| segment.extent(granted.offset, granted.slot_bytes as usize))
            .flatten();
        let payload = slot.and_then(|slot| slot.part(meta_bytes, payload_bytes).ok()).ok_or(CallError::Timeout)?;
        match source.place() {
            Place::Host(source) => {
                let _copying = self.session.begin_copy().ok_or(CallError::Down)?;
                let algorithm = self.opened.algorithm;
                let units = Units { unit_bytes: inner.units.unit_bytes as usize, algorithm, seed: granted.seed };
                let mut checksums = vec![0; inner.units.count as usize];
                source.gather(&payload, &units, &mut checksums).map_err(|_| CallError::Timeout)?;
                put_commit(&mut self.commit, granted.index, &checksums);
                self.count += 1;
            }
            Place::Device { lane, index } => {
                if self.opened.algorithm != ChecksumAlgorithm::Xxh3 {
                    return Err(CallError::Device);
                }
                let pinned = segment.pin(lane).ok_or(CallError::Device)?;
                let one = RecordMove { host: payload, pinned: Some(pinned), index: *index, seed: granted.seed };
                self.convoy.add(lane, one, granted.index, deadline)?;
            }
        }
        Ok(())
    }

    /// Lets a device begin with all that it was given.
    pub(super) fn send(&mut self, deadline: Instant) -> Result<(), CallError> {
        self.convoy.send(deadline)
    }

    /// Waits for the device. What the commit says, of how many blocks.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, u32), CallError> {
        while let Some(moved) = self.convoy.next()? {
            put_commit(&mut self.commit, moved.tag, &moved.sums);
            self.count += 1;
        }
        Ok((self.commit, self.count))
    }

    fn segment(&mut self, number: u32, deadline: Instant) -> Result<Arc<Segment>, CallError> {
        if let Some((_, open)) = self.segments.iter().find(|(found, _)| *found == number) {
            return Ok(open.clone());
        }
        let open = self.session.segment(number, deadline)?;
        self.segments.push((number, open.clone()));
        Ok(open)
    }
}
