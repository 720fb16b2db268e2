//! Chains: links between blocks, the closure, and what follows when a chain breaks.
//!
//! The closure: a node is `ATTACHED` only while it and all its ancestors are resident. It breaks when a block with children
//! loses its last copy. Such a block goes on the stack of cuts, its subtree is dropped top down in bounded steps, and
//! while the stack is not empty matches walk plainly. A node stays while it has children, so links never dangle.

use kvd_proto::{BlockKey, MissReason, Time};

use super::nodes::{NodeId, flag};
use super::port::SlotTable;
use super::state::Ladder;
use crate::policy::Policy;

/// Parents whose turn comes in one go when the last of a chain of empty places disappears; the rest follows later.
const EMPTY_PLACES_MAX: u32 = 4096;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    pub(super) fn find(&self, key: &BlockKey, lane: u16) -> Option<NodeId> {
        self.index.find(&self.nodes, key, lane)
    }

    /// A node for this block, linked under `parent`; `None` when the node table is full.
    pub(super) fn add_node(&mut self, key: BlockKey, lane: u16, position: u32, parent: NodeId) -> Option<NodeId> {
        let id = self.nodes.insert(key, lane, position)?;
        self.index.insert(&mut self.nodes, id);
        if !parent.is_none() {
            self.link(id, parent);
        }
        Some(id)
    }

    pub(super) fn link(&mut self, id: NodeId, parent: NodeId) {
        debug_assert!(self.nodes[id].parent.is_none() && !self.nodes[id].resident());
        let first = self.nodes[parent].first_child;
        let node = &mut self.nodes[id];
        (node.parent, node.next_sibling, node.prev_sibling) = (parent, first, NodeId::NONE);
        if let Some(first) = first.get() {
            self.nodes[first].prev_sibling = id;
        }
        self.nodes[parent].first_child = id;
        self.refresh(parent);
    }

    /// Takes a node out of its parent's list. The parent may have become empty or a leaf: the caller looks after that.
    pub(super) fn unlink(&mut self, id: NodeId) {
        let node = &self.nodes[id];
        let (parent, next, prev) = (node.parent, node.next_sibling, node.prev_sibling);
        if parent.is_none() {
            return;
        }
        debug_assert!(!node.resident());
        match prev.get() {
            Some(prev) => self.nodes[prev].next_sibling = next,
            None => self.nodes[parent].first_child = next,
        }
        if let Some(next) = next.get() {
            self.nodes[next].prev_sibling = prev;
        }
        let node = &mut self.nodes[id];
        (node.parent, node.next_sibling, node.prev_sibling) = (NodeId::NONE, NodeId::NONE, NodeId::NONE);
    }

    /// Frees a node on which nothing hangs any more, and its parents as far as that leaves them empty.
    pub(super) fn free_if_empty(&mut self, id: NodeId) {
        let mut at = id;
        for _ in 0..EMPTY_PLACES_MAX {
            self.forget_remote(at);
            let node = &self.nodes[at];
            let busy = flag::FILLING | flag::FETCHING | flag::SPILLING | flag::CUT;
            if node.holds > 0 || !node.leaf() || node.resident() || node.any(busy) {
                return;
            }
            let parent = node.parent;
            self.unlink(at);
            self.index.remove(&mut self.nodes, at);
            self.nodes.remove(at);
            let Some(next) = parent.get() else { return };
            self.refresh(next);
            at = next;
        }
        // A longer chain of empty places: the stack of cuts finishes it.
        self.push_cut(at);
    }

    /// The node became resident. Attaches it and all that waited for it, or lets it wait; false: nobody may wait any more.
    pub(super) fn attach_or_wait(&mut self, id: NodeId, now: Time) {
        let node = &self.nodes[id];
        let ready = match node.parent.get() {
            Some(parent) => self.nodes[parent].has(flag::ATTACHED),
            None => node.position == 0 && !node.has(flag::LOOSE),
        };
        if ready {
            self.attach(id, now);
            return;
        }
        if self.orphans.len() >= self.config.orphans_max as usize {
            self.expire_orphan();
        }
        let until = now + self.config.orphan_wait;
        let generation = self.nodes[id].generation;
        self.orphans.push_back((until, id, generation));
    }

    /// Attaches `id` and every resident node below it. Only nodes that waited are visited, and their children.
    fn attach(&mut self, id: NodeId, now: Time) {
        debug_assert!(self.attaching.is_empty());
        self.nodes[id].set(flag::ATTACHED);
        self.attaching.push(id);
        while let Some(at) = self.attaching.pop() {
            // Those that waited were passed over when their turn to be spilled came.
            self.want_spill(at);
            self.want_upload(at, now);
            let mut child = self.nodes[at].first_child;
            while let Some(id) = child.get() {
                let node = &mut self.nodes[id];
                child = node.next_sibling;
                if node.resident() && !node.has(flag::ATTACHED) {
                    node.set(flag::ATTACHED);
                    self.attaching.push(id);
                }
            }
        }
    }

    /// Gives up the orphan that has waited longest, if it still waits.
    pub(super) fn expire_orphan(&mut self) {
        let Some((_, id, generation)) = self.orphans.pop_front() else { return };
        let Some(id) = self.nodes.live(id.0) else { return };
        let node = &self.nodes[id];
        if node.generation == generation && node.resident() && !node.has(flag::ATTACHED) {
            self.counters.orphans_expired += 1;
            self.drop_copies(id, MissReason::Evicted);
        }
    }

    pub(super) fn cascade_open(&self) -> bool {
        !self.cuts.is_none()
    }

    /// `id` has no copy left but children: they must go.
    pub(super) fn push_cut(&mut self, id: NodeId) {
        if self.nodes[id].has(flag::CUT) || cfg!(kvd_bug = "subtree_kept") {
            return;
        }
        let next = self.cuts;
        let node = &mut self.nodes[id];
        node.set(flag::CUT);
        node.next_cut = next;
        self.cuts = id;
        self.counters.cuts += 1;
    }

    /// Works off cuts, at most `steps` nodes. Returns the steps left.
    pub(super) fn work_cuts(&mut self, mut steps: u32) -> u32 {
        while steps > 0 {
            let Some(top) = self.cuts.get() else { return steps };
            steps -= 1;
            let node = &self.nodes[top];
            let child = node.first_child.get().filter(|_| !node.resident());
            let Some(child) = child else {
                // All children are gone, or the block came back and with it what is left below.
                let next = std::mem::replace(&mut self.nodes[top].next_cut, NodeId::NONE);
                self.cuts = next;
                self.nodes[top].clear(flag::CUT);
                self.free_if_empty(top);
                continue;
            };
            self.cut_loose(child);
        }
        steps
    }

    /// Drops a child of a cut block; its own children follow as those of the next cut.
    fn cut_loose(&mut self, child: NodeId) {
        self.hold(child);
        self.drop_copies(child, MissReason::Evicted);
        let parent = self.nodes[child].parent;
        self.unlink(child);
        self.nodes[child].set(flag::LOOSE);
        self.refresh(parent);
        if !self.nodes[child].leaf() {
            self.push_cut(child);
        }
        self.unhold(child);
    }
}
