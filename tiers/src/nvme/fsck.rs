//! Reads a device that nobody uses and verifies every record on it. Writes nothing.

use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::io::{FileId, Io, IoError, IoOp};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};

use crate::ids::{DeviceId, NvmeSlot, RestoredPlace, SlotEntry};
use crate::record::{Expect, Scratch, verify_record};

use super::command::Failure;
use super::geometry::{Geometry, Slot};
use super::recover::{OpenError, Restored, Scan, scan};
use super::sweep::Sweeper;

/// Bytes of records read at a time, where one is not longer.
const WINDOW_BYTES: usize = 16 << 20;
const READS_MAX: usize = 16;
/// Bad records named in the report; beyond it they are counted only.
const NAMED_MAX: usize = 1000;
/// Only bounds how long a lost wake-up could delay the check.
const WAIT: Duration = Duration::from_millis(100);

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsckProgress {
    /// Records verified so far.
    pub done: u64,
    /// Records in the tables.
    pub records: u64,
    /// Bytes read so far.
    pub bytes: u64,
}

/// A record that would not be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Where.
    pub slot: NvmeSlot,
    /// What the table says.
    pub entry: SlotEntry,
    /// What is wrong.
    pub failure: Failure,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// Why the device has no directory, if it has none: the next daemon formats it.
    pub unformatted: Option<&'static str>,
    /// Whether it had one before: what it held is lost.
    pub directory_lost: bool,
    /// Formatted zones.
    pub zones: u64,
    /// Records in the tables.
    pub records: u64,
    /// Bytes of records read.
    pub bytes: u64,
    /// Records that would not be served: the first thousand.
    pub bad: Vec<BadRecord>,
    /// All of them.
    pub bad_count: u64,
    /// Journal pages that are not whole.
    pub pages_damaged: u64,
    /// Sectors of the directory that could not be read.
    pub sectors_unreadable: u64,
}

/// Checks the device of `bytes` bytes.
pub fn fsck<I: Io>(
    io: &mut I,
    file: FileId,
    bytes: u64,
    progress: &mut dyn FnMut(FsckProgress),
) -> Result<FsckReport, OpenError> {
    let (mut records, mut zones) = (Vec::new(), 0);
    let scanned = scan(&mut Sweeper::new(io, file)?, bytes, DeviceId(0), &mut |found| match found {
        Restored::Zone(_) => zones += 1,
        Restored::Record(record) => {
            if let RestoredPlace::Nvme(slot) = record.place {
                records.push((slot, record.slot_bytes, record.entry));
            }
        }
    })?;
    let known = match scanned {
        Scan::Known(known) => known,
        Scan::Format(why) => {
            let unformatted = Some(why.unwrap_or("it was never used"));
            return Ok(FsckReport { unformatted, directory_lost: why.is_some(), ..FsckReport::default() });
        }
    };
    let report = FsckReport {
        zones,
        records: known.records,
        pages_damaged: known.pages_damaged,
        sectors_unreadable: known.sectors_unreadable,
        ..FsckReport::default()
    };
    let largest = records.iter().map(|(_, slot_bytes, _)| *slot_bytes as usize).max().unwrap_or(1);
    let reads = (WINDOW_BYTES / largest).clamp(1, READS_MAX);
    let memory: Arc<dyn Memory> = Arc::new(Region::new(reads * largest)?);
    let window = Window {
        geometry: known.superblock.geometry,
        memory: MemoryExtent::whole(memory),
        room: largest,
        records: &records,
        reading: vec![None; reads].into_boxed_slice(),
        report,
    };
    Ok(window.check(io, file, progress))
}

type Listed = (NvmeSlot, u32, SlotEntry);

struct Window<'a> {
    geometry: Geometry,
    memory: MemoryExtent,
    room: usize,
    records: &'a [Listed],
    /// Which record each part of the memory is for.
    reading: Box<[Option<usize>]>,
    report: FsckReport,
}

impl Window<'_> {
    fn check<I: Io>(mut self, io: &mut I, file: FileId, progress: &mut dyn FnMut(FsckProgress)) -> FsckReport {
        let (mut next, mut ended) = (0, 0);
        let mut done = Vec::with_capacity(READS_MAX);
        let mut scratch = Scratch::default();
        while ended < self.records.len() {
            for place in 0..self.reading.len() {
                if self.reading[place].is_none() && next < self.records.len() {
                    let (slot, slot_bytes, _) = &self.records[next];
                    let offset = self.geometry.slot_at(Slot::from(*slot), *slot_bytes);
                    let memory = self.part(place, *slot_bytes);
                    if io.submit(IoOp::read(place as u64, file, offset, memory)).is_err() {
                        break;
                    }
                    self.reading[place] = Some(next);
                    next += 1;
                }
            }
            io.poll(&mut done);
            if done.is_empty() {
                io.wait(Some(WAIT));
                io.poll(&mut done);
            }
            for done in done.drain(..) {
                let place = usize::try_from(done.tag).expect("a place in the window");
                let record = self.reading[place].take().expect("a read under way");
                self.verify(place, &self.records[record], done.result, &mut scratch);
                ended += 1;
            }
            progress(FsckProgress { done: ended as u64, records: self.report.records, bytes: self.report.bytes });
        }
        self.report
    }

    fn part(&self, place: usize, slot_bytes: u32) -> MemoryExtent {
        self.memory.part(place * self.room, slot_bytes as usize).expect("the room of the largest slot")
    }

    fn verify(&mut self, place: usize, listed: &Listed, read: Result<(), IoError>, scratch: &mut Scratch) {
        let (slot, slot_bytes, entry) = listed;
        self.report.bytes += u64::from(*slot_bytes);
        let memory = self.part(place, *slot_bytes);
        let verified = read
            .map_err(Failure::Io)
            .and_then(|()| verify_record(&memory, &Expect::from(entry), scratch).map_err(Failure::Corrupt));
        if let Err(failure) = verified {
            self.report.bad_count += 1;
            if self.report.bad.len() < NAMED_MAX {
                self.report.bad.push(BadRecord { slot: *slot, entry: entry.clone(), failure });
            }
        }
    }
}
