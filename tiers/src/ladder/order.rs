//! The order in which the blocks of one class of slots fall: a heap per queue of the policy.

use super::heap::Heap;
use super::nodes::{NOWHERE, NodeId, Nodes};
use crate::policy::{QUEUES_MAX, Rank, Space};

const WORDS: usize = QUEUES_MAX / 64;
const _: () = assert!(QUEUES_MAX.is_multiple_of(64));

pub(super) struct Order {
    space: Space,
    /// Made when first used.
    queues: Vec<Heap>,
    /// The first of each queue and its rank: found without touching a node per queue.
    firsts: Vec<(Rank, NodeId)>,
    /// Queues that are not empty, one bit each.
    filled: [u64; WORDS],
}

impl Order {
    pub(super) const fn new(space: Space) -> Self {
        Self { space, queues: Vec::new(), firsts: Vec::new(), filled: [0; WORDS] }
    }

    /// Adds a node to the queue of its rank, or gives it the place there that its rank now deserves.
    pub(super) fn put(&mut self, nodes: &mut Nodes, queue: usize, id: NodeId) {
        while self.queues.len() <= queue {
            self.queues.push(Heap::new(self.space));
            self.firsts.push((Rank::default(), NodeId::NONE));
        }
        self.queues[queue].put(nodes, id);
        self.note_first(nodes, queue);
    }

    /// Takes a node out of the queue of its rank, if it stands there.
    pub(super) fn remove(&mut self, nodes: &mut Nodes, queue: usize, id: NodeId) {
        if nodes[id].place(self.space) == NOWHERE {
            return;
        }
        self.queues[queue].remove(nodes, id);
        self.note_first(nodes, queue);
    }

    fn note_first(&mut self, nodes: &Nodes, queue: usize) {
        let bit = 1 << (queue % 64);
        match self.queues[queue].top() {
            Some(id) => {
                self.firsts[queue] = (nodes[id].rank(), id);
                self.filled[queue / 64] |= bit;
            }
            None => self.filled[queue / 64] &= !bit,
        }
    }

    fn tops(&self) -> impl Iterator<Item = (Rank, NodeId)> {
        let filled = self.filled.iter().enumerate().flat_map(|(word, bits)| {
            std::iter::successors(Some(*bits), |bits| Some(bits & bits.wrapping_sub(1)))
                .take_while(|bits| *bits != 0)
                .map(move |bits| word * 64 + bits.trailing_zeros() as usize)
        });
        filled.map(|queue| self.firsts[queue])
    }

    /// The first of each queue, with its rank.
    pub(super) fn firsts(&self, ids: &mut Vec<NodeId>, ranks: &mut Vec<Rank>) {
        ids.clear();
        ranks.clear();
        for (rank, id) in self.tops() {
            ids.push(id);
            ranks.push(rank);
        }
    }

    /// The node with the lowest rank, whatever the policy would choose.
    pub(super) fn coldest(&self) -> Option<NodeId> {
        self.tops().min_by_key(|(rank, _)| *rank).map(|(_, id)| id)
    }

    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(Heap::len).sum()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.queues.capacity() * (size_of::<Heap>() + size_of::<(Rank, NodeId)>())
            + self.queues.iter().map(Heap::memory_bytes).sum::<usize>()
    }

    /// Each node stands in the queue that `queue_of` says, and all heaps are in order.
    pub(super) fn check(&self, nodes: &Nodes, queue_of: impl Fn(NodeId) -> usize) {
        for (queue, heap) in self.queues.iter().enumerate() {
            let filled = self.filled[queue / 64] >> (queue % 64) & 1 == 1;
            assert_eq!(filled, heap.len() > 0, "queue {queue} is marked as filled");
            if let Some(id) = heap.top() {
                assert_eq!(self.firsts[queue], (nodes[id].rank(), id), "the first of queue {queue} is known");
            }
            heap.check(nodes);
            heap.iter().for_each(|id| assert_eq!(queue_of(id), queue, "queue of {id:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use kvd_proto::BlockKey;

    use super::*;

    #[test]
    fn the_first_of_every_queue_is_known() {
        let mut nodes = Nodes::new(4096);
        let mut order = Order::new(Space::Nvme);
        assert!(order.coldest().is_none());
        // Two in each queue, the higher queues colder.
        let mut all = Vec::new();
        for queue in 0..QUEUES_MAX {
            for place in [1, 0] {
                let id = nodes.insert(BlockKey::new([0; 16]), 0, 0).unwrap();
                nodes[id].rank = ((QUEUES_MAX - queue) * 2 + place) as u64;
                order.put(&mut nodes, queue, id);
                all.push((queue, id));
            }
        }
        let queue_of = |id: NodeId| all.iter().find(|(_, known)| *known == id).unwrap().0;
        order.check(&nodes, queue_of);
        assert_eq!(order.len(), 2 * QUEUES_MAX);
        let (mut ids, mut ranks) = (Vec::new(), Vec::new());
        order.firsts(&mut ids, &mut ranks);
        assert_eq!(ids.iter().map(|id| queue_of(*id)).collect::<Vec<_>>(), (0..QUEUES_MAX).collect::<Vec<_>>());
        assert!(ids.iter().zip(&ranks).all(|(id, rank)| nodes[*id].rank() == *rank && rank.0 % 2 == 0));
        for queue in (0..QUEUES_MAX).rev() {
            for _ in 0..2 {
                let id = order.coldest().unwrap();
                assert_eq!(queue_of(id), queue);
                order.remove(&mut nodes, queue, id);
                order.remove(&mut nodes, queue, id);
                order.check(&nodes, queue_of);
            }
            order.firsts(&mut ids, &mut ranks);
            assert_eq!(ids.len(), queue);
        }
        assert_eq!((order.len(), order.coldest()), (0, None));
    }
}
