//! What an operator asks of single blocks.

use kvd_proto::{BlockKey, MissReason, Tier, Time};

use super::moves::{Explained, ExplainedRecord};
use super::nodes::{NodeId, flag};
use super::port::SlotTable;
use super::state::Ladder;
use crate::policy::Policy;

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// The records of a block, one per shard that is known.
    fn records(&self, key: &BlockKey) -> Vec<NodeId> {
        self.lanes.iter().filter_map(|(lane, _)| self.find(key, lane)).collect()
    }

    /// Keeps the records of a block where they are, or lets them fall again. Returns how many there are. Purges and corrupt
    /// copies go all the same.
    pub fn pin(&mut self, key: &BlockKey, on: bool) -> u32 {
        let records = self.records(key);
        let mut count = 0;
        for id in records {
            if !self.nodes[id].resident() {
                continue;
            }
            count += 1;
            if on {
                self.nodes[id].set(flag::PINNED);
            } else {
                self.nodes[id].clear(flag::PINNED);
            }
            self.refresh(id);
        }
        count
    }

    /// Takes a block away, and what hangs on it; or only its copies in one tier, as far as nothing hangs on them there.
    /// Returns how many records it had to take. A slot that someone holds is free when they let go.
    pub fn evict(&mut self, key: &BlockKey, tier: Option<Tier>, now: Time) -> u32 {
        let mut count = 0;
        for id in self.records(key) {
            self.unkeep(id);
            let node = &self.nodes[id];
            let falls = match tier {
                None => node.resident(),
                Some(Tier::Dram) => self.may_fall_from_dram(id),
                Some(Tier::Nvme) => self.may_fall_from_nvme(id),
                Some(Tier::Hbm | Tier::Object | Tier::Peer) => false,
            };
            if !falls {
                continue;
            }
            count += 1;
            match tier {
                Some(Tier::Dram) => self.evict_from_dram(id),
                Some(Tier::Nvme) => self.evict_from_nvme(id),
                Some(Tier::Hbm | Tier::Object | Tier::Peer) | None => self.drop_copies(id, MissReason::Evicted),
            }
        }
        self.work_some(now);
        count
    }

    /// Why a block hits or misses.
    pub fn explain(&self, key: &BlockKey) -> Explained {
        let records: Vec<_> = self.records(key).into_iter().map(|id| self.explain_record(id)).collect();
        let here =
            records.iter().any(|record| record.dram.is_some() || record.nvme.is_some() || record.object.is_some());
        let readable = records.iter().any(|record| record.readable);
        let miss = match (here, readable) {
            (false, _) => Some(self.miss_reason(None, Some(key))),
            (true, false) => Some(MissReason::TierDown),
            (true, true) => None,
        };
        Explained { key: *key, records, miss }
    }

    fn explain_record(&self, id: NodeId) -> ExplainedRecord {
        let node = &self.nodes[id];
        let mut children = 0;
        let mut child = node.first_child;
        while let Some(id) = child.get().filter(|_| children < EXPLAINED_CHILDREN_MAX) {
            children += 1;
            child = self.nodes[id].next_sibling;
        }
        ExplainedRecord {
            shard: self.lanes.get(node.lane).shard.clone(),
            position: node.position,
            reachable: node.has(flag::ATTACHED),
            filling: node.has(flag::FILLING),
            dram: self.dram_slot(id).filter(|_| node.has(flag::DRAM_READY)),
            nvme: self.nvme_slot(id).filter(|_| node.has(flag::NVME_READY)),
            object: self.remotes.place(id),
            readable: node.has(flag::DRAM_READY) || self.readable(id),
            pinned: node.has(flag::PINNED),
            leases: u32::from(node.holds),
            children,
            rank: node.rank,
        }
    }
}

/// Children are counted by a walk: an answer for a person needs no more.
const EXPLAINED_CHILDREN_MAX: u32 = 1000;
