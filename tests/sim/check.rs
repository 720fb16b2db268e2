//! The rules that need more than a plain map: walks over what the ladder explains, pins, the end of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvd_nixl::io::FaultPlan;
use kvd_proto::{BlockKey, Time};
use kvd_tiers::ladder::ExplainedRecord;
use kvd_tiers::{ClientSlot, SlotEntry, SlotId};

use crate::blocks::Block;
use crate::daemon::Recovered;
use crate::engines::Process;
use crate::store::Row;
use crate::world::World;

impl World {
    pub(crate) fn explained(&self, block: Block) -> Option<ExplainedRecord> {
        let daemon = self.daemon.as_ref()?;
        daemon.ladder.explain(&self.names.key(block)).records.into_iter().next()
    }

    /// How many blocks from the first on are here by a plain walk: those that must match, those that may.
    /// `rows`: what the catalog says of the blocks from `first` on, which may match as well.
    pub(crate) fn walk(&self, blocks: &[Block], first: u32, rows: &[Row]) -> (u32, u32) {
        let Some(daemon) = &self.daemon else { return (0, 0) };
        let stats = daemon.ladder.stats();
        let (devices, remotes) = (stats.devices, stats.object.is_some_and(|object| object.up));
        let (mut least, mut most) = (0, 0);
        for (position, block) in (0..).zip(blocks) {
            let cataloged = position >= first && position - first < rows.len() as u32;
            let here = self.explained(*block).filter(|record| {
                let readable = record.nvme.is_some_and(|slot| devices[usize::from(slot.device().0)].readable);
                let somewhere = record.dram.is_some() || readable || record.object.is_some() && remotes;
                somewhere && record.position == position
            });
            if here.is_none() && !cataloged {
                break;
            }
            if least == most && here.is_some_and(|record| record.reachable) {
                least += 1;
            }
            most += 1;
        }
        (least, most)
    }

    /// After every event.
    pub(crate) fn check(&mut self) {
        if let Some(broken) = self.table.broken() {
            panic!("the table: {broken}");
        }
        for process in self.processes.iter().filter(|process| process.alive) {
            for slot in process.slots() {
                let pinned = self.table.pins(slot) & process.client.bit() != 0;
                assert!(pinned, "{slot:?} is held by {:?} and not pinned in the table", process.client);
            }
        }
        self.settle_gone();
        let Some(daemon) = &self.daemon else { return };
        daemon.ladder.self_check();
        self.check_object();
        if self.events.is_multiple_of(8) {
            self.oracle.bounds(&daemon.ladder.stats(), &self.make, self.now);
        }
        if self.events.is_multiple_of(16) {
            self.check_closure();
            self.check_pins();
        }
    }

    /// A process that has joined has pinned what it holds and nothing else, once the ladder has nothing left to do.
    fn check_pins(&self) {
        let busy = self.daemon.as_ref().is_none_or(|daemon| daemon.ladder.poll_timeout() == Some(Time::ZERO));
        let joined = |process: &&Process| process.alive && process.epoch == self.epoch && !busy;
        for process in self.processes.iter().filter(joined) {
            let held: BTreeSet<SlotId> = process.slots().collect();
            let more = self.table.pinned_by(process.client).into_iter().find(|slot| !held.contains(slot));
            assert!(more.is_none(), "{more:?} is pinned for {:?}, which does not hold it", process.client);
        }
    }

    pub(crate) fn settle_gone(&mut self) {
        if let Some(daemon) = &self.daemon {
            self.oracle.settle(&self.names, &daemon.ladder.stats(), daemon.flights.len());
        }
    }

    /// What a match can reach has all its ancestors, unless chains are being cut right now.
    fn check_closure(&self) {
        let cascade = self.daemon.as_ref().is_some_and(|daemon| daemon.ladder.stats().cascade_open);
        for block in self.names.all() {
            let Some(record) = self.explained(block).filter(|record| record.reachable && !cascade) else { continue };
            let somewhere = record.dram.is_some() || record.nvme.is_some() || record.object.is_some();
            assert!(somewhere, "{block:?} is reachable and nowhere");
            if let Some(parent) = self.names.parent(block) {
                let found = self.explained(parent);
                let there = found.is_some_and(|parent| parent.reachable);
                assert!(there, "{block:?} is reachable, its parent is not");
            }
        }
    }

    /// What was found with all its ancestors can be reached.
    pub(crate) fn check_chains_restored(&self, recovered: &Recovered) {
        let mut known: BTreeMap<BlockKey, Vec<&SlotEntry>> = BTreeMap::new();
        for record in recovered.dram.iter().chain(&recovered.nvme) {
            known.entry(record.entry.key).or_default().push(&record.entry);
        }
        let mut whole: BTreeSet<BlockKey> = BTreeSet::new();
        let mut names = self.names.all();
        names.sort_by_key(|block| block.position);
        for block in names {
            let key = self.names.key(block);
            let parent = self.names.parent(block).map(|parent| self.names.key(parent));
            let entries = known.get(&key).map_or(&[][..], Vec::as_slice);
            let fits = !entries.is_empty() && entries.iter().all(|entry| entry.parent_key == parent);
            if !fits || parent.is_some_and(|parent| !whole.contains(&parent)) {
                continue;
            }
            whole.insert(key);
            let back = self.explained(block).is_some_and(|record| record.reachable);
            assert!(back, "{block:?} was found with all its ancestors and is not reachable");
        }
    }

    /// Everybody goes, disks recover, queues drain: nothing may be left.
    pub(crate) fn wind_down(&mut self) {
        for disk in &self.disks {
            disk.sim.set_slowdown(1);
        }
        while self.daemon.is_none() {
            self.advance(Duration::from_millis(30));
            self.turn();
        }
        self.calm();
        for at in 0..self.processes.len() {
            if self.processes[at].alive {
                self.end_process(at);
            }
        }
        self.call(|ladder, now| ladder.drain(false, now));
        self.call(|ladder, now| ladder.scrub(false, now));
        for _ in 0..200 {
            self.advance(Duration::from_millis(500));
            self.turn();
            self.check();
            if self.quiet() {
                break;
            }
        }
        self.check_empty();
        self.count_life();
    }

    fn calm(&mut self) {
        self.make.kills = 0;
        self.calm_store();
        if let Some(daemon) = &self.daemon {
            for drive in &daemon.drives {
                drive.control.set_plan(FaultPlan::default());
                drive.control.release();
            }
        }
    }

    fn quiet(&self) -> bool {
        let Some(daemon) = &self.daemon else { return false };
        let stats = daemon.ladder.stats();
        let devices = stats.devices.iter().all(|device| device.vacating == 0 && device.writable);
        let rest = stats.orphans == 0 && stats.purges == 0 && stats.spill_queue == 0 && stats.pins == 0;
        let rest = rest && self.object_rests();
        devices && rest && daemon.flights.is_empty() && stats.leases == 0 && self.burials.is_empty()
    }

    fn check_empty(&self) {
        let daemon = self.daemon.as_ref().expect("it was started");
        let stats = daemon.ladder.stats();
        assert!(daemon.flights.is_empty(), "moves never end: {:?}", daemon.flights);
        assert_eq!((stats.leases, stats.lease_bytes), (0, 0), "leases leak");
        self.check_object_at_rest();
        assert_eq!(stats.pins, 0, "pins leak");
        assert_eq!(stats.loads_waiting, 0, "loads leak");
        assert_eq!((stats.orphans, stats.spill_queue, stats.purges), (0, 0, 0), "queues do not drain: {stats:?}");
        for device in &stats.devices {
            assert!(device.readable && device.writable, "a device never comes back: {device:?}");
            assert_eq!((device.spilling, device.fetching, device.vacating), (0, 0, 0), "moves leak: {device:?}");
        }
        assert_eq!(self.table.unsettled(), (0, 0), "slots that are filled, slots that are pinned");
        let resident = self.table.resident();
        assert_eq!(stats.dram_slots_used, resident.len() as u64, "slots of the arena leak");
        for (slot, entry) in resident {
            let found = daemon.ladder.explain(&entry.key).records.into_iter().next();
            assert_eq!(found.and_then(|record| record.dram), Some(slot), "the table names what the ladder does not");
        }
        assert!(
            (0..64)
                .filter_map(ClientSlot::new)
                .all(|client| !self.processes.iter().any(|p| p.alive && p.client == client))
        );
    }
}
