//! Who comes and goes, and what they leave behind.

use kvd_proto::{InstanceId, Time};

use super::lanes::{Lane, LaneKey, Speed, View, ViewSpec};
use super::leases::LeaseKind;
use super::moves::JoinError;
use super::nodes::flag;
use super::pins::Holder;
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{ClientSlot, LeaseId, TenantId, ViewId};
use crate::policy::Policy;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// A client process joins as part of an engine instance. Its client slot has nothing left from whoever had it before:
    /// that one was told dead, or to have rejoined.
    pub fn join(
        &mut self,
        client: ClientSlot,
        instance: InstanceId,
        tenant: TenantId,
        now: Time,
    ) -> Result<(), JoinError> {
        // What a predecessor on this client slot left must not be taken for the newcomer's.
        while self.work.reaps(client) {
            self.work_reap(u32::MAX);
        }
        self.instances.leave(client);
        self.instances.join(client, instance, tenant)?;
        self.floors_changed();
        self.work_some(now);
        Ok(())
    }

    /// The client holds nothing of an earlier epoch any more: the slots that were fenced for it are free to be reused.
    pub fn rejoined(&mut self, client: ClientSlot, now: Time) {
        if !cfg!(kvd_bug = "fence_kept") {
            self.work.unfence(client);
        }
        self.work_some(now);
    }

    /// The client process is dead, and so is the device work that it started: all it held is free, within a few calls. Also
    /// for clients of an earlier epoch that never came back.
    pub fn client_died(&mut self, client: ClientSlot, now: Time) {
        self.instances.leave(client);
        self.floors_changed();
        if !cfg!(kvd_bug = "dead_client_kept") {
            self.work.reap(client);
        }
        self.work.unfence(client);
        self.work_some(now);
    }

    /// The lane of these records; its classes come with it.
    pub(super) fn lane_for(&mut self, key: LaneKey, shard: &kvd_proto::Shard) -> Result<u16, JoinError> {
        if let Some(found) = self.lanes.find(&key) {
            return Ok(found);
        }
        if self.lanes.full() {
            return Err(JoinError::Lanes);
        }
        let dram_class = self.dram.class_for(key.tenant(), key.slot_bytes()).ok_or(JoinError::Lanes)?;
        let nvme_class = self.nvme.class_for(key.slot_bytes()).ok_or(JoinError::Lanes)?;
        let lane: Lane = key.lane(shard.clone(), dram_class, nvme_class);
        Ok(self.lanes.add(key, lane))
    }

    /// Opens a view. Views are cheap; the shell closes those of a session that ends.
    pub fn open_view(&mut self, spec: &ViewSpec) -> Result<ViewId, JoinError> {
        let key = LaneKey::of_view(spec)?;
        let lane = self.lane_for(key, &spec.shard)?;
        let speed = Speed { block_tokens: spec.block_tokens, tokens_per_second: spec.prefill_tokens_per_second };
        self.views.add(View { lane, group_key: spec.group_key, speed })
    }

    /// Closes a view. Leases taken through it stay.
    pub fn close_view(&mut self, view: ViewId) {
        self.views.remove(view);
    }

    /// How fast the engine recomputes now; 0 when it does not know.
    pub fn set_prefill_rate(&mut self, view: ViewId, tokens_per_second: u32) {
        if let Some(view) = self.views.get_mut(view) {
            view.speed.tokens_per_second = tokens_per_second;
        }
    }

    /// The client needs nothing of the lease any more: its pins go; with the owner's release the lease goes, as soon as no
    /// other process of the instance reads under it. Slots still being filled under a fill lease are given up.
    pub fn release(&mut self, client: ClientSlot, lease: LeaseId, now: Time) {
        let instance = self.instances.of(client);
        let Some(found) = self.leases.get(lease).filter(|lease| Some(lease.instance) == instance) else { return };
        let owner = found.client == client;
        if matches!(found.kind, LeaseKind::Fill { .. }) {
            if owner {
                self.give_up_fill(lease);
            }
        } else {
            self.end_own_loads(lease, client);
            self.drop_pins(lease, client);
            if owner {
                self.let_go(lease);
            }
        }
        self.work_some(now);
    }

    /// Loads of this client under the lease end with the reason that the lease is lost.
    fn end_own_loads(&mut self, lease: LeaseId, client: ClientSlot) {
        for serial in self.loads.of(lease, Some(client)) {
            self.end_load(serial, Some(kvd_proto::MissReason::LeaseLost));
        }
    }

    /// The hold on the prefix ends; the lease stays while someone reads under it.
    pub(super) fn let_go(&mut self, lease: LeaseId) {
        let Some(found) = self.leases.get_mut(lease).filter(|lease| !lease.released) else { return };
        found.released = true;
        let LeaseKind::Match { deepest, .. } = found.kind else { return };
        self.work.segment_stuck = false;
        self.unhold(deepest);
        self.end_lease_if_done(lease);
    }

    /// A released lease ends with its last pin and load.
    pub(super) fn end_lease_if_done(&mut self, lease: LeaseId) {
        let done = self.leases.get(lease).is_some_and(|l| l.released && l.pins.is_empty() && l.loads == 0);
        if done && let Some(ended) = self.leases.remove(lease) {
            self.instances.get_mut(ended.instance).lease_bytes -= ended.charge;
        }
    }

    /// Takes back the pins of one client under a lease.
    pub(super) fn drop_pins(&mut self, lease: LeaseId, client: ClientSlot) {
        let Some(found) = self.leases.get_mut(lease) else { return };
        let pins = std::mem::take(&mut found.pins);
        let (own, others): (Vec<_>, Vec<_>) = pins.into_iter().partition(|(_, holder)| *holder == client);
        found.pins = others;
        for (slot, client) in own {
            self.unpin_slot(slot, Holder::Client(client));
        }
        self.end_lease_if_done(lease);
    }

    /// Whatever a dead client had to do with this lease ends. Returns how much work that was.
    pub(super) fn reap_lease(&mut self, lease: LeaseId, client: ClientSlot) -> u32 {
        let Some(found) = self.leases.get(lease) else { return 1 };
        let (owner, instance) = (found.client == client, found.instance);
        match &found.kind {
            LeaseKind::Fill { grants, .. } => {
                let steps = grants.len() as u32;
                if owner {
                    self.give_up_fill(lease);
                    return steps + 1;
                }
                1
            }
            LeaseKind::Match { .. } => {
                let steps = found.pins.len() as u32 + 1;
                for serial in self.loads.of(lease, Some(client)) {
                    self.end_load(serial, Some(kvd_proto::MissReason::LeaseLost));
                    self.loads.forget(serial);
                }
                self.drop_pins(lease, client);
                if self.instances.get(instance).clients == 0 {
                    self.let_go(lease);
                }
                steps
            }
        }
    }

    /// A client's checksum failed on the block at this position of the lease: that copy is quarantined. If a device has
    /// another, a load of the block brings it; else the block and all behind it are misses.
    pub fn corrupt(&mut self, client: ClientSlot, lease: LeaseId, position: u32, now: Time) {
        if let Some(id) = self.leased_block(client, lease, position)
            && self.nodes[id].has(flag::DRAM_READY)
        {
            self.quarantine_dram(id);
        }
        self.work_some(now);
    }
}
