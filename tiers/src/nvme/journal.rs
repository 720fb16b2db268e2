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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvd_nixl::sys::{Memory, Region};

    use super::super::entry::sample;
    use super::*;
    use crate::ids::ZoneId;

    /// A ring of two halves of four pages.
    fn journal() -> Journal {
        let memory: Arc<dyn Memory> = Arc::new(Region::new(PAGES_IN_FLIGHT * SECTOR_BYTES).unwrap());
        let geometry = Geometry::new(1 << 20, 2, 8).unwrap();
        Journal::new(Uuid::new([5; 16]), geometry, 1 << 32, Default::default(), MemoryExtent::whole(memory))
    }

    fn push(journal: &mut Journal, count: usize, now: Time) {
        for task in 0..count {
            let slot = Slot::of(ZoneId(0), task as u32);
            journal.push(Waiting { slot, resident: Some(sample(slot)), seed: 1, task }, now);
        }
    }

    fn at(micros: u64) -> Time {
        Time::ZERO + Duration::from_micros(micros)
    }

    /// Fills the next page and lands it.
    fn fill(journal: &mut Journal) {
        push(journal, PAGE_ENTRIES, at(0));
        let page = journal.next_page(at(0), false).unwrap().page;
        assert_eq!(journal.ended(page, true).len(), PAGE_ENTRIES);
    }

    #[test]
    fn entries_gather_for_a_page_or_a_millisecond() {
        let mut journal = journal();
        assert!(journal.is_idle() && journal.due_at().is_none() && journal.next_page(at(9), true).is_none());
        push(&mut journal, 1, at(10));
        push(&mut journal, 1, at(500));
        assert_eq!((journal.is_idle(), journal.due_at()), (false, Some(at(1010))));
        assert!(journal.next_page(at(1009), false).is_none());
        let first = journal.next_page(at(1010), false).unwrap();
        assert!(!journal.is_idle() && journal.due_at().is_none());
        assert_eq!(first.offset, journal.geometry.page_at(1 << 32));
        assert_eq!(journal.ended(first.page, true).len(), 2);
        assert!(journal.is_idle());
        push(&mut journal, 1, at(2000));
        assert!(journal.next_page(at(2000), false).is_none());
        assert!(journal.next_page(at(2000), true).is_some(), "somebody waits for it");
        push(&mut journal, PAGE_ENTRIES + 1, at(3000));
        let full = journal.next_page(at(3000), false).unwrap();
        assert_eq!(full.offset, journal.geometry.page_at((1 << 32) + 2));
        assert_eq!(journal.ended(full.page, true).len(), PAGE_ENTRIES);
        assert!(journal.next_page(at(3999), false).is_none(), "what is left gathers anew");
        assert!(journal.next_page(at(4000), false).is_some());
    }

    #[test]
    fn few_pages_are_under_way_at_a_time() {
        let mut journal = journal();
        push(&mut journal, 5 * PAGE_ENTRIES, at(0));
        let pages: Vec<_> = (0..4).map(|_| journal.next_page(at(0), false).unwrap().page).collect();
        assert_eq!(pages, [0, 1, 2, 3]);
        assert!(journal.next_page(at(0), true).is_none());
        assert_eq!(journal.due_at(), None, "it waits for one of them");
        journal.ended(2, true);
        assert_eq!(journal.next_page(at(0), false).unwrap().page, 2);
    }

    #[test]
    fn a_half_is_used_again_when_the_table_has_it() {
        let mut journal = journal();
        for _ in 0..3 {
            fill(&mut journal);
        }
        assert_eq!(journal.full_half(), None, "pages are still appended to it");
        push(&mut journal, PAGE_ENTRIES, at(0));
        let last = journal.next_page(at(0), false).unwrap().page;
        assert_eq!(journal.full_half(), None, "one of its pages is under way");
        journal.ended(last, true);
        assert_eq!(journal.full_half(), Some(0));
        assert_eq!((journal.pending(0).len(), journal.pending(1).len()), (PAGE_ENTRIES, 0));
        assert!(
            journal.pending(0).values().all(|entry| sequence_of(entry) == (1 << 32) + 3),
            "the newest of each slot"
        );
        for _ in 0..4 {
            fill(&mut journal);
        }
        assert!(!journal.is_stalled(), "nothing waits");
        push(&mut journal, 1, at(0));
        assert!(journal.is_stalled() && journal.due_at().is_none());
        assert!(journal.next_page(at(9000), true).is_none());
        journal.cleaned(0);
        assert!(!journal.is_stalled() && journal.pending(0).is_empty() && journal.full_half() == Some(1));
        assert_eq!(journal.next_page(at(9000), false).unwrap().offset, journal.geometry.page_at(2 << 32));
        assert_eq!(journal.next(), (1 << 32) + 9);
    }

    #[test]
    fn what_did_not_land_is_not_for_the_table_and_what_waits_can_be_taken_back() {
        let mut journal = journal();
        push(&mut journal, 3, at(0));
        let page = journal.next_page(at(0), true).unwrap().page;
        assert_eq!(journal.ended(page, false), [0, 1, 2], "they are told all the same");
        assert!(journal.pending(0).is_empty());
        push(&mut journal, 2, at(0));
        let taken: Vec<_> = std::iter::from_fn(|| journal.give_up()).map(|waiting| waiting.task).collect();
        assert_eq!((taken, journal.is_idle()), (vec![0, 1], true));
    }

    #[test]
    fn what_an_earlier_run_left_is_brought_to_the_table_first() {
        let slot = Slot::of(ZoneId(1), 2);
        let entry = Entry { sequence: 9, slot, resident: None }.encode(1);
        let left = HashMap::from([(slot.number(), entry)]);
        let Journal { geometry, uuid, buffers, .. } = journal();
        let mut journal = Journal::new(uuid, geometry, 1 << 32, [HashMap::new(), left], buffers);
        assert_eq!(journal.full_half(), Some(1));
        (0..4).for_each(|_| fill(&mut journal));
        push(&mut journal, 1, at(0));
        assert!(journal.is_stalled(), "the other half has no room before");
        assert_eq!(half_entries_max(&geometry), 4 * PAGE_ENTRIES);
    }

    #[test]
    fn the_newest_entry_of_a_slot_is_remembered_whatever_comes_last() {
        let slot = Slot::of(ZoneId(1), 2);
        let entry = |sequence, resident| Entry { sequence, slot, resident }.encode(1);
        let mut pending = HashMap::new();
        remember(&mut pending, &entry(7, None));
        remember(&mut pending, &entry(6, Some(sample(slot))));
        assert_eq!(pending[&slot.number()], entry(7, None));
        remember(&mut pending, &entry(7, Some(sample(slot))));
        assert_eq!(pending[&slot.number()], entry(7, Some(sample(slot))), "of one page the later");
        assert_eq!(pending.len(), 1);
    }
}
