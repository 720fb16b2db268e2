//! One queue of an order of eviction: a four-way heap of nodes, lowest order first.
//!
//! Each node knows its place, so that a touched or vanished node is moved in logarithmic time.

use super::nodes::{NOWHERE, NodeId, Nodes};
use crate::policy::Space;

const ARITY: usize = 4;

pub(super) struct Heap {
    space: Space,
    items: Vec<NodeId>,
}

impl Heap {
    pub(super) const fn new(space: Space) -> Self {
        Self { space, items: Vec::new() }
    }

    pub(super) fn top(&self) -> Option<NodeId> {
        self.items.first().copied()
    }

    /// Adds a node; one that is there already takes the place that its rank now deserves.
    pub(super) fn put(&mut self, nodes: &mut Nodes, id: NodeId) {
        let place = match nodes[id].place(self.space) {
            NOWHERE => {
                self.items.push(id);
                self.items.len() - 1
            }
            place => place as usize,
        };
        self.settle(nodes, place, id);
    }

    pub(super) fn remove(&mut self, nodes: &mut Nodes, id: NodeId) {
        let place = nodes[id].place(self.space);
        if place == NOWHERE {
            return;
        }
        nodes[id].set_place(self.space, NOWHERE);
        let last = self.items.pop().expect("a heap that holds a node is not empty");
        if last != id {
            self.settle(nodes, place as usize, last);
        }
    }

    /// Lets `id` rise or sink from `place`, which is free for it.
    fn settle(&mut self, nodes: &mut Nodes, mut place: usize, id: NodeId) {
        let order = nodes[id].order();
        while place > 0 {
            let above = (place - 1) / ARITY;
            if nodes[self.items[above]].order() <= order {
                break;
            }
            self.set(nodes, place, self.items[above]);
            place = above;
        }
        loop {
            let first = place * ARITY + 1;
            let below = (first..(first + ARITY).min(self.items.len())).min_by_key(|at| nodes[self.items[*at]].order());
            match below {
                Some(below) if self.items[below] != id && nodes[self.items[below]].order() < order => {
                    self.set(nodes, place, self.items[below]);
                    place = below;
                }
                Some(_) | None => break,
            }
        }
        self.set(nodes, place, id);
    }

    fn set(&mut self, nodes: &mut Nodes, place: usize, id: NodeId) {
        self.items[place] = id;
        nodes[id].set_place(self.space, place as u32);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = NodeId> {
        self.items.iter().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.items.capacity() * size_of::<NodeId>()
    }

    /// Order and places hold.
    pub(super) fn check(&self, nodes: &Nodes) {
        for (place, id) in self.items.iter().enumerate() {
            assert_eq!(nodes[*id].place(self.space) as usize, place, "{id:?} knows its place");
            if place > 0 {
                let above = self.items[(place - 1) / ARITY];
                assert!(nodes[above].order() <= nodes[*id].order(), "{above:?} stands above {id:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kvd_proto::BlockKey;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn gives_the_lowest_first_through_touches_and_removals() {
        let mut random = SmallRng::seed_from_u64(7);
        let mut nodes = Nodes::new(4096);
        let mut heap = Heap::new(Space::Dram);
        let ids: Vec<_> = (0..500).map(|_| nodes.insert(BlockKey::new([0; 16]), 0, 0).unwrap()).collect();
        for _ in 0..5_000 {
            let id = ids[random.random_range(0..ids.len())];
            if random.random_bool(0.3) {
                heap.remove(&mut nodes, id);
            } else {
                nodes[id].rank = random.random_range(0..50);
                heap.put(&mut nodes, id);
            }
            heap.check(&nodes);
        }
        let mut last = (0, 0);
        while let Some(id) = heap.top() {
            assert!(nodes[id].order() >= last);
            last = nodes[id].order();
            heap.remove(&mut nodes, id);
        }
    }
}
