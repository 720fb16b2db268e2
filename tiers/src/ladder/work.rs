//! Work that is done a little at a time: after every call, and in `tick` while some is left.

use std::collections::VecDeque;

use kvd_proto::{MissReason, NamespaceDigest, Time};

use super::extents::Use;
use super::lanes::namespace_prefix;
use super::moves::{Move, VerifyPlace};
use super::nodes::{NO_OWNER, NOWHERE, NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use crate::ids::{ClientSlot, NvmeSlot, SlotId, SlotState, TenantId, ZoneId, earliest};
use crate::policy::Policy;

/// Purges that wait; one more becomes part of the last, which then takes everything of the tenant, or all.
const PURGES_MAX: usize = 16;
/// Scrub reads in flight.
const VERIFIES_MAX: u32 = 2;
/// Passes over a segment or zone that is being emptied before whoever holds on to it wins.
const DRAIN_PASSES: u8 = 3;
/// Entries that wait to go from the devices' tables before a purge waits for them.
const VACATES_AHEAD_MAX: usize = 4096;
/// Steps of a sweep over the nodes per unit of work: looking is cheap.
const LOOKS_PER_STEP: u32 = 16;

/// What a purge takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// Everything.
    All,
    /// Everything of a tenant.
    Tenant(TenantId),
    /// One namespace of a tenant.
    Namespace(TenantId, NamespaceDigest),
}

/// A pass over one extent that is emptied for another class.
#[derive(Debug, Default, Clone, Copy)]
struct DrainPass {
    cursor: u32,
    pass: u8,
}

/// Where each kind of work stands.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Client slots whose leases are swept, one bit each, and where the sweep stands.
    reaping: u64,
    reap_cursor: u32,
    /// Clients of which slots of earlier epochs are freed, and where that stands.
    unfencing: u64,
    unfence_at: u32,
    purges: VecDeque<Purge>,
    purge_cursor: u32,
    draining: bool,
    /// Records of an earlier epoch are being told: orders of eviction come at the end, all at once.
    pub(super) restoring: bool,
    /// A block was committed since a zone last changed hands: without news, sizes could take each other's zones for ever.
    pub(super) zone_may_change: bool,
    /// A segment could not be emptied because of who holds on to it, and nobody has let go of anything since: trying again
    /// would only keep the caller busy.
    pub(super) segment_stuck: bool,
    /// Some blocks were not queued for a spill: a sweep finds them.
    spills_owed: bool,
    spill_cursor: u32,
    spill_sweep: bool,
    /// The sweep passed over blocks whose parents have to go first; and how many spills were done when it began.
    spill_skipped: bool,
    spilled_before: u64,
    scrubbing: bool,
    scrub_cursor: u32,
    scrub_next: Time,
    verifying: u32,
    dram_pass: DrainPass,
    zone_passes: Vec<DrainPass>,
}

impl Work {
    pub(super) fn reap(&mut self, client: ClientSlot) {
        self.reaping |= client.bit();
        self.reap_cursor = 0;
    }

    pub(super) fn reaps(&self, client: ClientSlot) -> bool {
        self.reaping & client.bit() != 0
    }

    pub(super) fn unfence(&mut self, client: ClientSlot) {
        self.unfencing |= client.bit();
        self.unfence_at = 0;
    }

    pub(super) fn draining(&self) -> bool {
        self.draining
    }

    pub(super) fn owe_spills(&mut self) {
        self.spills_owed = true;
    }

    /// Some block was passed over because its parent has to go first.
    pub(super) fn skip_spill(&mut self) {
        self.spill_skipped = true;
    }

    pub(super) fn drain_started(&mut self) {
        self.dram_pass = DrainPass::default();
    }

    pub(super) fn verified(&mut self) {
        self.verifying -= 1;
    }

    pub(super) fn purging(&self) -> usize {
        self.purges.len()
    }

    pub(super) fn scrubbing(&self) -> bool {
        self.scrubbing
    }
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Bounded work that may be due after any call.
    pub(super) fn work_some(&mut self, now: Time) {
        let mut steps = self.config.work_per_call;
        steps = self.work_cuts(steps);
        steps = self.work_reap(steps);
        steps = self.work_unfence(steps);
        steps = self.work_purge(steps);
        steps = self.work_segment_drain(steps);
        self.work_zone_drains(steps);
        self.work_vacates();
        self.work_spills(self.config.work_per_call / 4, now);
        self.work_vacates();
        self.feed(now);
    }

    /// Time went on. Call at [`Ladder::poll_timeout`] or later.
    pub fn tick(&mut self, now: Time) {
        self.expire_loads(now, self.config.work_per_call);
        let idle_since = Time::from_nanos(
            now.as_nanos().saturating_sub(u64::try_from(self.config.lease_idle.as_nanos()).unwrap_or(u64::MAX)),
        );
        for _ in 0..self.config.work_per_call {
            if now.as_nanos() < u64::try_from(self.config.lease_idle.as_nanos()).unwrap_or(u64::MAX) {
                break;
            }
            let Some(idle) = self.leases.pop_idle(idle_since, now) else { break };
            self.counters.leases_expired += 1;
            self.let_go(idle);
        }
        for _ in 0..self.config.work_per_call {
            match self.orphans.front() {
                Some((until, _, _)) if *until <= now => self.expire_orphan(),
                Some(_) | None => break,
            }
        }
        for device in self.nvme.ids() {
            if self.nvme.device_mut(device).breaker.probe_due(now) {
                let id = self.start(Flight::Probe { device });
                self.moves.push_back(Move::Probe { id, device });
            }
        }
        self.sweep_for_spills();
        self.scrub_some(now);
        self.work_some(now);
    }

    /// When to call `tick`: zero while bounded work is left.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.busy() {
            return Some(Time::ZERO);
        }
        let idle = self.leases.idle_front().map(|touched| touched + self.config.lease_idle);
        let orphan = self.orphans.front().map(|(until, _, _)| *until);
        let devices = self.nvme.devices.iter().filter_map(|device| device.breaker.timeout()).min();
        let scrub = (self.work.scrubbing && self.work.verifying < VERIFIES_MAX).then_some(self.work.scrub_next);
        [idle, orphan, devices, scrub].into_iter().fold(self.loads.deadline(), earliest)
    }

    /// Work is left that needs nothing but calls.
    fn busy(&self) -> bool {
        let sweep = self.work.spill_sweep || self.sweep_due() && self.may_sweep();
        self.cascade_open()
            || self.work.reaping != 0
            || self.work.unfencing != 0
            || !self.work.purges.is_empty()
            || self.dram.draining().is_some()
            || self.zone_drain_goes_on()
            || sweep && self.spills.len() < self.config.spill_queue_max as usize / 2
    }

    /// What keeps it busy, for tests.
    #[cfg(test)]
    pub(super) fn why_busy(&self) -> String {
        let zones: Vec<_> =
            self.nvme.devices.iter().map(|device| (device.draining, device.breaker.timeout())).collect();
        let (work, draining, flights) = (&self.work, self.dram.draining(), self.flights.len());
        format!("{work:?} segment {draining:?} zones {zones:?} flights {flights} spills {}", self.spills.len())
    }

    fn zone_drain_goes_on(&self) -> bool {
        self.nvme.devices.iter().zip(&self.work.zone_passes).any(|(device, pass)| {
            let swept = device.draining.is_some_and(|zone| pass.cursor >= device.slots_of(zone));
            device.draining.is_some() && (!swept || device.queued_vacates() == 0 && device.vacating == 0)
        })
    }

    /// Blocks were passed over that wait for their parents: worth another look only if something came down since, else what
    /// is left is not wanted there.
    fn sweep_due(&self) -> bool {
        self.work.spills_owed || self.work.spill_skipped && self.counters.spilled > self.work.spilled_before
    }

    fn may_sweep(&self) -> bool {
        self.nvme.devices.iter().any(|device| device.breaker.writable())
            && self.spills.is_empty()
            && self.flights.is_empty()
    }

    /// Frees what dead clients held. Returns the steps left.
    pub(super) fn work_reap(&mut self, mut steps: u32) -> u32 {
        while self.work.reaping != 0 && steps > 0 {
            let Ok(found) = self.leases.at(self.work.reap_cursor) else {
                self.work.reaping = 0;
                self.work.reap_cursor = 0;
                return steps;
            };
            self.work.reap_cursor += 1;
            steps -= 1;
            let Some(lease) = found else { continue };
            for number in 0..ClientSlot::COUNT as u8 {
                let client = ClientSlot::new(number).expect("below the count");
                if self.work.reaps(client) {
                    steps = steps.saturating_sub(self.reap_lease(lease, client));
                }
            }
        }
        steps
    }

    /// Frees slots of earlier epochs whose holders are known to have let go. Returns the steps left.
    fn work_unfence(&mut self, mut steps: u32) -> u32 {
        while self.work.unfencing != 0 && steps > 0 {
            let client = ClientSlot::new(self.work.unfencing.trailing_zeros() as u8).expect("one of 64 bits");
            let (found, next) = self.pins.fenced_by(client, SlotId::from_raw(self.work.unfence_at), steps);
            if let Some(slot) = found {
                steps -= 1;
                self.unpin_slot(slot, Holder::Fenced(client));
            } else {
                steps = 0;
            }
            match next {
                Some(next) => self.work.unfence_at = next.raw(),
                None => {
                    self.work.unfencing &= !client.bit();
                    self.work.unfence_at = 0;
                }
            }
        }
        steps
    }

    /// Takes everything of a kind away, in the background. Leased slots are freed when their holders let go; slots being
    /// filled are given up when their clients commit.
    pub fn purge(&mut self, purge: Purge, now: Time) {
        if self.work.purges.len() < PURGES_MAX {
            self.work.purges.push_back(purge);
        } else if let Some(last) = self.work.purges.back_mut()
            && *last != purge
        {
            *last = Purge::All;
        }
        self.work_some(now);
    }

    fn purges(&self, purge: Purge, id: NodeId) -> bool {
        let lane = self.lanes.get(self.nodes[id].lane);
        match purge {
            Purge::All => true,
            Purge::Tenant(tenant) => lane.tenant == tenant,
            Purge::Namespace(tenant, digest) => {
                lane.tenant == tenant && lane.namespace_prefix == namespace_prefix(&digest)
            }
        }
    }

    fn work_purge(&mut self, mut steps: u32) -> u32 {
        // The devices' tables follow at their own pace: no more than they can take.
        let vacates: usize = self.nvme.devices.iter().map(|device| device.queued_vacates()).sum();
        let mut looks = steps.saturating_mul(LOOKS_PER_STEP);
        while let Some(purge) = self.work.purges.front().copied()
            && steps > 0
            && looks > 0
            && vacates < VACATES_AHEAD_MAX
        {
            if self.work.purge_cursor >= self.nodes.end() {
                self.work.purges.pop_front();
                self.work.purge_cursor = 0;
                self.counters.purges += 1;
                continue;
            }
            looks -= 1;
            let number = self.work.purge_cursor;
            self.work.purge_cursor += 1;
            let Some(id) = self.nodes.live(number).filter(|id| self.purges(purge, *id)) else { continue };
            if cfg!(kvd_bug = "purge_misses_one") && number % 5 == 4 {
                continue;
            }
            steps -= 1;
            if self.nodes[id].has(flag::FILLING) {
                self.nodes[id].set(flag::LOOSE);
            }
            self.drop_copies(id, MissReason::Cold);
        }
        steps
    }

    /// Empties the segment that another class waits for: first what falls without harm, then, in a second pass, what tears a
    /// chain. Returns the steps left.
    fn work_segment_drain(&mut self, mut steps: u32) -> u32 {
        while let Some(segment) = self.dram.draining()
            && steps > 0
        {
            let DrainPass { cursor, pass } = self.work.dram_pass;
            if cursor >= self.dram.slots_of(segment) {
                self.work.dram_pass = DrainPass { cursor: 0, pass: pass + 1 };
                if pass + 1 >= DRAIN_PASSES {
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
            if kept || self.floor_keeps(id, NO_OWNER) {
                continue;
            }
            if pass > 0 || node.has(flag::NVME_READY) || node.leaf() {
                self.evict_from_dram(id);
            }
        }
        steps
    }

    /// The same for zones of devices.
    fn work_zone_drains(&mut self, mut steps: u32) -> u32 {
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

    /// Looks for blocks of the arena that have no copy below and were not queued: after a full queue, a full disk, a start.
    fn sweep_for_spills(&mut self) {
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

    fn scrub_some(&mut self, now: Time) {
        if !self.work.scrubbing || self.work.verifying >= VERIFIES_MAX || now < self.work.scrub_next {
            return;
        }
        for _ in 0..self.config.work_per_call * LOOKS_PER_STEP {
            // Two places per node: its copy in the arena and its copy on a device.
            let number = self.work.scrub_cursor / 2;
            if number >= self.nodes.end() {
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
