//! Goal: no bit of a device's directory, and no sector of it that is stale or in the wrong place, makes a wrong record or keeps
//! the device from opening.
//!
//! Method: a small device with records in the table, in the journal and in both; every bit of every structure flipped, every
//! sector of the directory copied over every other, every older version of a sector put back; then everything shown is read.

use std::collections::BTreeMap;

use kvd_nixl::io::{FileId, SimDisk, SimIo, SimOptions};
use kvd_proto::{Epoch, Time};
use kvd_tiers::nvme::{
    Command, Device, DeviceOptions, Failure, Finished, Geometry, OpenError, OpenOptions, Opened, Restored, Uuid,
};
use kvd_tiers::{DeviceId, MoveId, NvmeSlot, RestoredPlace, SlotEntry, ZoneId};

use crate::records::{Recipe, memory};

const SECTOR: u64 = 4096;
const SUPERBLOCKS: [u64; 2] = [0, 65536];
const JOURNAL: u64 = 1 << 20;
const HEADERS: u64 = 2 << 20;
const TABLES: u64 = 3 << 20;
const ZONES: u64 = 4 << 20;
const SLOT_BYTES: u32 = 8192;

fn geometry() -> Geometry {
    Geometry::new(64 << 10, 1, 8).unwrap()
}

fn try_open(
    disk: &SimDisk,
    file: FileId,
    bytes: u64,
    uuid: u8,
) -> (Result<(Device<SimIo>, Opened), OpenError>, BTreeMap<NvmeSlot, SlotEntry>) {
    disk.set_automatic(true);
    let open = OpenOptions { bytes, geometry: geometry(), uuid: Uuid::new([uuid; 16]), epoch: Epoch::new(1) };
    let mut found = BTreeMap::new();
    let opened = Device::open(disk.io(), file, open, DeviceOptions::new(DeviceId(0)), &mut |restored| {
        if let Restored::Record(record) = restored
            && let RestoredPlace::Nvme(slot) = record.place
        {
            found.insert(slot, record.entry);
        }
    });
    (opened, found)
}

fn open(disk: &SimDisk, file: FileId) -> (Device<SimIo>, Opened, BTreeMap<NvmeSlot, SlotEntry>) {
    let (opened, found) = try_open(disk, file, geometry().end(), 0xd5);
    let (device, opened) = opened.expect("opens");
    (device, opened, found)
}

fn answer(device: &mut Device<SimIo>, disk: &SimDisk, command: Command) -> Result<(), Failure> {
    device.handle(command, Time::ZERO + disk.now()).expect("one command fits");
    let mut outcome: Option<Finished> = None;
    while outcome.is_none() {
        disk.advance(disk.now() + std::time::Duration::from_millis(1));
        device.pump(Time::ZERO + disk.now());
        device.take_outcomes(|found| outcome = Some(found));
    }
    outcome.expect("the loop ended").result.map(drop)
}

fn slot(index: u32) -> NvmeSlot {
    NvmeSlot::new(DeviceId(0), ZoneId(0), index)
}

fn write(device: &mut Device<SimIo>, disk: &SimDisk, index: u32, recipe: &Recipe) {
    let made = recipe.make();
    let command = Command::Write { id: MoveId(1), slot: slot(index), memory: made.memory(), entry: made.entry };
    answer(device, disk, command).unwrap();
}

/// A device and what it holds. Its directory is written in three stages, whose images are given as well.
struct Fixture {
    file: FileId,
    stages: Vec<SimDisk>,
    records: BTreeMap<NvmeSlot, Recipe>,
}

fn fixture() -> Fixture {
    let disk = SimDisk::new(1, SimOptions::default());
    let file = disk.add_file(geometry().end());
    let (mut device, ..) = open(&disk, file);
    let mut stages = Vec::new();
    let mut records = BTreeMap::new();
    answer(&mut device, &disk, Command::FormatZone { id: MoveId(1), zone: ZoneId(0), slot_bytes: SLOT_BYTES }).unwrap();
    for generation in 1..=3 {
        // One page for each change: four fill a half, whose entries go to the table.
        for index in 0..5 {
            if records.contains_key(&slot(index)) {
                answer(&mut device, &disk, Command::Vacate { id: MoveId(1), slot: slot(index) }).unwrap();
            }
            let recipe = Recipe::new(u64::from(index), generation, 4000);
            write(&mut device, &disk, index, &recipe);
            records.insert(slot(index), recipe);
        }
        answer(&mut device, &disk, Command::Vacate { id: MoveId(1), slot: slot(4) }).unwrap();
        records.remove(&slot(4));
        answer(&mut device, &disk, Command::Flush { id: MoveId(1) }).unwrap();
        stages.push(disk.crash(0));
    }
    Fixture { file, stages, records }
}

impl Fixture {
    /// A copy of the device as it is at the end.
    fn disk(&self) -> SimDisk {
        self.stages.last().expect("three stages").crash(0)
    }

    /// Opens and reads everything. Returns the records that are served, each compared with what was written.
    fn served(&self, disk: &SimDisk, what: &str) -> BTreeMap<NvmeSlot, Recipe> {
        let (mut device, opened, found) = open(disk, self.file);
        assert!(opened.reformatted.is_none(), "{what}: {:?}", opened.reformatted);
        let mut served = BTreeMap::new();
        for (slot, entry) in found {
            let into = memory(SLOT_BYTES as usize);
            let number = u64::from_le_bytes(entry.key.as_bytes()[8..].try_into().unwrap());
            let recipe = Recipe::new(number, entry.generation, 4000);
            let command = Command::Read { id: MoveId(1), slot, expect: entry, memory: into.clone() };
            if answer(&mut device, disk, command).is_ok() {
                assert!(recipe.make().is_in(&into), "{what}: wrong bytes from {slot:?}");
                served.insert(slot, recipe);
            }
        }
        served
    }
}

fn sector(disk: &SimDisk, file: FileId, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR as usize];
    disk.inspect(file, offset, &mut bytes);
    bytes
}

/// Flips every bit of `range` and counts, at the most, how many of the records are gone.
fn lost_by_flips(fixture: &Fixture, range: std::ops::Range<u64>) -> usize {
    let mut most = 0;
    for bit in range.start * 8..range.end * 8 {
        let disk = fixture.disk();
        let mut byte = [0];
        disk.inspect(fixture.file, bit / 8, &mut byte);
        disk.alter(fixture.file, bit / 8, &[byte[0] ^ 1 << (bit % 8)]);
        let served = fixture.served(&disk, &format!("byte {} bit {}", bit / 8, bit % 8));
        let same = fixture.records.iter().filter(|(slot, recipe)| served.get(slot) == Some(recipe)).count();
        most = most.max(fixture.records.len() - same);
    }
    most
}

#[test]
fn the_fixture_stands() {
    let fixture = fixture();
    assert_eq!(fixture.served(&fixture.disk(), "untouched"), fixture.records);
    assert_eq!(fixture.records.len(), 4);
    for offset in [SUPERBLOCKS[0], SUPERBLOCKS[1], JOURNAL, JOURNAL + 7 * SECTOR, HEADERS, TABLES, ZONES] {
        assert!(sector(&fixture.disk(), fixture.file, offset).iter().any(|byte| *byte != 0), "sector at {offset}");
    }
}

#[test]
fn flips_in_one_superblock_lose_nothing() {
    let fixture = fixture();
    for start in SUPERBLOCKS {
        assert_eq!(lost_by_flips(&fixture, start..start + 96), 0);
    }
}

#[test]
fn flips_in_a_journal_page_lose_at_most_a_record() {
    let fixture = fixture();
    for page in 0..8 {
        let start = JOURNAL + page * SECTOR;
        assert!(lost_by_flips(&fixture, start..start + 64 + 128) <= 1, "page {page}");
    }
}

#[test]
fn flips_in_the_table_lose_at_most_a_record() {
    assert!(lost_by_flips(&fixture(), TABLES..TABLES + 6 * 128) <= 1);
}

#[test]
fn flips_in_a_zone_header_lose_at_most_the_zone() {
    let fixture = fixture();
    assert_eq!(lost_by_flips(&fixture, HEADERS..HEADERS + 40), fixture.records.len());
}

#[test]
fn flips_in_a_record_lose_at_most_that_record() {
    let fixture = fixture();
    assert_eq!(lost_by_flips(&fixture, ZONES..ZONES + 300), 1);
    assert_eq!(lost_by_flips(&fixture, ZONES + SECTOR..ZONES + SECTOR + 200), 1);
}

fn directory() -> Vec<u64> {
    let pages = (0..8).map(|page| JOURNAL + page * SECTOR);
    let slots = (0..8).map(|slot| ZONES + slot * u64::from(SLOT_BYTES));
    SUPERBLOCKS.into_iter().chain(pages).chain([HEADERS, TABLES]).chain(slots).collect()
}

#[test]
fn sectors_in_the_wrong_place_serve_nothing_wrong() {
    let fixture = fixture();
    for from in directory() {
        for to in directory() {
            let disk = fixture.disk();
            let bytes = sector(&disk, fixture.file, from);
            disk.alter(fixture.file, to, &bytes);
            fixture.served(&disk, &format!("{from} over {to}"));
        }
    }
}

#[test]
fn an_entry_counts_in_its_own_slot_only() {
    let fixture = fixture();
    let disk = fixture.disk();
    let mut entry = [0; 128];
    disk.inspect(fixture.file, TABLES, &mut entry);
    disk.alter(fixture.file, TABLES + 6 * 128, &entry);
    let (_, _, found) = open(&disk, fixture.file);
    assert!(found.keys().eq(fixture.records.keys()), "{found:?}");
}

#[test]
fn swapped_and_stale_records_are_misses() {
    let fixture = fixture();
    let disk = fixture.disk();
    let read = |disk: &SimDisk, index: u64| {
        let mut bytes = vec![0; SLOT_BYTES as usize];
        disk.inspect(fixture.file, ZONES + index * u64::from(SLOT_BYTES), &mut bytes);
        bytes
    };
    let (first, second) = (read(&disk, 0), read(&disk, 1));
    disk.alter(fixture.file, ZONES, &second);
    disk.alter(fixture.file, ZONES + u64::from(SLOT_BYTES), &first);
    // The whole record of an earlier generation, intact, in its own slot.
    disk.alter(fixture.file, ZONES + 2 * u64::from(SLOT_BYTES), &read(&fixture.stages[0], 2));
    let served = fixture.served(&disk, "swapped");
    assert_eq!(served.keys().copied().collect::<Vec<_>>(), [slot(3)]);
}

#[test]
fn stale_sectors_serve_nothing_wrong() {
    let fixture = fixture();
    for stage in &fixture.stages[..2] {
        for offset in directory() {
            let disk = fixture.disk();
            disk.alter(fixture.file, offset, &sector(stage, fixture.file, offset));
            fixture.served(&disk, &format!("stale {offset}"));
        }
        // All of the directory but the superblock is older than the records.
        let disk = fixture.disk();
        for offset in directory().into_iter().filter(|offset| (JOURNAL..ZONES).contains(offset)) {
            disk.alter(fixture.file, offset, &sector(stage, fixture.file, offset));
        }
        let served = fixture.served(&disk, "stale directory");
        assert!(served.values().all(|recipe| fixture.records.values().any(|now| now == recipe)));
    }
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let disk = SimDisk::new(1, SimOptions::default());
    let file = disk.add_file(geometry().end());
    disk.alter(file, 1080, &[0x53, 0xef]);
    assert!(matches!(try_open(&disk, file, geometry().end(), 0xd5).0, Err(OpenError::Foreign)));
    let mut first = vec![0; 1 << 20];
    disk.inspect(file, 0, &mut first);
    assert_eq!(first.iter().filter(|byte| **byte != 0).count(), 2);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let fixture = fixture();
    let disk = fixture.disk();
    let short = try_open(&disk, fixture.file, geometry().end() - 1, 0xd5).0;
    assert!(matches!(short, Err(OpenError::Truncated { .. })));
    assert!(matches!(try_open(&disk, fixture.file, 4096, 0xd5).0, Err(OpenError::Geometry(_))));
}

#[test]
fn a_directory_beyond_repair_is_given_up_with_a_reason() {
    let fixture = fixture();
    let disk = fixture.disk();
    for start in SUPERBLOCKS {
        disk.alter(fixture.file, start + 100, &[1]);
    }
    // As in the daemon, a new formatting has a new uuid.
    let (opened, found) = try_open(&disk, fixture.file, geometry().end(), 0xd6);
    let (mut device, opened) = opened.expect("opens");
    assert!(opened.fresh && opened.reformatted.is_some() && found.is_empty());
    // Nothing of the old formatting comes back, though its sectors still stand there.
    answer(&mut device, &disk, Command::FormatZone { id: MoveId(1), zone: ZoneId(0), slot_bytes: SLOT_BYTES }).unwrap();
    drop(device);
    assert!(open(&disk, fixture.file).2.is_empty());
}

#[test]
fn a_newer_format_is_refused_with_its_version() {
    let fixture = fixture();
    let disk = fixture.disk();
    for start in SUPERBLOCKS {
        let mut bytes = sector(&disk, fixture.file, start);
        bytes[8] = 2;
        let crc = kvd_nixl::sys::ChecksumAlgorithm::Crc64Nvme;
        let head = crc.checksum(u64::from_le_bytes(*b"KVDSUPER"), &bytes[..16]);
        let checksum = crc.checksum(head, &bytes[24..]);
        bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
        disk.alter(fixture.file, start, &bytes);
    }
    let refused = try_open(&disk, fixture.file, geometry().end(), 0xd5).0;
    assert!(matches!(refused, Err(OpenError::Newer { found: 2, known: 1 })));
}
