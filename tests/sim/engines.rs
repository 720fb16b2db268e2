//! Engine processes: what they hold, and how they look at what they were given.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::sys::Memory;
use kvd_proto::wire::slab::{Granted, Landed};
use kvd_proto::{InstanceId, Time};
use kvd_tiers::record::{SECTOR_BYTES, Scratch};
use kvd_tiers::{ClientSlot, LeaseId, RequestId, SegmentId, SlotId, TenantId, ViewId};

use crate::blocks::{Block, Names, extent, unit_checksums};
use crate::table::Table;

/// A place in an arena segment that a process has mapped; it keeps its mapping whatever the daemon does.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) slot: SlotId,
    file: Arc<dyn Memory>,
    offset: usize,
}

/// A block that landed and that the process may still read.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) block: Block,
    /// Its place in the lease.
    pub(crate) index: u32,
    pub(crate) place: Place,
    landed: Landed,
}

/// A matched prefix under a lease, the process's own or that of a sibling.
pub(crate) struct Prefix {
    pub(crate) lease: LeaseId,
    pub(crate) blocks: Vec<Block>,
    pub(crate) held: Vec<Held>,
}

/// A slot to fill.
#[derive(Clone)]
pub(crate) struct Grant {
    pub(crate) index: u32,
    pub(crate) block: Block,
    pub(crate) place: Place,
    pub(crate) generation: u32,
    pub(crate) seed: u64,
    pub(crate) written: bool,
}

pub(crate) struct Fill {
    pub(crate) lease: LeaseId,
    pub(crate) grants: Vec<Grant>,
}

/// A client process of an engine instance.
pub(crate) struct Process {
    pub(crate) alive: bool,
    pub(crate) instance: InstanceId,
    pub(crate) tenant: TenantId,
    pub(crate) client: ClientSlot,
    /// The epoch that it joined; another than the daemon's: it has yet to notice.
    pub(crate) epoch: u64,
    pub(crate) views: Vec<(usize, ViewId)>,
    pub(crate) prefixes: Vec<Prefix>,
    pub(crate) fills: Vec<Fill>,
}

/// A load that waits for its answer.
pub(crate) struct Waiting {
    pub(crate) process: usize,
    pub(crate) lease: LeaseId,
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) deadline: Time,
    pub(crate) got: u32,
}

pub(crate) type Loads = BTreeMap<RequestId, Waiting>;

/// What a copy out of the arena came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// Verified and right.
    Right,
    /// The client's verification refused it.
    Refused,
    /// Verified, and not the bytes of that block.
    Wrong,
}

impl Place {
    fn at(table: &Table, segment: u32, offset: u64, slot_bytes: u32) -> Self {
        assert!(offset.is_multiple_of(u64::from(slot_bytes)), "a slot starts at {offset}");
        let segment = SegmentId(segment);
        let slot = SlotId::new(segment, (offset / u64::from(slot_bytes)) as u32);
        let file = table.file(segment).expect("a segment that was handed out has a file");
        Self { slot, file, offset: offset as usize }
    }

    pub(crate) fn landed(table: &Table, landed: &Landed) -> Self {
        Self::at(table, landed.segment, landed.offset, landed.slot_bytes)
    }

    pub(crate) fn granted(table: &Table, granted: &Granted) -> Self {
        Self::at(table, granted.segment, granted.offset, granted.slot_bytes)
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        extent(&self.file, self.offset + at, bytes.len()).write(0, bytes).expect("inside the slot");
    }

    pub(crate) fn payload(&self, len: usize) -> kvd_nixl::sys::MemoryExtent {
        extent(&self.file, self.offset + SECTOR_BYTES, len)
    }
}

impl Held {
    pub(crate) fn new(table: &Table, block: Block, index: u32, landed: Landed) -> Self {
        Self { block, index, place: Place::landed(table, &landed), landed }
    }

    /// Copies the block out and verifies it by what the daemon said, as the client library does; then by what it must be.
    pub(crate) fn copy(&self, names: &Names, scratch: &mut Scratch) -> Copied {
        let lane = &names.lanes[self.block.lane];
        let slot = extent(&self.place.file, self.place.offset, SECTOR_BYTES + lane.payload_bytes as usize);
        let Ok(sealed) = scratch.read(&slot) else { return Copied::Refused };
        let record = &sealed.metadata;
        let expected = sealed.meta_checksum == self.landed.meta_checksum
            && record.generation == self.landed.generation
            && record.payload_bytes == lane.payload_bytes
            && record.unit_bytes == lane.unit_bytes
            && record.algorithm == ChecksumAlgorithm::Xxh3;
        let payload = self.place.payload(lane.payload_bytes as usize);
        let found = unit_checksums(&payload, lane.unit_bytes, self.landed.seed);
        let same = found.len() == record.checksums.len()
            && found.iter().enumerate().all(|(unit, checksum)| record.checksums.get(unit) == *checksum);
        if !expected || !same {
            return Copied::Refused;
        }
        let mut bytes = vec![0; lane.payload_bytes as usize];
        payload.read(0, &mut bytes).expect("inside the slot");
        let own = record.hash == names.hash(self.block)
            && record.namespace == lane.namespace
            && record.key == names.key(self.block)
            && record.position == self.block.position;
        if own && names.is(self.block, &bytes) { Copied::Right } else { Copied::Wrong }
    }
}

impl Process {
    /// Slots that it may touch at any moment.
    pub(crate) fn slots(&self) -> impl Iterator<Item = SlotId> {
        let held = self.prefixes.iter().flat_map(|prefix| &prefix.held).map(|held| held.place.slot);
        let filling = self.fills.iter().flat_map(|fill| &fill.grants).map(|grant| grant.place.slot);
        held.chain(filling)
    }

    /// Lets go of everything without a word: it has noticed that the daemon is another.
    pub(crate) fn forget(&mut self) {
        self.views.clear();
        self.prefixes.clear();
        self.fills.clear();
    }
}
