//! What goes wrong: disks, memory, deaths, kills, power.

use std::time::Duration;

use kvd_nixl::io::{Fault, FaultPlan, FaultRule, FaultTrigger, IoKind};
use kvd_nixl::sys::MemoryExtent;
use kvd_tiers::record::SECTOR_BYTES;

use crate::config::Disks;
use crate::disks::Disk;
use crate::store::Store;
use crate::table::Table;
use crate::world::World;

impl World {
    /// One thing goes wrong, or right again.
    pub(crate) fn trouble(&mut self) {
        match self.make.disks {
            Disks::Sound => self.slowness(),
            Disks::Honest => match self.random.index(4) {
                0 => self.slowness(),
                1 => self.replan(),
                2 => self.unplug(),
                _ => self.hang(),
            },
            Disks::Lying => match self.random.index(6) {
                0 => self.replan(),
                1 => self.unplug(),
                2 => self.rot_disk(),
                _ => self.rot_memory(),
            },
        }
    }

    fn slowness(&mut self) {
        let factor = self.random.pick(&[1, 1, 1, 20, 400]);
        if let Some(disk) = self.disks.first() {
            disk.sim.set_slowdown(factor);
        }
    }

    fn replan(&mut self) {
        let sound = self.random.percent(40);
        for number in 0..self.disks.len() {
            let span = self.disks[number].geometry.end();
            let plan = if sound { FaultPlan::default() } else { self.make.plan(&mut self.random, span) };
            self.disks[number].tainted |= self.make.disks == Disks::Lying && !sound;
            if let Some(daemon) = &self.daemon {
                daemon.drives[number].control.set_plan(plan);
                daemon.drives[number].control.release();
            }
        }
    }

    /// A device is gone, as pulled out; the next plan brings it back.
    fn unplug(&mut self) {
        let fault = self.random.pick(&[Fault::Errno(6), Fault::EIO, Fault::ENOSPC, Fault::EROFS]);
        let rule = FaultRule::new(fault, FaultTrigger::From(1));
        let rule = if fault == Fault::ENOSPC || fault == Fault::EROFS { rule.on(IoKind::Write) } else { rule };
        let number = self.random.index(self.disks.len().max(1));
        if let Some(drive) = self.daemon.as_ref().and_then(|daemon| daemon.drives.get(number)) {
            drive.control.set_plan(FaultPlan::new([rule]));
            drive.control.release();
        }
    }

    /// Some operations do not come back until the next plan.
    fn hang(&mut self) {
        let rule = FaultRule::new(Fault::Hang, FaultTrigger::PerMillion(200_000));
        let number = self.random.index(self.disks.len().max(1));
        if let Some(drive) = self.daemon.as_ref().and_then(|daemon| daemon.drives.get(number)) {
            drive.control.set_plan(FaultPlan::new([rule]));
        }
    }

    fn rot_disk(&mut self) {
        let number = self.random.index(self.disks.len().max(1));
        let Some(disk) = self.disks.get_mut(number) else { return };
        disk.tainted = true;
        // Superblocks, journal and tables are small: they get half of the flips.
        let span = if self.random.percent(50) { 4 << 20 } else { disk.geometry.end() };
        let at = self.random.range(0..span);
        let mut byte = [0];
        disk.sim.inspect(disk.file, at, &mut byte);
        byte[0] ^= 1 << self.random.range(0..8);
        disk.sim.alter(disk.file, at, &byte);
    }

    fn rot_memory(&mut self) {
        let resident = self.table.resident();
        if resident.is_empty() {
            return;
        }
        let (slot, entry) = &resident[self.random.index(resident.len())];
        let len = SECTOR_BYTES + entry.payload_bytes as usize;
        let memory = self.table.extent(*slot, len).expect("a record lies in a segment");
        flip(&memory, self.random.range(0..len as u64 * 8));
        self.say(|| format!("{slot:?} rots"));
        self.oracle.rotted.insert(*slot);
        self.oracle.cuts_allowed = true;
    }

    /// A process dies, wherever it is.
    pub(crate) fn die(&mut self) {
        let alive: Vec<usize> = (0..self.processes.len()).filter(|at| self.processes[*at].alive).collect();
        let Some(at) = self.random.pick_any(&alive) else { return };
        self.end_process(at);
    }

    pub(crate) fn end_process(&mut self, at: usize) {
        self.count("deaths");
        self.say(|| format!("{:?} dies", self.processes[at].client));
        let process = &mut self.processes[at];
        process.alive = false;
        let views = std::mem::take(&mut process.views).into_iter().map(|(_, view)| view).collect();
        let (client, current) = (process.client, process.epoch == self.epoch);
        process.forget();
        self.oracle.filling.retain(|_, (filler, _)| *filler != at);
        self.loads.retain(|_, load| load.process != at);
        self.forget_questions(at);
        if self.daemon.is_some() {
            let when = self.now + self.random.micros(0..2000);
            self.burials.push((when, client, if current { views } else { Vec::new() }));
        }
    }

    /// The daemon is killed at this instant.
    pub(crate) fn kill(&mut self) {
        if self.daemon.is_none() {
            return;
        }
        self.note(0xDEAD);
        self.say(|| "SIGKILL".into());
        self.count("kills");
        self.count_life();
        for disk in &self.disks {
            disk.sim.kill();
        }
        self.end_daemon();
        self.loads.clear();
        self.burials.clear();
        self.oracle.killed(self.disks.iter().any(|disk| disk.tainted));
        self.restart_at = self.now + self.random.micros(0..3_000);
    }

    /// Everything dies; what was not durable is lost, the arena is.
    pub(crate) fn lose_power(&mut self) {
        self.note(0xDA12);
        self.say(|| "power loss".into());
        self.count("power_losses");
        self.count_life();
        let mut disks = std::mem::take(&mut self.disks);
        for disk in &mut disks {
            let before = disk.sim.clone();
            disk.lose_power(&mut self.random);
            // The old one is nobody's any more: what its queue still holds must not land when the daemon is dropped.
            before.kill();
            disk.advance(self.now);
        }
        self.disks = disks;
        self.end_daemon();
        self.store.iter_mut().for_each(Store::lose_power);
        for at in 0..self.processes.len() {
            if self.processes[at].alive {
                self.end_process(at);
            }
        }
        self.table = Table::default();
        self.loads.clear();
        self.burials.clear();
        self.oracle.killed(true);
        self.oracle.rotted.clear();
        self.restart_at = self.now + Duration::from_millis(5);
    }

    fn end_daemon(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        if let (Some(link), Some(store)) = (&mut daemon.object, &mut self.store) {
            link.tier.killed(store);
        }
    }

    pub(crate) fn replace_disk(&mut self, number: usize) {
        let fresh = Disk::new(self.disks[number].id, self.make.zones, &mut self.random);
        fresh.advance(self.now);
        self.oracle.replaced(&fresh);
        self.disks[number] = fresh;
    }
}

fn flip(memory: &MemoryExtent, bit: u64) {
    let at = (bit / 8) as usize;
    let mut byte = [0];
    memory.read(at, &mut byte).expect("inside the record");
    byte[0] ^= 1 << (bit % 8);
    memory.write(at, &byte).expect("inside the record");
}
