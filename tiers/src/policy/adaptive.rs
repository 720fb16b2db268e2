//! Learns which blocks come back, and keeps what is worth most per block of time.
//!
//! A block's class ([`classes`]) and age say how many uses its place will see per unit of time: its worth ([`worth`]). Each
//! class is a queue in the order of last use; the first of the queue whose first is worth least falls, and a newcomer that is
//! worth less than that is turned away. The worths are those of the day, whenever the blocks came.
//!
//! Nothing is tuned to a workload: the chances are learnt from what is seen, with counts that fade. Where nothing is known
//! yet all classes are alike, and the order is that of the last use.
//!
//! ```text
//! rank, 64 bits:  | clock of the last use: 56 | class: 8 |
//! ```
//!
//! Memory: 12 bytes per tracked block ([`history`]), 131 072 or 262 144 of them whatever the size of the cache, and 350 KiB.

mod classes;
mod duel;
mod history;
mod worth;

use kvd_proto::BlockKey;

use super::{Access, AccessKind, Policy, Rank, Space};
use classes::{Class, Traits};
use duel::Duel;
use history::{History, Lookup, Past};
use worth::Worth;

/// Fewest and most tracked blocks: 1.5 and 3 MiB.
const TRACKED: std::ops::RangeInclusive<u64> = 1 << 17..=1 << 18;
/// Entries of the history looked at per access: once around in 4 096 to 8 192 accesses.
const SWEPT_PER_ACCESS: usize = 32;
/// One table of worths is renewed every so many accesses.
const ACCESSES_PER_REFRESH: u64 = 2;
/// Weight of one fall in the running mean: it follows a change within some hundred falls.
const MEAN_WEIGHT: f32 = 1.0 / 256.0;
const CLASS_BITS: u32 = 8;

/// The adaptive policy.
pub struct Adaptive {
    worth: Worth,
    history: History,
    duel: Duel,
    /// Accesses so far.
    clock: u64,
    /// Running mean of the age at which blocks fall from the arena; before the first fall, what a full cache would give.
    fall_age: f32,
    offered: Offered,
}

/// The offer that is being asked about, block after block.
#[derive(Default)]
struct Offered {
    next_position: u32,
    chain_blocks: u32,
    turn: u8,
    uses: u8,
    /// From here on nothing was seen before.
    fresh: bool,
}

impl std::fmt::Debug for Adaptive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adaptive").field("clock", &self.clock).field("fall_age", &self.fall_age).finish_non_exhaustive()
    }
}

impl Adaptive {
    /// For a cache of about `blocks` blocks: sets the size of the history and how long the past counts until blocks fall.
    pub fn new(blocks: u64) -> Self {
        let tracked = blocks.clamp(*TRACKED.start(), *TRACKED.end());
        Self {
            worth: Worth::new(),
            history: History::new(tracked as usize),
            duel: Duel::new(blocks),
            clock: 0,
            fall_age: blocks as f32,
            offered: Offered::default(),
        }
    }

    fn encode(&self, class: Class) -> Rank {
        Rank(self.clock << CLASS_BITS | u64::from(class.byte()))
    }

    fn age(&self, rank: Rank) -> u64 {
        self.clock.saturating_sub(rank.0 >> CLASS_BITS)
    }

    fn worth_of(&self, rank: Rank) -> f32 {
        self.worth.of(class_of(rank), self.age(rank))
    }

    /// What a block that is offered is: known from before, or new behind something known.
    fn offered_past(&mut self, access: &Access) -> Past {
        let goes_on = access.position == self.offered.next_position && access.chain_blocks == self.offered.chain_blocks;
        if !goes_on || access.position == 0 {
            let turn = if access.position == 0 { 0 } else { class_of(access.rank).traits().turn + 1 };
            self.offered = Offered { turn, uses: 0, fresh: false, ..Offered::default() };
        }
        let offered = &mut self.offered;
        (offered.next_position, offered.chain_blocks) = (access.position + 1, access.chain_blocks);
        match self.history.look(&access.key) {
            Lookup::Known(past) => {
                (offered.turn, offered.uses) = (past.turn, past.class.used_again().traits().uses);
            }
            Lookup::New if !offered.fresh => {
                // Where the known part ends a new turn begins.
                offered.turn = offered.turn.saturating_add(u8::from(offered.uses > 0));
                (offered.uses, offered.fresh) = (0, true);
            }
            Lookup::New => offered.uses = 0,
            Lookup::NotSampled => {}
        }
        let last = access.position + 1 >= access.chain_blocks;
        let length = Traits::length_step(access.chain_blocks);
        let class = Class::new(Traits { turn: offered.turn, uses: offered.uses, length, last });
        Past { class, turn: offered.turn }
    }
}

impl Policy for Adaptive {
    fn rank(&mut self, access: &Access) -> Rank {
        self.clock += 1;
        let past = match access.kind {
            AccessKind::Offer | AccessKind::Refused => self.offered_past(access),
            AccessKind::Hit | AccessKind::Above => {
                let class = class_of(access.rank).used_again();
                Past { class, turn: class.traits().turn }
            }
            AccessKind::Fetch => {
                // Brought in for a use that is told of by itself.
                return self.encode(class_of(access.rank));
            }
        };
        self.history.access(&access.key, past, self.clock, self.fall_age as u64, &mut self.worth);
        self.duel.access(&access.key, past.class, self.clock, &self.worth);
        self.history.sweep(SWEPT_PER_ACCESS, self.clock, &mut self.worth);
        if self.clock.is_multiple_of(ACCESSES_PER_REFRESH) {
            self.worth.refresh_one(self.clock, self.fall_age);
        }
        self.encode(past.class)
    }

    fn admit(&mut self, _space: Space, candidate: Rank, victim: Rank, _access: &Access) -> bool {
        self.duel.recency_rules() || self.worth_of(candidate) >= self.worth_of(victim)
    }

    fn queue(&self, rank: Rank) -> usize {
        class_of(rank).index()
    }

    fn choose(&mut self, firsts: &[Rank]) -> usize {
        let by_recency = self.duel.recency_rules();
        let price = |rank: Rank| (if by_recency { 0.0 } else { self.worth_of(rank) }, rank);
        let cheaper = |(a, b): (&(f32, Rank), &(f32, Rank))| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        let firsts = firsts.iter().map(|rank| price(*rank)).enumerate();
        firsts.min_by(|a, b| cheaper((&a.1, &b.1))).map_or(0, |(index, _)| index)
    }

    fn inherit(&self, own: Rank, child: Rank) -> Rank {
        Rank(own.0.max(child.0 >> CLASS_BITS << CLASS_BITS | u64::from(class_of(own).byte())))
    }

    fn evicted(&mut self, space: Space, _key: &BlockKey, rank: Rank, _gone: bool) {
        if space == Space::Dram {
            self.fall_age += (self.age(rank) as f32 - self.fall_age) * MEAN_WEIGHT;
        }
    }
}

fn class_of(rank: Rank) -> Class {
    Class::from_byte(rank.0 as u8)
}
