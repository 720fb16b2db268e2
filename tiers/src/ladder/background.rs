//! Sweeps over all records that an operator or past trouble asks for: spills that are owed, a drain, a scrub.

use kvd_proto::Time;

use super::moves::{Move, VerifyPlace};
use super::nodes::{NOWHERE, NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use super::work::LOOKS_PER_STEP;
use crate::ids::SlotState;
use crate::policy::Policy;

/// Scrub reads in flight.
const VERIFIES_MAX: u32 = 2;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Blocks were passed over that wait for their parents: worth another look only if something came down since, else what
    /// is left is not wanted there.
    pub(super) fn sweep_due(&self) -> bool {
        self.work.spills_owed || self.work.spill_skipped && self.counters.spilled > self.work.spilled_before
    }

    pub(super) fn may_sweep(&self) -> bool {
        self.nvme.devices.iter().any(|device| device.breaker.writable())
            && self.spills.is_empty()
            && self.nvme.devices.iter().all(|device| device.spilling == 0)
    }

    /// Looks for blocks of the arena that have no copy below and were not queued: after a full queue, a full disk, a start.
    pub(super) fn sweep_for_spills(&mut self) {
        if self.sweep_due() && !self.work.spill_sweep && self.may_sweep() {
            self.work.spills_owed = false;
            self.work.spill_sweep = true;
            self.work.spill_skipped = false;
            self.work.spill_cursor = 0;
            self.work.spilled_before = self.counters.spilled;
        }
        let mut looks = self.config.work_per_call * LOOKS_PER_STEP;
        while self.work.spill_sweep && looks > 0 && self.spills.len() < self.config.spill_queue_max as usize / 2 {
            looks -= 1;
            let number = self.work.spill_cursor;
            if number >= self.nodes.end() {
                self.work.spill_sweep = false;
                return;
            }
            self.work.spill_cursor += 1;
            let Some(id) = self.nodes.live(number) else { continue };
            let node = &self.nodes[id];
            if !node.has(flag::ATTACHED | flag::DRAM_READY) || node.nvme != NOWHERE {
                continue;
            }
            let parent = node.parent.get().map(|parent| &self.nodes[parent]);
            if parent.is_none_or(|parent| parent.nvme != NOWHERE || parent.has(flag::SPILL_QUEUED)) {
                self.want_spill(id);
            } else {
                self.work.skip_spill();
            }
        }
    }

    /// No newcomers from here on, and what lies only in the arena goes to the devices; or back to normal.
    pub fn drain(&mut self, on: bool, now: Time) {
        self.work.draining = on;
        if on {
            self.work.owe_spills();
        }
        self.work_some(now);
    }

    /// Whether a drain has brought down what it could.
    pub fn drained(&self) -> bool {
        let idle = self.spills.is_empty() && self.nvme.devices.iter().all(|device| device.spilling == 0);
        let stuck = !self.nvme.devices.iter().any(|device| device.breaker.writable());
        self.work.draining && (stuck || idle && !self.sweep_due() && !self.work.spill_sweep)
    }

    /// Starts a read of every copy, at the configured pace, or stops it.
    pub fn scrub(&mut self, on: bool, now: Time) {
        self.work.scrubbing = on;
        self.work.scrub_cursor = 0;
        self.work.scrub_next = now;
        self.scrub_some(now);
    }

    /// The share of the nodes that a scrub has still to look at; 0 when none is under way.
    pub(super) fn scrub_ahead(&self) -> f64 {
        let end = f64::from(self.nodes.end()) * 2.0;
        if self.work.scrubbing() && end > 0.0 { 1.0 - f64::from(self.work.scrub_cursor) / end } else { 0.0 }
    }

    pub(super) fn scrub_some(&mut self, now: Time) {
        if !self.work.scrubbing || self.scrub_waits() || now < self.work.scrub_next {
            return;
        }
        for _ in 0..self.config.work_per_call * LOOKS_PER_STEP {
            // Two places per node: its copy in the arena and its copy on a device.
            let number = self.work.scrub_cursor / 2;
            if number >= self.nodes.end() {
                if self.scrub_waits() {
                    return;
                }
                self.work.scrubbing = false;
                self.counters.scrubs += 1;
                return;
            }
            let below = self.work.scrub_cursor % 2 == 1;
            self.work.scrub_cursor += 1;
            if let Some(id) = self.nodes.live(number)
                && self.verify(id, below)
            {
                self.work.verifying += 1;
                self.work.scrub_next = now + self.config.scrub_pause;
                return;
            }
        }
        self.work.scrub_next = now;
    }

    /// Whether a scrub has nothing to do until something that it reads has been read: the last ones at its end, or enough.
    pub(super) fn scrub_waits(&self) -> bool {
        let ended = self.work.scrub_cursor / 2 >= self.nodes.end();
        self.work.verifying >= if ended { 1 } else { VERIFIES_MAX }
    }

    fn verify(&mut self, id: NodeId, below: bool) -> bool {
        let expect = self.entry(id, SlotState::Resident);
        let node = &self.nodes[id];
        let move_id;
        let place;
        if below {
            let Some(slot) = self.nvme_slot(id).filter(|_| node.has(flag::NVME_READY) && self.readable(id)) else {
                return false;
            };
            self.nvme.add_reader(slot);
            move_id = self.start(Flight::VerifyNvme { node: id, slot });
            place = VerifyPlace::Nvme(slot);
        } else {
            let Some(slot) = self.dram_slot(id).filter(|_| node.has(flag::DRAM_READY)) else { return false };
            self.pin_slot(slot, Holder::Move);
            move_id = self.start(Flight::VerifyDram { node: id, slot });
            place = VerifyPlace::Dram(slot);
        }
        self.hold(id);
        self.moves.push_back(Move::Verify { id: move_id, place, expect });
        true
    }
}
