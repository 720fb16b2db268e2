//! Disks of a world and the production devices over them.

use std::time::Duration;

use kvd_nixl::io::{FaultControl, FaultIo, FaultPlan, FileId, SimDisk, SimIo, SimOptions};
use kvd_proto::{Epoch, Time};
use kvd_tiers::nvme::{Device, DeviceOptions, Geometry, OpenError, OpenOptions, Restored, Uuid};
use kvd_tiers::{DeviceId, SEGMENT_BYTES};

use crate::random::Random;

/// A disk, which outlives the daemon.
pub(crate) struct Disk {
    pub(crate) id: DeviceId,
    pub(crate) sim: SimDisk,
    pub(crate) file: FileId,
    pub(crate) geometry: Geometry,
    /// It may have lied about a write, or rotted: what it holds is anyone's guess, so only its bytes are held to the rules.
    pub(crate) tainted: bool,
}

/// A device over a disk, which does not outlive the daemon.
pub(crate) struct Drive {
    pub(crate) device: Device<FaultIo<SimIo>>,
    pub(crate) control: FaultControl,
}

impl Disk {
    pub(crate) fn new(id: DeviceId, zones: u32, random: &mut Random) -> Self {
        // Eight pages of journal: checkpoints happen all the time.
        let geometry = Geometry::new(SEGMENT_BYTES, zones, 8).expect("a small device");
        let options =
            SimOptions { depth: 32, cache_bytes_max: random.pick(&[64 << 10, 4 << 20]), ..SimOptions::default() };
        let sim = SimDisk::new(random.bits(), options);
        let file = sim.add_file(geometry.end());
        Self { id, sim, file, geometry, tainted: false }
    }

    /// Opens the device as a starting daemon does, under `plan`.
    pub(crate) fn open(
        &self,
        seed: u64,
        plan: FaultPlan,
        epoch: Epoch,
        found: &mut Vec<Restored>,
    ) -> Result<Drive, OpenError> {
        let io = FaultIo::new(self.sim.io(), seed, plan);
        let control = io.control();
        let open = OpenOptions {
            bytes: self.geometry.end(),
            geometry: self.geometry,
            uuid: Uuid::new([self.id.0 + 1; 16]),
            epoch,
        };
        let options = DeviceOptions {
            moves_max: 64,
            reads_max: 4,
            writes_max: 4,
            sync_interval: Duration::from_millis(20),
            ..DeviceOptions::new(self.id)
        };
        self.sim.set_automatic(true);
        let opened = Device::open(io, self.file, open, options, &mut |restored| found.push(restored));
        self.sim.set_automatic(false);
        opened.map(|(device, _)| Drive { device, control })
    }

    pub(crate) fn next_due(&self) -> Option<Time> {
        self.sim.next_due().map(|due| Time::ZERO + due)
    }

    pub(crate) fn now(&self) -> Time {
        Time::ZERO + self.sim.now()
    }

    pub(crate) fn advance(&self, now: Time) {
        self.sim.advance(now.since(Time::ZERO));
    }

    /// What power loss leaves of it.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        self.sim = self.sim.crash(random.bits());
    }
}
