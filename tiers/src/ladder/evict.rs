//! Making room in the arena: tier-leaves fall, lowest rank first; a class that starves gets another's segment.

use kvd_proto::MissReason;

use super::guards::Vacant;
use super::nodes::{NO_OWNER, NodeId, flag};
use super::order::Order;
use super::port::SlotTable;
use super::state::Ladder;
use crate::policy::{Access, Policy, Rank, Space};

/// Victims that one request may need: a slot needs one; more only while a drain takes what falls.
const VICTIMS_MAX: u32 = 16;
/// Blocks that are passed over in search of one victim, because someone holds them.
const PASSED_MAX: u32 = 64;
/// Blocks that a floor is found to keep in one search; the next does not meet them again.
const KEPT_MAX: u32 = 1024;

/// Who wants space and what for.
pub(super) struct Ask<'a> {
    /// The instance that will own it.
    pub(super) owner: u8,
    /// A newcomer must be worth its victim; what a load waits for need not.
    pub(super) admission: Option<(Rank, &'a Access)>,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// A vacant slot of the class, at the price of other blocks if need be.
    pub(super) fn take_dram(&mut self, class: u16, ask: &Ask<'_>) -> Result<Vacant, MissReason> {
        for _ in 0..VICTIMS_MAX {
            if let Some(vacant) = self.dram.take(class, &mut self.table) {
                return Ok(vacant);
            }
            self.drain_colder_class(class, ask);
            let victim = self.dram_victim(class, ask.owner).ok_or(MissReason::Quota)?;
            if let Some((candidate, access)) = ask.admission
                && !self.policy.admit(Space::Dram, candidate, self.nodes[victim].rank(), access)
            {
                self.counters.not_admitted += 1;
                return Err(MissReason::Quota);
            }
            self.evict_from_dram(victim);
        }
        Err(MissReason::Quota)
    }

    /// The block of the class that falls next, as far as `owner` may take it.
    fn dram_victim(&mut self, class: u16, owner: u8) -> Option<NodeId> {
        let (mut passed, mut kept) = (0, 0);
        while passed < PASSED_MAX && kept < KEPT_MAX {
            let Some(id) = self.choose(Space::Dram, class) else {
                // Before it gets nothing, an instance gives what its own floor keeps.
                if owner != NO_OWNER && self.unkeep_one(owner).is_some() {
                    passed += 1;
                    continue;
                }
                return None;
            };
            if self.nodes[id].holds > 0 || self.dram_slot(id).is_some_and(|slot| self.pins.held(slot)) {
                // It comes back to the order when the last hold or pin goes.
                self.unqueue(id, Space::Dram);
                passed += 1;
            } else if self.floor_keeps(id, owner) {
                self.keep(id);
                kept += 1;
            } else {
                return Some(id);
            }
        }
        None
    }

    /// The first of the class that the policy would let fall.
    fn choose(&mut self, space: Space, class: u16) -> Option<NodeId> {
        let order = match space {
            Space::Dram => &self.dram.class(class).order,
            Space::Nvme => &self.nvme.class(class).order,
        };
        order.firsts(&mut self.firsts.0, &mut self.firsts.1);
        let (ids, ranks) = &self.firsts;
        match ids.len() {
            0 | 1 => ids.first().copied(),
            _ => ids.get(self.policy.choose(ranks)).copied(),
        }
    }

    /// If another class holds a colder block than this one's coldest, one of its segments changes hands.
    fn drain_colder_class(&mut self, class: u16, ask: &Ask<'_>) {
        if self.dram.draining().is_some() || self.work.segment_stuck {
            return;
        }
        let coldest = |order: &Order| order.coldest().map(|id| (self.nodes[id].order(), id));
        let own = coldest(&self.dram.class(class).order);
        let other = self.dram.classes().filter_map(|other| coldest(&other.order)).min();
        let Some((order, id)) = other else { return };
        if own.is_some_and(|(own, _)| own <= order) {
            return;
        }
        if let Some((candidate, access)) = ask.admission
            && !self.policy.admit(Space::Dram, candidate, self.nodes[id].rank(), access)
        {
            return;
        }
        let slot = self.dram_slot(id).expect("what may fall has a copy");
        if self.dram.is_lost(slot.segment()) {
            return;
        }
        self.dram.drain(slot.segment());
        // A class without any segment could not live at all: then floors give way.
        self.work.drain_started(self.dram.has_segment(class));
        self.counters.segments_drained += 1;
    }

    /// The copy in the arena falls, and with it the block if it was the last.
    pub(super) fn evict_from_dram(&mut self, id: NodeId) {
        let (key, rank) = (self.nodes[id].key, self.nodes[id].rank());
        self.hold(id);
        self.unpublish_dram(id);
        let gone = !self.nodes[id].resident();
        self.policy.evicted(Space::Dram, &key, rank, gone);
        self.counters.dram_evictions += 1;
        self.vanished(id, MissReason::Evicted);
        self.unhold(id);
    }

    /// The copy on a device falls, and with it the block if it was the last.
    pub(super) fn evict_from_nvme(&mut self, id: NodeId) {
        let (key, rank) = (self.nodes[id].key, self.nodes[id].rank());
        self.hold(id);
        self.unpublish_nvme(id);
        let gone = !self.nodes[id].resident();
        self.policy.evicted(Space::Nvme, &key, rank, gone);
        self.counters.nvme_evictions += 1;
        self.vanished(id, MissReason::Evicted);
        self.unhold(id);
    }

    /// The block of the class on a device that falls next. Slots of a zone that is drained already count as well.
    pub(super) fn nvme_victim(&mut self, class: u16) -> Option<NodeId> {
        let mut stuck = Vec::new();
        let mut victim = None;
        for _ in 0..PASSED_MAX {
            let Some(id) = self.choose(Space::Nvme, class) else { break };
            let slot = self.nvme_slot(id).expect("what may fall has a copy");
            let held = self.nodes[id].holds > 0 || self.nvme.reading(slot);
            if !held && self.nvme.device(slot.device()).breaker.writable() {
                victim = Some(id);
                break;
            }
            // One that is held comes back with the last hold; one whose device takes no writes when this search is over.
            self.unqueue(id, Space::Nvme);
            if !held {
                stuck.push(id);
            }
        }
        stuck.into_iter().for_each(|id| self.enqueue(id, Space::Nvme));
        victim
    }

    /// Whether a record that lies only below the arena can be read now.
    pub(super) fn readable(&self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        node.has(flag::REMOTE) && self.remotes.up
            || node.has(flag::NVME_READY) && self.nvme.device(crate::DeviceId(node.device)).breaker.readable()
    }
}
