//! Loads: what lies in the arena is granted at once, what lies below waits to be fetched, as far as that pays.

use std::time::Duration;

use kvd_proto::wire::slab::{Landed, LandedStatus};
use kvd_proto::{MissReason, Tier, Time, checksum_seed};

use super::gate::Gate;
use super::lanes::{HashSource, Speed};
use super::leases::LeaseKind;
use super::moves::LoadState;
use super::nodes::{NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::Ladder;
use super::waiting::{Load, Waiter};
use crate::ids::{ClientSlot, LeaseId, RequestId, ViewId};
use crate::policy::Policy;

/// How often each block of a lease may be granted before the lease is released: once by each of some workers, and again.
const PINS_PER_BLOCK_MAX: usize = 16;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Loads blocks `first .. first + count` of a matched prefix. `out` gets what lies in the arena already, in chain order,
    /// each slot pinned for `client` until it releases the lease; the rest follows as replies, until the deadline.
    #[expect(clippy::too_many_arguments, reason = "one request of the ring, field by field")]
    pub fn load(
        &mut self,
        client: ClientSlot,
        lease: LeaseId,
        first: u32,
        count: u32,
        deadline: Time,
        request: RequestId,
        now: Time,
        out: &mut Vec<Landed>,
    ) -> LoadState {
        self.counters.loads += 1;
        self.settle_use();
        let Some((path, speed)) = self.path(client, lease, first, count) else {
            return self.done_at_once(out, MissReason::LeaseLost);
        };
        let instance = self.instances.of(client).expect("a lease was found for it");
        self.leases.get_mut(lease).expect("found above").touched = now;
        let (pays, tail) = self.paying(&path, speed, now);
        let mut landed = 0;
        while landed < pays && self.nodes[path[landed]].has(flag::DRAM_READY) {
            out.push(self.land(path[landed], client, lease, Tier::Dram));
            landed += 1;
        }
        if landed == pays {
            return match tail {
                Some(reason) => self.done_at_once(out, reason),
                None => LoadState::Done { reason: None },
            };
        }
        let head = path[landed];
        if !self.nodes[head].has(flag::FETCHING) && !self.readable(head) {
            let reason = self.miss_reason(Some(head), None);
            return self.done_at_once(out, reason);
        }
        if deadline <= now {
            return self.done_at_once(out, MissReason::Timeout);
        }
        if self.loads.loads.len() >= self.loads.max as usize {
            return self.done_at_once(out, MissReason::Quota);
        }
        self.leases.get_mut(lease).expect("found above").loads += 1;
        let waiter = Waiter { client, lease, request };
        let sent = out.len() as u32;
        let load = Load {
            waiter: Some(waiter),
            owner: instance,
            path: path[landed..pays].to_vec(),
            tiers: Vec::new(),
            cursor: 0,
            planned: 0,
            deadline,
            landed: Vec::new(),
            sent,
            tail,
            end: None,
        };
        self.add_load(load, now);
        self.work_some(now);
        LoadState::Pending
    }

    fn done_at_once(&mut self, out: &mut Vec<Landed>, reason: MissReason) -> LoadState {
        self.counters.missed(reason);
        out.push(Landed::missed(reason));
        LoadState::Done { reason: Some(reason) }
    }

    /// The blocks that a load names, first to last; `None` when the lease does not hold them.
    fn path(&self, client: ClientSlot, lease: LeaseId, first: u32, count: u32) -> Option<(Vec<NodeId>, Speed)> {
        let instance = self.instances.of(client)?;
        let lease = self.leases.get(lease).filter(|lease| lease.instance == instance && !lease.released)?;
        let LeaseKind::Match { deepest, blocks } = lease.kind else { return None };
        if lease.pins.len() + count as usize > blocks as usize * PINS_PER_BLOCK_MAX {
            return None;
        }
        let end = first.checked_add(count)?.min(blocks);
        if first >= end {
            return None;
        }
        let mut at = deepest;
        for _ in end..blocks {
            at = self.nodes[at].parent.get()?;
        }
        let mut path = vec![NodeId::NONE; (end - first) as usize];
        for place in (0..path.len()).rev() {
            path[place] = at;
            if place > 0 {
                at = self.nodes[at].parent.get()?;
            }
        }
        Some((path, lease.speed))
    }

    /// How many blocks of the path are worth loading, and why not all.
    fn paying(&self, path: &[NodeId], speed: Speed, now: Time) -> (usize, Option<MissReason>) {
        let Some(mut gate) = Gate::new(speed).filter(|_| self.config.gate) else { return (path.len(), None) };
        for id in path {
            let node = &self.nodes[*id];
            if node.has(flag::DRAM_READY) {
                gate.dram();
            } else if node.remote() {
                let bytes = u64::from(self.lanes.get(node.lane).slot_bytes);
                match self.remotes.edge(now) {
                    Some(edge) => gate.fetch(edge, bytes),
                    None => gate.dram(),
                }
            } else {
                let device = self.nvme.devices.get(usize::from(node.device));
                device.into_iter().for_each(|found| {
                    gate.fetch(&found.reads, u64::from(self.lanes.get(node.lane).slot_bytes));
                });
            }
        }
        let pays = (gate.paying() as usize).min(path.len());
        (pays, (pays < path.len()).then_some(MissReason::SlowerThanRecompute))
    }

    /// Grants a block that lies in the arena and came from `tier`.
    pub(super) fn land(&mut self, id: NodeId, client: ClientSlot, lease: LeaseId, tier: Tier) -> Landed {
        let slot = self.dram_slot(id).expect("a published copy has a slot");
        if !cfg!(kvd_bug = "landed_unpinned") {
            self.pin_slot(slot, Holder::Client(client));
            self.leases.get_mut(lease).expect("a load has its lease").pins.push((slot, client));
        }
        match tier {
            Tier::Nvme => self.counters.nvme_hits += 1,
            Tier::Object => self.counters.object_hits += 1,
            Tier::Hbm | Tier::Dram | Tier::Peer => self.counters.dram_hits += 1,
        }
        let node = &self.nodes[id];
        let lane = self.lanes.get(node.lane);
        Landed {
            status: LandedStatus::Landed,
            reason: None,
            tier: Some(tier),
            segment: slot.segment().0,
            offset: u64::from(slot.index()) * u64::from(lane.slot_bytes),
            slot_bytes: lane.slot_bytes,
            generation: node.generation,
            meta_checksum: node.meta_checksum,
            seed: checksum_seed(&node.key, &lane.shard),
        }
    }

    /// Brings the blocks of a chain that lie below into the arena, without telling anyone. Returns how many.
    pub fn prefetch(
        &mut self,
        client: ClientSlot,
        view: ViewId,
        hashes: &(impl HashSource + ?Sized),
        now: Time,
    ) -> u32 {
        self.settle_use();
        let Some(instance) = self.instances.of(client) else { return 0 };
        let Some((lane, group_key)) = self.views.get(view).map(|view| (view.lane, view.group_key)) else { return 0 };
        let (blocks, deepest) = self.longest_prefix(lane, &group_key, hashes);
        if blocks == 0 || self.loads.loads.len() >= self.loads.max as usize {
            return 0;
        }
        let mut path = Vec::new();
        let mut at = deepest;
        for _ in 0..blocks {
            if !self.nodes[at].has(flag::DRAM_READY) {
                path.push(at);
            }
            let Some(parent) = self.nodes[at].parent.get() else { break };
            at = parent;
        }
        path.reverse();
        let count = path.len() as u32;
        if count == 0 {
            return 0;
        }
        self.counters.prefetched += u64::from(count);
        let load = Load {
            waiter: None,
            owner: instance,
            path,
            tiers: Vec::new(),
            cursor: 0,
            planned: 0,
            deadline: now + self.config.prefetch_wait,
            landed: Vec::new(),
            sent: 0,
            tail: None,
            end: None,
        };
        self.add_load(load, now);
        self.work_some(now);
        count
    }

    /// The block at a position of a leased prefix.
    pub(super) fn leased_block(&self, client: ClientSlot, lease: LeaseId, position: u32) -> Option<NodeId> {
        let instance = self.instances.of(client)?;
        let lease = self.leases.get(lease).filter(|lease| lease.instance == instance && !lease.released)?;
        let LeaseKind::Match { deepest, blocks } = lease.kind else { return None };
        let mut at = deepest;
        for _ in position.checked_add(1).filter(|end| *end <= blocks)?..blocks {
            at = self.nodes[at].parent.get()?;
        }
        Some(at)
    }

    /// What a load of this prefix would have to fetch: (slowest tier, how long it takes by what was measured). What fell from
    /// the arena is the end of a chain, so the look ends at the first block from there that has not: a match must not walk
    /// what it has galloped over. A copy that was lost in the middle is not counted.
    pub(super) fn below(&self, deepest: NodeId, blocks: u32) -> (Tier, Duration) {
        let lane = self.lanes.get(self.nodes[deepest].lane);
        let slot_bytes = u64::from(lane.slot_bytes);
        let (mut at, remote) = self.remote_end(deepest, blocks);
        let mut estimate = match remote {
            0 => Duration::ZERO,
            remote => self.remotes.reads.estimate(u64::from(remote) * slot_bytes),
        };
        let mut fetched = 0;
        if lane.held.below > 0 {
            let end = at;
            while fetched < blocks - remote && !at.is_none() && self.nodes[at].below() {
                fetched += 1;
                at = self.nodes[at].parent;
            }
            if fetched > 0 {
                let device = crate::DeviceId(self.nodes[end].device);
                estimate += self.nvme.device(device).reads.estimate(u64::from(fetched) * slot_bytes);
            }
        }
        let tier = if remote > 0 {
            Tier::Object
        } else if fetched > 0 {
            Tier::Nvme
        } else {
            Tier::Dram
        };
        (tier, estimate)
    }
}
