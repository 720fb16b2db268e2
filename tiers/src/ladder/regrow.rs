//! Space changes hands: a segment or a zone of one class is emptied for another that starves.

use super::extents::Use;
use super::nodes::{NO_OWNER, NodeId, flag};
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{NvmeSlot, SlotId, ZoneId};
use crate::policy::Policy;

/// The pass over a segment that takes nothing yet.
const LOOKING: u8 = 0;
/// Passes over a segment or zone that is being emptied before whoever holds on to it wins.
const DRAIN_PASSES: u8 = 3;

/// A pass over one extent that is emptied for another class.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct DrainPass {
    pub(super) cursor: u32,
    pub(super) pass: u8,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Empties the segment that another class waits for, if no owner falls below its floor by it: a pass looks, the next takes what
    /// falls without harm, and those after it what tears a chain. Returns the steps left.
    pub(super) fn work_segment_drain(&mut self, mut steps: u32) -> u32 {
        while let Some(segment) = self.dram.draining()
            && steps > 0
        {
            let DrainPass { cursor, pass } = self.work.dram_pass;
            if cursor >= self.dram.slots_of(segment) {
                self.work.dram_pass = DrainPass { cursor: 0, pass: pass + 1 };
                if pass >= DRAIN_PASSES {
                    self.dram.stop_draining();
                    self.work.segment_stuck = !cfg!(kvd_bug = "segment_retried");
                }
                continue;
            }
            steps -= 1;
            self.work.dram_pass.cursor += 1;
            let slot = SlotId::new(segment, cursor);
            let Use::Node(id) = self.dram.get(slot) else { continue };
            let node = &self.nodes[id];
            let kept = !node.has(flag::DRAM_READY) || node.has(flag::PINNED) || node.holds > 0 || self.pins.held(slot);
            if pass == LOOKING {
                if self.work.floors_hold && self.falls_below_floor(id) {
                    self.dram.stop_draining();
                    self.work.segment_stuck = true;
                }
                continue;
            }
            if kept {
                continue;
            }
            if pass > 1 || node.has(flag::NVME_READY) || node.leaf() {
                self.evict_from_dram(id);
            }
        }
        steps
    }

    /// Whether the segment that is looked at holds so much of this block's owner that emptying it would leave less than the
    /// floor.
    fn falls_below_floor(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        if node.owner == NO_OWNER || self.instances.get(node.owner).clients == 0 {
            return false;
        }
        let bytes = u64::from(self.lanes.get(node.lane).slot_bytes);
        let lost = self.work.looked_at.entry(node.owner).or_default();
        *lost += bytes;
        self.instances.get(node.owner).dram_bytes < self.work.floor_bytes + *lost
    }

    /// The same for zones of devices.
    pub(super) fn work_zone_drains(&mut self, mut steps: u32) -> u32 {
        self.work.zone_passes.resize(self.nvme.devices.len(), DrainPass::default());
        for device in self.nvme.ids() {
            let number = usize::from(device.0);
            while let Some(zone) = self.nvme.device(device).draining
                && steps > 0
            {
                steps -= 1;
                let DrainPass { cursor, pass } = self.work.zone_passes[number];
                if cursor >= self.nvme.device(device).slots_of(zone) {
                    // What was evicted becomes free only when it is vacated.
                    if self.nvme.device(device).queued_vacates() == 0 && self.nvme.device(device).vacating == 0 {
                        self.work.zone_passes[number] = DrainPass { cursor: 0, pass: pass + 1 };
                        if pass + 1 >= DRAIN_PASSES {
                            self.nvme.stop_draining(device);
                            self.work.zone_passes[number] = DrainPass::default();
                        }
                        continue;
                    }
                    break;
                }
                self.work.zone_passes[number].cursor += 1;
                let slot = NvmeSlot::new(device, ZoneId(zone), cursor);
                let Use::Node(id) = self.nvme.get(slot) else { continue };
                let node = &self.nodes[id];
                if !node.has(flag::NVME_READY) || node.has(flag::PINNED) || node.holds > 0 || self.nvme.reading(slot) {
                    continue;
                }
                if pass > 0 || node.has(flag::DRAM_READY) || node.leaf() {
                    self.evict_from_nvme(id);
                }
            }
            if self.nvme.device(device).draining.is_none() {
                self.work.zone_passes[number] = DrainPass::default();
            }
        }
        steps
    }

    pub(super) fn zone_drain_goes_on(&self) -> bool {
        self.nvme.devices.iter().zip(&self.work.zone_passes).any(|(device, pass)| {
            let swept = device.draining.is_some_and(|zone| pass.cursor >= device.slots_of(zone));
            device.draining.is_some() && (!swept || device.queued_vacates() == 0 && device.vacating == 0)
        })
    }
}
