//! What operators do.

use kvd_proto::Tier;
use kvd_tiers::ladder::Purge;

use crate::world::World;

impl World {
    pub(crate) fn operate(&mut self) {
        if self.daemon.is_none() {
            return;
        }
        let lane = self.random.index(self.names.lanes.len());
        let chain = self.random.index(self.names.chains.len());
        let position = self.random.range(0..u64::from(self.names.chains[chain].blocks)) as u32;
        let block = self.names.block(lane, chain, position);
        let key = self.names.key(block);
        let act = self.random.index(16);
        self.say(|| format!("operator {act} {block:?}"));
        match act {
            0..3 => drop(self.call(|ladder, _| ladder.pin(&key, true))),
            3..5 => drop(self.call(|ladder, _| ladder.pin(&key, false))),
            5..7 => {
                let tier = [None, Some(Tier::Dram), Some(Tier::Nvme)][self.random.index(3)];
                if self.call(|ladder, now| ladder.evict(&key, tier, now)).is_some() && tier.is_none() {
                    self.oracle.evicted(block);
                }
            }
            7 => {
                let found = &self.names.lanes[lane];
                let (tenant, namespace) = (found.tenant, found.namespace);
                let purge = match self.random.index(4) {
                    0 => Purge::All,
                    1 => Purge::Tenant(tenant),
                    _ => Purge::Namespace(tenant, namespace),
                };
                self.purge(purge);
            }
            8 => drop(self.call(|ladder, now| ladder.drain(true, now))),
            9..14 => drop(self.call(|ladder, now| ladder.drain(false, now))),
            14 => drop(self.call(|ladder, now| ladder.scrub(true, now))),
            _ => drop(self.call(|ladder, now| ladder.scrub(false, now))),
        }
    }

    /// Takes everything of a kind away, in the store as well where there is one.
    pub(crate) fn purge(&mut self, purge: Purge) {
        let asked = self.oracle.purging(purge);
        if self.call(|ladder, now| ladder.purge(purge, now)).is_some()
            && let Some(link) = self.daemon.as_mut().and_then(|daemon| daemon.object.as_mut())
        {
            link.purge(purge, asked);
        }
    }
}
