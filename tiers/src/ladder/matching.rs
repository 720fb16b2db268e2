//! How much of a chain is here: probe the last block, else gallop; a plain walk whenever the closure is not certain.

use std::time::Duration;

use kvd_proto::{BlockKey, GroupKey, MissReason, Time};

use super::lanes::{HashSource, key_of};
use super::leases::{Lease, LeaseKind};
use super::moves::Matched;
use super::nodes::{NodeId, flag};
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{ClientSlot, LeaseId, ViewId};
use crate::policy::{ABOVE_MAX, Access, AccessKind, Policy};

/// What a probe says about the block at one place of the chain.
enum Probe {
    /// It is reachable, so all before it are.
    Here(NodeId),
    /// It is not.
    Missing,
    /// It is reachable at another place: this is no chain. Only a walk can tell.
    Misplaced,
}

/// A match that the policy has not heard of yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use {
    deepest: NodeId,
    generation: u32,
    blocks: u32,
    at: Time,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// The longest prefix of the chain that is here, from its first block on. With `want_lease`, it is held until the lease
    /// is released, was idle for too long, or its instance is gone; a lease is cut to what the instance's cap leaves.
    pub fn match_prefix(
        &mut self,
        client: ClientSlot,
        view: ViewId,
        hashes: &(impl HashSource + ?Sized),
        want_lease: bool,
        now: Time,
    ) -> Matched {
        self.match_gated(client, view, hashes, want_lease, None, now)
    }

    /// `gated`: blocks from this place on were left out, and why.
    pub(super) fn match_gated(
        &mut self,
        client: ClientSlot,
        view: ViewId,
        hashes: &(impl HashSource + ?Sized),
        want_lease: bool,
        gated: Option<(u32, MissReason)>,
        now: Time,
    ) -> Matched {
        self.counters.matches += 1;
        self.settle_use();
        let missed = |miss| Matched { blocks: 0, lease: None, miss, slowest: None, estimate: Duration::ZERO };
        let (Some(instance), Some(found)) = (self.instances.of(client), self.views.get(view)) else {
            return missed(Some(MissReason::LeaseLost));
        };
        let (lane, group_key, speed) = (found.lane, found.group_key, found.speed);
        let asked = hashes.len();
        let (mut blocks, mut deepest) = self.longest_prefix(lane, &group_key, hashes);
        self.counters.blocks_asked += u64::from(asked);
        let mut miss = None;
        if blocks < asked {
            let key = key_of(&group_key, hashes, blocks);
            let gated = gated.filter(|(at, _)| *at == blocks).map(|(_, reason)| reason);
            miss = gated.or_else(|| Some(self.miss_reason(self.find(&key, lane), Some(&key))));
        }
        if blocks == 0 {
            self.note_match(0, miss);
            return missed(miss);
        }
        // The policy hears of it after the answer: it costs more than all the rest.
        let used = Use { deepest, generation: self.nodes[deepest].generation, blocks, at: now };
        let mut lease = None;
        if want_lease {
            let slot_bytes = u64::from(self.lanes.get(lane).slot_bytes);
            let room =
                self.config.lease_bytes_max.saturating_sub(self.instances.get(instance).lease_bytes) / slot_bytes;
            let room = if cfg!(kvd_bug = "lease_uncapped") { u64::MAX } else { room };
            let fits = u32::try_from(room).unwrap_or(u32::MAX).min(blocks);
            let fits = if self.leases.full() { 0 } else { fits };
            while blocks > fits {
                miss = Some(MissReason::Quota);
                blocks -= 1;
                deepest = self.nodes[deepest].parent;
            }
            if blocks == 0 {
                self.work.used = Some(used);
                self.note_match(0, miss);
                return missed(miss);
            }
            self.hold(deepest);
            let charge = u64::from(blocks) * slot_bytes;
            self.instances.get_mut(instance).lease_bytes += charge;
            lease = Some(self.leases.add(Lease {
                id: LeaseId(0),
                instance,
                client,
                kind: LeaseKind::Match { deepest, blocks },
                slot_bytes: slot_bytes as u32,
                speed,
                charge,
                touched: now,
                pins: Vec::new(),
                loads: 0,
                released: false,
            }));
        }
        self.work.used = Some(used);
        self.note_match(blocks, miss);
        let (slowest, estimate) = self.below(deepest, blocks);
        Matched { blocks, lease, miss, slowest: Some(slowest), estimate }
    }

    fn note_match(&mut self, blocks: u32, miss: Option<MissReason>) {
        self.counters.blocks_matched += u64::from(blocks);
        if let Some(reason) = miss {
            self.counters.missed(reason);
        }
    }

    /// Tells the policy of the last match, before anything that asks it which block falls.
    pub(super) fn settle_use(&mut self) {
        let Some(Use { deepest, generation, blocks, at }) = self.work.used.take() else { return };
        if self.nodes.live(deepest.0).is_some_and(|id| self.nodes[id].generation == generation) {
            self.touch(deepest, blocks, at);
        }
    }

    /// The deepest block of a match was used, and with it all above: they inherit its rank when it falls.
    fn touch(&mut self, deepest: NodeId, blocks: u32, now: Time) {
        let rank = self.rank_access(deepest, AccessKind::Hit, blocks, now);
        self.set_rank(deepest, rank);
        let mut above = self.nodes[deepest].parent;
        for _ in 0..ABOVE_MAX {
            let Some(id) = above.get() else { return };
            let rank = self.rank_access(id, AccessKind::Above, blocks, now);
            self.set_rank(id, rank);
            above = self.nodes[id].parent;
        }
    }

    pub(super) fn rank_access(&mut self, id: NodeId, kind: AccessKind, chain_blocks: u32, now: Time) -> u64 {
        let node = &self.nodes[id];
        let access = Access {
            kind,
            key: node.key,
            position: node.position,
            chain_blocks,
            slot_bytes: self.lanes.get(node.lane).slot_bytes,
            rank: node.rank(),
            now,
        };
        self.policy.rank(&access).0
    }

    /// Length of the longest prefix that is here, and its last block (`NONE` for none).
    pub(super) fn longest_prefix(
        &self,
        lane: u16,
        group_key: &GroupKey,
        hashes: &(impl HashSource + ?Sized),
    ) -> (u32, NodeId) {
        // A device that is out takes its blocks out of many chains at once, without touching them.
        let remotes = self.remotes.up || self.remotes.len() == 0;
        let certain =
            !self.cascade_open() && remotes && (self.lanes.get(lane).held.below == 0 || self.all_devices_readable());
        if certain && let Some(found) = self.gallop(lane, group_key, hashes) {
            return found;
        }
        self.walk(lane, group_key, hashes)
    }

    pub(super) fn all_devices_readable(&self) -> bool {
        self.nvme.devices.iter().all(|device| device.breaker.readable())
    }

    fn probe(&self, lane: u16, key: &BlockKey, position: u32) -> Probe {
        match self.find(key, lane) {
            Some(id) if self.nodes[id].has(flag::ATTACHED) => {
                if self.nodes[id].position == position {
                    Probe::Here(id)
                } else {
                    Probe::Misplaced
                }
            }
            Some(_) | None => Probe::Missing,
        }
    }

    /// `None`: the hashes are no chain.
    fn gallop(&self, lane: u16, group_key: &GroupKey, hashes: &(impl HashSource + ?Sized)) -> Option<(u32, NodeId)> {
        let len = hashes.len();
        let probe = |index: u32| match self.probe(lane, &key_of(group_key, hashes, index), index) {
            Probe::Here(id) => Ok(Some(id)),
            Probe::Missing => Ok(None),
            Probe::Misplaced => Err(()),
        };
        if len == 0 {
            return Some((0, NodeId::NONE));
        }
        if let Some(last) = probe(len - 1).ok()? {
            return Some((len, last));
        }
        // `here` blocks are known to be here, the one at `missing` is not.
        let (mut here, mut deepest, mut missing) = (0, NodeId::NONE, len - 1);
        let mut stride = 1;
        while here < missing {
            let index = (here + stride - 1).min(here + (missing - here) / 2);
            match probe(index).ok()? {
                Some(id) => {
                    (here, deepest) = (index + 1, id);
                    stride *= 2;
                }
                None => {
                    missing = index;
                    // From here on halving: the stride no longer limits.
                    stride = len;
                }
            }
        }
        Some((here, deepest))
    }

    /// Block by block: always right.
    fn walk(&self, lane: u16, group_key: &GroupKey, hashes: &(impl HashSource + ?Sized)) -> (u32, NodeId) {
        let mut deepest = NodeId::NONE;
        for index in 0..hashes.len() {
            let found = self.find(&key_of(group_key, hashes, index), lane);
            let next = found.filter(|id| {
                let node = &self.nodes[*id];
                let usable = node.has(flag::DRAM_READY) || self.readable(*id);
                usable && node.position == index && node.parent == deepest && !node.has(flag::LOOSE)
            });
            match next {
                Some(id) => deepest = id,
                None => return (index, deepest),
            }
        }
        (hashes.len(), deepest)
    }

    /// Why a block is not here.
    pub(super) fn miss_reason(&self, id: Option<NodeId>, key: Option<&BlockKey>) -> MissReason {
        if let Some(id) = id
            && self.nodes[id].any(flag::NVME_READY | flag::REMOTE)
            && !self.readable(id)
        {
            return MissReason::TierDown;
        }
        let key = key.copied().or_else(|| id.map(|id| self.nodes[id].key));
        key.and_then(|key| self.ghosts.get(&key)).unwrap_or(MissReason::Cold)
    }
}
