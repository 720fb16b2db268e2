//! A daemon with one engine, whose files can be reached.

use std::collections::HashMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use kvd_client::ConnectError;
use kvd_proto::{BlockHash, MissReason};
use kvd_tests::{Checked, Daemon, DaemonOptions, Scratch, TestEngine, ask_serving};

use crate::change::{Bytes, Spot, records, segments};

/// Metadata of a record whose payload is one unit.
pub(crate) const META: usize = 4096;
/// Bytes of its metadata that are not padding.
pub(crate) const WRITTEN: usize = 256 + 8;

/// Blocks of a chain, for which an engine has memory.
const CHAIN_MAX: usize = 40;

/// How long a match or a load may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SECTOR: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Every record is a chain of its own, so that no damage hides another.
pub(crate) struct Node {
    scratch: Scratch,
    options: DaemonOptions,
    daemon: Option<Daemon>,
    engine: Option<TestEngine>,
    block: usize,
}

impl Node {
    /// With DRAM and NVMe, or DRAM alone, for blocks of `block` bytes.
    pub(crate) fn new(test: &str, nvme: bool, block: usize) -> Self {
        let enabled = if nvme { "true" } else { "false" };
        let options = DaemonOptions::sized("128MiB", "256MiB")
            .with("tiers.nvme.enabled", enabled)
            .with("policy", "lru")
            // Each of the changes would be a line.
            .with("log.level", "error");
        let mut node = Self { scratch: Scratch::new(test), options, daemon: None, engine: None, block };
        node.start();
        node
    }

    pub(crate) fn start(&mut self) {
        let until = Instant::now() + PATIENCE;
        self.daemon = loop {
            match self.launch() {
                Ok(daemon) => break Some(daemon),
                // On a disk that others keep busy the kernel drains a killed daemon's I/O for long.
                Err(log) if log.contains("still under way") && Instant::now() < until => {}
                Err(log) => panic!("kvd ended at start:\n{log}"),
            }
        };
        let mut options = TestEngine::options(&self.scratch.socket(), 1);
        // Nothing here is about time, and the disk may be busy with others.
        options.match_deadline = Some(PATIENCE);
        options.load_deadline = Some(PATIENCE);
        options.store_deadline = PATIENCE;
        self.engine = loop {
            match TestEngine::join(options.clone(), self.block, CHAIN_MAX) {
                Ok(engine) => break Some(engine),
                Err(ConnectError::Timeout) if Instant::now() < until => {}
                Err(error) => panic!("the daemon accepts us: {error:?}"),
            }
        };
    }

    /// Whether the daemon takes its files over, or refuses to with these words in its log.
    pub(crate) fn start_or_refuse(&mut self) -> Result<(), String> {
        drop(self.launch()?);
        self.start();
        Ok(())
    }

    fn launch(&self) -> Result<Daemon, String> {
        let mut daemon = Daemon::launch(&self.scratch, &self.options);
        while UnixStream::connect(self.scratch.socket()).is_err() {
            if !daemon.alive() {
                return Err(daemon.log());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(daemon)
    }

    /// SIGKILL; the files stay. The engine has left before, so that nothing is held for it.
    pub(crate) fn kill(&mut self) {
        self.engine = None;
        while self.metric("kvd_sessions ") > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.daemon.take().expect("it runs").kill();
    }

    /// Forgets DRAM: what is found next comes from the device.
    pub(crate) fn lose_dram(&self) {
        assert!(self.daemon.is_none());
        for entry in fs::read_dir(self.scratch.dram()).expect("the arena's folder").flatten() {
            fs::remove_file(entry.path()).expect("ours to delete");
        }
    }

    pub(crate) fn slot_bytes(&self) -> usize {
        META + self.block
    }

    pub(crate) fn store(&self, chain: u64) {
        let stored = self.engine().store(chain, 0, 1);
        assert_eq!(stored.granted, 1, "chain {chain}: {stored:?}");
    }

    /// A chain of so many records.
    pub(crate) fn store_many(&self, chain: u64, blocks: u32) {
        let stored = self.engine().store(chain, 0, blocks);
        assert_eq!(stored.granted, blocks, "chain {chain}: {stored:?}");
    }

    /// Loads a chain of so many.
    pub(crate) fn check_many(&self, chain: u64, blocks: u32) -> Checked {
        let checked = self.engine().check(chain, blocks);
        assert_eq!(checked.wrong, 0, "wrong bytes were served: chain {chain}: {checked:?}");
        checked
    }

    /// The same where the record may be there already.
    pub(crate) fn restore(&self, chain: u64) {
        let stored = self.engine().store(chain, 0, 1);
        assert_eq!(stored.refused, 0, "chain {chain}: {stored:?}");
    }

    /// Loads a record. Wrong bytes end the test here, wherever they come from.
    pub(crate) fn check(&self, chain: u64) -> Checked {
        let began = Instant::now();
        let checked = self.engine().check(chain, 1);
        if began.elapsed() > Duration::from_secs(1) {
            println!("chain {chain}: a load took {:?}", began.elapsed());
        }
        assert_eq!(checked.wrong, 0, "wrong bytes were served: chain {chain}: {checked:?}");
        checked
    }

    /// A load that must come to nothing, because of what was done.
    pub(crate) fn expect_corrupt(&self, chain: u64, what: &dyn std::fmt::Debug) {
        let checked = self.check(chain);
        let missed = checked.right == 0 && checked.reason == Some(MissReason::Corrupt);
        assert!(missed, "chain {chain}, {what:?}: {checked:?}");
    }

    fn engine(&self) -> &TestEngine {
        self.engine.as_ref().expect("it runs")
    }

    /// Everything stored is on the device as well.
    pub(crate) fn drain(&self) {
        ask_serving(&self.scratch, &["drain"]);
    }

    /// Everything stored is on the device and nowhere else: a new daemon finds no arena.
    pub(crate) fn only_on_device(&mut self) {
        self.drain();
        self.kill();
        self.lose_dram();
        self.start();
    }

    pub(crate) fn purge(&self) {
        ask_serving(&self.scratch, &["purge", "--all", "--yes"]);
    }

    /// Where the records stand in the arena.
    pub(crate) fn in_dram(&self) -> HashMap<BlockHash, Spot> {
        let mut found = HashMap::new();
        for (number, path) in segments(self.scratch.dram()) {
            records(&Bytes::open(&path), number, 0, self.slot_bytes(), &mut found);
        }
        found
    }

    /// Where they stand on the device.
    pub(crate) fn on_device(&self) -> HashMap<BlockHash, Spot> {
        let device = self.device();
        let mut found = HashMap::new();
        records(&device.file, 0, device.zones_at, self.slot_bytes(), &mut found);
        found
    }

    pub(crate) fn table(&self) -> Bytes {
        Bytes::open(&self.scratch.dram().join("table"))
    }

    /// What `kvd fsck` says of the device while no daemon has it.
    pub(crate) fn fsck(&self) -> serde_json::Value {
        assert!(self.daemon.is_none());
        let until = Instant::now() + PATIENCE;
        loop {
            let mut kvd = Command::new(Daemon::program());
            let ended = kvd.args(["fsck", "--json"]).arg(self.scratch.data().join("nvme.kvd")).output();
            let ended = ended.expect("kvd can be started");
            match ended.status.code() {
                Some(0 | 6) => {
                    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("kvd prints JSON");
                    return report["devices"][0].clone();
                }
                // The kernel still drains a killed daemon's I/O.
                Some(7) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                code => panic!("kvd fsck ended with {code:?}: {}", String::from_utf8_lossy(&ended.stderr)),
            }
        }
    }

    pub(crate) fn raw_device(&self) -> Bytes {
        Bytes::open(&self.scratch.data().join("nvme.kvd"))
    }

    pub(crate) fn device(&self) -> DeviceFile {
        DeviceFile::open(self.raw_device())
    }

    /// A counter out of `kvd status --metrics`, by its whole name with labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let metrics = ask_serving(&self.scratch, &["status", "--metrics"]);
        let text = metrics["text"].as_str().expect("metrics are text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}:\n{text}"));
        line.trim().parse().expect("a counter is a number")
    }

    /// Copies that the daemon counted corrupt, in DRAM and on the device.
    pub(crate) fn counted(&self) -> (u64, u64) {
        let tier = |tier| self.metric(&format!("kvd_blocks_corrupt_total{{tier=\"{tier}\"}}"));
        (tier("dram"), tier("nvme"))
    }

    /// Misses that the daemon counted as corrupt.
    pub(crate) fn missed(&self) -> u64 {
        self.metric("kvd_block_misses_total{reason=\"corrupt\"}")
    }
}

/// The NVMe file and where things stand in it: docs/formats/nvme.md, "Regions".
pub(crate) struct DeviceFile {
    pub(crate) file: Bytes,
    pub(crate) journal_pages: u64,
    pub(crate) headers_at: u64,
    pub(crate) tables_at: u64,
    pub(crate) table_bytes: u64,
    pub(crate) zones_at: u64,
    pub(crate) zone_bytes: u64,
}

impl DeviceFile {
    pub(crate) const SUPERBLOCKS: [u64; 2] = [0, 65536];
    pub(crate) const JOURNAL_AT: u64 = MIB;

    fn open(file: Bytes) -> Self {
        let (zone_bytes, counts) = (file.number(64), file.number(72));
        let (zones, journal_pages) = (counts & 0xFFFF_FFFF, counts >> 32);
        let headers_at = (Self::JOURNAL_AT + journal_pages * SECTOR).next_multiple_of(MIB);
        let tables_at = (headers_at + zones * SECTOR).next_multiple_of(MIB);
        let table_bytes = zone_bytes / 64;
        let zones_at = (tables_at + zones * table_bytes).next_multiple_of(MIB);
        Self { file, journal_pages, headers_at, tables_at, table_bytes, zones_at, zone_bytes }
    }

    /// Zone and index of the slot at this place.
    pub(crate) fn slot(&self, at: u64, slot_bytes: usize) -> (u64, u64) {
        let zone = (at - self.zones_at) / self.zone_bytes;
        (zone, (at - self.zones_at) % self.zone_bytes / slot_bytes as u64)
    }

    /// Where the slot's entry stands in its table.
    pub(crate) fn entry_at(&self, (zone, index): (u64, u64)) -> u64 {
        self.tables_at + zone * self.table_bytes + index * 128
    }
}
