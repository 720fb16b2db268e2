//! Brings a full half of the journal into the table: read, change, write, sync; then the half may be used again.

use std::time::Duration;

use kvd_nixl::io::{Io, IoError};
use kvd_nixl::sys::MemoryExtent;
use kvd_proto::Time;

use crate::record::SECTOR_BYTES;

use super::entry::{ENTRY_BYTES, Entry, sequence_of};
use super::flight::{Flights, Purpose};
use super::geometry::{Geometry, Slot};
use super::journal::Journal;

/// Jobs at a time: enough to finish before the other half is full, few enough not to be felt by reads.
pub(super) const JOBS: usize = 4;
/// Bytes of the longest stretch of table that one job reads and writes.
pub(super) const RUN_BYTES: usize = 64 << 10;
/// Untouched sectors that a job takes along rather than being two.
const GAP_SECTORS: u64 = 1;
/// After a failure.
const RETRY: Duration = Duration::from_millis(250);
/// After so many failed reads of the same stretch, it is written as if nothing had stood there: what else it held is absent
/// after a restart, but the journal goes on.
const READ_ATTEMPTS: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Reading,
    /// Changed, but the queue was full.
    Changed,
    Writing,
}

/// One stretch of table.
#[derive(Clone, Copy, Debug)]
struct Job {
    step: Step,
    offset: u64,
    len: usize,
    /// Range of `Checkpoint::slots` that it changes.
    slots: (usize, usize),
}

/// See the [module documentation](self). One half at a time.
#[derive(Debug)]
pub(super) struct Checkpoint {
    half: Option<usize>,
    /// Slots that the half changed, in table order.
    slots: Vec<u32>,
    next: usize,
    jobs: [Option<Job>; JOBS],
    buffers: MemoryExtent,
    table: Box<[u8]>,
    failure: Option<IoError>,
    /// The stretch that could not be read, and how often it was tried.
    failed_reads: Option<(u64, u32)>,
    retry_at: Option<Time>,
}

impl Checkpoint {
    /// `entries_max` bounds the slots of a half.
    pub(super) fn new(entries_max: usize, buffers: MemoryExtent) -> Self {
        debug_assert!(buffers.len() >= JOBS * RUN_BYTES);
        Self {
            half: None,
            slots: Vec::with_capacity(entries_max),
            next: 0,
            jobs: [None; JOBS],
            buffers,
            table: vec![0; RUN_BYTES].into_boxed_slice(),
            failure: None,
            failed_reads: None,
            retry_at: None,
        }
    }

    /// Why the last attempt failed, until one succeeds.
    pub(super) fn failure(&self) -> Option<IoError> {
        self.failure
    }

    /// When a failed attempt is repeated.
    pub(super) fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// Whether all of the table's sectors are written and only a sync is missing.
    pub(super) fn wants_sync(&self) -> bool {
        self.half.is_some() && self.retry_at.is_none() && self.next == self.slots.len() && self.jobs_done()
    }

    fn jobs_done(&self) -> bool {
        self.jobs.iter().all(Option::is_none)
    }

    /// Starts what can be started; `seed_of` seeds the entries of a slot's zone.
    pub(super) fn start<I: Io>(&mut self, journal: &Journal, geometry: &Geometry, flights: &mut Flights<I>, now: Time) {
        if self.half.is_none() {
            let Some(half) = journal.full_half() else { return };
            self.half = Some(half);
            self.begin(journal);
        }
        if let Some(at) = self.retry_at {
            if at > now || !self.jobs_done() {
                return;
            }
            self.begin(journal);
        }
        for index in 0..JOBS {
            match self.jobs[index] {
                None if self.next < self.slots.len() => {
                    let (job, next) = self.run(geometry);
                    let memory = self.buffer(index, job.len);
                    if !flights.read(Purpose::Table(index), job.offset, memory) {
                        return;
                    }
                    (self.jobs[index], self.next) = (Some(job), next);
                }
                Some(job) if job.step == Step::Changed => self.write(index, job, flights),
                None | Some(_) => {}
            }
        }
    }

    fn begin(&mut self, journal: &Journal) {
        let Some(half) = self.half else { return };
        self.slots.clear();
        self.slots.extend(journal.pending(half).keys());
        self.slots.sort_unstable();
        (self.next, self.retry_at) = (0, None);
    }

    /// The stretch that begins with the next slot, and the slot after it.
    fn run(&self, geometry: &Geometry) -> (Job, usize) {
        let sector = |slot: u32| geometry.entry_at(Slot::new(slot)) / SECTOR_BYTES as u64;
        let first = sector(self.slots[self.next]);
        let (mut last, mut end) = (first, self.next + 1);
        while let Some(slot) = self.slots.get(end) {
            let at = sector(*slot);
            if at > last + 1 + GAP_SECTORS || at - first >= (RUN_BYTES / SECTOR_BYTES) as u64 {
                break;
            }
            (last, end) = (at, end + 1);
        }
        let len = (last - first + 1) as usize * SECTOR_BYTES;
        let offset = first * SECTOR_BYTES as u64;
        (Job { step: Step::Reading, offset, len, slots: (self.next, end) }, end)
    }

    fn buffer(&self, index: usize, len: usize) -> MemoryExtent {
        self.buffers.part(index * RUN_BYTES, len).expect("a run for each job")
    }

    fn write<I: Io>(&mut self, index: usize, job: Job, flights: &mut Flights<I>) {
        let wrote = flights.write(Purpose::Table(index), job.offset, self.buffer(index, job.len));
        self.jobs[index] = Some(Job { step: if wrote { Step::Writing } else { Step::Changed }, ..job });
    }

    /// An operation of job `index` ended.
    pub(super) fn ended<I: Io>(
        &mut self,
        index: usize,
        result: Result<(), IoError>,
        tables: &Tables<'_>,
        flights: &mut Flights<I>,
        now: Time,
    ) {
        let job = self.jobs[index].expect("an operation belongs to a job");
        match (job.step, result) {
            (Step::Reading, Ok(())) => {
                self.failed_reads = self.failed_reads.filter(|(offset, _)| *offset != job.offset);
                self.change(index, job, tables, true);
                self.write(index, job, flights);
            }
            (Step::Reading, Err(_))
                if self.failed_reads.is_some_and(|(at, n)| at == job.offset && n >= READ_ATTEMPTS) =>
            {
                self.change(index, job, tables, false);
                self.write(index, job, flights);
            }
            (Step::Writing, Ok(())) => self.jobs[index] = None,
            (step, result) => {
                if step == Step::Reading {
                    // One stretch at a time: others that fail beside it are counted when it is through.
                    let (at, attempts) = self.failed_reads.get_or_insert((job.offset, 0));
                    *attempts += u32::from(*at == job.offset);
                }
                self.jobs[index] = None;
                if let Err(error) = result {
                    self.failed(error, now);
                }
            }
        }
    }

    /// Puts the half's entries into the stretch that was read, where they are newer.
    fn change(&mut self, index: usize, job: Job, tables: &Tables<'_>, readable: bool) {
        let Some(half) = self.half else { return };
        let memory = self.buffer(index, job.len);
        let table = &mut self.table[..job.len];
        table.fill(0);
        if readable {
            memory.read(0, table).expect("as long as the run");
        }
        for number in &self.slots[job.slots.0..job.slots.1] {
            let slot = Slot::new(*number);
            let at = (tables.geometry.entry_at(slot) - job.offset) as usize;
            let place = &mut table[at..at + ENTRY_BYTES];
            let Some(entry) = tables.journal.pending(half).get(number) else { continue };
            // The table can be newer only if it could not be read when the device was opened.
            let found = (tables.seed_of)(slot).and_then(|seed| Entry::decode(seed, place));
            if found.is_none_or(|found| found.slot != slot || found.sequence <= sequence_of(entry)) {
                place.copy_from_slice(entry);
            }
        }
        memory.write(0, table).expect("as long as the run");
    }

    fn failed(&mut self, error: IoError, now: Time) {
        self.failure = Some(error);
        self.retry_at = Some(now + RETRY);
        self.next = self.slots.len();
    }

    /// The sync that covers all writes ended. Returns the half that is clean now.
    pub(super) fn synced(&mut self, result: Result<(), IoError>, now: Time) -> Option<usize> {
        match result {
            Ok(()) => {
                (self.failure, self.failed_reads) = (None, None);
                self.half.take()
            }
            Err(error) => {
                self.failed(error, now);
                None
            }
        }
    }
}

/// What a change of the table looks at.
pub(super) struct Tables<'a> {
    pub(super) journal: &'a Journal,
    pub(super) geometry: &'a Geometry,
    /// What seeds the entries of a slot's zone, if that is formatted.
    pub(super) seed_of: &'a dyn Fn(Slot) -> Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvd_nixl::sys::{Memory, Region};

    use super::*;
    use crate::ids::{SEGMENT_BYTES, ZoneId};

    #[test]
    fn neighbours_are_read_and_written_together() {
        let memory: Arc<dyn Memory> = Arc::new(Region::new(JOBS * RUN_BYTES).unwrap());
        let geometry = Geometry::new(SEGMENT_BYTES, 4, 8).unwrap();
        let table = geometry.table_at(ZoneId(2));
        let in_sector = (SECTOR_BYTES / ENTRY_BYTES) as u32;
        let longest = (RUN_BYTES / SECTOR_BYTES) as u32;
        // (sectors of slots that changed, stretches as (first sector, sectors))
        let cases = [
            (vec![5], vec![(5, 1)]),
            (vec![0, 1, 2], vec![(0, 3)]),
            (vec![0, 2, 4], vec![(0, 5)]),
            (vec![0, 3, 4], vec![(0, 1), (3, 2)]),
            ((7..7 + longest + 2).collect(), vec![(7, longest), (7 + longest, 2)]),
        ];
        for (sectors, expected) in cases {
            let mut checkpoint = Checkpoint::new(100, MemoryExtent::whole(Arc::clone(&memory)));
            // The first and the last slot of each sector.
            let slots = sectors.iter().flat_map(|sector| [sector * in_sector, (sector + 1) * in_sector - 1]);
            checkpoint.slots = slots.map(|index| Slot::of(ZoneId(2), index).number()).collect();
            let mut found = Vec::new();
            while checkpoint.next < checkpoint.slots.len() {
                let (job, next) = checkpoint.run(&geometry);
                assert_eq!((job.step, job.slots), (Step::Reading, (checkpoint.next, next)));
                let (at, len) = ((job.offset - table) as usize, job.len);
                assert!(at % SECTOR_BYTES == 0 && len % SECTOR_BYTES == 0);
                found.push(((at / SECTOR_BYTES) as u32, (len / SECTOR_BYTES) as u32));
                checkpoint.next = next;
            }
            assert_eq!(found, expected, "sectors {sectors:?}");
        }
    }

    #[test]
    fn each_job_has_memory_of_its_own() {
        let memory: Arc<dyn Memory> = Arc::new(Region::new(JOBS * RUN_BYTES).unwrap());
        let checkpoint = Checkpoint::new(100, MemoryExtent::whole(memory));
        for index in 0..JOBS {
            let buffer = checkpoint.buffer(index, RUN_BYTES);
            assert_eq!((buffer.offset(), buffer.len()), (index * RUN_BYTES, RUN_BYTES));
        }
    }
}
