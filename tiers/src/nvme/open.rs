//! From a file to a running device.

use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::io::{FileId, Io};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::Epoch;

use crate::ids::DeviceId;
use crate::record::SECTOR_BYTES;

use super::checkpoint::Checkpoint;
use super::device::{Device, POOL_BYTES, Parts, Pool};
use super::flight::Flights;
use super::geometry::{Geometry, SUPERBLOCK_AT};
use super::journal::{Journal, half_entries_max};
use super::recover::{Known, OpenError, Restored, Scan, scan};
use super::superblock::{Superblock, Uuid};
use super::sweep::Sweeper;
use super::zones::Zones;

/// How a device works.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Which device of the daemon it is.
    pub device: DeviceId,
    /// Commands taken and not answered.
    pub moves_max: usize,
    /// Reads of records at a time.
    pub reads_max: usize,
    /// Writes of records at a time.
    pub writes_max: usize,
    /// Bytes per second of reads.
    pub read_bandwidth_max: Option<u64>,
    /// Bytes per second of writes.
    pub write_bandwidth_max: Option<u64>,
    /// Longest time that a change stays without a sync: what power loss may cost.
    pub sync_interval: Duration,
}

impl DeviceOptions {
    /// Sensible for one NVMe device.
    pub const fn new(device: DeviceId) -> Self {
        Self {
            device,
            moves_max: 512,
            reads_max: 32,
            writes_max: 32,
            read_bandwidth_max: None,
            write_bandwidth_max: None,
            sync_interval: Duration::from_secs(1),
        }
    }
}

/// What a device is told when it is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Bytes of the file or block device.
    pub bytes: u64,
    /// Sizes that a fresh device gets. A used one keeps its own.
    pub geometry: Geometry,
    /// Name that a fresh device gets: 16 random bytes.
    pub uuid: Uuid,
    /// Of the daemon that opens it; the device keeps the larger of this and its own successor.
    pub epoch: Epoch,
}

/// What was found when a device was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its name.
    pub uuid: Uuid,
    /// Epoch that stands in its superblock now.
    pub epoch: Epoch,
    /// Why what was there before was given up, if it was.
    pub reformatted: Option<&'static str>,
    /// Whether it was empty before, or is now.
    pub fresh: bool,
    /// Records found.
    pub records: u64,
    /// Journal pages that are not whole.
    pub pages_damaged: u64,
    /// Sectors of the directory that could not be read.
    pub sectors_unreadable: u64,
}

impl<I: Io> Device<I> {
    /// Opens a device: finds out what it holds, shows that to `sink` (all zones, then their records), and takes it over. An
    /// empty one is formatted. Waits for its I/O; takes well under a second per million records.
    pub fn open(
        mut io: I,
        file: FileId,
        open: OpenOptions,
        options: DeviceOptions,
        sink: &mut dyn FnMut(Restored),
    ) -> Result<(Self, Opened), OpenError> {
        let mut sweeper = Sweeper::new(&mut io, file)?;
        let (known, reformatted) = match scan(&mut sweeper, open.bytes, options.device, sink)? {
            Scan::Known(known) => (Some(*known), None),
            Scan::Format(why) => (None, why),
        };
        let superblock = match &known {
            Some(known) => successor(known, &open),
            None => first(&open)?,
        };
        let mut sector = [0; SECTOR_BYTES];
        superblock.encode(&mut sector);
        for offset in SUPERBLOCK_AT {
            sweeper.write_synced(offset, &sector)?;
        }
        let opened = Opened {
            uuid: superblock.uuid,
            epoch: superblock.epoch,
            reformatted,
            fresh: known.is_none(),
            records: known.as_ref().map_or(0, |known| known.records),
            pages_damaged: known.as_ref().map_or(0, |known| known.pages_damaged),
            sectors_unreadable: known.as_ref().map_or(0, |known| known.sectors_unreadable),
        };
        Ok((build(io, file, &superblock, known, options)?, opened))
    }
}

fn first(open: &OpenOptions) -> Result<Superblock, OpenError> {
    let (bytes, wanted) = (open.bytes, open.geometry.end());
    if wanted > bytes {
        return Err(OpenError::Truncated { bytes, wanted });
    }
    Ok(Superblock {
        uuid: open.uuid,
        serial: 1,
        epoch: open.epoch,
        sequence_floor: SEQUENCE_STEP,
        geometry: open.geometry,
    })
}

/// Distance between the sequences of two starts: more pages than any run writes, and a whole number of rings.
const SEQUENCE_STEP: u64 = 1 << 32;

fn successor(known: &Known, open: &OpenOptions) -> Superblock {
    let before = known.superblock;
    Superblock {
        serial: before.serial + 1,
        epoch: open.epoch.max(Epoch::new(before.epoch.get().saturating_add(1))),
        sequence_floor: (known.sequence / SEQUENCE_STEP + 1) * SEQUENCE_STEP,
        ..before
    }
}

fn build<I: Io>(
    io: I,
    file: FileId,
    superblock: &Superblock,
    known: Option<Known>,
    options: DeviceOptions,
) -> Result<Device<I>, OpenError> {
    let geometry = superblock.geometry;
    let pool: Arc<dyn Memory> = Arc::new(Region::new(POOL_BYTES)?);
    let pool = Pool::cut(&MemoryExtent::whole(pool));
    let scrub: Arc<dyn Memory> = Arc::new(Region::new(geometry.zone_bytes() as usize)?);
    let (zones, pending) = match known {
        Some(known) => (known.zones, known.pending),
        None => (Zones::new(superblock.uuid, geometry), Default::default()),
    };
    // Appends begin in the half that has nothing to lose, so that the other one's checkpoint does not hold them up.
    let half = u64::from(geometry.journal_pages() / 2);
    let skip = if pending[0].is_empty() || !pending[1].is_empty() { 0 } else { half };
    let next = superblock.sequence_floor + skip;
    Ok(Device::new(Parts {
        options,
        geometry,
        flights: Flights::new(io, file),
        zones,
        journal: Journal::new(superblock.uuid, geometry, next, pending, pool.pages),
        checkpoint: Checkpoint::new(half_entries_max(&geometry), pool.tables),
        header: pool.header,
        probe: pool.probe,
        scrub: MemoryExtent::whole(scrub),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: u64) -> OpenOptions {
        let geometry = Geometry::new(1 << 20, 2, 8).unwrap();
        OpenOptions { bytes, geometry, uuid: Uuid::new([1; 16]), epoch: Epoch::new(5) }
    }

    #[test]
    fn a_fresh_device_fits_in_its_file() {
        let end = open(0).geometry.end();
        let made = first(&open(end)).unwrap();
        assert_eq!((made.serial, made.epoch, made.sequence_floor), (1, Epoch::new(5), SEQUENCE_STEP));
        assert!(matches!(first(&open(end - 1)), Err(OpenError::Truncated { wanted, .. }) if wanted == end));
    }

    #[test]
    fn a_successor_is_newer_in_everything() {
        let before = Superblock { serial: 8, epoch: Epoch::new(3), ..first(&open(1 << 30)).unwrap() };
        let known = |sequence, epoch| Known {
            superblock: Superblock { epoch: Epoch::new(epoch), ..before },
            zones: Zones::new(before.uuid, before.geometry),
            pending: Default::default(),
            sequence,
            records: 0,
            pages_damaged: 0,
            sectors_unreadable: 0,
        };
        let after = successor(&known(SEQUENCE_STEP, 3), &open(1 << 30));
        assert_eq!((after.uuid, after.geometry, after.serial), (before.uuid, before.geometry, 9));
        assert_eq!((after.epoch, after.sequence_floor), (Epoch::new(5), 2 * SEQUENCE_STEP), "the daemon's epoch");
        let after = successor(&known(3 * SEQUENCE_STEP - 1, 7), &open(1 << 30));
        assert_eq!((after.epoch, after.sequence_floor), (Epoch::new(8), 3 * SEQUENCE_STEP), "its own");
    }
}
