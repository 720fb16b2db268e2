//! The arena of a world: its table and its memory, both of which outlive the daemon as tmpfs does.
//!
//! The table can be rewound to any point within the daemon's last call: a SIGKILL strikes between two stores.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_tiers::ladder::SlotTable;
use kvd_tiers::{
    ClientSlot, FencedSlot, RestoredPlace, RestoredRecord, RestoredSegment, SEGMENT_BYTES, SegmentId, SlotEntry,
    SlotId, SlotState, TenantId,
};

use crate::blocks::extent;
use crate::random::Random;

/// What the table says about a slot.
#[derive(Clone, Debug, Default)]
struct Words {
    entry: Option<SlotEntry>,
    generation: u32,
    pins: u64,
}

#[derive(Clone, Debug)]
struct Segment {
    tenant: TenantId,
    slot_bytes: u32,
    slots: Vec<Words>,
}

enum Undo {
    Slot(SlotId, Words),
    Segment(SegmentId, Option<Segment>),
}

#[derive(Default)]
struct Arena {
    segments: BTreeMap<SegmentId, Segment>,
    /// The files, and whose bytes they may hold.
    files: BTreeMap<SegmentId, (Arc<dyn Memory>, TenantId)>,
    undo: Vec<Undo>,
    /// Rules of the port that the ladder broke.
    broken: Option<String>,
}

/// The handle that the ladder owns; clones are the same arena.
#[derive(Clone, Default)]
pub(crate) struct Table(Rc<RefCell<Arena>>);

/// What a successor finds.
pub(crate) struct Found {
    pub(crate) segments: Vec<RestoredSegment>,
    pub(crate) fenced: Vec<FencedSlot>,
    pub(crate) records: Vec<RestoredRecord>,
}

impl Arena {
    fn slot(&mut self, slot: SlotId) -> &mut Words {
        let segment = self.segments.get_mut(&slot.segment()).expect("only slots of assigned segments are used");
        let found = segment.slots.get_mut(slot.index() as usize).expect("a slot lies in its segment");
        self.undo.push(Undo::Slot(slot, found.clone()));
        found
    }
}

impl Table {
    /// From here on a kill may rewind.
    pub(crate) fn mark(&self) {
        self.0.borrow_mut().undo.clear();
    }

    /// Stores of the last call from some point on never happened.
    pub(crate) fn rewind(&self, random: &mut Random) {
        let mut arena = self.0.borrow_mut();
        let keep = random.index(arena.undo.len() + 1);
        while arena.undo.len() > keep {
            match arena.undo.pop().expect("more than keep") {
                Undo::Slot(slot, words) => {
                    if let Some(segment) = arena.segments.get_mut(&slot.segment()) {
                        segment.slots[slot.index() as usize] = words;
                    }
                }
                Undo::Segment(segment, Some(before)) => drop(arena.segments.insert(segment, before)),
                Undo::Segment(segment, None) => drop(arena.segments.remove(&segment)),
            }
        }
    }

    /// The first broken rule, if any.
    pub(crate) fn broken(&self) -> Option<String> {
        self.0.borrow().broken.clone()
    }

    /// The first `len` bytes of a slot.
    pub(crate) fn extent(&self, slot: SlotId, len: usize) -> Option<MemoryExtent> {
        let arena = self.0.borrow();
        let slot_bytes = arena.segments.get(&slot.segment())?.slot_bytes;
        let (file, _) = arena.files.get(&slot.segment())?;
        Some(extent(file, slot.index() as usize * slot_bytes as usize, len))
    }

    /// The memory of a segment, as a client maps it: it keeps what it mapped.
    pub(crate) fn file(&self, segment: SegmentId) -> Option<Arc<dyn Memory>> {
        self.0.borrow().files.get(&segment).map(|(file, _)| Arc::clone(file))
    }

    pub(crate) fn pins(&self, slot: SlotId) -> u64 {
        let arena = self.0.borrow();
        let segment = arena.segments.get(&slot.segment());
        segment.and_then(|found| found.slots.get(slot.index() as usize)).map_or(0, |words| words.pins)
    }

    /// Slots that `client` has pinned.
    pub(crate) fn pinned_by(&self, client: ClientSlot) -> Vec<SlotId> {
        let arena = self.0.borrow();
        let mut all = Vec::new();
        for (id, segment) in &arena.segments {
            let pinned = segment.slots.iter().enumerate().filter(|(_, words)| words.pins & client.bit() != 0);
            all.extend(pinned.map(|(index, _)| SlotId::new(*id, index as u32)));
        }
        all
    }

    /// Slots with a sealed record, and the record.
    pub(crate) fn resident(&self) -> Vec<(SlotId, SlotEntry)> {
        let arena = self.0.borrow();
        let mut all = Vec::new();
        for (id, segment) in &arena.segments {
            for (index, words) in segment.slots.iter().enumerate() {
                if let Some(entry) = words.entry.as_ref().filter(|entry| entry.state == SlotState::Resident) {
                    all.push((SlotId::new(*id, index as u32), entry.clone()));
                }
            }
        }
        all
    }

    /// (slots being filled, slots with a pin).
    pub(crate) fn unsettled(&self) -> (usize, usize) {
        let arena = self.0.borrow();
        let slots = || arena.segments.values().flat_map(|segment| &segment.slots);
        let filling = |words: &&Words| words.entry.as_ref().is_some_and(|entry| entry.state == SlotState::Filling);
        (slots().filter(filling).count(), slots().filter(|words| words.pins != 0).count())
    }

    /// What a successor finds when only the clients in `alive` live: as the production arena's sweep at open.
    pub(crate) fn sweep(&self, alive: u64) -> Found {
        let mut arena = self.0.borrow_mut();
        arena.undo.clear();
        let mut found = Found { segments: Vec::new(), fenced: Vec::new(), records: Vec::new() };
        for (id, segment) in &mut arena.segments {
            let mut generation_max = 0;
            for (index, words) in segment.slots.iter_mut().enumerate() {
                let slot = SlotId::new(*id, index as u32);
                words.pins &= alive;
                if words.pins != 0 {
                    found.fenced.push(FencedSlot { slot, clients: words.pins });
                }
                if let Some(entry) = words.entry.take() {
                    words.generation = entry.generation;
                    if entry.state == SlotState::Resident {
                        let (place, slot_bytes) = (RestoredPlace::Dram(slot), segment.slot_bytes);
                        found.records.push(RestoredRecord { place, slot_bytes, entry: entry.clone() });
                        words.entry = Some(entry);
                    }
                }
                generation_max = generation_max.max(words.generation);
            }
            let (tenant, slot_bytes) = (segment.tenant, segment.slot_bytes);
            found.segments.push(RestoredSegment { segment: *id, tenant, slot_bytes, generation_max });
        }
        found
    }
}

impl SlotTable for Table {
    fn write(&mut self, slot: SlotId, entry: &SlotEntry) {
        let mut arena = self.0.borrow_mut();
        let tenant = arena.segments.get(&slot.segment()).map(|segment| segment.tenant);
        let words = arena.slot(slot);
        let reused = entry.state == SlotState::Filling && words.generation == entry.generation;
        let stale = entry.state == SlotState::Resident && words.entry.is_none();
        words.generation = entry.generation;
        words.entry = Some(entry.clone());
        if tenant != Some(entry.tenant) {
            arena.broken = Some(format!("{slot:?} of {tenant:?} gets a record of {:?}", entry.tenant));
        }
        // A fetched copy keeps its generation, so only another record's may never be the slot's last.
        if stale || reused && entry.generation == 0 {
            arena.broken = Some(format!("{slot:?} becomes {entry:?} without a filling"));
        }
    }

    fn vacate(&mut self, slot: SlotId, generation: u32) {
        let mut arena = self.0.borrow_mut();
        let words = arena.slot(slot);
        // The generation of a slot only ever grows (and wraps).
        let unchanged = generation == words.generation || generation.wrapping_sub(words.generation) > 1 << 31;
        words.entry = None;
        words.generation = generation;
        if unchanged {
            arena.broken = Some(format!("{slot:?} is vacated without a new generation"));
        }
    }

    fn pin(&mut self, slot: SlotId, client: ClientSlot) {
        self.0.borrow_mut().slot(slot).pins |= client.bit();
    }

    fn unpin(&mut self, slot: SlotId, client: ClientSlot) {
        self.0.borrow_mut().slot(slot).pins &= !client.bit();
    }

    fn assign_segment(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool {
        let mut arena = self.0.borrow_mut();
        let before = arena.segments.remove(&segment);
        let used = |words: &&Words| words.entry.is_some() || words.pins != 0;
        let in_use =
            before.as_ref().and_then(|before| before.slots.iter().find(used)).map(|words| format!("{words:?}"));
        arena.undo.push(Undo::Segment(segment, before));
        let slots = vec![Words::default(); (SEGMENT_BYTES / slot_bytes) as usize];
        arena.segments.insert(segment, Segment { tenant, slot_bytes, slots });
        if let Some(words) = in_use {
            arena.broken = Some(format!("{segment:?} is assigned while in use: {words}"));
        }
        match arena.files.get_mut(&segment) {
            Some((_, owner)) if *owner == tenant => {}
            // The production arena makes a new file when the tenant changes.
            Some(_) | None => {
                let fresh: Arc<dyn Memory> = Arc::new(Region::new(SEGMENT_BYTES as usize).expect("address space"));
                arena.files.insert(segment, (fresh, tenant));
            }
        }
        true
    }

    fn scrub(&mut self, segment: SegmentId) {
        let mut arena = self.0.borrow_mut();
        arena.files.remove(&segment);
        let before = arena.segments.remove(&segment);
        arena.undo.push(Undo::Segment(segment, before));
    }
}
