//! Least recently used falls first; everything is admitted.

use kvd_proto::BlockKey;

use super::{Access, Policy, Rank, Space};

/// Ranks by the order of accesses. A counter, not the time: two accesses of one instant still have an order.
#[derive(Debug, Default)]
pub struct Lru {
    accesses: u64,
}

impl Policy for Lru {
    fn rank(&mut self, _access: &Access) -> Rank {
        self.accesses += 1;
        Rank(self.accesses)
    }

    fn admit(&mut self, _space: Space, _candidate: Rank, _victim: Rank, _access: &Access) -> bool {
        true
    }

    fn evicted(&mut self, _space: Space, _key: &BlockKey, _rank: Rank, _gone: bool) {}
}

#[cfg(test)]
mod tests {
    use kvd_proto::Time;

    use super::*;
    use crate::policy::AccessKind;

    #[test]
    fn later_accesses_rank_higher() {
        let access = Access {
            kind: AccessKind::Hit,
            key: BlockKey::new([1; 16]),
            position: 0,
            chain_blocks: 1,
            slot_bytes: 8192,
            rank: Rank(0),
            now: Time::ZERO,
        };
        let mut lru = Lru::default();
        let first = lru.rank(&access);
        let second = lru.rank(&access);
        assert!(first < second);
        assert!(lru.admit(Space::Dram, first, second, &access));
    }
}
