//! What an earlier epoch left: records from the tables of the arena and of the devices, in any order.

use kvd_proto::{MissReason, Time};

use super::extents::Use;
use super::lanes::LaneKey;
use super::nodes::{NOWHERE, NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{
    ClientSlot, FencedSlot, RestoredPlace, RestoredRecord, RestoredSegment, RestoredZone, SlotId, SlotState, newer,
};
use crate::policy::Policy;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// A segment that was in use. Comes before its records. One that the arena no longer has room for is left alone.
    pub fn restore_segment(&mut self, segment: RestoredSegment) {
        if self.dram.adopt(segment.segment, segment.tenant, segment.slot_bytes) {
            self.saw_generation(segment.generation_max);
        }
    }

    /// A zone that was formatted. Comes before its records.
    pub fn restore_zone(&mut self, zone: RestoredZone) {
        self.nvme.adopt(zone.device, zone.zone, zone.slot_bytes);
    }

    fn saw_generation(&mut self, generation: u32) {
        // 0 was given to nobody: the first one seen counts whatever it is.
        if self.generation == 0 || newer(generation, self.generation) {
            self.generation = generation;
        }
    }

    /// A record that a table names. Of two sealings of one block the newer counts; whatever cannot be used is vacated.
    pub fn restore(&mut self, record: &RestoredRecord) {
        let known = match record.place {
            RestoredPlace::Dram(slot) => self.dram.has(slot) && self.dram.get(slot) == Use::Unseen,
            RestoredPlace::Nvme(slot) => self.nvme.has(slot) && self.nvme.get(slot) == Use::Unseen,
        };
        if !known {
            self.counters.restore_dropped += 1;
            return;
        }
        self.work.restoring = true;
        self.saw_generation(record.entry.generation);
        if self.restore_node(record).is_none() {
            self.counters.restore_dropped += 1;
            self.refuse_place(record.place);
        }
    }

    fn restore_node(&mut self, record: &RestoredRecord) -> Option<()> {
        let entry = &record.entry;
        let sane = entry.state == SlotState::Resident && (entry.parent_key.is_some() == (entry.position > 0));
        if !sane {
            return None;
        }
        let lane = self.lane_for(LaneKey::of_entry(entry, record.slot_bytes), &entry.shard).ok()?;
        let id = match self.find(&entry.key, lane) {
            Some(id) if self.nodes[id].resident() => {
                let node = &self.nodes[id];
                let same = node.generation == entry.generation && node.meta_checksum == entry.meta_checksum;
                let free = match record.place {
                    RestoredPlace::Dram(_) => !node.has(flag::DRAM_READY),
                    RestoredPlace::Nvme(_) => !node.has(flag::NVME_READY),
                };
                if !same && newer(entry.generation, node.generation) {
                    self.forget_copies(id);
                } else if !same || !free {
                    return None;
                }
                id
            }
            Some(id) => id,
            None => self.add_node(entry.key, lane, entry.position, NodeId::NONE)?,
        };
        self.restore_parent(id, record, lane)?;
        let node = &mut self.nodes[id];
        (node.position, node.generation, node.meta_checksum) = (entry.position, entry.generation, entry.meta_checksum);
        match record.place {
            RestoredPlace::Dram(slot) => {
                node.dram = slot.raw();
                self.dram.set_node(slot, id);
                self.mark_dram(id);
            }
            RestoredPlace::Nvme(slot) => {
                (node.nvme, node.device) = (slot.raw(), slot.device().0);
                self.nvme.set_node(slot, id);
                self.mark_nvme(id);
            }
        }
        self.counters.restored += 1;
        Some(())
    }

    /// Links the node under its parent, which may come later: then a place is kept for it.
    fn restore_parent(&mut self, id: NodeId, record: &RestoredRecord, lane: u16) -> Option<()> {
        let Some(key) = record.entry.parent_key else {
            return self.nodes[id].parent.is_none().then_some(());
        };
        if let Some(parent) = self.nodes[id].parent.get() {
            return (self.nodes[parent].key == key).then_some(());
        }
        let parent = match self.find(&key, lane) {
            Some(parent) => parent,
            None => self.add_node(key, lane, record.entry.position - 1, NodeId::NONE)?,
        };
        if parent == id || self.nodes[id].resident() {
            return None;
        }
        self.link(id, parent);
        Some(())
    }

    /// An older sealing gives way; the node stays for the newer.
    fn forget_copies(&mut self, id: NodeId) {
        self.counters.restore_dropped += 1;
        if self.nodes[id].has(flag::DRAM_READY) {
            self.unpublish_dram(id);
        }
        if self.nodes[id].has(flag::NVME_READY) {
            self.unpublish_nvme(id);
        }
    }

    fn refuse_place(&mut self, place: RestoredPlace) {
        match place {
            RestoredPlace::Dram(slot) => {
                // The slot is free with all others that nothing claims.
                let generation = self.next_generation();
                self.table.vacate(slot, generation);
            }
            RestoredPlace::Nvme(slot) => self.nvme.detach(slot),
        }
    }

    /// A slot that clients of an earlier epoch may still touch, whatever is in it: it is not given away before they rejoined
    /// or died.
    pub fn fence(&mut self, fenced: FencedSlot) {
        if !self.dram.has(fenced.slot) || cfg!(kvd_bug = "fence_forgotten") {
            return;
        }
        for number in 0..ClientSlot::COUNT as u8 {
            let client = ClientSlot::new(number).expect("below the count");
            if fenced.clients & client.bit() != 0 {
                self.pins.add(fenced.slot, Holder::Fenced(client));
            }
        }
    }

    /// All is told: chains are linked from their starts, what has no start is dropped, the rest is free. One pass over all
    /// nodes; from here on the ladder serves.
    pub fn restored(&mut self, now: Time) {
        let fenced: Vec<SlotId> = self.pins.iter().map(|(slot, _, _)| slot).collect();
        for slot in fenced {
            if self.dram.get(slot) == Use::Unseen {
                self.dram.set_detached(slot);
            }
        }
        self.dram.adopted();
        self.nvme.adopted();
        self.attach_restored();
        for number in 0..self.nodes.end() {
            let Some(id) = self.nodes.live(number) else { continue };
            if self.nodes[id].has(flag::ATTACHED) {
                continue;
            }
            if self.nodes[id].resident() {
                self.counters.restore_dropped += 1;
                self.drop_restored(id);
            }
        }
        self.work.restoring = false;
        // Places that nothing hangs on any more go, each with the empty ones above it; the rest takes its turn to fall.
        for number in 0..self.nodes.end() {
            if let Some(id) = self.nodes.live(number) {
                self.refresh(id);
                self.free_if_empty(id);
            }
        }
        self.work.owe_spills();
        self.work_some(now);
    }

    /// Attaches each chain as far as it is whole. Walks up from each node until it meets one that is decided, then down the
    /// same way, so each node is decided once.
    fn attach_restored(&mut self) {
        let mut path = Vec::new();
        for number in 0..self.nodes.end() {
            let Some(id) = self.nodes.live(number) else { continue };
            let mut at = id;
            // Whether the chain above the collected path is whole.
            let whole = loop {
                let node = &self.nodes[at];
                if node.has(flag::ATTACHED) {
                    break true;
                }
                if node.has(flag::LOOSE) || !node.resident() {
                    break false;
                }
                let parent = node.parent;
                let fits = parent.get().map_or(node.position == 0, |p| self.nodes[p].position + 1 == node.position);
                path.push(at);
                // A table that names a circle of parents: positions grow along links, so it does not fit somewhere.
                if !fits {
                    break false;
                }
                match parent.get() {
                    Some(parent) => at = parent,
                    None => break true,
                }
            };
            for id in path.drain(..) {
                self.nodes[id].set(if whole { flag::ATTACHED } else { flag::LOOSE });
            }
        }
    }

    fn drop_restored(&mut self, id: NodeId) {
        self.nodes[id].clear(flag::LOOSE);
        let key = self.nodes[id].key;
        if self.nodes[id].has(flag::DRAM_READY) {
            self.unpublish_dram(id);
        }
        if self.nodes[id].has(flag::NVME_READY) {
            self.unpublish_nvme(id);
        }
        debug_assert!(self.nodes[id].dram == NOWHERE && self.nodes[id].nvme == NOWHERE);
        self.ghosts.put(&key, MissReason::Evicted);
    }
}
