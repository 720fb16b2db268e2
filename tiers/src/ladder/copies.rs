//! Copies come and go: the only place where a record is published or unpublished in a tier.

use kvd_proto::{MissReason, Time};

use super::dram_space::DramSpace;
use super::extents::Use;
use super::guards::{FillingSlot, SealedSlot, Vacant};
use super::nodes::{NO_OWNER, NOWHERE, NodeId, Nodes, flag};
use super::nvme_space::NvmeSpace;
use super::order::Order;
use super::pins::Holder;
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{NvmeSlot, SlotEntry, SlotId, SlotState};
use crate::policy::{Policy, QUEUES_MAX, Rank, Space};

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// What a table says about this record.
    pub(super) fn entry(&self, id: NodeId, state: SlotState) -> SlotEntry {
        let node = &self.nodes[id];
        let lane = self.lanes.get(node.lane);
        SlotEntry {
            state,
            generation: node.generation,
            tenant: lane.tenant,
            namespace_prefix: lane.namespace_prefix,
            group: lane.group,
            shard: lane.shard.clone(),
            key: node.key,
            parent_key: node.parent.get().map(|parent| self.nodes[parent].key),
            position: node.position,
            payload_bytes: lane.payload_bytes,
            meta_checksum: node.meta_checksum,
        }
    }

    pub(super) fn dram_slot(&self, id: NodeId) -> Option<SlotId> {
        let slot = self.nodes[id].dram;
        (slot != NOWHERE).then(|| SlotId::from_raw(slot))
    }

    pub(super) fn nvme_slot(&self, id: NodeId) -> Option<NvmeSlot> {
        let node = &self.nodes[id];
        (node.nvme != NOWHERE).then(|| NvmeSlot::from_raw(crate::DeviceId(node.device), node.nvme))
    }

    /// Gives a vacant slot to `id`, in the table as well. The state says who fills it.
    pub(super) fn fill_slot(&mut self, id: NodeId, vacant: Vacant, state: u16, owner: u8) -> FillingSlot {
        let slot = vacant.slot();
        let node = &mut self.nodes[id];
        debug_assert!(node.dram == NOWHERE && !node.any(flag::FILLING | flag::FETCHING));
        node.dram = slot.raw();
        node.owner = owner;
        node.set(state);
        self.dram.set_node(slot, id);
        let slot_bytes = self.dram.slot_bytes(slot);
        if owner != NO_OWNER {
            self.instances.get_mut(owner).dram_bytes += u64::from(slot_bytes);
            self.floor_was_passed(owner, slot_bytes);
        }
        let entry = self.entry(id, SlotState::Filling);
        vacant.fill(&mut self.table, &entry)
    }

    /// The slot is being filled for this node still: it was not displaced meanwhile.
    pub(super) fn fills(&self, id: NodeId, slot: SlotId) -> bool {
        self.nodes[id].dram == slot.raw()
    }

    /// Nothing came of a filling slot.
    pub(super) fn give_back(&mut self, id: NodeId, filling: FillingSlot) {
        let slot = filling.slot();
        if self.fills(id, slot) {
            self.hold(id);
            self.detach_filling(id, slot);
            // Children that were sealed meanwhile wait as orphans; a place with none goes.
            self.unhold(id);
        }
        let generation = self.next_generation();
        let vacant = filling.give_back(&mut self.table, generation);
        self.release_if_unheld(vacant);
    }

    fn detach_filling(&mut self, id: NodeId, slot: SlotId) {
        let node = &mut self.nodes[id];
        debug_assert!(node.dram == slot.raw() && !node.has(flag::DRAM_READY));
        node.clear(flag::FILLING | flag::FETCHING);
        node.dram = NOWHERE;
        self.disown(id, slot);
        self.dram.set_detached(slot);
    }

    /// A block whose copy was purged or cut while it was fetched makes room for whoever brings it anew: the slot is the move's
    /// alone until that one ends, and nothing comes of it.
    pub(super) fn displace(&mut self, id: NodeId, now: Time) {
        debug_assert!(self.nodes[id].has(flag::FETCHING) && !self.nodes[id].resident());
        let slot = self.dram_slot(id).expect("it is being filled");
        self.pin_slot(slot, Holder::Move);
        self.wake(id, Some(MissReason::Evicted), now);
        self.detach_filling(id, slot);
    }

    fn disown(&mut self, id: NodeId, slot: SlotId) {
        let node = &mut self.nodes[id];
        let (owner, kept) = (std::mem::replace(&mut node.owner, NO_OWNER), node.has(flag::KEPT));
        node.clear(flag::KEPT);
        if kept {
            self.instances.get_mut(owner).kept.lost_one();
        }
        if owner != NO_OWNER {
            self.instances.get_mut(owner).dram_bytes -= u64::from(self.dram.slot_bytes(slot));
        }
    }

    /// A detached slot becomes free, unless someone may still touch it: then when the last holder goes.
    fn release_if_unheld(&mut self, vacant: Vacant) {
        if !self.pins.held(vacant.slot()) {
            self.dram.release(vacant);
        }
    }

    /// Takes a hold on a slot back; the slot of a vanished record becomes free with the last one.
    pub(super) fn unpin_slot(&mut self, slot: SlotId, holder: Holder) {
        if !self.pins.remove(slot, holder) {
            return;
        }
        self.work.segment_stuck = false;
        match holder {
            // The bit is shared by this epoch's holds and those that are fenced.
            Holder::Client(client) | Holder::Fenced(client) => {
                if !self.pins.held_by(slot, client) {
                    self.table.unpin(slot, client);
                }
            }
            Holder::Move => {}
        }
        match self.dram.get(slot) {
            Use::Detached => self.release_if_unheld(Vacant::new(slot)),
            Use::Node(id) => self.refresh(id),
            Use::Free | Use::Unseen => {}
        }
    }

    pub(super) fn pin_slot(&mut self, slot: SlotId, holder: Holder) {
        if !self.pins.add(slot, holder) {
            return;
        }
        match holder {
            Holder::Client(client) | Holder::Fenced(client) => self.table.pin(slot, client),
            Holder::Move => {}
        }
    }

    /// The record in the arena is whole: from now on it can be found.
    pub(super) fn publish_dram(&mut self, id: NodeId, sealed: SealedSlot) {
        let entry = self.entry(id, SlotState::Resident);
        let slot = sealed.publish(&mut self.table, &entry);
        debug_assert!(self.nodes[id].dram == slot.raw());
        self.mark_dram(id);
    }

    /// Counts a copy in the arena that the table already names.
    pub(super) fn mark_dram(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        debug_assert!(!node.has(flag::DRAM_READY));
        let held = &mut self.lanes.get_mut(node.lane).held;
        held.take(node);
        node.clear(flag::FILLING | flag::FETCHING);
        node.set(flag::DRAM_READY);
        held.add(node);
        let parent = node.parent;
        self.refresh(id);
        if let Some(parent) = parent.get() {
            self.nodes[parent].dram_children += 1;
            self.refresh(parent);
        }
    }

    /// Takes the copy in the arena away. Its slot is free at once, or when the last holder lets go.
    pub(super) fn unpublish_dram(&mut self, id: NodeId) {
        let slot = self.dram_slot(id).expect("a published copy has a slot");
        self.unqueue(id, Space::Dram);
        let generation = self.next_generation();
        self.table.vacate(slot, generation);
        let node = &mut self.nodes[id];
        debug_assert!(node.has(flag::DRAM_READY));
        let held = &mut self.lanes.get_mut(node.lane).held;
        held.take(node);
        node.clear(flag::DRAM_READY);
        node.dram = NOWHERE;
        held.add(node);
        let (parent, rank) = (node.parent, node.rank);
        self.disown(id, slot);
        self.dram.set_detached(slot);
        self.release_if_unheld(Vacant::new(slot));
        if let Some(parent) = parent.get() {
            self.nodes[parent].dram_children -= 1;
            self.inherit(parent, rank);
        }
        self.refresh(id);
    }

    /// The record on a device is whole and journaled.
    pub(super) fn mark_nvme(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        debug_assert!(!node.has(flag::NVME_READY) && node.nvme != NOWHERE);
        let held = &mut self.lanes.get_mut(node.lane).held;
        held.take(node);
        node.clear(flag::SPILLING);
        node.set(flag::NVME_READY);
        held.add(node);
        let parent = node.parent;
        self.refresh(id);
        if let Some(parent) = parent.get() {
            self.nodes[parent].nvme_children += 1;
            self.refresh(parent);
        }
    }

    /// Takes the copy on a device away. Its slot is free when its entry is gone from the device's table.
    pub(super) fn unpublish_nvme(&mut self, id: NodeId) {
        let slot = self.nvme_slot(id).expect("a published copy has a slot");
        self.unqueue(id, Space::Nvme);
        let node = &mut self.nodes[id];
        debug_assert!(node.has(flag::NVME_READY));
        let held = &mut self.lanes.get_mut(node.lane).held;
        held.take(node);
        node.clear(flag::NVME_READY);
        node.nvme = NOWHERE;
        held.add(node);
        let (parent, rank) = (node.parent, node.rank);
        self.nvme.detach(slot);
        if let Some(parent) = parent.get() {
            self.nodes[parent].nvme_children -= 1;
            self.inherit(parent, rank);
        }
        self.refresh(id);
    }

    /// Drops every published copy. `reason` is what a later match will hear.
    pub(super) fn drop_copies(&mut self, id: NodeId, reason: MissReason) {
        if !self.nodes[id].resident() {
            return;
        }
        let (key, rank) = (self.nodes[id].key, self.nodes[id].rank());
        if self.nodes[id].has(flag::DRAM_READY) {
            self.unpublish_dram(id);
            self.policy.evicted(Space::Dram, &key, rank, !self.nodes[id].resident());
        }
        if self.nodes[id].has(flag::NVME_READY) {
            self.unpublish_nvme(id);
            self.policy.evicted(Space::Nvme, &key, rank, true);
        }
        if self.nodes[id].has(flag::REMOTE) {
            self.clear_remote(id);
        }
        self.vanished(id, reason);
    }

    /// If no copy is left: it cannot be matched, and neither can what hangs on it.
    pub(super) fn vanished(&mut self, id: NodeId, reason: MissReason) {
        if self.nodes[id].resident() {
            return;
        }
        self.nodes[id].clear(flag::ATTACHED | flag::PINNED);
        let key = self.nodes[id].key;
        self.ghosts.put(&key, reason);
        if self.nodes[id].leaf() {
            self.free_if_empty(id);
        } else {
            self.push_cut(id);
        }
    }

    /// A child left a tier: its parent is worth at least as much as what was built on it.
    fn inherit(&mut self, parent: NodeId, rank: u64) {
        let own = self.nodes[parent].rank();
        let inherited = self.policy.inherit(own, Rank(rank));
        if inherited != own {
            self.set_rank(parent, inherited.0);
        }
        self.refresh(parent);
    }

    pub(super) fn set_rank(&mut self, id: NodeId, rank: u64) {
        let placed = [Space::Dram, Space::Nvme].map(|space| self.nodes[id].place(space) != NOWHERE);
        let stays = self.policy.queue(self.nodes[id].rank()) == self.policy.queue(Rank(rank));
        for (space, placed) in [Space::Dram, Space::Nvme].into_iter().zip(placed) {
            if placed && !stays {
                self.unqueue(id, space);
            }
        }
        self.nodes[id].rank = rank;
        for (space, placed) in [Space::Dram, Space::Nvme].into_iter().zip(placed) {
            if placed {
                self.enqueue(id, space);
            }
        }
    }

    /// Where the policy lets a block of this rank wait to fall.
    pub(super) fn queue_of(&self, id: NodeId) -> usize {
        self.policy.queue(self.nodes[id].rank()).min(QUEUES_MAX - 1)
    }

    /// Puts a node in the order of its class in this space, or moves it there to its place.
    pub(super) fn enqueue(&mut self, id: NodeId, space: Space) {
        let queue = self.queue_of(id);
        let Self { nodes, dram, nvme, .. } = self;
        order_of(id, space, nodes, dram, nvme).put(nodes, queue, id);
    }

    /// Takes a node out of the order of its class in this space, if it stands there.
    pub(super) fn unqueue(&mut self, id: NodeId, space: Space) {
        let queue = self.queue_of(id);
        let Self { nodes, dram, nvme, .. } = self;
        order_of(id, space, nodes, dram, nvme).remove(nodes, queue, id);
    }

    /// Whether the copy in the arena may fall as far as the chain is concerned; holds and pins are looked at when its turn comes.
    pub(super) fn may_fall_from_dram(&self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        node.has(flag::DRAM_READY)
            && !node.any(flag::PINNED | flag::KEPT)
            && (cfg!(kvd_bug = "inner_block_falls")
                || node.dram_children == 0 && (node.has(flag::NVME_READY) || node.leaf()))
    }

    /// The same for the copy on a device.
    pub(super) fn may_fall_from_nvme(&self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        node.has(flag::NVME_READY)
            && !node.has(flag::PINNED)
            && node.nvme_children == 0
            && (node.has(flag::DRAM_READY) || node.leaf())
    }

    /// Puts the node into the eviction order of each tier where it may fall, and takes it out where it may not.
    pub(super) fn refresh(&mut self, id: NodeId) {
        if self.work.restoring {
            return;
        }
        for space in [Space::Dram, Space::Nvme] {
            let placed = self.nodes[id].place(space) != NOWHERE;
            let may_fall = match space {
                Space::Dram => self.may_fall_from_dram(id),
                Space::Nvme => self.may_fall_from_nvme(id),
            };
            match (placed, may_fall) {
                (false, true) => self.enqueue(id, space),
                (true, false) => self.unqueue(id, space),
                (true, true) | (false, false) => {}
            }
        }
    }
}

/// The order of the class in which the node's copy in this space lies.
fn order_of<'a>(
    id: NodeId,
    space: Space,
    nodes: &Nodes,
    dram: &'a mut DramSpace,
    nvme: &'a mut NvmeSpace,
) -> &'a mut Order {
    let node = &nodes[id];
    match space {
        Space::Dram => {
            let class = dram.class_of(SlotId::from_raw(node.dram));
            &mut dram.class_mut(class).order
        }
        Space::Nvme => {
            let class = nvme.class_of(NvmeSlot::from_raw(crate::DeviceId(node.device), node.nvme));
            &mut nvme.class_mut(class).order
        }
    }
}
