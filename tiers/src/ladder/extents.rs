//! Slots within one 64 MiB extent: a segment of the arena or a zone of a device.
//!
//! One word per slot: the node that lies there, or a link of the free list, or that it is neither.

use super::nodes::NodeId;
use crate::ids::SEGMENT_BYTES;

/// What a slot's word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Free to be given away.
    Free,
    /// The slot of this node.
    Node(NodeId),
    /// No node's any more, and not free yet: someone may touch it, or a table still names it.
    Detached,
    /// Known from an earlier epoch as in use, not yet claimed by a record.
    Unseen,
}

const FREE_BIT: u32 = 1 << 31;
const FREE_END: u32 = FREE_BIT | (FREE_BIT - 1);
const DETACHED: u32 = FREE_BIT - 1;
const UNSEEN: u32 = FREE_BIT - 2;

/// The slots of one extent; empty while it has no slot size.
#[derive(Default)]
pub(super) struct Extent {
    words: Vec<u32>,
    slot_bytes: u32,
    free_head: u32,
    free: u32,
}

impl Extent {
    /// Cuts the extent in slots; all are free.
    pub(super) fn format(&mut self, slot_bytes: u32) {
        self.fill(slot_bytes, 0);
        for index in (0..self.slots()).rev() {
            self.free(index);
        }
    }

    /// Cuts the extent in slots of which nothing is known yet.
    pub(super) fn adopt(&mut self, slot_bytes: u32) {
        self.fill(slot_bytes, UNSEEN);
    }

    fn fill(&mut self, slot_bytes: u32, word: u32) {
        self.words = vec![word; (SEGMENT_BYTES / slot_bytes) as usize];
        (self.slot_bytes, self.free_head, self.free) = (slot_bytes, FREE_END, 0);
    }

    /// Takes the slots away. All are free.
    pub(super) fn clear(&mut self) {
        debug_assert!(self.free == self.slots());
        *self = Self::default();
    }

    pub(super) fn slot_bytes(&self) -> u32 {
        self.slot_bytes
    }

    pub(super) fn slots(&self) -> u32 {
        self.words.len() as u32
    }

    pub(super) fn free_slots(&self) -> u32 {
        self.free
    }

    pub(super) fn get(&self, index: u32) -> Use {
        match self.words[index as usize] {
            DETACHED => Use::Detached,
            UNSEEN => Use::Unseen,
            word if word & FREE_BIT != 0 => Use::Free,
            word => Use::Node(NodeId(word)),
        }
    }

    pub(super) fn set_node(&mut self, index: u32, id: NodeId) {
        debug_assert!(id.0 < UNSEEN && self.get(index) != Use::Free);
        self.words[index as usize] = id.0;
    }

    pub(super) fn set_detached(&mut self, index: u32) {
        debug_assert!(self.get(index) != Use::Free);
        self.words[index as usize] = DETACHED;
    }

    /// Takes a free slot; it is detached until someone claims it.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let index = self.free_head & !FREE_BIT;
        self.free_head = self.words[index as usize];
        self.words[index as usize] = DETACHED;
        self.free -= 1;
        Some(index)
    }

    pub(super) fn free(&mut self, index: u32) {
        self.words[index as usize] = self.free_head;
        self.free_head = FREE_BIT | index;
        self.free += 1;
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.capacity() * 4
    }

    /// The free list holds what is free, once.
    pub(super) fn check(&self) {
        let listed = (0..self.slots()).filter(|index| self.get(*index) == Use::Free).count() as u32;
        assert_eq!(listed, self.free, "free slots are counted");
        let (mut at, mut seen) = (self.free_head, 0);
        while seen < self.free {
            let index = at & !FREE_BIT;
            assert_eq!(self.get(index), Use::Free);
            at = self.words[index as usize];
            seen += 1;
        }
        assert!(self.free == 0 || at == FREE_END, "the free list ends");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_given_away_once_and_again_when_it_is_free() {
        let mut extent = Extent::default();
        assert_eq!((extent.slots(), extent.take()), (0, None));
        extent.format(16 << 20);
        assert_eq!((extent.slot_bytes(), extent.slots(), extent.free_slots()), (16 << 20, 4, 4));
        let taken: Vec<_> = std::iter::from_fn(|| extent.take()).collect();
        assert_eq!(taken, [0, 1, 2, 3]);
        assert!(taken.iter().all(|index| extent.get(*index) == Use::Detached));
        extent.set_node(2, NodeId(7));
        assert_eq!((extent.get(2), extent.free_slots()), (Use::Node(NodeId(7)), 0));
        extent.free(3);
        extent.free(1);
        assert_eq!((extent.get(1), extent.free_slots()), (Use::Free, 2));
        extent.check();
        assert_eq!([extent.take(), extent.take(), extent.take()], [Some(1), Some(3), None]);
        extent.set_detached(2);
        (0..4).for_each(|index| extent.free(index));
        extent.check();
        extent.clear();
        assert_eq!(extent.slots(), 0);
    }

    #[test]
    fn of_what_an_earlier_epoch_left_nothing_is_free_before_it_is_looked_at() {
        let mut extent = Extent::default();
        extent.adopt(32 << 20);
        assert_eq!((extent.get(0), extent.get(1), extent.take()), (Use::Unseen, Use::Unseen, None));
        extent.set_node(1, NodeId(0));
        extent.free(0);
        assert_eq!((extent.get(1), extent.take(), extent.take()), (Use::Node(NodeId(0)), Some(0), None));
    }
}
