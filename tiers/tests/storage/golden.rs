//! The bytes of the formats, pinned. `KVD_BLESS=1 cargo test -p kvd-tiers --test storage golden` writes them anew: a change
//! before version 1 is frozen is a change of these files in the same commit, afterwards a new version beside them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use kvd_nixl::io::{SimDisk, SimOptions};
use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::{Epoch, Time};
use kvd_tiers::nvme::{Command, Device, DeviceOptions, Geometry, OpenOptions, Restored, Uuid};
use kvd_tiers::object::pack::{PackBuilder, Pushed, TRAILER_BYTES, parse_trailer};
use kvd_tiers::object::{NodeName, PackIndex, PackName, Realm};
use kvd_tiers::record::{Expect, Metadata, Scratch, verify_record};
use kvd_tiers::{DeviceId, MoveId, NvmeSlot, RestoredPlace, ZoneId};

use crate::records::{Made, Recipe, memory};

/// Lines of 32 bytes with their offset; lines of zeros are left out.
fn dump(title: &str, bytes: &[u8], out: &mut String) {
    writeln!(out, "# {title}, {} bytes", bytes.len()).unwrap();
    for (index, line) in bytes.chunks(32).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            write!(out, "{:06x} ", index * 32).unwrap();
            line.iter().for_each(|byte| write!(out, "{byte:02x}").unwrap());
            out.push('\n');
        }
    }
}

/// The inverse of [`dump`] for one title.
fn parse(title: &str, text: &str) -> Vec<u8> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("# {title}, ")));
    let head = lines.next().expect("the title stands in the file");
    let len = head.split(' ').rev().nth(1).expect("a length").parse().expect("a number");
    let mut bytes = vec![0; len];
    for line in lines.take_while(|line| !line.starts_with('#')) {
        let (offset, digits) = line.split_once(' ').expect("offset and bytes");
        let offset = usize::from_str_radix(offset, 16).expect("hexadecimal");
        for at in 0..digits.len() / 2 {
            bytes[offset + at] = u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).expect("hexadecimal");
        }
    }
    bytes
}

fn compare(name: &str, now: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    if std::env::var_os("KVD_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).expect("golden files stand in tests/golden");
    assert!(golden == now, "{name} differs from the golden file:\n{now}");
    golden
}

fn recipes() -> [(&'static str, Recipe); 3] {
    let small = Recipe::new(1, 2, 100);
    [
        ("xxh3 with parent and tokens", small),
        (
            "crc64 without parent and tokens",
            Recipe { number: 0, tokens: 0, algorithm: ChecksumAlgorithm::Crc64Nvme, ..small },
        ),
        ("two sectors of metadata", Recipe { payload_bytes: 5000, unit_bytes: 8, tokens: 3, ..small }),
    ]
}

#[test]
fn record_version_1() {
    let mut now = String::new();
    for (title, recipe) in recipes() {
        dump(title, &recipe.make().image, &mut now);
    }
    let golden = compare("record/v1.hex", &now);
    for (title, recipe) in recipes() {
        let image = parse(title, &golden);
        let made = recipe.make();
        assert_eq!(Metadata::decode(&image).unwrap().meta_checksum, made.entry.meta_checksum);
        let slot = memory(image.len());
        slot.write(0, &image).unwrap();
        verify_record(&slot, &Expect::from(&made.entry), &mut Scratch::default()).unwrap();
    }
}

/// Three records of a chain, given out of order.
const PACKED: [u64; 3] = [2, 0, 1];

fn packed(number: u64) -> Made {
    Recipe::new(number, 3, 100 + number as u32).make()
}

#[test]
fn pack_version_1() {
    let (name, node) = (PackName::new(*b"golden-pack-name"), NodeName::new(*b"golden-node-name"));
    let realm = Realm { tenant: *b"digest-of-tenant", namespace: *b"digest-of-spaces" };
    let mut builder = PackBuilder::new(name, node, realm, 1 << 20);
    for number in PACKED {
        let Made { entry, image, .. } = packed(number);
        let pushed = Pushed {
            key: entry.key,
            shard: entry.shard,
            parent_key: entry.parent_key,
            group: entry.group,
            position: entry.position,
            generation: entry.generation,
            record_bytes: image.len() as u32,
            payload_bytes: entry.payload_bytes,
            meta_checksum: entry.meta_checksum,
        };
        builder.push(pushed, image).unwrap();
    }
    let sealed = builder.finish(1_700_000_000_123).unwrap();
    let mut now = String::new();
    dump("pack object", &[sealed.records.concat(), sealed.tail].concat(), &mut now);
    dump("index object", &sealed.index_bytes, &mut now);
    let golden = compare("pack/v1.hex", &now);
    // And what stands in the file is read by this program.
    let object = parse("pack object", &golden);
    let (rest, end) = object.split_last_chunk::<TRAILER_BYTES>().unwrap();
    let (records, index) = rest.split_at(rest.len() - parse_trailer(end).unwrap() as usize);
    assert_eq!(index, parse("index object", &golden));
    let index = PackIndex::decode(index).unwrap();
    assert_eq!((index.pack, index.node, index.realm, index.created_ms), (name, node, realm, 1_700_000_000_123));
    assert_eq!((index.records_bytes, index.pack_bytes()), (records.len() as u64, object.len() as u64));
    assert_eq!(index.entries.len(), PACKED.len());
    for (number, entry) in index.entries.iter().enumerate() {
        let made = packed(number as u64);
        let record = &records[entry.offset as usize..][..entry.record_bytes as usize];
        assert_eq!((entry.key, entry.parent_key), (made.entry.key, made.entry.parent_key));
        assert_eq!((entry.group, entry.position), (made.entry.group, number as u32));
        let slot = memory(record.len());
        slot.write(0, record).unwrap();
        let expect = Expect {
            key: entry.key,
            shard: entry.shard.clone(),
            generation: entry.generation,
            payload_bytes: entry.payload_bytes,
            meta_checksum: entry.meta_checksum,
        };
        verify_record(&slot, &expect, &mut Scratch::default()).unwrap();
    }
}

fn geometry() -> Geometry {
    Geometry::new(64 << 10, 1, 8).unwrap()
}

fn open_options() -> OpenOptions {
    let uuid = Uuid::new(*b"golden-golden-go");
    OpenOptions { bytes: geometry().end(), geometry: geometry(), uuid, epoch: Epoch::new(9) }
}

const PLACES: [(&str, u64, usize); 6] = [
    ("superblock A", 0, 4096),
    ("superblock B", 65536, 4096),
    ("journal", 1 << 20, 8 * 4096),
    ("zone header", 2 << 20, 4096),
    ("slot table", 3 << 20, 4096),
    ("zone", 4 << 20, 64 << 10),
];

fn slot(index: u32) -> NvmeSlot {
    NvmeSlot::new(DeviceId(0), ZoneId(0), index)
}

/// Five entries, so that the first half of the journal is full and in the table.
fn fill(disk: &SimDisk) {
    let file = kvd_nixl::io::FileId::new(0);
    disk.set_automatic(true);
    let options = DeviceOptions::new(DeviceId(0));
    let (mut device, _) = Device::open(disk.io(), file, open_options(), options, &mut |_| {}).unwrap();
    let write = |index: u32| {
        let made = Recipe::new(u64::from(index), 1, 100).make();
        Command::Write { id: MoveId(1), slot: slot(index), memory: made.memory(), entry: made.entry }
    };
    let format = Command::FormatZone { id: MoveId(1), zone: ZoneId(0), slot_bytes: 8192 };
    let vacate = Command::Vacate { id: MoveId(1), slot: slot(1) };
    let mut now = Time::ZERO;
    for command in [format, write(0), write(1), vacate, write(2), write(3), Command::Flush { id: MoveId(1) }] {
        device.handle(command, now).unwrap();
        let mut answered = false;
        while !answered {
            now = now + Duration::from_millis(1);
            device.pump(now);
            device.take_outcomes(|outcome| answered = outcome.result.is_ok());
        }
    }
    for _ in 0..100 {
        now = now + Duration::from_millis(1);
        device.pump(now);
    }
}

#[test]
fn nvme_version_1() {
    let disk = SimDisk::new(1, SimOptions::default());
    let file = disk.add_file(geometry().end());
    fill(&disk);
    let mut now = String::new();
    for (title, offset, len) in PLACES {
        let mut bytes = vec![0; len];
        disk.inspect(file, offset, &mut bytes);
        dump(title, &bytes, &mut now);
    }
    let golden = compare("nvme/v1.hex", &now);
    // And what stands in the file is read by this program.
    let disk = SimDisk::new(1, SimOptions::default());
    let file = disk.add_file(geometry().end());
    for (title, offset, _) in PLACES {
        disk.alter(file, offset, &parse(title, &golden));
    }
    disk.set_automatic(true);
    let mut found = Vec::new();
    let report = kvd_tiers::nvme::fsck(&mut disk.io(), file, geometry().end(), &mut |_| {}).unwrap();
    assert_eq!((report.records, report.bad_count, report.bytes), (3, 0, 3 * 8192));
    let options = DeviceOptions::new(DeviceId(0));
    Device::open(disk.io(), file, open_options(), options, &mut |restored| {
        if let Restored::Record(record) = restored {
            found.push((record.place, record.entry));
        }
    })
    .unwrap();
    let expect =
        [0, 2, 3].map(|index| (RestoredPlace::Nvme(slot(index)), Recipe::new(u64::from(index), 1, 100).make().entry));
    assert_eq!(found, expect);
}
