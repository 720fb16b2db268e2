//! What became of a sample of blocks, resident or not: the ground that worth is learnt on, and the memory of who was here.
//!
//! Not every use is told: of a match only its end is ([`ABOVE_MAX`](crate::policy::ABOVE_MAX) blocks). So a block counts for
//! learning only while it is near enough to the end of its chain that its next use would be told; the others are remembered,
//! or long chains would look as if their heads were never used.
//!
//! A fixed table of [`ENTRY_BYTES`] bytes per tracked block, four places per set, the oldest gives way. Keys are uniform,
//! so a sample is "the keys whose top bits are zero"; when entries give way too young the sample is halved.

use kvd_proto::BlockKey;

use super::classes::Class;
use super::worth::{Worth, step_of};

const WAYS: usize = 4;
/// The sample is at most halved this many times.
const HALVINGS_MAX: u32 = 12;
/// A block's past is kept for at least this many of the ages at which blocks fall, or the sample is halved.
const KEEP_AGES: u64 = 6;

#[derive(Debug, Clone, Copy)]
struct Entry {
    print: u32,
    /// Clock of the last access, wrapping.
    time: u32,
    class: u8,
    turn: u8,
    /// Steps of its age that are counted already.
    counted: u8,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// Remembered only.
    Unwatched,
    /// Its next use will be told: it counts.
    Watched,
}

/// What a tracked block costs.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();
const _: () = assert!(ENTRY_BYTES == 12);

const FREE: Entry = Entry { print: 0, time: 0, class: 0, turn: 0, counted: 0, state: State::Free };

/// What is remembered of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) class: Class,
    pub(super) turn: u8,
}

/// What a block is now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) past: Past,
    /// Its next use will be told.
    pub(super) watched: bool,
}

/// When, and on what scale of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) clock: u64,
    pub(super) fall_age: u64,
}

/// Whether a block is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Not in the sample: nothing can be said.
    NotSampled,
    /// In the sample and never seen, or forgotten.
    New,
    /// Seen.
    Known(Past),
}

pub(super) struct History {
    entries: Vec<Entry>,
    halvings: u32,
    gave_way_young: usize,
    hand: usize,
}

impl History {
    /// Room for `blocks` tracked blocks, rounded up to a power of two.
    pub(super) fn new(blocks: usize) -> Self {
        let count = blocks.next_power_of_two().max(WAYS);
        Self { entries: vec![FREE; count], halvings: 0, gave_way_young: 0, hand: 0 }
    }

    fn sampled(&self, print: u32) -> bool {
        print.leading_zeros() >= self.halvings
    }

    fn set_of(&self, word: u64) -> std::ops::Range<usize> {
        let first = (word as usize & (self.entries.len() / WAYS - 1)) * WAYS;
        first..first + WAYS
    }

    fn find(&self, word: u64) -> Option<usize> {
        let print = print(word);
        self.set_of(word).find(|at| self.entries[*at].state != State::Free && self.entries[*at].print == print)
    }

    pub(super) fn look(&self, key: &BlockKey) -> Lookup {
        let word = word(key);
        if !self.sampled(print(word)) {
            return Lookup::NotSampled;
        }
        match self.find(word) {
            None => Lookup::New,
            Some(at) => {
                let entry = &self.entries[at];
                Lookup::Known(Past { class: Class::from_byte(entry.class), turn: entry.turn })
            }
        }
    }

    /// A block was accessed and is of this class from now on. What it went through before is counted.
    pub(super) fn access(&mut self, key: &BlockKey, now: Now, times: Times, worth: &mut Worth) {
        let Times { clock, fall_age } = times;
        let word = word(key);
        if !self.sampled(print(word)) {
            return;
        }
        let at = match self.find(word) {
            Some(at) => {
                let entry = self.entries[at];
                let step = step_of(age(&entry, clock));
                if entry.state == State::Watched {
                    let class = Class::from_byte(entry.class);
                    worth.unused(class, usize::from(entry.counted).min(step)..step);
                    worth.used(class, step);
                }
                at
            }
            None => self.make_room(word, clock, fall_age, worth),
        };
        self.entries[at] = Entry {
            print: print(word),
            time: clock as u32,
            class: now.past.class.byte(),
            turn: now.past.turn,
            counted: 0,
            state: if now.watched { State::Watched } else { State::Unwatched },
        };
    }

    /// The chain has grown beyond this block: its next use will not be told.
    pub(super) fn unwatch(&mut self, key: &BlockKey) {
        let word = word(key);
        if let Some(at) = self.find(word) {
            self.entries[at].state = State::Unwatched;
        }
    }

    fn make_room(&mut self, word: u64, clock: u64, fall_age: u64, worth: &mut Worth) -> usize {
        let set = self.set_of(word);
        let oldest = |at: &usize| {
            let entry = &self.entries[*at];
            (entry.state != State::Free, std::cmp::Reverse(age(entry, clock)))
        };
        let at = set.min_by_key(oldest).expect("a set has places");
        if self.entries[at].state != State::Free {
            if age(&self.entries[at], clock) < KEEP_AGES * fall_age {
                self.gave_way_young += 1;
                if self.gave_way_young > self.entries.len() / 4 && self.halvings < HALVINGS_MAX {
                    self.halvings += 1;
                    self.gave_way_young = 0;
                }
            }
            self.count_age(at, clock, worth);
        }
        at
    }

    /// Counts the steps that an entry has come through since it was looked at.
    fn count_age(&mut self, at: usize, clock: u64, worth: &mut Worth) {
        if !self.sampled(self.entries[at].print) {
            self.entries[at] = FREE;
        }
        let entry = &mut self.entries[at];
        let step = step_of(age(entry, clock));
        let counted = usize::from(entry.counted);
        if entry.state == State::Watched && step > counted {
            entry.counted = step as u8;
            worth.unused(Class::from_byte(entry.class), counted..step);
        }
    }

    /// Looks at a few entries in turn, so that blocks that are never used again are counted too.
    pub(super) fn sweep(&mut self, entries: usize, clock: u64, worth: &mut Worth) {
        for _ in 0..entries {
            self.count_age(self.hand, clock, worth);
            self.hand = (self.hand + 1) & (self.entries.len() - 1);
        }
    }
}

fn age(entry: &Entry, clock: u64) -> u64 {
    u64::from((clock as u32).wrapping_sub(entry.time))
}

pub(super) fn word(key: &BlockKey) -> u64 {
    u64::from_le_bytes(key.as_bytes()[..8].try_into().expect("8 of 16 bytes"))
}

/// The upper half of the word; the lower one chooses the set.
pub(super) fn print(word: u64) -> u32 {
    (word >> 32) as u32
}
