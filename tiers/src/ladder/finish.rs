//! How moves end: publish after verify, fall back or quarantine after trouble.

use std::time::Duration;

use kvd_proto::{MissReason, Time};

use super::breaker::Side;
use super::guards::FillingSlot;
use super::moves::{DeviceFault, Move, Outcome};
use super::nodes::{NOWHERE, NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use crate::ids::{DeviceId, MoveId, NvmeSlot, ObjectPlace, SlotId, ZoneId};
use crate::policy::{AccessKind, Policy};

/// What became of a slot that was being filled from below.
struct Landing {
    /// Its memory is gone.
    lost: bool,
    /// The slot, if the node got another one meanwhile.
    displaced: Option<SlotId>,
    /// Why nothing landed.
    failed: Option<MissReason>,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// The next thing to do. Poll until `None` after every call: what the ladder plans is bounded by its limits of moves in
    /// flight, so nothing piles up here.
    pub fn poll_move(&mut self) -> Option<Move> {
        self.moves.pop_front()
    }

    /// A move ended. Each move is answered once; an unknown id is a broken shell.
    pub fn finished(&mut self, id: MoveId, outcome: Outcome, now: Time) {
        let flight = self.flights.remove(&id).expect("each move ends once");
        self.work.segment_stuck = false;
        self.settle_use();
        match flight {
            Flight::Spill { node, generation, from, to } => self.spill_ended(node, generation, from, to, outcome, now),
            Flight::Fetch { node, from, to } => self.fetch_ended(node, from, to, outcome, now),
            Flight::Get { node, from, to } => self.get_ended(node, from, to, outcome, now),
            Flight::Put { node, from } => self.put_ended(node, from, outcome),
            Flight::Vacate { slot } => self.vacate_ended(slot, outcome, now),
            Flight::Format { device, zone } => self.format_ended(device, zone, outcome, now),
            Flight::VerifyDram { node, slot } => self.verify_dram_ended(node, slot, outcome),
            Flight::VerifyNvme { node, slot } => self.verify_nvme_ended(node, slot, outcome, now),
            Flight::Probe { device } => {
                let alive = matches!(outcome, Outcome::Done { .. });
                self.nvme.devices[usize::from(device.0)].breaker.probed(alive, &self.config, now);
            }
        }
        self.work_some(now);
    }

    fn device_failed(&mut self, device: DeviceId, side: Side, fault: DeviceFault, now: Time) {
        self.counters.device_failures += 1;
        let found = &mut self.nvme.devices[usize::from(device.0)];
        found.failed += 1;
        found.breaker.failed(side, fault, &self.config, now);
    }

    fn spill_ended(&mut self, id: NodeId, generation: u32, from: SlotId, to: NvmeSlot, outcome: Outcome, now: Time) {
        let slot_bytes = u64::from(self.lanes.get(self.nodes[id].lane).slot_bytes);
        let (moved, took) = moved(outcome);
        let device = self.nvme.device_mut(to.device());
        device.spilling -= 1;
        device.writes.ended(slot_bytes, moved, took, now);
        // Between start and end the block may have vanished, and come again: only what was spilled is told to be there.
        let mut resealed = false;
        let node = &mut self.nodes[id];
        debug_assert!(node.has(flag::SPILLING) && node.nvme == to.raw());
        let current = node.generation == generation
            && node.has(flag::DRAM_READY)
            && node.dram == from.raw()
            && !node.has(flag::LOOSE);
        match outcome {
            Outcome::Done { .. } if current => {
                self.nvme.device_mut(to.device()).breaker.wrote();
                self.counters.spilled += 1;
                self.mark_nvme(id);
            }
            Outcome::Done { .. } | Outcome::Corrupt | Outcome::Missing | Outcome::Failed(_) => {
                node.clear(flag::SPILLING);
                node.nvme = NOWHERE;
                // What the table says there is unknown: it must be vacated before the slot is anyone's.
                self.nvme.detach(to);
                resealed = !current;
            }
        }
        self.unpin_slot(from, Holder::Move);
        match outcome {
            Outcome::Done { .. } => {}
            Outcome::Corrupt | Outcome::Missing if current => self.quarantine_dram(id),
            Outcome::Corrupt | Outcome::Missing => {}
            Outcome::Failed(fault) => {
                self.device_failed(to.device(), Side::Write, fault, now);
                self.work.owe_spills();
            }
        }
        if resealed {
            self.want_spill(id);
        }
        self.unhold(id);
    }

    fn fetch_ended(&mut self, id: NodeId, from: NvmeSlot, to: FillingSlot, outcome: Outcome, now: Time) {
        let slot_bytes = u64::from(self.lanes.get(self.nodes[id].lane).slot_bytes);
        let (moved, took) = moved(outcome);
        let device = self.nvme.device_mut(from.device());
        device.fetching -= 1;
        device.reads.ended(slot_bytes, moved, took, now);
        // The copy may have been purged or found corrupt meanwhile.
        let current = self.nodes[id].has(flag::NVME_READY) && self.nvme_slot(id) == Some(from);
        let landing = self.land_slot(id, to, current, outcome, now);
        self.nvme.remove_reader(from);
        match outcome {
            _ if landing.lost => {}
            Outcome::Done { .. } => self.counters.fetched += u64::from(current),
            Outcome::Corrupt | Outcome::Missing if current => self.quarantine_nvme(id),
            Outcome::Corrupt | Outcome::Missing => {}
            Outcome::Failed(fault) => self.device_failed(from.device(), Side::Read, fault, now),
        }
        self.landed(id, &landing, now);
    }

    fn get_ended(&mut self, id: NodeId, from: ObjectPlace, to: FillingSlot, outcome: Outcome, now: Time) {
        let slot_bytes = u64::from(self.lanes.get(self.nodes[id].lane).slot_bytes);
        let (moved, took) = moved(outcome);
        self.remotes.got(slot_bytes, moved, took, now);
        // A node may be remote again at the same place, after it was displaced: then this slot is none of its own.
        let own = self.fills(id, to.slot()) || cfg!(kvd_bug = "displaced_lands");
        let current = own && self.remotes.place(id) == Some(from);
        let landing = self.land_slot(id, to, current, outcome, now);
        match outcome {
            _ if landing.lost => {}
            Outcome::Done { .. } if current => {
                self.counters.got += 1;
                self.want_spill(id);
            }
            Outcome::Corrupt if current => self.quarantine_remote(id),
            Outcome::Missing if cfg!(kvd_bug = "gone_kept") => {}
            Outcome::Missing if current => self.drop_remote(id, MissReason::Evicted),
            // What else fails is the shell's to judge: it says so with `set_object_up`.
            Outcome::Done { .. } | Outcome::Corrupt | Outcome::Missing | Outcome::Failed(_) => {}
        }
        self.landed(id, &landing, now);
    }

    /// Publishes what came into a slot, or gives the slot back. `current`: the copy it came from is the node's still.
    fn land_slot(&mut self, id: NodeId, to: FillingSlot, current: bool, outcome: Outcome, now: Time) -> Landing {
        let slot = to.slot();
        // Whatever was read into memory that is gone says nothing about the device or its copy.
        let lost = self.dram.is_lost(slot.segment());
        let displaced = (!self.fills(id, slot)).then_some(slot);
        let failed = match outcome {
            _ if lost => Some(MissReason::Evicted),
            Outcome::Done { .. } if current => None,
            Outcome::Done { .. } | Outcome::Missing => Some(MissReason::Evicted),
            Outcome::Corrupt => Some(MissReason::Corrupt),
            Outcome::Failed(_) => Some(MissReason::TierDown),
        };
        if failed.is_some() {
            self.give_back(id, to);
        } else {
            if self.nodes[id].remote() {
                self.clear_remote(id);
            }
            self.publish_dram(id, to.seal());
            let rank = self.rank_access(id, AccessKind::Fetch, self.nodes[id].position + 1, now);
            self.set_rank(id, rank);
        }
        Landing { lost, displaced, failed }
    }

    /// Tells who waited for a slot what came of it.
    fn landed(&mut self, id: NodeId, landing: &Landing, now: Time) {
        match landing.displaced {
            // Who waited was told then; who waits now waits for another.
            Some(slot) => self.unpin_slot(slot, Holder::Move),
            None => self.wake(id, landing.failed, now),
        }
        self.unhold(id);
    }

    fn vacate_ended(&mut self, slot: NvmeSlot, outcome: Outcome, now: Time) {
        self.nvme.device_mut(slot.device()).vacating -= 1;
        match outcome {
            Outcome::Done { .. } => self.nvme.release(slot),
            Outcome::Corrupt | Outcome::Missing => self.nvme.device_mut(slot.device()).vacate_again(slot.raw()),
            Outcome::Failed(fault) => {
                self.nvme.device_mut(slot.device()).vacate_again(slot.raw());
                self.device_failed(slot.device(), Side::Write, fault, now);
            }
        }
    }

    fn format_ended(&mut self, device: DeviceId, zone: ZoneId, outcome: Outcome, now: Time) {
        debug_assert!(self.nvme.device(device).formatting.is_some_and(|(formatting, _)| formatting == zone));
        self.nvme.formatted(device, matches!(outcome, Outcome::Done { .. }));
        if let Outcome::Failed(fault) = outcome {
            self.device_failed(device, Side::Write, fault, now);
        }
    }

    fn verify_dram_ended(&mut self, id: NodeId, slot: SlotId, outcome: Outcome) {
        self.work.verified();
        self.counters.verified += 1;
        let current = self.nodes[id].has(flag::DRAM_READY) && self.nodes[id].dram == slot.raw();
        self.unpin_slot(slot, Holder::Move);
        if outcome == Outcome::Corrupt && current {
            self.quarantine_dram(id);
        }
        self.unhold(id);
    }

    fn verify_nvme_ended(&mut self, id: NodeId, slot: NvmeSlot, outcome: Outcome, now: Time) {
        self.work.verified();
        self.counters.verified += 1;
        let current = self.nodes[id].has(flag::NVME_READY) && self.nvme_slot(id) == Some(slot);
        self.nvme.remove_reader(slot);
        match outcome {
            Outcome::Done { .. } => {}
            Outcome::Corrupt | Outcome::Missing if current => self.quarantine_nvme(id),
            Outcome::Corrupt | Outcome::Missing => {}
            Outcome::Failed(fault) => self.device_failed(slot.device(), Side::Read, fault, now),
        }
        self.unhold(id);
    }

    /// The copy in the arena is not what it should be: it is never served again. A copy on a device takes its place.
    pub(super) fn quarantine_dram(&mut self, id: NodeId) {
        self.counters.corrupt_dram += 1;
        self.hold(id);
        self.unpublish_dram(id);
        self.vanished(id, MissReason::Corrupt);
        self.unhold(id);
    }

    /// The same for a copy on a device; a copy in the arena stays, and is spilled again.
    fn quarantine_nvme(&mut self, id: NodeId) {
        self.counters.corrupt_nvme += 1;
        self.nvme.devices[usize::from(self.nodes[id].device)].corrupt += 1;
        self.hold(id);
        self.unpublish_nvme(id);
        self.vanished(id, MissReason::Corrupt);
        self.want_spill(id);
        self.unhold(id);
    }
}

fn moved(outcome: Outcome) -> (u64, Duration) {
    match outcome {
        Outcome::Done { bytes, took } => (bytes, took),
        Outcome::Corrupt | Outcome::Missing | Outcome::Failed(_) => (0, Duration::ZERO),
    }
}
