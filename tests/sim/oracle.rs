//! The plain map and the rules that a world is held against.

use std::collections::{BTreeMap, BTreeSet};

use kvd_proto::{BlockKey, Time};
use kvd_tiers::ladder::{Purge, Stats};
use kvd_tiers::{LeaseId, NvmeSlot, SlotEntry, SlotId};

use crate::blocks::{Block, Names};
use crate::config::{Disks, Make};
use crate::daemon::Recovered;
use crate::disks::Disk;
use crate::store::takes;

/// What may be said of a block.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    /// When it was last committed.
    committed: Option<u64>,
    /// It was taken away for good after that, and told so.
    gone: bool,
    /// And no device has it any more: not even a restart may bring it back.
    buried: bool,
}

/// Everything the world knows without asking the ladder.
#[derive(Default)]
pub(crate) struct Oracle {
    fates: BTreeMap<Block, Fate>,
    /// Records that the devices have acknowledged and were not asked to vacate.
    on_nvme: BTreeMap<NvmeSlot, (BlockKey, u32)>,
    /// Slots whose bytes were changed behind everyone's back.
    pub(crate) rotted: BTreeSet<SlotId>,
    /// Who fills a block.
    pub(crate) filling: BTreeMap<Block, (usize, LeaseId)>,
    purges: Vec<(Purge, u64)>,
    serial: u64,
    /// Something happened after which chains may be cut.
    pub(crate) cuts_allowed: bool,
}

impl Oracle {
    /// A commit is about to be asked for: from now on the block may be found.
    pub(crate) fn committing(&mut self, block: Block) {
        self.serial += 1;
        self.fates.insert(block, Fate { committed: Some(self.serial), gone: false, buried: false });
    }

    /// A match said that it is here.
    pub(crate) fn matched(&self, block: Block) {
        let fate = self.fates.get(&block).copied().unwrap_or_default();
        assert!(fate.committed.is_some(), "{block:?} is matched and was never committed");
        assert!(!fate.gone, "{block:?} is matched after it was taken away: {fate:?}");
    }

    /// When a block was last committed, or was in another node.
    pub(crate) fn stored(&self, block: Block) -> u64 {
        self.fates.get(&block).and_then(|fate| fate.committed).unwrap_or(0)
    }

    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The catalog said where a record of it lies that was stored at `since`: it may be found from now on.
    pub(crate) fn imported(&mut self, block: Block, since: u64) {
        let fate = self.fates.entry(block).or_default();
        if fate.committed.is_none() || fate.gone {
            *fate = Fate { committed: Some(since), gone: false, buried: false };
        }
    }

    /// A purge has come to its end: in the ladder, then in the object tier's store as well.
    pub(crate) fn purged(&mut self, names: &Names, purge: Purge, asked: u64) {
        for (block, fate) in &mut self.fates {
            fate.gone |= takes(names, purge, block.lane) && fate.committed.is_some_and(|committed| committed < asked);
        }
    }

    pub(crate) fn evicted(&mut self, block: Block) {
        if let Some(fate) = self.fates.get_mut(&block) {
            fate.gone = true;
        }
    }

    /// A purge is about to be asked for. Returns when.
    pub(crate) fn purging(&mut self, purge: Purge) -> u64 {
        self.serial += 1;
        self.purges.push((purge, self.serial));
        self.serial
    }

    /// Purges that the ladder says are done, are; and what is gone stays gone once the devices have forgotten it.
    pub(crate) fn settle(&mut self, names: &Names, stats: &Stats, flights: usize) {
        if stats.purges == 0 {
            for (purge, asked) in std::mem::take(&mut self.purges) {
                self.purged(names, purge, asked);
            }
        }
        if flights == 0 && stats.devices.iter().all(|device| device.vacating == 0) {
            self.fates.values_mut().for_each(|fate| fate.buried |= fate.gone);
        }
    }

    pub(crate) fn spilled(&mut self, to: NvmeSlot, entry: &SlotEntry) {
        self.on_nvme.insert(to, (entry.key, entry.generation));
    }

    pub(crate) fn vacating(&mut self, slot: NvmeSlot) {
        self.on_nvme.remove(&slot);
    }

    /// The daemon is gone, and with it what was not carried out; `lost`: what disks hold is anyone's guess, too.
    pub(crate) fn killed(&mut self, lost: bool) {
        self.purges.clear();
        self.filling.clear();
        for fate in self.fates.values_mut() {
            fate.gone &= fate.buried && !lost;
            fate.buried &= fate.gone;
        }
        if lost {
            self.on_nvme.clear();
        }
    }

    /// A disk was replaced by an empty one.
    pub(crate) fn replaced(&mut self, disk: &Disk) {
        self.on_nvme.retain(|slot, _| slot.device() != disk.id);
    }

    /// What a successor must have found.
    pub(crate) fn recovered(&mut self, recovered: &Recovered, disks: &[Disk]) {
        let found = recovered.by_slot();
        for (slot, (key, generation)) in &self.on_nvme {
            let tainted = disks[usize::from(slot.device().0)].tainted;
            let same = found.get(slot).is_some_and(|entry| entry.key == *key && entry.generation == *generation);
            assert!(same || tainted, "{slot:?} was committed and is not back: {:?}", found.get(slot));
        }
        self.on_nvme = found.iter().map(|(slot, entry)| (*slot, (entry.key, entry.generation))).collect();
    }

    /// Bounds that the configuration sets.
    pub(crate) fn bounds(&self, stats: &Stats, make: &Make, now: Time) {
        let config = &make.ladder;
        assert!(stats.lease_bytes <= config.lease_bytes_max * make.instances as u64, "leases hold {stats:?}");
        assert!(stats.leases <= config.leases_max, "{} leases", stats.leases);
        assert!(stats.spill_queue <= config.spill_queue_max, "{} blocks wait to be spilled", stats.spill_queue);
        assert!(stats.orphans <= config.orphans_max, "{} orphans", stats.orphans);
        assert!(stats.loads_waiting <= config.loads_max, "{} loads", stats.loads_waiting);
        for device in &stats.devices {
            assert!(device.spilling <= config.spills_max && device.fetching <= config.fetches_max, "{device:?}");
        }
        let counted = &stats.counters;
        let sound = make.disks == Disks::Sound;
        assert!(!sound || counted.device_failures == 0, "{now:?}: a sound device refuses what it is asked");
        let torn = counted.segments_drained + counted.zones_drained + counted.orphans_expired > 0;
        let quiet = sound && !make.operators && !self.cuts_allowed && !torn;
        assert!(!quiet || counted.cuts == 0, "{now:?}: a chain was cut though nothing was wrong");
    }
}
