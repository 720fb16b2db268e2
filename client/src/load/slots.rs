//! Slots that the daemon has named: mapped, and their metadata checked against what it said of them.

use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::sys::MemoryExtent;
use kvd_proto::wire::slab::{LANDED_BYTES, Landed, LandedStatus};
use kvd_proto::{MissReason, Tier};

use super::Source;
use super::copying::Stop;
use crate::link::Call;
use crate::metadata::{Expected, read_checksums};
use crate::segments::Segment;
use crate::session::{CopyGuard, Session};
use crate::view::Opened;

/// A record in the arena, pinned for this process.
pub(super) struct Slot {
    pub(super) payload: MemoryExtent,
    pub(super) segment: Arc<Segment>,
    pub(super) tier: Option<Tier>,
    pub(super) seed: u64,
    pub(super) algorithm: ChecksumAlgorithm,
}

/// Opens slots of one shard: memory that is used again for each, and segments that were looked at.
pub(super) struct Slots<'a> {
    source: &'a Source<'a>,
    pub(super) session: &'a Session,
    opened: Opened,
    scratch: Vec<u8>,
    /// Checksums of all units of the slot that was opened last.
    pub(super) sums: Vec<u64>,
    segments: Vec<(u32, Arc<Segment>)>,
    pub(super) deadline: Instant,
}

impl<'a> Slots<'a> {
    pub(super) fn new(source: &'a Source<'a>, session: &'a Session, opened: Opened, deadline: Instant) -> Self {
        Self { source, session, opened, scratch: Vec::new(), sums: Vec::new(), segments: Vec::new(), deadline }
    }

    /// The slot of a block that has landed, and the permission to read it.
    pub(super) fn open(&mut self, call: &Call<'_>, index: usize) -> Result<(Slot, CopyGuard<'a>), Stop> {
        let landed = read_landed(call, index).ok_or(Stop::Miss(MissReason::TierDown))?;
        if landed.status == LandedStatus::Missed {
            return Err(Stop::Miss(landed.reason.unwrap_or(MissReason::Cold)));
        }
        if Instant::now() >= self.deadline {
            return Err(Stop::Miss(MissReason::Timeout));
        }
        let segment = self.segment(landed.segment)?;
        let reading = self.session.begin_copy().ok_or(Stop::Miss(MissReason::TierDown))?;
        let (inner, meta_bytes) = (&self.source.view.inner, self.opened.meta_bytes);
        let payload_bytes = inner.payload_bytes as usize;
        let slot = (meta_bytes + payload_bytes <= landed.slot_bytes as usize)
            .then(|| segment.extent(landed.offset, landed.slot_bytes as usize))
            .flatten()
            .ok_or(Stop::Miss(MissReason::TierDown))?;
        let (Ok(metadata), Ok(payload)) = (slot.part(0, meta_bytes), slot.part(meta_bytes, payload_bytes)) else {
            return Err(Stop::Miss(MissReason::TierDown));
        };
        let expected = Expected {
            meta_checksum: landed.meta_checksum,
            generation: landed.generation,
            payload_bytes: inner.payload_bytes,
            unit_bytes: inner.units.unit_bytes,
            units: inner.units.count,
        };
        let algorithm = read_checksums(&metadata, &expected, &mut self.scratch, &mut self.sums);
        let algorithm = algorithm.ok_or(Stop::Corrupt(0))?;
        Ok((Slot { payload, segment, tier: landed.tier, seed: landed.seed, algorithm }, reading))
    }

    fn segment(&mut self, number: u32) -> Result<Arc<Segment>, Stop> {
        if let Some((_, open)) = self.segments.iter().find(|(found, _)| *found == number) {
            return Ok(open.clone());
        }
        let open = self.session.segment(number, self.deadline)?;
        self.segments.push((number, open.clone()));
        Ok(open)
    }
}

fn read_landed(call: &Call<'_>, index: usize) -> Option<Landed> {
    let mut bytes = [0; LANDED_BYTES];
    call.slab().read(index * LANDED_BYTES, &mut bytes).ok()?;
    Landed::decode(&bytes).ok()
}
