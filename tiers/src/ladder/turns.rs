//! Whose turn it is: of several nodes that store the same block at the same moment, one gives it to the object tier first,
//! and the others, who wait for theirs, find it there.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): each node ranks all of them by a hash of node and block, so that all
//! come to the same order without asking each other. A wrong list of nodes costs a copy, or a wait, and nothing else.

use std::time::Duration;

use kvd_proto::BlockKey;

use crate::object::NodeName;

/// Turns that there are: nodes of a larger pool share them, since few of them store the same at the same moment.
pub const TURNS: usize = 4;
/// Blocks of a chain that have one turn, so that they come to lie side by side in one pack.
pub(super) const BLOCKS_PER_TURN: u32 = 64;
/// Nodes that are ranked; every block of an upload is ranked among all of them.
const NODES_MAX: usize = 256;

/// The nodes that write to one store, as this one sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    me: NodeName,
    others: Vec<NodeName>,
    wait: Duration,
}

impl Turns {
    /// Nobody else writes.
    pub fn alone() -> Self {
        Self { me: NodeName::new([0; 16]), others: Vec::new(), wait: Duration::ZERO }
    }

    /// The turns of `me` among `others`. A turn begins `wait` after the one before it: long enough that what was uploaded
    /// in that is known here.
    pub fn new(me: NodeName, others: impl IntoIterator<Item = NodeName>, wait: Duration) -> Self {
        let others = others.into_iter().filter(|other| *other != me).take(NODES_MAX - 1).collect();
        Self { me, others, wait }
    }

    /// Which turn is this node's for blocks that hang on `anchor`, below [`TURNS`].
    pub(super) fn of(&self, anchor: &BlockKey) -> usize {
        let mine = score(self.me, anchor);
        let ahead = self.others.iter().filter(|other| score(**other, anchor) < mine).count();
        let nodes = self.others.len() + 1;
        ahead * nodes.min(TURNS) / nodes
    }

    /// How long after it was stored a block waits for this turn.
    pub(super) fn wait(&self, turn: usize) -> Duration {
        self.wait * turn as u32
    }
}

fn score(node: NodeName, anchor: &BlockKey) -> u64 {
    let halves = |bytes: &[u8; 16]| {
        let whole = u128::from_le_bytes(*bytes);
        (whole as u64, (whole >> 64) as u64)
    };
    let ((n0, n1), (k0, k1)) = (halves(node.as_bytes()), halves(anchor.as_bytes()));
    mix(mix(n0 ^ k0) ^ n1 ^ k1)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    fn nodes(count: usize, random: &mut SmallRng) -> Vec<NodeName> {
        (0..count).map(|_| NodeName::new(random.random())).collect()
    }

    #[test]
    fn nodes_that_know_each_other_never_have_the_first_turn_together() {
        let mut random = SmallRng::seed_from_u64(1);
        for count in 1..=TURNS {
            let all = nodes(count, &mut random);
            let turns: Vec<_> =
                all.iter().map(|me| Turns::new(*me, all.iter().copied(), Duration::from_secs(1))).collect();
            for _ in 0..1000 {
                let anchor = BlockKey::new(random.random());
                let mut taken: Vec<_> = turns.iter().map(|turns| turns.of(&anchor)).collect();
                taken.sort_unstable();
                assert_eq!(taken, (0..count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_large_pool_shares_the_turns_evenly() {
        let mut random = SmallRng::seed_from_u64(2);
        let all = nodes(40, &mut random);
        let me = Turns::new(all[0], all.iter().copied(), Duration::from_secs(1));
        let mut taken = [0; TURNS];
        (0..10_000).for_each(|_| taken[me.of(&BlockKey::new(random.random()))] += 1);
        assert!(taken.iter().all(|count| (2_200..2_800).contains(count)), "{taken:?}");
        assert_eq!(me.wait(3), Duration::from_secs(3));
    }

    #[test]
    fn who_is_alone_has_the_first_turn() {
        let mut random = SmallRng::seed_from_u64(3);
        assert!((0..100).all(|_| Turns::alone().of(&BlockKey::new(random.random())) == 0));
    }

    /// Nodes of one pool may run different versions: the order of a block is the same in all of them.
    #[test]
    fn the_order_of_a_block_never_changes() {
        let bytes = |number: u8| {
            std::array::from_fn(|place| number.wrapping_mul(17).wrapping_add((place as u8).wrapping_mul(29)))
        };
        let all = [0, 1, 2, 3].map(|number| NodeName::new(bytes(number)));
        let me = Turns::new(all[0], all, Duration::from_secs(1));
        let turns: Vec<_> = (100..112).map(|number| me.of(&BlockKey::new(bytes(number)))).collect();
        assert_eq!(turns, [1, 0, 2, 0, 3, 2, 2, 1, 1, 2, 0, 1]);
    }
}
