//! The journal as it runs: group commit into pages, two halves, what is not yet in the table.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use kvd_nixl::sys::MemoryExtent;
use kvd_proto::Time;

use crate::ids::SlotEntry;
use crate::record::SECTOR_BYTES;

use super::entry::{ENTRY_BYTES, Entry, sequence_of, slot_of};
use super::geometry::{Geometry, Slot};
use super::page::{self, PAGE_ENTRIES};
use super::superblock::Uuid;

/// Pages on their way at a time. Few, so that entries gather while a page is under way.
pub(super) const PAGES_IN_FLIGHT: usize = 4;

/// The bytes of an entry, ready for page and table.
pub(super) type EntryBytes = [u8; ENTRY_BYTES];

/// An entry that wants to be journaled, and the move that waits for it.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) slot: Slot,
    pub(super) resident: Option<SlotEntry>,
    /// What seeds the entries of its zone.
    pub(super) seed: u64,
    pub(super) task: usize,
}

/// Life of a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HalfState {
    /// Its entries are in the table and durable: pages may be written over it.
    Clean,
    /// Pages are appended to it.
    Open,
    /// To be checkpointed.
    Full,
}

#[derive(Debug)]
struct Half {
    state: HalfState,
    /// The newest entry of each slot that this half changed. At most one per entry of its pages.
    pending: HashMap<u32, EntryBytes>,
}

/// A page under way, or room for one.
#[derive(Debug)]
struct Flying {
    busy: bool,
    half: usize,
    used: usize,
    tasks: [usize; PAGE_ENTRIES],
    entries: [EntryBytes; PAGE_ENTRIES],
}

/// A page to be written.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) page: usize,
    pub(super) offset: u64,
    pub(super) memory: MemoryExtent,
}

/// How long entries gather before a page leaves half empty.
const GATHER: Duration = Duration::from_millis(1);

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Journal {
    uuid: Uuid,
    geometry: Geometry,
    next: u64,
    halves: [Half; 2],
    /// Bounded by the moves of the device.
    waiting: VecDeque<Waiting>,
    /// When the first of `waiting` came.
    since: Time,
    flying: Box<[Flying]>,
    /// A sector for each page under way.
    buffers: MemoryExtent,
    sector: Box<[u8; SECTOR_BYTES]>,
}

/// The half of the ring in which the page of `sequence` stands.
pub(super) fn half_of(geometry: &Geometry, sequence: u64) -> usize {
    let pages = u64::from(geometry.journal_pages());
    usize::from(sequence % pages >= pages / 2)
}

/// Most entries that one half can hold.
pub(super) fn half_entries_max(geometry: &Geometry) -> usize {
    geometry.journal_pages() as usize / 2 * PAGE_ENTRIES
}

impl Journal {
    /// A journal that goes on at `next`, the start of a half, with what of each half the table does not have.
    pub(super) fn new(
        uuid: Uuid,
        geometry: Geometry,
        next: u64,
        pending: [HashMap<u32, EntryBytes>; 2],
        buffers: MemoryExtent,
    ) -> Self {
        debug_assert!(buffers.len() >= PAGES_IN_FLIGHT * SECTOR_BYTES);
        debug_assert!(next.is_multiple_of(u64::from(geometry.journal_pages() / 2)));
        let half = |mut pending: HashMap<u32, EntryBytes>| {
            let state = if pending.is_empty() { HalfState::Clean } else { HalfState::Full };
            pending.reserve(half_entries_max(&geometry).saturating_sub(pending.len()));
            Half { state, pending }
        };
        let blank = || {
            let entries = [[0; ENTRY_BYTES]; PAGE_ENTRIES];
            Flying { busy: false, half: 0, used: 0, tasks: [0; PAGE_ENTRIES], entries }
        };
        Self {
            uuid,
            geometry,
            next,
            halves: pending.map(half),
            waiting: VecDeque::new(),
            since: Time::ZERO,
            flying: std::iter::repeat_with(blank).take(PAGES_IN_FLIGHT).collect(),
            buffers,
            sector: Box::new([0; SECTOR_BYTES]),
        }
    }

    /// The sequence of the next page.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn push(&mut self, waiting: Waiting, now: Time) {
        if self.waiting.is_empty() {
            self.since = now;
        }
        self.waiting.push_back(waiting);
    }

    /// Whether nothing waits or is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flying.iter().all(|page| !page.busy)
    }

    /// Whether entries wait and the half they want is not yet checkpointed.
    pub(super) fn is_stalled(&self) -> bool {
        !self.waiting.is_empty() && self.halves[half_of(&self.geometry, self.next)].state == HalfState::Full
    }

    /// When a page will be due that is not due now.
    pub(super) fn due_at(&self) -> Option<Time> {
        let can = !self.waiting.is_empty() && !self.is_stalled() && self.flying.iter().any(|page| !page.busy);
        can.then(|| self.since + GATHER)
    }

    /// The next page, if one is due: full, or gathered long enough, or `at_once`.
    pub(super) fn next_page(&mut self, now: Time, at_once: bool) -> Option<Ready> {
        let due = self.waiting.len() >= PAGE_ENTRIES || at_once || self.due_at().is_some_and(|due| due <= now);
        if !due || self.waiting.is_empty() || self.is_stalled() {
            return None;
        }
        let page = self.flying.iter().position(|page| !page.busy)?;
        let half = half_of(&self.geometry, self.next);
        self.halves[half].state = HalfState::Open;
        let flying = &mut self.flying[page];
        (flying.busy, flying.half, flying.used) = (true, half, self.waiting.len().min(PAGE_ENTRIES));
        for (index, waiting) in self.waiting.drain(..flying.used).enumerate() {
            let entry = Entry { sequence: self.next, slot: waiting.slot, resident: waiting.resident };
            flying.entries[index] = entry.encode(waiting.seed);
            flying.tasks[index] = waiting.task;
        }
        page::encode(&self.uuid, self.next, &flying.entries[..flying.used], &mut self.sector[..]);
        let memory = self.buffers.part(page * SECTOR_BYTES, SECTOR_BYTES).expect("one sector for each page");
        memory.write(0, &self.sector[..]).expect("the part is one sector");
        let offset = self.geometry.page_at(self.next);
        self.next += 1;
        self.since = now;
        if half_of(&self.geometry, self.next) != half {
            self.halves[half].state = HalfState::Full;
        }
        Some(Ready { page, offset, memory })
    }

    /// A page ended; its entries count from now on if it `landed`. Returns who waited for it.
    pub(super) fn ended(&mut self, page: usize, landed: bool) -> &[usize] {
        let flying = &mut self.flying[page];
        debug_assert!(flying.busy);
        flying.busy = false;
        if landed {
            let pending = &mut self.halves[flying.half].pending;
            for entry in &flying.entries[..flying.used] {
                remember(pending, entry);
            }
        }
        &flying.tasks[..flying.used]
    }

    /// Takes back an entry that waits, when there is no hope to write it.
    pub(super) fn give_up(&mut self) -> Option<Waiting> {
        self.waiting.pop_front()
    }

    /// A half that wants a checkpoint and has no page under way.
    pub(super) fn full_half(&self) -> Option<usize> {
        let quiet = |half: usize| self.flying.iter().all(|page| !page.busy || page.half != half);
        (0..2).find(|half| self.halves[*half].state == HalfState::Full && quiet(*half))
    }

    /// What a half has that the table has not.
    pub(super) fn pending(&self, half: usize) -> &HashMap<u32, EntryBytes> {
        &self.halves[half].pending
    }

    /// The table has it all, durably.
    pub(super) fn cleaned(&mut self, half: usize) {
        debug_assert!(self.halves[half].state == HalfState::Full);
        self.halves[half].pending.clear();
        self.halves[half].state = HalfState::Clean;
    }
}

/// Keeps the newer entry of a slot; of one page the later.
pub(super) fn remember(pending: &mut HashMap<u32, EntryBytes>, entry: &EntryBytes) {
    let kept = pending.entry(slot_of(entry).number()).or_insert(*entry);
    if sequence_of(entry) >= sequence_of(kept) {
        *kept = *entry;
    }
}
