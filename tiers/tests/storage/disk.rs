//! A device on a real file, through a thread pool: what it took is there for the next owner, and for fsck.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::io::{BlockingIo, BlockingOptions, FileId};
use kvd_proto::{Epoch, Time};
use kvd_tiers::nvme::{
    Command, Device, DeviceOptions, FileError, OpenOptions, PreparedFile, Restored, Uuid, fsck, prepare,
};
use kvd_tiers::{DeviceId, MoveId, NvmeSlot, ZoneId};

use crate::records::{Recipe, memory};

/// One zone.
const CAPACITY: u64 = 72 << 20;

fn io(prepared: &PreparedFile) -> (BlockingIo, FileId) {
    let mut io = BlockingIo::new(BlockingOptions::default()).unwrap();
    let file = io.add_file(Arc::clone(&prepared.file)).unwrap();
    (io, file)
}

fn open(path: &Path) -> (PreparedFile, Device<BlockingIo>, usize) {
    let prepared = prepare(path, CAPACITY).unwrap();
    let (io, file) = io(&prepared);
    let (bytes, geometry) = (prepared.bytes, prepared.geometry);
    let open = OpenOptions { bytes, geometry, uuid: Uuid::new([1; 16]), epoch: Epoch::new(1) };
    let mut records = 0;
    let (device, _) = Device::open(io, file, open, DeviceOptions::new(DeviceId(0)), &mut |found| {
        records += usize::from(matches!(found, Restored::Record(_)));
    })
    .unwrap();
    (prepared, device, records)
}

fn answer(device: &mut Device<BlockingIo>, started: Instant, command: Command) {
    let now = || Time::ZERO + started.elapsed();
    device.handle(command, now()).unwrap();
    let mut answered = false;
    while !answered {
        device.pump(now());
        device.take_outcomes(|outcome| answered = outcome.result.map(|_| true).unwrap());
        if !answered {
            device.wait(device.poll_timeout().map(|at| at.since(now())));
        }
    }
}

#[test]
fn records_on_a_real_file_outlive_their_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nvme");
    let (started, id) = (Instant::now(), MoveId(1));
    let slot = |index| NvmeSlot::new(DeviceId(0), ZoneId(0), index);
    let made = |index: u32| Recipe::new(u64::from(index), 1, 60_000).make();
    let (prepared, mut device, found) = open(&path);
    assert_eq!(found, 0);
    answer(&mut device, started, Command::FormatZone { id, zone: ZoneId(0), slot_bytes: 65536 });
    for index in 0..20 {
        let made = made(index);
        let command = Command::Write { id, slot: slot(index), memory: made.memory(), entry: made.entry };
        answer(&mut device, started, command);
    }
    assert!(matches!(prepare(&path, CAPACITY), Err(FileError::Locked { .. })));
    drop((device, prepared));

    let (prepared, mut device, found) = open(&path);
    assert_eq!(found, 20);
    for index in 0..20 {
        let (made, into) = (made(index), memory(65536));
        let command = Command::Read { id, slot: slot(index), expect: made.entry.clone(), memory: into.clone() };
        answer(&mut device, started, command);
        assert!(made.is_in(&into));
    }
    drop((device, prepared));

    let prepared = prepare(&path, CAPACITY).unwrap();
    let (mut io, file) = io(&prepared);
    let mut last = 0;
    let report = fsck(&mut io, file, prepared.bytes, &mut |progress| last = progress.done).unwrap();
    assert_eq!((report.records, report.bad_count, report.zones, last), (20, 0, 1, 20));
}
