//! Everything of a tenant or a namespace goes, a few nodes at a time.

use kvd_proto::{MissReason, NamespaceDigest, Time};

use super::lanes::namespace_prefix;
use super::nodes::{NodeId, flag};
use super::port::SlotTable;
use super::state::Ladder;
use super::work::LOOKS_PER_STEP;
use crate::ids::TenantId;
use crate::policy::Policy;

/// Purges that wait; one more becomes part of the last, which then takes everything of the tenant, or all.
const PURGES_MAX: usize = 16;
/// Entries that wait to go from the devices' tables before a purge waits for them.
const VACATES_AHEAD_MAX: usize = 4096;

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

impl<T: SlotTable, P: Policy> Ladder<T, P> {
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

    /// Purges that are not at their end.
    pub fn purging(&self) -> usize {
        self.work.purging()
    }

    /// Whether a purge waits for the devices' tables, which follow at their own pace: no more than they can take. Entries of a
    /// device that takes no writes wait for it, one per slot at most, and hold nobody up.
    pub(super) fn purge_waits(&self) -> bool {
        let writable = self.nvme.devices.iter().filter(|device| device.breaker.writable());
        writable.map(|device| device.queued_vacates()).sum::<usize>() >= VACATES_AHEAD_MAX
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

    pub(super) fn work_purge(&mut self, mut steps: u32) -> u32 {
        let mut looks = steps.saturating_mul(LOOKS_PER_STEP);
        while let Some(purge) = self.work.purges.front().copied()
            && steps > 0
            && looks > 0
            && !self.purge_waits()
        {
            if self.work.purge_cursor >= self.nodes.end() {
                // It is over when nothing is left to be cut: a block is not stored anew while its old children go.
                if self.cascade_open() {
                    return steps;
                }
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
}
