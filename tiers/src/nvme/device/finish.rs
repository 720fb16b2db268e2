//! From ended operations to answers.

use kvd_nixl::io::{Io, IoError};

use crate::nvme::checkpoint::Tables;
use crate::nvme::command::{Command, Failure, Moved};
use crate::nvme::flight::Purpose;
use crate::nvme::geometry::Slot;
use crate::nvme::journal::Waiting;
use crate::record::{Expect, verify_record};

use super::Device;

impl<I: Io> Device<I> {
    /// Takes what ended and acts on it.
    pub(super) fn collect(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.flights.collect(&mut done);
        for done in done.drain(..) {
            self.ended(Purpose::of(done.tag), done.result);
        }
        self.done = done;
    }

    fn ended(&mut self, purpose: Purpose, result: Result<(), IoError>) {
        match purpose {
            Purpose::Record(task) => match self.tasks.get(task) {
                Command::Write { .. } => self.record_written(task, result),
                _ => self.record_read(task, result),
            },
            Purpose::Page(page) => self.page_ended(page, result),
            Purpose::Table(job) => self.table_ended(job, result),
            Purpose::Header(task) => self.header_ended(task, result),
            Purpose::Probe(task) => {
                self.reading -= 1;
                let took = self.now.since(self.tasks.started_at(task));
                self.finish(task, result.map(|()| Moved { bytes: 0, took }).map_err(Failure::Io));
            }
            Purpose::Sync => self.sync_ended(result),
        }
    }

    fn dirty(&mut self) {
        self.dirty_since = self.dirty_since.or(Some(self.now));
    }

    fn record_read(&mut self, task: usize, result: Result<(), IoError>) {
        match self.tasks.get(task) {
            Command::Verify { .. } => self.scrubbing = false,
            _ => self.reading -= 1,
        }
        match result {
            Ok(()) => {
                // The scrub buffer is free again only when it has been verified.
                self.scrubbing |= matches!(self.tasks.get(task), Command::Verify { .. });
                self.landed.push_back(task);
            }
            Err(error) => self.finish(task, Err(error.into())),
        }
    }

    /// Checks a record that has landed in memory: what is not the record that was asked for is no answer.
    pub(super) fn verify(&mut self, task: usize) {
        let (memory, expect) = match self.tasks.get(task) {
            Command::Read { memory, expect, .. } => (memory.clone(), Expect::from(expect)),
            Command::Verify { slot, expect, .. } => {
                self.scrubbing = false;
                let room = self.zones.slot_bytes(Slot::from(*slot)).unwrap_or(0) as usize;
                (self.scrub.part(0, room).expect("a slot is no longer than a zone"), Expect::from(expect))
            }
            _ => return,
        };
        let verified = match cfg!(kvd_bug = "fetch_unverified") {
            true => Ok(()),
            false => verify_record(&memory, &expect, &mut self.scratch),
        };
        let moved = Moved { bytes: memory.len() as u64, took: self.now.since(self.tasks.started_at(task)) };
        self.finish(task, verified.map(|()| moved).map_err(Failure::Corrupt));
    }

    fn record_written(&mut self, task: usize, result: Result<(), IoError>) {
        self.writing -= 1;
        self.dirty();
        let Command::Write { slot, entry, .. } = self.tasks.get(task) else { return };
        let slot = Slot::from(*slot);
        match (result, self.zones.entry_seed(slot)) {
            (Ok(()), Some(_)) if cfg!(kvd_bug = "spill_before_journal") => self.journaled(task),
            (Ok(()), Some(seed)) => {
                let resident = Some(entry.clone());
                self.journal.push(Waiting { slot, resident, seed, task }, self.now);
            }
            (Ok(()), None) => self.finish(task, Err(Failure::Refused("the zone was formatted meanwhile"))),
            (Err(error), _) => {
                self.zones.vacate(slot);
                self.finish(task, Err(error.into()));
            }
        }
    }

    fn page_ended(&mut self, page: usize, result: Result<(), IoError>) {
        self.dirty();
        let mut tasks = [0; crate::nvme::page::PAGE_ENTRIES];
        let waited = self.journal.ended(page, result.is_ok());
        let used = waited.len();
        tasks[..used].copy_from_slice(waited);
        for task in &tasks[..used] {
            match result {
                Ok(()) => self.journaled(*task),
                Err(error) => self.journal_failed(*task, error),
            }
        }
    }

    fn journaled(&mut self, task: usize) {
        let took = self.now.since(self.tasks.started_at(task));
        let bytes = match self.tasks.get(task) {
            Command::Write { memory, .. } => memory.len() as u64,
            Command::Vacate { slot, .. } => {
                self.zones.vacate(Slot::from(*slot));
                0
            }
            _ => 0,
        };
        self.finish(task, Ok(Moved { bytes, took }));
    }

    /// The entry of a task did not reach the journal. A write's slot is free again: should its page have landed after all, the
    /// next entry for the slot is newer, and until then its record is intact.
    pub(super) fn journal_failed(&mut self, task: usize, error: IoError) {
        if let Command::Write { slot, .. } = self.tasks.get(task) {
            self.zones.vacate(Slot::from(*slot));
        }
        self.finish(task, Err(error.into()));
    }

    fn table_ended(&mut self, job: usize, result: Result<(), IoError>) {
        self.dirty();
        let zones = &self.zones;
        let tables =
            Tables { journal: &self.journal, geometry: &self.geometry, seed_of: &|slot| zones.entry_seed(slot) };
        self.checkpoint.ended(job, result, &tables, &mut self.flights, self.now);
    }

    fn header_ended(&mut self, task: usize, result: Result<(), IoError>) {
        self.dirty();
        let Some(header) = self.formatting.take() else { return };
        let took = self.now.since(self.tasks.started_at(task));
        let formatted = result.map_err(Failure::Io).map(|()| {
            self.zones.format(header);
            Moved { bytes: 0, took }
        });
        self.finish(task, formatted);
    }

    fn sync_ended(&mut self, result: Result<(), IoError>) {
        let Some(syncing) = self.syncing.take() else { return };
        self.sync_failure = result.err();
        if result.is_err() {
            // Tried again after the next interval.
            self.dirty();
        }
        if syncing.checkpoint
            && let Some(half) = self.checkpoint.synced(result, self.now)
        {
            self.journal.cleaned(half);
        }
        if let Some(task) = syncing.flush {
            self.flushing = None;
            self.finish(task, result.map(|()| Moved::default()).map_err(Failure::Io));
        }
    }
}
