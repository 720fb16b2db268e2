//! Figures, not checks: `cargo test -p kvd-tiers --test storage figures -- --ignored --nocapture --test-threads 1`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::io::{UringIo, UringOptions};
use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::{Epoch, Time};
use kvd_tiers::nvme::{Command, Device, DeviceOptions, OpenOptions, Uuid, prepare};
use kvd_tiers::record::{Expect, Scratch, verify_record};
use kvd_tiers::{DeviceId, MoveId, NvmeSlot, ZoneId};

use crate::records::{Made, Recipe};

/// CPU time of this thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn made(number: u64, payload_bytes: u32, algorithm: ChecksumAlgorithm) -> Made {
    Recipe { unit_bytes: 8192, algorithm, ..Recipe::new(number, 1, payload_bytes) }.make()
}

#[test]
#[ignore = "a figure: verification in memory"]
fn verification() {
    for algorithm in [ChecksumAlgorithm::Crc64Nvme, ChecksumAlgorithm::Xxh3] {
        for payload in [4 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20] {
            // More than the caches hold.
            let records: Vec<_> = (0..(256 << 20) / u64::from(payload)).map(|n| made(n, payload, algorithm)).collect();
            let memories: Vec<_> = records.iter().map(Made::memory).collect();
            let mut scratch = Scratch::default();
            let started = Instant::now();
            for (made, memory) in records.iter().zip(&memories) {
                verify_record(memory, &Expect::from(&made.entry), &mut scratch).unwrap();
            }
            let seconds = started.elapsed().as_secs_f64();
            println!("{algorithm:?} {payload:>8} B: {:.2} GB/s", f64::from(256 << 20) / seconds / 1e9);
            let (expect, started) = (Expect::from(&records[0].entry), Instant::now());
            for _ in 0..1000 {
                verify_record(&memories[0], &expect, &mut scratch).unwrap();
            }
            println!("    the same one again: {:.2} us", started.elapsed().as_secs_f64() * 1e3);
        }
    }
}

#[test]
#[ignore = "a figure: 1 GiB of records on this machine's disk"]
fn records_on_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    for (payload, depth) in [(60_u32 << 10, 32), (252 << 10, 16), (1020 << 10, 8)] {
        let prepared = prepare(&folder.path().join("nvme"), 1200 << 20).unwrap();
        let mut io = UringIo::new(UringOptions::default()).unwrap();
        let file = io.add_file(Arc::clone(&prepared.file)).unwrap();
        let uuid = Uuid::new([payload as u8; 16]);
        let (bytes, geometry) = (prepared.bytes, prepared.geometry);
        let open = OpenOptions { bytes, geometry, uuid, epoch: Epoch::new(1) };
        let options = DeviceOptions { reads_max: depth, writes_max: depth, ..DeviceOptions::new(DeviceId(0)) };
        let (device, _) = Device::open(io, file, open, options, &mut |_| {}).unwrap();
        let records: Vec<Made> = (0..depth as u64 * 2).map(|n| made(n, payload, ChecksumAlgorithm::Xxh3)).collect();
        let mut load = Load { device, started: Instant::now(), slot_bytes: payload + 4096, records };
        load.format(geometry.zones());
        let (count, gb) = load.count(geometry.zones());
        for what in ["write", "read"] {
            let (cpu_before, started) = (cpu(), Instant::now());
            load.run(what, count, depth * 2);
            let (seconds, cpu) = (started.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
            println!("{what} {payload} B qd {depth}: {:.2} GB/s, {:.3} CPU-seconds per GB", gb / seconds, cpu / gb);
        }
        drop(load);
        drop(prepared);
        std::fs::remove_file(folder.path().join("nvme")).unwrap();
    }
}

struct Load {
    device: Device<UringIo>,
    started: Instant,
    slot_bytes: u32,
    records: Vec<Made>,
}

impl Load {
    fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }

    fn pump(&mut self, wait: bool) -> usize {
        self.device.pump(self.now());
        let mut answered = 0;
        self.device.take_outcomes(|outcome| {
            outcome.result.unwrap();
            answered += 1;
        });
        if wait && answered == 0 && self.device.poll_timeout().is_none_or(|at| at > self.now()) {
            let timeout = self.device.poll_timeout().map(|at| at.since(self.now()));
            self.device.wait(timeout);
        }
        answered
    }

    fn format(&mut self, zones: u32) {
        for zone in 0..zones {
            let command = Command::FormatZone { id: MoveId(0), zone: ZoneId(zone), slot_bytes: self.slot_bytes };
            self.device.handle(command, self.now()).unwrap();
            while self.pump(true) == 0 {}
        }
    }

    fn count(&self, zones: u32) -> (u32, f64) {
        let count = zones * (kvd_tiers::SEGMENT_BYTES / self.slot_bytes);
        (count, f64::from(count) * f64::from(self.slot_bytes) / 1e9)
    }

    fn run(&mut self, what: &str, count: u32, queue: usize) {
        let memories: Vec<_> = self.records.iter().map(Made::memory).collect();
        for memory in &memories {
            self.device.register_memory(memory.memory());
        }
        let per_zone = kvd_tiers::SEGMENT_BYTES / self.slot_bytes;
        let (mut next, mut answered) = (0, 0);
        while answered < count as usize {
            while next < count && (next as usize - answered) < queue {
                let made = &self.records[next as usize % self.records.len()];
                let memory = memories[next as usize % memories.len()].clone();
                let slot = NvmeSlot::new(DeviceId(0), ZoneId(next / per_zone), next % per_zone);
                let id = MoveId(u64::from(next));
                let entry = made.entry.clone();
                let command = match what {
                    "write" => Command::Write { id, slot, entry, memory },
                    _ => Command::Read { id, slot, expect: entry, memory },
                };
                self.device.handle(command, self.now()).unwrap();
                next += 1;
            }
            answered += self.pump(true);
        }
    }
}
