//! A cache of blocks in a prefix tree, as small as it can be, around a production [`Policy`].
//!
//! It asks the policy what the ladder asks, in the same order: a match touches its deepest block and a few above it, what is
//! missing is offered in chain order, only leaves fall, a parent inherits the higher rank of a fallen child.

use std::collections::{BTreeSet, HashMap};

use kvd_proto::{BlockKey, Time};
use kvd_tiers::policy::{ABOVE_MAX, Access, AccessKind, Policy, QUEUES_MAX, Rank, Space};

use crate::traces::Trace;

#[derive(Clone, Copy)]
struct Node {
    parent: Option<u32>,
    children: u32,
    rank: Rank,
    resident: bool,
}

struct Cache<'a> {
    policy: &'a mut dyn Policy,
    capacity: usize,
    above_max: u32,
    nodes: Vec<Node>,
    /// By queue.
    leaves: Vec<BTreeSet<(Rank, u32)>>,
    resident: usize,
    now: Time,
}

/// Blocks hit while `trace` is played through a cache of `capacity` blocks.
pub fn hits(trace: &Trace, capacity: usize, policy: &mut dyn Policy) -> u64 {
    play(trace, capacity, policy, ABOVE_MAX)
}

fn play(trace: &Trace, capacity: usize, policy: &mut dyn Policy, above_max: u32) -> u64 {
    let ids = trace.iter().flatten().max().map_or(0, |id| *id as usize + 1);
    let vacant = Node { parent: None, children: 0, rank: Rank(0), resident: false };
    let (leaves, now) = (vec![BTreeSet::new(); QUEUES_MAX], Time::ZERO);
    let mut cache = Cache { policy, capacity, above_max, nodes: vec![vacant; ids], leaves, resident: 0, now };
    trace.iter().map(|chain| cache.request(chain)).sum()
}

/// The key of a trace's block.
pub fn key(id: u32) -> BlockKey {
    // Finaliser of MurmurHash3, twice: keys in the daemon are uniform, and policies may count on it.
    let mix = |mut word: u64| {
        word = (word ^ word >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        word = (word ^ word >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        word ^ word >> 33
    };
    let head = mix(u64::from(id) + 1);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&head.to_le_bytes());
    bytes[8..].copy_from_slice(&mix(!head).to_le_bytes());
    BlockKey::new(bytes)
}

impl Cache<'_> {
    fn request(&mut self, chain: &[u32]) -> u64 {
        let matched = chain.iter().take_while(|id| self.nodes[**id as usize].resident).count();
        for (back, at) in (0..matched).rev().take(self.above_max as usize + 1).enumerate() {
            let kind = if back == 0 { AccessKind::Hit } else { AccessKind::Above };
            let rank = self.nodes[chain[at] as usize].rank;
            let rank = self.access(kind, chain, at, matched, rank);
            self.set_rank(chain[at], rank);
        }
        let mut refused = false;
        for at in matched..chain.len() {
            let parent = at.checked_sub(1).map(|above| chain[above]);
            let parent_rank = parent.map_or(Rank(0), |id| self.nodes[id as usize].rank);
            let kind = if refused { AccessKind::Refused } else { AccessKind::Offer };
            let rank = self.access(kind, chain, at, chain.len(), parent_rank);
            refused = refused || !self.make_room(chain, at, rank);
            if !refused {
                self.insert(chain[at], parent, rank);
            }
        }
        matched as u64
    }

    fn access(&mut self, kind: AccessKind, chain: &[u32], at: usize, chain_blocks: usize, rank: Rank) -> Rank {
        self.policy.rank(&access(kind, chain[at], at, chain_blocks, rank, self.now))
    }

    fn set_rank(&mut self, id: u32, rank: Rank) {
        let node = &mut self.nodes[id as usize];
        if node.children == 0 {
            self.leaves[self.policy.queue(node.rank)].remove(&(node.rank, id));
            self.leaves[self.policy.queue(rank)].insert((rank, id));
        }
        node.rank = rank;
    }

    fn insert(&mut self, id: u32, parent: Option<u32>, rank: Rank) {
        if let Some(parent) = parent {
            let node = &mut self.nodes[parent as usize];
            if node.children == 0 {
                self.leaves[self.policy.queue(node.rank)].remove(&(node.rank, parent));
            }
            node.children += 1;
        }
        self.nodes[id as usize] = Node { parent, children: 0, rank, resident: true };
        self.leaves[self.policy.queue(rank)].insert((rank, id));
        self.resident += 1;
    }

    /// Lets one block fall if the cache is full and the newcomer is worth it.
    fn make_room(&mut self, chain: &[u32], at: usize, rank: Rank) -> bool {
        if self.resident < self.capacity {
            return true;
        }
        let parent = at.checked_sub(1).map(|above| chain[above]);
        let firsts: Vec<(Rank, u32)> =
            self.leaves.iter().filter_map(|queue| queue.iter().find(|leaf| Some(leaf.1) != parent)).copied().collect();
        let ranks: Vec<Rank> = firsts.iter().map(|first| first.0).collect();
        if firsts.is_empty() {
            return false;
        }
        let (victim_rank, victim) = firsts[self.policy.choose(&ranks)];
        let newcomer = access(AccessKind::Offer, chain[at], at, chain.len(), rank, self.now);
        if !self.policy.admit(Space::Dram, rank, victim_rank, &newcomer) {
            return false;
        }
        self.evict(victim);
        true
    }

    fn evict(&mut self, id: u32) {
        let node = self.nodes[id as usize];
        self.leaves[self.policy.queue(node.rank)].remove(&(node.rank, id));
        self.nodes[id as usize].resident = false;
        self.resident -= 1;
        self.policy.evicted(Space::Dram, &key(id), node.rank, true);
        if let Some(parent) = node.parent {
            let above = &mut self.nodes[parent as usize];
            above.children -= 1;
            above.rank = self.policy.inherit(above.rank, node.rank);
            if above.children == 0 {
                self.leaves[self.policy.queue(above.rank)].insert((above.rank, parent));
            }
        }
    }
}

fn access(kind: AccessKind, id: u32, at: usize, chain_blocks: usize, rank: Rank, now: Time) -> Access {
    let (position, chain_blocks) = (at as u32, chain_blocks as u32);
    Access { kind, key: key(id), position, chain_blocks, slot_bytes: 8192, rank, now }
}

/// Blocks hit by the best that could be done with the future known: what is needed last falls, and a newcomer that is needed
/// later still is not stored.
pub fn optimal_hits(trace: &Trace, capacity: usize) -> u64 {
    let mut uses: HashMap<BlockKey, Vec<u64>> = HashMap::new();
    let mut request_of = Vec::new();
    for (request, chain) in trace.iter().enumerate().rev() {
        chain.iter().for_each(|id| uses.entry(key(*id)).or_default().push(request as u64));
        request_of.push(chain.len());
    }
    request_of.reverse();
    let mut optimal = Optimal { uses, left: request_of, request: 0 };
    play(trace, capacity, &mut optimal, u32::MAX - 1)
}

/// Knows the requests in which each block is still needed, the next one last.
struct Optimal {
    uses: HashMap<BlockKey, Vec<u64>>,
    /// Accesses that each request still makes: every block of it is told exactly once.
    left: Vec<usize>,
    request: usize,
}

impl Policy for Optimal {
    fn rank(&mut self, access: &Access) -> Rank {
        while self.left[self.request] == 0 {
            self.request += 1;
        }
        self.left[self.request] -= 1;
        let uses = self.uses.get_mut(&access.key).expect("every block of the trace is known");
        while uses.last().is_some_and(|next| *next <= self.request as u64) {
            uses.pop();
        }
        Rank(u64::MAX - uses.last().copied().unwrap_or(u64::MAX - 1))
    }

    fn admit(&mut self, _space: Space, candidate: Rank, victim: Rank, _access: &Access) -> bool {
        candidate > victim
    }

    fn evicted(&mut self, _space: Space, _key: &BlockKey, _rank: Rank, _gone: bool) {}
}

#[cfg(test)]
mod tests {
    use kvd_tiers::policy::{Adaptive, Lru};

    use super::*;
    use crate::traces;

    #[test]
    fn lru_drops_the_oldest_chain_from_its_end() {
        let trace: Trace = vec![vec![0, 1], vec![2, 3], vec![0, 1], vec![4], vec![2, 3], vec![0]];
        // Five blocks fit, so only the end of the oldest chain falls, once for each newcomer that is one too many.
        assert_eq!(hits(&trace, 5, &mut Lru::default()), 2 + 2 + 1);
        assert_eq!(hits(&trace, 4, &mut Lru::default()), 2 + 1 + 1);
    }

    #[test]
    fn the_optimum_passes_by_what_is_never_needed_again() {
        let trace: Trace = vec![vec![0, 1], vec![9], vec![0, 1], vec![8], vec![0, 1]];
        assert_eq!(optimal_hits(&trace, 2), 4);
        assert!(hits(&trace, 2, &mut Lru::default()) < 4);
    }

    /// What holds of what was asked for; docs/decisions/0007-eviction.md has the whole table.
    #[test]
    fn the_adaptive_policy_gains_where_there_is_little_room_and_loses_nowhere() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/traces/conversation.jsonl");
        let recorded = traces::read(path.as_ref()).expect("the trace is part of the repository");
        let blocks: usize = recorded.iter().map(Vec::len).sum();
        assert_eq!(
            (recorded.len(), blocks, hits(&recorded, usize::MAX, &mut Lru::default())),
            (12_031, 288_500, 105_710)
        );
        let percent = |hits: u64, trace: &Trace| 100.0 * hits as f64 / trace.iter().map(Vec::len).sum::<usize>() as f64;
        let both = |trace: &Trace, capacity: usize| {
            let lru = percent(hits(trace, capacity, &mut Lru::default()), trace);
            (lru, percent(hits(trace, capacity, &mut Adaptive::new(capacity as u64)), trace))
        };
        for (capacity, known_lru, least) in [(2_000, 5.4, 10.5), (10_000, 21.1, 23.0), (40_000, 35.1, 34.9)] {
            let (lru, adaptive) = both(&recorded, capacity);
            assert!((lru - known_lru).abs() < 0.1, "LRU at {capacity}: {lru}");
            assert!(adaptive >= least, "adaptive at {capacity}: {adaptive}");
        }
        for trace in [traces::agents(1), traces::loops(2), traces::recency(3), traces::phases(4)] {
            for capacity in [2_000, 10_000, 20_000] {
                let (lru, adaptive) = both(&trace, capacity);
                assert!(adaptive > lru - 0.5, "at {capacity}: adaptive {adaptive}, LRU {lru}");
            }
        }
    }
}
