//! The floor: so much of the arena stays with each living instance, whatever the others bring.
//!
//! Blocks that a floor keeps leave the order of eviction, or they would stand in the way of every search for a victim. They
//! wait in a queue of their owner, coldest first, and come back one by one as it grows, or all when it is gone.

use std::collections::{HashSet, VecDeque};

use super::nodes::{NO_OWNER, NodeId, Nodes, flag};
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::SEGMENT_BYTES;
use crate::policy::{Policy, Space};

/// Entries of a queue of which the blocks are gone that are skipped in one go.
const SKIPPED_MAX: u32 = 16;
/// Small blocks that come back for one large one.
const BACK_MAX: u32 = 64;
/// Queues shorter than this are not tidied.
const TIDY_MIN: usize = 64;

/// The blocks of one instance that its floor keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Coldest first. Blocks whose copies went otherwise are left in it until it is tidied.
    queue: VecDeque<NodeId>,
    gone: usize,
    /// So many of the first come back, since the floor fell or the owner is gone.
    freed: usize,
}

impl Kept {
    /// A block that was kept has lost its copy in the arena.
    pub(super) fn lost_one(&mut self) {
        self.gone += 1;
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.queue.capacity() * size_of::<NodeId>()
    }

    fn push(&mut self, id: NodeId, nodes: &Nodes, owner: u8) {
        if self.queue.len() >= TIDY_MIN && self.gone > self.queue.len() / 2 {
            let mut seen = HashSet::new();
            self.queue.retain(|id| keeps(nodes, *id, owner) && seen.insert(id.0));
            self.gone = 0;
            self.freed = self.freed.min(self.queue.len());
        }
        self.queue.push_back(id);
    }
}

/// Whether this entry of the owner's queue still says something.
fn keeps(nodes: &Nodes, id: NodeId, owner: u8) -> bool {
    nodes.live(id.0).is_some_and(|id| nodes[id].has(flag::KEPT) && nodes[id].owner == owner)
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// The block belongs to a living instance that is at its floor, and someone else wants its space.
    pub(super) fn floor_keeps(&self, id: NodeId, wanted_by: u8) -> bool {
        let owner = self.nodes[id].owner;
        if owner == NO_OWNER || owner == wanted_by {
            return false;
        }
        let instance = self.instances.get(owner);
        let slot_bytes = u64::from(self.lanes.get(self.nodes[id].lane).slot_bytes);
        instance.clients != 0 && instance.dram_bytes < self.work.floor_bytes + slot_bytes
    }

    /// Takes a block that a floor keeps out of the order of eviction.
    pub(super) fn keep(&mut self, id: NodeId) {
        self.unqueue(id, Space::Dram);
        self.nodes[id].set(flag::KEPT);
        let owner = self.nodes[id].owner;
        self.instances.get_mut(owner).kept.push(id, &self.nodes, owner);
    }

    /// The coldest block that the owner's floor keeps may fall again. Returns the bytes of its slot; 0 if only entries that say
    /// nothing any more were met; `None` if there are none at all.
    pub(super) fn unkeep_one(&mut self, owner: u8) -> Option<u32> {
        for _ in 0..SKIPPED_MAX {
            let kept = &mut self.instances.get_mut(owner).kept;
            let id = kept.queue.pop_front()?;
            kept.freed = kept.freed.saturating_sub(1);
            if keeps(&self.nodes, id, owner) {
                self.nodes[id].clear(flag::KEPT);
                self.refresh(id);
                return Some(self.lanes.get(self.nodes[id].lane).slot_bytes);
            }
            kept.gone = kept.gone.saturating_sub(1);
        }
        Some(0)
    }

    /// An instance brought a block in: as far as it lies above its floor, what it kept longest may fall.
    pub(super) fn floor_was_passed(&mut self, owner: u8, slot_bytes: u32) {
        let instance = self.instances.get(owner);
        if instance.dram_bytes < self.work.floor_bytes + u64::from(slot_bytes) {
            return;
        }
        let mut back = 0;
        for _ in 0..BACK_MAX {
            match self.unkeep_one(owner) {
                Some(bytes) => back += bytes,
                None => return,
            }
            if back >= slot_bytes {
                return;
            }
        }
    }

    /// The block may fall again, whatever a floor says.
    pub(super) fn unkeep(&mut self, id: NodeId) {
        if self.nodes[id].has(flag::KEPT) {
            self.nodes[id].clear(flag::KEPT);
            let owner = self.nodes[id].owner;
            self.instances.get_mut(owner).kept.lost_one();
            self.refresh(id);
        }
    }

    /// Instances came or went. All floors together leave half of the arena to whoever comes. Where a floor fell or its owner is
    /// gone, what it keeps is found out anew.
    pub(super) fn floors_changed(&mut self) {
        let living = self.instances.iter().filter(|instance| instance.clients != 0).count().max(1) as u64;
        let capacity = u64::from(self.dram.segment_count()) * u64::from(SEGMENT_BYTES);
        let before = self.work.floor_bytes;
        self.work.floor_bytes = self.config.floor_bytes.min(capacity / (2 * living));
        let fell = self.work.floor_bytes < before;
        for instance in self.instances.iter_mut().filter(|instance| fell || instance.clients == 0) {
            instance.kept.freed = instance.kept.queue.len();
            self.work.unkeeping |= instance.kept.freed > 0;
        }
    }

    /// Lets fall what the floors that fell do not keep any more.
    pub(super) fn work_unkeep(&mut self, mut steps: u32) {
        let mut owner = 0;
        while self.work.unkeeping && steps > 0 {
            if owner >= self.instances.len() {
                self.work.unkeeping = false;
            } else if self.instances.get(owner as u8).kept.freed > 0 && self.unkeep_one(owner as u8).is_some() {
                steps -= 1;
            } else {
                owner += 1;
            }
        }
    }
}
