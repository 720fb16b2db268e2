//! Learns which blocks come back, and keeps what is worth most per block of time.
//!
//! A block's class ([`classes`]) and age say how many uses its place will see per unit of time: its worth ([`worth`]). Each
//! class is a queue in the order of last use; the first of the queue whose first is worth least falls, and a newcomer that is
//! worth less than that is turned away. The worths are those of the day, whenever the blocks came. A small contest against
//! the plain order of last use ([`duel`]) sees when they mislead.
//!
//! Nothing is tuned to a workload: the chances are learnt from what is seen, with counts that fade. Where nothing is known
//! yet all classes are alike, and the order is that of the last use.
//!
//! ```text
//! rank, 64 bits:  | clock of the last use: 56 | class: 8 |
//! ```
//!
//! Memory: 12 bytes per tracked block ([`history`]), 131 072 to 262 144 of them whatever the size of the cache, and 800 KiB at most.

mod classes;
mod duel;
mod history;
mod worth;

use kvd_proto::BlockKey;

use super::{ABOVE_MAX, Access, AccessKind, Policy, Rank, Space};
use classes::{Class, Traits};
use duel::Duel;
use history::{History, Lookup, Now, Past, Times};
use worth::Worth;

/// Fewest and most tracked blocks: 1.5 and 3 MiB.
const TRACKED: std::ops::RangeInclusive<u64> = 1 << 17..=1 << 18;
/// Upkeep is done with each hit's deepest block and each offered one; the blocks above a hit stay cheap. Entries of the
/// history looked at each time: once around in 16 384 to 32 768 times.
const SWEPT_PER_UPKEEP: usize = 8;
/// One table of worths, some 800 ns, is renewed at every so many.
const UPKEEPS_PER_REFRESH: u64 = 8;
/// Weight of one fall in the running mean: it follows a change within some hundred falls.
const MEAN_WEIGHT: f32 = 1.0 / 256.0;
/// A block with less than this chance of a use while the cache is filled once over is worth no more than any other such
/// block: so small a chance is not known well enough, and among equals the oldest falls.
const CHANCE_FLOOR: f32 = 0.03;
/// The number of blocks that a cache holds when its first block falls is believed down to this part of what was announced.
const SMALLER_MAX: u64 = 64;
const CLASS_BITS: u32 = 8;
/// Blocks that one match tells at most.
const TOLD: usize = ABOVE_MAX as usize + 1;
/// Matches that may be under way until the store that follows each: more engines than a node has.
const MATCHES: usize = 32;
const NOT_TOUCHED: Touched = Touched { rank: Rank(0), position: 0, count: 0, keys: [BlockKey::new([0; 16]); TOLD] };

/// The adaptive policy.
pub struct Adaptive {
    worth: Worth,
    history: History,
    duel: Duel,
    /// Accesses so far.
    clock: u64,
    upkeeps: u64,
    /// Running mean of the age at which blocks fall from the arena; before the first fall, what a full cache would give.
    fall_age: f32,
    /// Blocks that the arena holds: announced until the first one falls.
    blocks: u64,
    /// Blocks in the arena now, as far as they were told.
    resident: u64,
    fallen: bool,
    offered: Offered,
    /// The last matches, in turn.
    touched: [Touched; MATCHES],
    last_touched: usize,
}

/// What a match told: the blocks that will be told again only if the chain does not grow too much.
#[derive(Clone, Copy)]
struct Touched {
    /// The rank given to the deepest block, by which an offer behind it is recognised.
    rank: Rank,
    position: u32,
    count: usize,
    keys: [BlockKey; TOLD],
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
    /// For a cache of at most about `blocks` blocks.
    pub fn new(blocks: u64) -> Self {
        let tracked = blocks.clamp(*TRACKED.start(), *TRACKED.end());
        Self {
            worth: Worth::new(),
            history: History::new(tracked as usize),
            duel: Duel::new(blocks),
            clock: 0,
            upkeeps: 0,
            fall_age: blocks as f32,
            blocks,
            resident: 0,
            fallen: false,
            offered: Offered::default(),
            touched: [NOT_TOUCHED; MATCHES],
            last_touched: 0,
        }
    }

    fn encode(&self, class: Class) -> Rank {
        Rank(self.clock << CLASS_BITS | u64::from(class.byte()))
    }

    fn age(&self, rank: Rank) -> u64 {
        self.clock.saturating_sub(rank.0 >> CLASS_BITS)
    }

    /// What a block of this rank is worth, as far as that is known.
    fn price(&self, rank: Rank) -> f32 {
        if self.duel.recency_rules() {
            return 0.0;
        }
        self.worth.of(class_of(rank), self.age(rank)).max(CHANCE_FLOOR / self.blocks as f32)
    }

    /// A chain grows behind a match: of the blocks that were told, those that are too far from its end now.
    fn unwatch_above(&mut self, first: &Access) {
        let found = self.touched.iter().find(|touched| touched.count > 0 && touched.rank == first.rank);
        let Some(touched) = found.filter(|touched| touched.position + 1 == first.position) else { return };
        let end = first.chain_blocks.saturating_sub(1);
        for (up, key) in touched.keys[..touched.count].iter().enumerate() {
            if end - touched.position.min(end) + up as u32 > ABOVE_MAX {
                self.history.unwatch(key);
            }
        }
    }

    fn note_touched(&mut self, access: &Access, rank: Rank) {
        if access.kind == AccessKind::Hit {
            self.last_touched = (self.last_touched + 1) % MATCHES;
            self.touched[self.last_touched] = Touched { rank, position: access.position, ..NOT_TOUCHED };
        }
        let touched = &mut self.touched[self.last_touched];
        if let Some(place) = touched.keys.get_mut(touched.count) {
            *place = access.key;
            touched.count += 1;
        }
    }

    /// A little of the work that keeps counts and worths up to date.
    fn upkeep(&mut self) {
        self.upkeeps += 1;
        self.history.sweep(SWEPT_PER_UPKEEP, self.clock, &mut self.worth);
        if self.upkeeps.is_multiple_of(UPKEEPS_PER_REFRESH) {
            self.worth.refresh_one(self.clock, self.fall_age);
        }
    }

    /// The first block falls: what is in the arena now is what it holds.
    fn learn_size(&mut self) {
        let blocks = self.resident.clamp(self.blocks / SMALLER_MAX, self.blocks).max(1);
        (self.blocks, self.fallen) = (blocks, true);
        self.fall_age = self.fall_age.min(blocks as f32);
        self.duel = Duel::new(blocks);
    }

    /// What a block that is offered is: known from before, or new behind something known.
    fn offered_past(&mut self, access: &Access) -> Past {
        let goes_on = access.position == self.offered.next_position && access.chain_blocks == self.offered.chain_blocks;
        if !goes_on || access.position == 0 {
            let turn = if access.position == 0 { 0 } else { class_of(access.rank).traits().turn + 1 };
            self.offered = Offered { turn, uses: 0, fresh: false, ..Offered::default() };
            self.unwatch_above(access);
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
        self.resident += u64::from(matches!(access.kind, AccessKind::Offer | AccessKind::Fetch));
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
        let from_end = access.chain_blocks.saturating_sub(access.position + 1);
        let now = Now { past, watched: from_end <= ABOVE_MAX };
        let times = Times { clock: self.clock, fall_age: self.fall_age as u64 };
        self.history.access(&access.key, now, times, &mut self.worth);
        self.duel.access(&access.key, past.class, self.clock, &self.worth);
        let rank = self.encode(past.class);
        match access.kind {
            AccessKind::Hit => {
                self.note_touched(access, rank);
                self.upkeep();
            }
            AccessKind::Above => self.note_touched(access, rank),
            AccessKind::Offer | AccessKind::Refused | AccessKind::Fetch => self.upkeep(),
        }
        rank
    }

    fn admit(&mut self, space: Space, candidate: Rank, victim: Rank, access: &Access) -> bool {
        let admitted = self.price(candidate) >= self.price(victim);
        if !admitted && space == Space::Dram && access.kind == AccessKind::Offer {
            self.resident = self.resident.saturating_sub(1);
        }
        admitted
    }

    fn queue(&self, rank: Rank) -> usize {
        class_of(rank).index()
    }

    fn choose(&mut self, firsts: &[Rank]) -> usize {
        let price = |rank: Rank| (self.price(rank), rank);
        let cheaper = |(a, b): (&(f32, Rank), &(f32, Rank))| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        let firsts = firsts.iter().map(|rank| price(*rank)).enumerate();
        firsts.min_by(|a, b| cheaper((&a.1, &b.1))).map_or(0, |(index, _)| index)
    }

    fn inherit(&self, own: Rank, child: Rank) -> Rank {
        Rank(own.0.max(child.0 >> CLASS_BITS << CLASS_BITS | u64::from(class_of(own).byte())))
    }

    fn evicted(&mut self, space: Space, _key: &BlockKey, rank: Rank, _gone: bool) {
        if space == Space::Nvme {
            return;
        }
        if !self.fallen {
            self.learn_size();
        }
        self.resident = self.resident.saturating_sub(1);
        self.fall_age += (self.age(rank) as f32 - self.fall_age) * MEAN_WEIGHT;
    }
}

fn class_of(rank: Rank) -> Class {
    Class::from_byte(rank.0 as u8)
}

#[cfg(test)]
mod tests {
    use kvd_proto::Time;

    use super::*;

    fn access(kind: AccessKind, number: u64, position: u32, chain_blocks: u32, rank: Rank) -> Access {
        // Odd multipliers are a bijection that spreads small numbers over all bits.
        let word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).swap_bytes().wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&word.to_le_bytes());
        Access { kind, key: BlockKey::new(key), position, chain_blocks, slot_bytes: 8192, rank, now: Time::ZERO }
    }

    #[test]
    fn a_rank_tells_class_and_age() {
        let mut policy = Adaptive::new(1000);
        let first = policy.rank(&access(AccessKind::Offer, 1, 0, 9, Rank(0)));
        assert_eq!(class_of(first).traits(), Traits { turn: 0, uses: 0, length: 1, last: false });
        let child = policy.rank(&access(AccessKind::Offer, 2, 1, 9, first));
        assert_eq!(class_of(child).traits().turn, 0, "the same offer is the same turn");
        assert_eq!(policy.age(first), 1);
        let hit = policy.rank(&access(AccessKind::Hit, 2, 1, 2, child));
        assert_eq!(class_of(hit).traits().uses, 1);
        let next_turn = policy.rank(&access(AccessKind::Offer, 3, 2, 3, hit));
        assert_eq!(class_of(next_turn).traits(), Traits { turn: 1, uses: 0, length: 0, last: true });
        assert_eq!(class_of(policy.inherit(first, next_turn)), class_of(first), "a parent keeps its class");
        assert_eq!(
            policy.age(policy.inherit(first, next_turn)),
            policy.age(next_turn),
            "and looks as young as its child"
        );
    }

    #[test]
    fn what_was_turned_away_is_known_when_it_returns() {
        let mut policy = Adaptive::new(1000);
        policy.rank(&access(AccessKind::Offer, 1, 0, 2, Rank(0)));
        policy.rank(&access(AccessKind::Refused, 2, 1, 2, Rank(0)));
        policy.rank(&access(AccessKind::Offer, 1, 0, 2, Rank(0)));
        let again = policy.rank(&access(AccessKind::Offer, 2, 1, 2, Rank(0)));
        assert_eq!(class_of(again).traits().uses, 1);
    }

    #[test]
    fn passers_by_fall_before_what_returns_though_it_is_older() {
        let mut policy = Adaptive::new(400);
        let mut stranger = 1_000_000;
        let (mut returning, mut passing) = (Rank(0), Rank(0));
        // A hundred blocks that return every 400 accesses, among strangers that never do.
        for round in 0..200 {
            for number in 0..100 {
                let kind = if round == 0 { AccessKind::Offer } else { AccessKind::Hit };
                returning = policy.rank(&access(kind, number, 0, 1, if round == 0 { Rank(0) } else { returning }));
                for _ in 0..3 {
                    stranger += 1;
                    passing = policy.rank(&access(AccessKind::Offer, stranger, 0, 1, Rank(0)));
                }
            }
        }
        assert!(passing > returning);
        assert_eq!(policy.choose(&[returning, passing]), 1, "{policy:?}");
        assert!(policy.admit(Space::Dram, returning, passing, &access(AccessKind::Offer, 0, 0, 1, Rank(0))));
        assert!(!policy.admit(Space::Dram, passing, returning, &access(AccessKind::Offer, 0, 0, 1, Rank(0))));
    }

    #[test]
    fn without_any_knowledge_the_oldest_falls() {
        let mut policy = Adaptive::new(1000);
        let ranks: Vec<Rank> = (0..5).map(|n| policy.rank(&access(AccessKind::Offer, n, 0, 9, Rank(0)))).collect();
        assert_eq!(policy.choose(&ranks), 0);
        assert_eq!(policy.choose(&ranks[2..]), 0);
    }
}
