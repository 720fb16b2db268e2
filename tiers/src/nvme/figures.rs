//! Figures, not checks: `cargo test -p kvd-tiers --lib nvme::figures -- --ignored --nocapture`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::io::{FileOptions, IoFile, UringIo, UringOptions};
use kvd_proto::Epoch;

use crate::ids::{DeviceId, SEGMENT_BYTES, SLOT_BYTES_MIN, ZoneId};
use crate::record::SECTOR_BYTES;

use super::entry::{ENTRY_BYTES, Entry, sample};
use super::geometry::{Geometry, JOURNAL_PAGES, SUPERBLOCK_AT, Slot};
use super::superblock::{Superblock, Uuid};
use super::zone::ZoneHeader;
use super::{Device, DeviceOptions, OpenOptions, Restored};

/// Writes the directory of a device of two million records of 4 KiB; the records themselves are holes.
fn make(file: &File, geometry: Geometry, uuid: Uuid) -> u64 {
    file.set_len(geometry.end()).unwrap();
    let superblock = Superblock { uuid, serial: 1, epoch: Epoch::new(1), sequence_floor: 1 << 32, geometry };
    let mut sector = [0; SECTOR_BYTES];
    superblock.encode(&mut sector);
    for offset in SUPERBLOCK_AT {
        file.write_all_at(&sector, offset).unwrap();
    }
    let slots = geometry.slots_per_zone(SLOT_BYTES_MIN);
    for zone in (0..geometry.zones()).map(ZoneId) {
        let header = ZoneHeader { zone, generation: 1 << 32, slot_bytes: SLOT_BYTES_MIN };
        header.encode(&uuid, &mut sector);
        file.write_all_at(&sector, geometry.header_at(zone)).unwrap();
        let seed = header.entry_seed(&uuid);
        let mut table = Vec::with_capacity(slots as usize * ENTRY_BYTES);
        for slot in (0..slots).map(|index| Slot::of(zone, index)) {
            let mut resident = sample(slot);
            resident.payload_bytes = 4096;
            table.extend(Entry { sequence: 1 << 32, slot, resident: Some(resident) }.encode(seed));
        }
        file.write_all_at(&table, geometry.table_at(zone)).unwrap();
    }
    file.sync_all().unwrap();
    u64::from(slots) * u64::from(geometry.zones())
}

#[test]
#[ignore = "a figure: writes 260 MB and times recovery on this machine's disk"]
fn recovery_of_two_million_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nvme");
    let geometry = Geometry::new(SEGMENT_BYTES, 245, JOURNAL_PAGES).unwrap();
    let uuid = Uuid::new([3; 16]);
    let records = make(&File::create(&path).unwrap(), geometry, uuid);
    for _ in 0..3 {
        let file = IoFile::open(&path, FileOptions { create: false, direct: true }).unwrap();
        let bytes = file.bytes().unwrap();
        let direct = file.is_direct();
        let mut io = UringIo::new(UringOptions::default()).unwrap();
        let id = io.add_file(Arc::new(file)).unwrap();
        let open = OpenOptions { bytes, geometry, uuid, epoch: Epoch::new(2) };
        let (mut found, started) = (0_u64, Instant::now());
        let (_, opened) = Device::open(io, id, open, DeviceOptions::new(DeviceId(0)), &mut |restored| {
            found += u64::from(matches!(restored, Restored::Record(_)));
        })
        .unwrap();
        println!("{found} records in {:?} (direct: {direct})", started.elapsed());
        assert_eq!((opened.records, found), (records, records));
    }
}
