//! A running device: one owner, no thread, no clock. Commands go in, `pump` moves them on, answers are taken out.

mod finish;
mod start;
mod tasks;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::io::{Io, IoDone, IoError, IoWaker};
use kvd_nixl::sys::{Memory, MemoryExtent};
use kvd_proto::Time;

use crate::ids::earliest;
use crate::record::{SECTOR_BYTES, Scratch};

use super::checkpoint::{Checkpoint, JOBS, RUN_BYTES};
use super::command::{Command, Failure, Finished, Full, Moved};
use super::flight::Flights;
use super::geometry::{Geometry, Slot};
use super::journal::{Journal, PAGES_IN_FLIGHT, Ready};
use super::limit::Limit;
use super::open::DeviceOptions;
use super::zone::ZoneHeader;
use super::zones::Zones;
use tasks::Tasks;

/// Memory for everything but records: journal pages, table stretches, zone headers, probes.
pub(super) const POOL_BYTES: usize = (PAGES_IN_FLIGHT + 2) * SECTOR_BYTES + JOBS * RUN_BYTES;

/// Where in the pool what stands.
pub(super) struct Pool {
    pub(super) pages: MemoryExtent,
    pub(super) tables: MemoryExtent,
    pub(super) header: MemoryExtent,
    pub(super) probe: MemoryExtent,
}

impl Pool {
    pub(super) fn cut(pool: &MemoryExtent) -> Self {
        let mut at = 0;
        let mut next = |len: usize| {
            at += len;
            pool.part(at - len, len).expect("POOL_BYTES is the sum of the parts")
        };
        Self {
            pages: next(PAGES_IN_FLIGHT * SECTOR_BYTES),
            tables: next(JOBS * RUN_BYTES),
            header: next(SECTOR_BYTES),
            probe: next(SECTOR_BYTES),
        }
    }
}

/// A sync under way and who waits for it.
#[derive(Debug)]
struct Syncing {
    checkpoint: bool,
    flush: Option<usize>,
}

/// One NVMe device: a file or block device that holds records. See [`super`].
#[derive(Debug)]
pub struct Device<I> {
    options: DeviceOptions,
    geometry: Geometry,
    flights: Flights<I>,
    zones: Zones,
    journal: Journal,
    checkpoint: Checkpoint,
    tasks: Tasks,
    /// Reads and probes that have not started.
    reads: VecDeque<usize>,
    /// Verifications that have not started: one at a time runs.
    scrubs: VecDeque<usize>,
    /// What changes the device and has not started.
    changes: VecDeque<usize>,
    /// So many of them, from the front, hold what they should.
    checked: usize,
    /// Reads whose bytes are in memory and not yet verified.
    landed: VecDeque<usize>,
    finished: VecDeque<Finished>,
    reading: usize,
    writing: usize,
    scrubbing: bool,
    /// The zone header under way.
    formatting: Option<ZoneHeader>,
    /// A page that found the queue full.
    held_page: Option<Ready>,
    /// Holds back changes until everything before it is durable.
    flushing: Option<usize>,
    syncing: Option<Syncing>,
    /// The first change that no sync covers.
    dirty_since: Option<Time>,
    sync_failure: Option<IoError>,
    read_limit: Limit,
    write_limit: Limit,
    header: MemoryExtent,
    probe: MemoryExtent,
    scrub: MemoryExtent,
    scratch: Scratch,
    done: Vec<IoDone>,
    now: Time,
}

/// What a device is made of when it was opened.
pub(super) struct Parts<I> {
    pub(super) options: DeviceOptions,
    pub(super) geometry: Geometry,
    pub(super) flights: Flights<I>,
    pub(super) zones: Zones,
    pub(super) journal: Journal,
    pub(super) checkpoint: Checkpoint,
    pub(super) header: MemoryExtent,
    pub(super) probe: MemoryExtent,
    pub(super) scrub: MemoryExtent,
}

impl<I: Io> Device<I> {
    pub(super) fn new(parts: Parts<I>) -> Self {
        let Parts { options, geometry, flights, zones, journal, checkpoint, header, probe, scrub } = parts;
        let queue = || VecDeque::with_capacity(options.moves_max);
        Self {
            geometry,
            flights,
            zones,
            journal,
            checkpoint,
            tasks: Tasks::new(options.moves_max),
            reads: queue(),
            scrubs: VecDeque::new(),
            changes: queue(),
            checked: 0,
            landed: VecDeque::with_capacity(options.reads_max),
            finished: VecDeque::with_capacity(options.moves_max),
            reading: 0,
            writing: 0,
            scrubbing: false,
            formatting: None,
            held_page: None,
            flushing: None,
            syncing: None,
            dirty_since: None,
            sync_failure: None,
            read_limit: Limit::new(options.read_bandwidth_max),
            write_limit: Limit::new(options.write_bandwidth_max),
            header,
            probe,
            scrub,
            scratch: Scratch::default(),
            done: Vec::with_capacity(options.moves_max),
            now: Time::ZERO,
            options,
        }
    }

    /// Takes a command, or gives it back while `moves_max` are unanswered or their answers not taken.
    #[expect(clippy::result_large_err, reason = "the command goes back to its owner, unboxed: nothing is allocated")]
    pub fn handle(&mut self, command: Command, now: Time) -> Result<(), Full> {
        if self.finished.len() >= self.options.moves_max {
            return Err(Full(command));
        }
        self.now = self.now.max(now);
        let task = self.tasks.add(command).map_err(Full)?;
        match self.admit(task) {
            Ok(()) => {}
            Err(refusal) => self.finish(task, Err(Failure::Refused(refusal))),
        }
        Ok(())
    }

    /// Checks what can be checked without the device, and queues.
    fn admit(&mut self, task: usize) -> Result<(), &'static str> {
        match self.tasks.get(task) {
            Command::Write { slot, entry, memory, .. } => {
                let slot = Slot::from(*slot);
                let room = self.zones.slot_bytes(slot).ok_or("no such slot in the zone as it is formatted")?;
                fits(memory, room)?;
                if entry.payload_bytes as usize > memory.len() {
                    return Err("the record is longer than its memory");
                }
                if !self.zones.occupy(slot) {
                    return Err("the slot is not vacant");
                }
                self.changes.push_back(task);
            }
            Command::Read { slot, memory, .. } => {
                let room = self.zones.slot_bytes(Slot::from(*slot)).ok_or("no such slot")?;
                fits(memory, room)?;
                self.reads.push_back(task);
            }
            Command::Verify { slot, .. } => {
                self.zones.slot_bytes(Slot::from(*slot)).ok_or("no such slot")?;
                self.scrubs.push_back(task);
            }
            Command::Vacate { slot, .. } => {
                self.zones.slot_bytes(Slot::from(*slot)).ok_or("no such slot")?;
                // Behind a flush it waits like any change; otherwise no slow write need hold it up.
                if self.flushing.is_some() || !self.changes.is_empty() && self.has_flush_queued() {
                    self.changes.push_back(task);
                } else {
                    self.journal_vacate(task);
                }
            }
            Command::FormatZone { zone, slot_bytes, .. } => {
                let possible = self.zones.contains(*zone) && self.geometry.slots_per_zone(*slot_bytes) > 0;
                possible.then_some(()).ok_or("no zone can be formatted so")?;
                self.changes.push_back(task);
            }
            Command::Probe { .. } => self.reads.push_back(task),
            Command::Flush { .. } => self.changes.push_back(task),
        }
        Ok(())
    }

    fn has_flush_queued(&self) -> bool {
        self.changes.iter().any(|task| matches!(self.tasks.get(*task), Command::Flush { .. }))
    }

    /// Moves everything on as far as it goes without waiting. A bounded amount of verification per call: call again at
    /// once while [`Device::poll_timeout`] says so.
    pub fn pump(&mut self, now: Time) {
        self.now = self.now.max(now);
        // What was queued reaches the device before its answers are looked at, and before time is spent on checksums.
        self.start();
        self.collect();
        self.start();
        if self.flights.unstarted > 0 {
            self.collect();
        }
        for _ in 0..VERIFIED_PER_PUMP {
            let Some(task) = self.landed.pop_front() else { break };
            self.verify(task);
        }
        self.check_ahead();
    }

    /// The answers since the last call.
    pub fn take_outcomes(&mut self, mut take: impl FnMut(Finished)) {
        self.finished.drain(..).for_each(&mut take);
    }

    /// When `pump` must be called even if no operation ended: now, at that time, or not at all.
    pub fn poll_timeout(&self) -> Option<Time> {
        let busy = !self.landed.is_empty() || self.flights.unstarted > 0 || self.held_page.is_some();
        if busy || self.to_check().is_some() {
            return Some(self.now);
        }
        let sync = self.dirty_since.filter(|_| self.syncing.is_none()).map(|since| since + self.options.sync_interval);
        let later = |limit: &Limit, queue: &VecDeque<usize>| {
            Some(limit.free_at()).filter(|at| !queue.is_empty() && *at > self.now)
        };
        [
            self.journal.due_at(),
            self.checkpoint.retry_at(),
            later(&self.read_limit, &self.reads),
            later(&self.write_limit, &self.changes),
        ]
        .into_iter()
        .fold(sync, earliest)
    }

    /// Sleeps until an operation ends, the waker is used or `timeout` is over.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        self.flights.unstarted = 0;
        self.flights.io.wait(timeout);
    }

    /// Ends `wait` from another thread.
    pub fn waker(&self) -> IoWaker {
        self.flights.io.waker()
    }

    /// Tells the I/O below about memory that will be used often.
    pub fn register_memory(&mut self, memory: &Arc<dyn Memory>) -> bool {
        self.flights.io.register_memory(memory)
    }

    /// Ends such a registration.
    pub fn unregister_memory(&mut self, memory: &Arc<dyn Memory>) {
        self.flights.io.unregister_memory(memory);
    }

    /// Commands not answered yet.
    pub fn unanswered(&self) -> usize {
        self.tasks.len()
    }

    /// Why work in the background (checkpoint, sync) fails at present, if it does.
    pub fn trouble(&self) -> Option<IoError> {
        self.checkpoint.failure().or(self.sync_failure)
    }

    /// Sizes of the device.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn finish(&mut self, task: usize, result: Result<Moved, Failure>) {
        let (command, _) = self.tasks.remove(task);
        self.finished.push_back(Finished { id: command.id(), result });
    }
}

/// Checksums of so many records at most between two looks at the device.
const VERIFIED_PER_PUMP: usize = 4;

fn fits(memory: &MemoryExtent, slot_bytes: u32) -> Result<(), &'static str> {
    let sectors = memory.len().is_multiple_of(SECTOR_BYTES) && memory.offset().is_multiple_of(SECTOR_BYTES);
    let room = (SECTOR_BYTES..=slot_bytes as usize).contains(&memory.len());
    (sectors && room).then_some(()).ok_or("the memory is not whole sectors, or longer than the slot")
}
