//! Work that is done a little at a time: after every call, and in `tick` while some is left.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kvd_proto::Time;

use super::matching::Use;
use super::moves::Move;
use super::pins::Holder;
use super::port::SlotTable;
use super::purge::Purge;
use super::regrow::DrainPass;
use super::state::{Flight, Ladder};
use crate::ids::{ClientSlot, SegmentId, SlotId, earliest};
use crate::policy::Policy;

/// Between two tries to get memory for a segment.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);

/// Steps of a sweep over the nodes per unit of work: looking is cheap.
pub(super) const LOOKS_PER_STEP: u32 = 16;

/// Where each kind of work stands.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// The last match, until the policy hears of it.
    pub(super) used: Option<Use>,
    /// Client slots whose leases are swept, one bit each, and where the sweep stands.
    pub(super) reaping: u64,
    pub(super) reap_cursor: u32,
    /// Clients of which slots of earlier epochs are freed, and where that stands.
    pub(super) unfencing: u64,
    pub(super) unfence_at: u32,
    /// What each living instance keeps of the arena at least, in bytes.
    pub(super) floor_bytes: u64,
    /// What floors keep goes back to the order of eviction.
    pub(super) unkeeping: bool,
    /// Segments that lost their bytes, and how far each is swept; at most one entry per lost segment.
    pub(super) losing: VecDeque<(SegmentId, u32)>,
    /// When memory for a segment is asked for again, after there was none.
    pub(super) memory_retry: Option<Time>,
    pub(super) purges: VecDeque<Purge>,
    pub(super) purge_cursor: u32,
    pub(super) draining: bool,
    /// Records of an earlier epoch are being told: orders of eviction come at the end, all at once.
    pub(super) restoring: bool,
    /// A block was committed since a zone last changed hands: without news, sizes could take each other's zones for ever.
    pub(super) zone_may_change: bool,
    /// A segment could not be emptied because of who holds on to it, and nobody has let go of anything since: trying again
    /// would only keep the caller busy.
    pub(super) segment_stuck: bool,
    /// The last look at the queue of spills ended for want of steps: nothing else would bring the next.
    pub(super) spills_left: bool,
    /// Some blocks were not queued for a spill: a sweep finds them.
    pub(super) spills_owed: bool,
    pub(super) spill_cursor: u32,
    pub(super) spill_sweep: bool,
    /// The sweep passed over blocks whose parents have to go first; and how many spills were done when it began.
    pub(super) spill_skipped: bool,
    pub(super) spilled_before: u64,
    pub(super) scrubbing: bool,
    pub(super) scrub_cursor: u32,
    pub(super) scrub_next: Time,
    pub(super) verifying: u32,
    pub(super) dram_pass: DrainPass,
    /// The segment is not emptied if that took an instance below its floor.
    pub(super) floors_hold: bool,
    /// Bytes of each instance that the look at the segment has met.
    pub(super) looked_at: BTreeMap<u8, u64>,
    pub(super) zone_passes: Vec<DrainPass>,
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

    pub(super) fn drain_started(&mut self, floors_hold: bool) {
        self.dram_pass = DrainPass::default();
        self.floors_hold = floors_hold;
        self.looked_at.clear();
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
        self.settle_use();
        let mut steps = self.config.work_per_call;
        steps = self.work_cuts(steps);
        steps = self.work_reap(steps);
        steps = self.work_unfence(steps);
        steps = self.work_lost(steps);
        steps = self.work_purge(steps);
        steps = self.work_segment_drain(steps);
        self.work_unkeep(steps);
        self.work_zone_drains(steps);
        self.work_vacates();
        self.work_spills((self.config.work_per_call / 4).max(1), now);
        self.work_vacates();
        self.work_uploads(now);
        self.feed(now);
    }

    /// Time went on. Call at [`Ladder::poll_timeout`] or later.
    pub fn tick(&mut self, now: Time) {
        self.settle_use();
        self.expire_loads(now, self.config.work_per_call);
        let lease_idle_nanos = u64::try_from(self.config.lease_idle.as_nanos()).unwrap_or(u64::MAX);
        if let Some(idle_since) = now.as_nanos().checked_sub(lease_idle_nanos).map(Time::from_nanos) {
            for _ in 0..self.config.work_per_call {
                let Some(idle) = self.leases.pop_idle(idle_since, now) else { break };
                self.counters.leases_expired += 1;
                self.let_go(idle);
            }
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
        self.look_for_memory(now);
        self.sweep_for_spills();
        self.scrub_some(now);
        self.work_some(now);
    }

    /// Memory for segments that was short is asked for again after a pause: asking takes time.
    fn look_for_memory(&mut self, now: Time) {
        match self.work.memory_retry {
            None if self.dram.is_barren() => self.work.memory_retry = Some(now + MEMORY_PAUSE),
            Some(at) if at <= now => {
                self.work.memory_retry = None;
                self.dram.try_again();
            }
            None | Some(_) => {}
        }
    }

    /// When to call `tick`: zero while bounded work is left.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.busy() {
            return Some(Time::ZERO);
        }
        let idle = self.leases.idle_front().map(|touched| touched + self.config.lease_idle);
        let orphan = self.orphans.front().map(|(until, _, _)| *until);
        let devices = self.nvme.devices.iter().filter_map(|device| device.breaker.timeout()).min();
        let scrub = (self.work.scrubbing && !self.scrub_waits()).then_some(self.work.scrub_next);
        [idle, orphan, devices, scrub, self.work.memory_retry, self.next_turn()]
            .into_iter()
            .fold(self.loads.deadline(), earliest)
    }

    /// Work is left that needs nothing but calls.
    fn busy(&self) -> bool {
        let sweep = self.work.spill_sweep || self.sweep_due() && self.may_sweep();
        self.cascade_open()
            || self.work.reaping != 0
            || self.work.unfencing != 0
            || self.work.unkeeping
            || !self.work.losing.is_empty()
            || !self.work.purges.is_empty() && !self.purge_waits()
            || self.dram.draining().is_some()
            || self.zone_drain_goes_on()
            || self.work.spills_left
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
}
