//! The arena while it is in use: the table kept by one owner, the segments behind it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvd_nixl::sys::{Mapping, MappingError, Memory, OfdLock};
use kvd_proto::{Epoch, InstanceId};

use crate::ids::{ClientSlot, SEGMENT_BYTES, SegmentId, SlotEntry, SlotId, TenantId};
use crate::ladder::SlotTable;

use super::entry::{EntrySeal, SegmentHeader, is_slot_bytes, vacate_entry, write_entry, write_segment};
use super::files::{SegmentError, SegmentFiles, allocate};
use super::layout::{ClientEntry, ENTRY_WORDS, Superblock, block_range, entry_word, pins_word, write_client};
use super::words::Words;

/// Why an arena cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// A file or folder could not be made, opened or allocated.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder belongs to somebody else.
    #[error("{} belongs to user {owner}: use a folder of the user that kvd runs as", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Another daemon uses the folder.
    #[error("{} is in use by another kvd: stop it, or give this one another folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A later version of kvd wrote the table.
    #[error(
        "{} has format version {found}, this kvd knows versions up to {known}: run the newer kvd, or remove the folder",
        path.display()
    )]
    NewerVersion {
        /// The folder.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The table could not be mapped.
    #[error("{}: {source}", path.display())]
    Map {
        /// The table file.
        path: PathBuf,
        /// Why.
        source: MappingError,
    },
    /// A segment's file cannot be used.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

/// An engine process that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientProcess {
    /// Its number as the daemon sees it; 0 when it cannot.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// The engine that it is part of.
    pub instance: InstanceId,
}

/// The mapped table file. Every word is one atomic store.
#[derive(Clone, Debug)]
pub(super) struct MappedWords(pub(super) Arc<Mapping>);

impl Words for MappedWords {
    fn load(&self, index: usize) -> u64 {
        // Pairs with the Release of a predecessor's stores; within this process there is one owner.
        u64::from_le(self.0.atomic_u64(index * 8).load(Ordering::Acquire))
    }

    fn store(&self, index: usize, value: u64) {
        // Release keeps the order of the stores, which is what a successor relies on.
        self.0.atomic_u64(index * 8).store(value.to_le(), Ordering::Release);
    }

    fn set_bits(&self, index: usize, bits: u64) {
        // AcqRel: ordered against the stores to entries before and after, as above.
        self.0.atomic_u64(index * 8).fetch_or(bits.to_le(), Ordering::AcqRel);
    }

    fn clear_bits(&self, index: usize, bits: u64) {
        // AcqRel: as in set_bits.
        self.0.atomic_u64(index * 8).fetch_and(!bits.to_le(), Ordering::AcqRel);
    }
}

/// The DRAM tier's memory and the table that says what lies in it.
///
/// One owner, mostly the ladder, to which it is the [`SlotTable`]. The segment files are shared with the threads that
/// prepare segments and hand out descriptors.
#[derive(Debug)]
pub struct Arena {
    pub(super) folder: PathBuf,
    pub(super) table_file: File,
    pub(super) words: MappedWords,
    pub(super) superblock: Superblock,
    /// What the table's segment headers say; `None` where there is none.
    pub(super) headers: Vec<Option<SegmentHeader>>,
    pub(super) files: Arc<SegmentFiles>,
    /// Segments that could not be made when they were assigned: assigned for the ladder, without memory here.
    pub(super) failed: BTreeMap<SegmentId, ArenaError>,
    /// Held until the last use of the table file is gone.
    pub(super) _lock: OfdLock,
}

impl Arena {
    /// This daemon's epoch.
    pub fn epoch(&self) -> Epoch {
        self.superblock.epoch
    }

    /// Segments that there may be: `SegmentId(0)` to one less.
    pub fn segments(&self) -> u32 {
        self.files.segments()
    }

    /// The segment files, for the threads that prepare them and hand out descriptors.
    pub fn files(&self) -> &Arc<SegmentFiles> {
        &self.files
    }

    /// To whom a segment belongs, and the bytes of its slots, if it is in use.
    pub fn assignment(&self, segment: SegmentId) -> Option<(TenantId, u32)> {
        self.header(segment).map(|header| (header.tenant, header.slot_bytes))
    }

    /// The clients that hold a slot, one bit each.
    pub fn pins(&self, slot: SlotId) -> u64 {
        self.backed(slot).map_or(0, |_| self.words.load(pins_word(slot)))
    }

    /// Writes down a process that joins, before it is given anything to hold.
    pub fn join(&mut self, client: ClientSlot, process: &ClientProcess) {
        let entry = ClientEntry {
            pid: process.pid,
            start_time: process.start_time,
            instance: process.instance,
            epoch: self.superblock.epoch,
        };
        write_client(&self.words, &self.superblock.uuid, client, Some(&entry));
    }

    /// Forgets a process that holds nothing any more.
    pub fn leave(&mut self, client: ClientSlot) {
        write_client(&self.words, &self.superblock.uuid, client, None);
    }

    /// Segments whose bytes are lost: the file was cut short by somebody, or could not be made when it was assigned.
    /// Nothing in them can be trusted; the owner drops their records, then [gives them up](Arena::give_up).
    pub fn lost(&self) -> impl Iterator<Item = SegmentId> + '_ {
        (0..self.segments()).map(SegmentId).filter(|segment| {
            self.header(*segment).is_some() && self.files.get(*segment).is_none_or(|open| open.poisoned())
        })
    }

    /// Why a segment is lost, where it could not be made.
    pub fn failure(&self, segment: SegmentId) -> Option<&ArenaError> {
        self.failed.get(&segment)
    }

    /// Gives a segment up with everything in it and returns its memory to the system.
    pub fn give_up(&mut self, segment: SegmentId) {
        if segment.0 < self.segments() {
            self.retire(segment);
            self.failed.remove(&segment);
            self.files.discard(segment);
        }
    }

    pub(super) fn header(&self, segment: SegmentId) -> Option<&SegmentHeader> {
        self.headers.get(segment.0 as usize)?.as_ref().filter(|header| header.assigned)
    }

    /// The segment's header; `None` where the segment has no memory behind it.
    fn backed(&self, slot: SlotId) -> Option<SegmentHeader> {
        let header = *self.header(slot.segment()).expect("only slots of assigned segments are used");
        assert!(slot.index() < header.slots(), "{slot:?} lies beyond its segment");
        (!self.failed.contains_key(&slot.segment())).then_some(header)
    }

    /// From now on the segment's slots mean nothing. Its file stays.
    fn retire(&mut self, segment: SegmentId) {
        if let Some(header) = &mut self.headers[segment.0 as usize] {
            header.assigned = false;
            write_segment(&self.words, &self.superblock.uuid, segment, header);
        }
    }

    fn try_assign(&mut self, segment: SegmentId, header: &SegmentHeader) -> Result<(), ArenaError> {
        let before = self.headers[segment.0 as usize];
        let open = self.files.get(segment);
        let fresh = open.as_ref().is_some_and(|open| open.take_fresh());
        let same_tenant =
            open.is_some_and(|open| !open.poisoned()) && before.is_some_and(|before| before.tenant == header.tenant);
        self.retire(segment);
        if !fresh && !same_tenant {
            self.files.create(segment)?.take_fresh();
        }
        let (offset, len) = block_range(segment, header.slots());
        let path = || self.folder.join("table");
        allocate(&self.table_file, offset, len).map_err(|source| ArenaError::File { path: path(), source })?;
        let first = entry_word(SlotId::new(segment, 0));
        for word in first..first + header.slots() as usize * ENTRY_WORDS {
            self.words.store(word, 0);
        }
        write_segment(&self.words, &self.superblock.uuid, segment, header);
        Ok(())
    }
}

impl SlotTable for Arena {
    fn write(&mut self, slot: SlotId, entry: &SlotEntry) {
        let Some(header) = self.backed(slot) else { return };
        assert!(entry.tenant == header.tenant, "{slot:?} belongs to another tenant");
        write_entry(&self.words, &EntrySeal { uuid: self.superblock.uuid, header }, slot, entry);
    }

    fn vacate(&mut self, slot: SlotId, generation: u32) {
        if self.backed(slot).is_some() {
            vacate_entry(&self.words, slot, generation);
        }
    }

    fn pin(&mut self, slot: SlotId, client: ClientSlot) {
        if self.backed(slot).is_some() {
            self.words.set_bits(pins_word(slot), client.bit());
        }
    }

    fn unpin(&mut self, slot: SlotId, client: ClientSlot) {
        if self.backed(slot).is_some() {
            self.words.clear_bits(pins_word(slot), client.bit());
        }
    }

    /// A segment that had another tenant gets a new, zero file first: an engine of the old tenant that still maps the
    /// old one sees nothing of the new. Making a file takes tens of milliseconds; [`SegmentFiles::prepare`] does it ahead.
    /// Where that fails the segment counts as [lost](Arena::lost).
    fn assign_segment(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool {
        assert!(segment.0 < self.segments() && is_slot_bytes(slot_bytes), "{segment:?} cut by {slot_bytes}");
        let generation = self.headers[segment.0 as usize].map_or(0, |before| before.generation).wrapping_add(1);
        let header = SegmentHeader { assigned: true, slot_bytes, tenant, generation };
        let result = self.try_assign(segment, &header);
        self.headers[segment.0 as usize] = Some(header);
        self.failed.remove(&segment);
        let assigned = result.is_ok();
        if let Err(error) = result {
            self.files.discard(segment);
            self.failed.insert(segment, error);
        }
        assigned
    }

    /// Releases the segment's memory, also where engines of its old tenant still map it.
    fn scrub(&mut self, segment: SegmentId) {
        self.give_up(segment);
    }
}

/// Segments for so many bytes: whole ones, at least one, at most what the SIGBUS guard watches (32 768 mappings, some of
/// which are left to sessions).
pub(super) fn segments_for(capacity_bytes: u64) -> u32 {
    u32::try_from((capacity_bytes / u64::from(SEGMENT_BYTES)).clamp(1, 32_000)).expect("clamped")
}
