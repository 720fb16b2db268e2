//! Write-through in the background: blocks of the arena get a copy on a device, parents first.

use kvd_proto::Time;

use super::moves::Move;
use super::nodes::{NOWHERE, NodeId, flag};
use super::nvme_space::{Device, NvmeClass};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use crate::ids::{NvmeSlot, SlotState};
use crate::policy::{Access, AccessKind, Policy, Space};

/// Blocks of a device that fall ahead of the spills that wait, per call.
const VICTIMS_MAX: usize = 8;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    fn may_spill(&self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        node.has(flag::DRAM_READY) && node.nvme == NOWHERE && !node.any(flag::SPILLING | flag::SPILL_QUEUED)
    }

    /// The block shall get a copy on a device when its turn comes. A full queue leaves it to the sweep that comes after.
    pub(super) fn want_spill(&mut self, id: NodeId) {
        if self.nvme.devices.is_empty() || !self.may_spill(id) {
            return;
        }
        if self.spills.len() >= self.config.spill_queue_max as usize {
            self.work.owe_spills();
            return;
        }
        let node = &mut self.nodes[id];
        node.set(flag::SPILL_QUEUED);
        let generation = node.generation;
        self.spills.push_back((id, generation));
    }

    /// Starts spills as far as devices and space allow, looking at no more than `steps` blocks.
    pub(super) fn work_spills(&mut self, steps: u32, now: Time) {
        self.work.spills_left = false;
        for _ in 0..steps {
            let Some((id, generation)) = self.spills.front().copied() else { return };
            let current = self.nodes.live(id.0).filter(|id| {
                let node = &self.nodes[*id];
                node.generation == generation && node.has(flag::SPILL_QUEUED)
            });
            let Some(id) = current else {
                self.spills.pop_front();
                continue;
            };
            let node = &self.nodes[id];
            // Parents first, so that what a device holds are chains from their start. An orphan may still be cut loose.
            let parent = node.parent.get().map(|parent| &self.nodes[parent]);
            let parent_there = parent.is_none_or(|parent| parent.nvme != NOWHERE);
            let parent_comes = parent.is_some_and(|parent| parent.any(flag::SPILL_QUEUED | flag::REMOTE));
            let wanted = node.has(flag::DRAM_READY | flag::ATTACHED) && node.nvme == NOWHERE;
            if !wanted || !parent_there {
                if wanted && parent_comes {
                    self.work.skip_spill();
                }
                self.drop_spill(id);
                continue;
            }
            let class = self.lanes.get(node.lane).nvme_class;
            match self.nvme.take(class, self.config.spills_max) {
                Some(to) => self.spill(id, to, now),
                None if self.make_room(id, class, now) => return,
                None => self.drop_spill(id),
            }
        }
        self.work.spills_left = !self.spills.is_empty();
    }

    /// Takes the first of the queue off it.
    fn drop_spill(&mut self, id: NodeId) {
        self.spills.pop_front();
        self.nodes[id].clear(flag::SPILL_QUEUED);
    }

    fn spill(&mut self, id: NodeId, to: NvmeSlot, now: Time) {
        self.drop_spill(id);
        let from = self.dram_slot(id).expect("it was looked at");
        let slot_bytes = self.dram.slot_bytes(from);
        let node = &mut self.nodes[id];
        node.set(flag::SPILLING);
        (node.nvme, node.device) = (to.raw(), to.device().0);
        let generation = node.generation;
        self.nvme.set_node(to, id);
        self.hold(id);
        self.pin_slot(from, Holder::Move);
        let device = self.nvme.device_mut(to.device());
        device.spilling += 1;
        device.writes.started(u64::from(slot_bytes), now);
        let entry = self.entry(id, SlotState::Resident);
        let move_id = self.start(Flight::Spill { node: id, generation, from, to });
        self.moves.push_back(Move::Spill { id: move_id, from, to, entry });
    }

    /// No slot for the first of the queue. True: one is on its way, or a device will have time. False: it is not worth a victim.
    fn make_room(&mut self, id: NodeId, class: u16, now: Time) -> bool {
        let spills_max = self.config.spills_max;
        let usable = |device: &&Device| device.breaker.writable();
        let busy = |device: &Device| {
            device.spilling >= spills_max && device.has_open(class)
                || device.formatting.is_some_and(|(_, wanted)| wanted == class)
        };
        if !self.nvme.devices.iter().any(|device| usable(&device)) || self.nvme.devices.iter().any(busy) {
            return true;
        }
        if let Some((device, zone)) = self.nvme.take_zone(class) {
            let slot_bytes = self.nvme.class(class).slot_bytes;
            let move_id = self.start(Flight::Format { device, zone });
            self.moves.push_back(Move::FormatZone { id: move_id, device, zone, slot_bytes });
            return true;
        }
        let pending: usize = self.nvme.devices.iter().map(|d| d.queued_vacates() + d.vacating as usize).sum();
        if pending >= VICTIMS_MAX {
            return true;
        }
        self.drain_colder_zone(class);
        // The parent's copy must not fall to make room for its child.
        let parent = self.nodes[id].parent.get();
        if let Some(parent) = parent {
            self.hold(parent);
        }
        let mut waits = pending > 0 || self.draining_zone();
        for _ in 0..VICTIMS_MAX {
            let Some(victim) = self.nvme_victim(class) else { break };
            if !self.admitted(id, victim, now) {
                break;
            }
            self.evict_from_nvme(victim);
            waits = true;
        }
        if let Some(parent) = parent {
            self.unhold(parent);
        }
        waits
    }

    fn draining_zone(&self) -> bool {
        self.nvme.devices.iter().any(|device| device.draining.is_some())
    }

    /// Only what ranks higher pushes out: else two blocks could take each other's place for ever.
    fn admitted(&mut self, id: NodeId, victim: NodeId, now: Time) -> bool {
        let node = &self.nodes[id];
        if node.order() <= self.nodes[victim].order() {
            return false;
        }
        let access = Access {
            kind: AccessKind::Offer,
            key: node.key,
            position: node.position,
            chain_blocks: node.position + 1,
            slot_bytes: self.lanes.get(node.lane).slot_bytes,
            rank: node.rank(),
            now,
        };
        let (candidate, victim) = (self.nodes[id].rank(), self.nodes[victim].rank());
        self.policy.admit(Space::Nvme, candidate, victim, &access)
    }

    /// If another class holds a colder block than this one's coldest, one of its zones changes hands.
    fn drain_colder_zone(&mut self, class: u16) {
        let coldest = |class: &NvmeClass| class.order.coldest().map(|id| (self.nodes[id].order(), id));
        let own = coldest(self.nvme.class(class));
        let Some((order, id)) = self.nvme.classes().filter_map(coldest).min() else { return };
        if own.is_some_and(|(own, _)| own <= order) || !self.work.zone_may_change {
            return;
        }
        let slot = self.nvme_slot(id).expect("what may fall has a copy");
        if self.nvme.device(slot.device()).draining.is_none() {
            self.nvme.drain(slot);
            self.work.zone_may_change = false;
            self.counters.zones_drained += 1;
        }
    }

    /// Entries that must go from the devices' tables before their slots are free.
    pub(super) fn work_vacates(&mut self) {
        for device in self.nvme.ids() {
            loop {
                let found = self.nvme.device_mut(device);
                if !found.breaker.writable() || found.vacating >= self.config.vacates_max {
                    break;
                }
                let Some(slot) = found.next_vacate() else { break };
                found.vacating += 1;
                let slot = NvmeSlot::from_raw(device, slot);
                if cfg!(kvd_bug = "vacate_skipped") {
                    self.nvme.device_mut(device).vacating -= 1;
                    self.nvme.release(slot);
                    continue;
                }
                let move_id = self.start(Flight::Vacate { slot });
                self.moves.push_back(Move::Vacate { id: move_id, slot });
            }
        }
    }
}
