//! From queues to operations.

use kvd_nixl::io::Io;

use crate::nvme::command::{Command, Failure};
use crate::nvme::flight::Purpose;
use crate::nvme::geometry::{SUPERBLOCK_AT, Slot};
use crate::nvme::journal::Waiting;
use crate::nvme::zone::ZoneHeader;
use crate::record::{Expect, Mismatch, verify_record};

use super::{Device, Syncing, VERIFIED_PER_PUMP};

/// What became of the first of a queue.
enum Start {
    /// Under way, or answered.
    Gone,
    /// Not now; nothing behind it either.
    Blocked,
}

impl<I: Io> Device<I> {
    /// Submits what can be: pages first, for others wait on them; reads before writes, for an engine waits on them.
    pub(super) fn start(&mut self) {
        self.start_pages();
        self.start_reads();
        self.start_scrub();
        self.start_changes();
        self.checkpoint.start(&self.journal, &self.geometry, &mut self.flights, self.now);
        self.start_sync();
    }

    fn start_pages(&mut self) {
        if self.journal.is_stalled()
            && let Some(error) = self.checkpoint.failure()
        {
            // No room in the journal and no prospect of it: an honest answer now, not a wait.
            while let Some(waiting) = self.journal.give_up() {
                self.journal_failed(waiting.task, error);
            }
        }
        let at_once = self.flushing.is_some();
        while let Some(ready) = self.held_page.take().or_else(|| self.journal.next_page(self.now, at_once)) {
            if !self.flights.write(Purpose::Page(ready.page), ready.offset, ready.memory.clone()) {
                self.held_page = Some(ready);
                return;
            }
        }
    }

    fn start_reads(&mut self) {
        while self.reading < self.options.reads_max
            && self.read_limit.free_at() <= self.now
            && let Some(task) = self.reads.front().copied()
        {
            let (purpose, offset, memory) = match self.tasks.get(task) {
                Command::Read { slot, memory, .. } => {
                    let slot = Slot::from(*slot);
                    let Some(room) = self.zones.slot_bytes(slot) else {
                        self.reads.pop_front();
                        self.finish(task, Err(Failure::Refused("the zone was formatted meanwhile")));
                        continue;
                    };
                    (Purpose::Record(task), self.geometry.slot_at(slot, room), memory.clone())
                }
                _ => (Purpose::Probe(task), SUPERBLOCK_AT[0], self.probe.clone()),
            };
            let bytes = memory.len() as u64;
            if !self.flights.read(purpose, offset, memory) {
                return;
            }
            self.reads.pop_front();
            self.reading += 1;
            self.read_limit.take(bytes, self.now);
            self.tasks.started(task, self.now);
        }
    }

    fn start_scrub(&mut self) {
        // A scrub is never urgent: it runs where no read waits.
        if self.scrubbing || !self.reads.is_empty() || self.read_limit.free_at() > self.now {
            return;
        }
        let Some(task) = self.scrubs.front().copied() else { return };
        let Command::Verify { slot, .. } = self.tasks.get(task) else { return };
        let slot = Slot::from(*slot);
        let Some(room) = self.zones.slot_bytes(slot) else {
            self.scrubs.pop_front();
            self.finish(task, Err(Failure::Refused("the zone was formatted meanwhile")));
            return;
        };
        let memory = self.scrub.part(0, room as usize).expect("a slot is no longer than a zone");
        if self.flights.read(Purpose::Record(task), self.geometry.slot_at(slot, room), memory) {
            self.scrubs.pop_front();
            self.scrubbing = true;
            self.read_limit.take(u64::from(room), self.now);
            self.tasks.started(task, self.now);
        }
    }

    fn start_changes(&mut self) {
        while self.flushing.is_none()
            && let Some(task) = self.changes.front().copied()
        {
            let start = match self.tasks.get(task) {
                Command::Write { .. } => self.start_write(task),
                Command::Vacate { .. } => {
                    self.journal_vacate(task);
                    Start::Gone
                }
                Command::FormatZone { zone, slot_bytes, .. } => {
                    let header = ZoneHeader { zone: *zone, generation: self.journal.next(), slot_bytes: *slot_bytes };
                    self.start_format(task, &header)
                }
                _ => {
                    self.flushing = Some(task);
                    Start::Gone
                }
            };
            match start {
                Start::Gone => self.changes.pop_front(),
                Start::Blocked => return,
            };
            self.checked = self.checked.saturating_sub(1);
        }
    }

    /// The next change to look at ahead of its turn, while nothing is there that an engine waits for.
    pub(super) fn to_check(&self) -> Option<usize> {
        let idle = self.landed.is_empty() && self.reads.is_empty() && self.writing >= self.options.writes_max;
        let next = self.changes.get(self.checked).copied();
        next.filter(|_| idle && self.checked < self.options.writes_max)
    }

    /// Checks the sources of the next writes while the device is busy with others, so that it gets them at once when it is
    /// free. One that is not what it should be goes no further.
    pub(super) fn check_ahead(&mut self) {
        for _ in 0..VERIFIED_PER_PUMP {
            let Some(task) = self.to_check() else { return };
            match self.check(task) {
                Ok(()) => self.checked += 1,
                Err(mismatch) => {
                    self.changes.remove(self.checked);
                    self.refuse(task, mismatch);
                }
            }
        }
    }

    /// Checked before bytes leave: a record that rotted in memory must not become the good copy.
    fn check(&mut self, task: usize) -> Result<(), Mismatch> {
        match self.tasks.get(task) {
            Command::Write { entry, memory, .. } => verify_record(memory, &Expect::from(entry), &mut self.scratch),
            _ => Ok(()),
        }
    }

    fn refuse(&mut self, task: usize, mismatch: Mismatch) {
        if let Command::Write { slot, .. } = self.tasks.get(task) {
            self.zones.vacate(Slot::from(*slot));
        }
        self.finish(task, Err(mismatch.into()));
    }

    fn start_write(&mut self, task: usize) -> Start {
        if self.writing >= self.options.writes_max || self.write_limit.free_at() > self.now {
            return Start::Blocked;
        }
        let Command::Write { slot, memory, .. } = self.tasks.get(task) else { return Start::Gone };
        let (slot, memory) = (Slot::from(*slot), memory.clone());
        let Some(room) = self.zones.slot_bytes(slot) else {
            self.finish(task, Err(Failure::Refused("the zone was formatted meanwhile")));
            return Start::Gone;
        };
        if self.checked == 0
            && let Err(mismatch) = self.check(task)
        {
            self.refuse(task, mismatch);
            return Start::Gone;
        }
        let bytes = memory.len() as u64;
        if !self.flights.write(Purpose::Record(task), self.geometry.slot_at(slot, room), memory) {
            return Start::Blocked;
        }
        self.writing += 1;
        self.write_limit.take(bytes, self.now);
        self.tasks.started(task, self.now);
        Start::Gone
    }

    fn start_format(&mut self, task: usize, header: &ZoneHeader) -> Start {
        if self.formatting.is_some() {
            return Start::Blocked;
        }
        if !self.zones.is_empty(header.zone) {
            self.finish(task, Err(Failure::Refused("the zone still has records")));
            return Start::Gone;
        }
        let mut sector = [0; crate::record::SECTOR_BYTES];
        header.encode(self.zones.uuid(), &mut sector);
        self.header.write(0, &sector).expect("the part is one sector");
        if !self.flights.write(Purpose::Header(task), self.geometry.header_at(header.zone), self.header.clone()) {
            return Start::Blocked;
        }
        // Until the header has landed nobody may write there, whatever becomes of it.
        self.zones.unformat(header.zone);
        self.formatting = Some(*header);
        self.tasks.started(task, self.now);
        Start::Gone
    }

    pub(super) fn journal_vacate(&mut self, task: usize) {
        let Command::Vacate { slot, .. } = self.tasks.get(task) else { return };
        let slot = Slot::from(*slot);
        self.tasks.started(task, self.now);
        match self.zones.entry_seed(slot) {
            Some(seed) => self.journal.push(Waiting { slot, resident: None, seed, task }, self.now),
            None => self.finish(task, Err(Failure::Refused("no such slot"))),
        }
    }

    fn start_sync(&mut self) {
        if self.syncing.is_some() {
            return;
        }
        let quiet = self.writing == 0 && self.formatting.is_none() && self.journal.is_idle();
        let flush = self.flushing.filter(|_| quiet);
        let checkpoint = self.checkpoint.wants_sync();
        let due = self.dirty_since.is_some_and(|since| since + self.options.sync_interval <= self.now);
        if (flush.is_some() || checkpoint || due) && self.flights.sync() {
            self.syncing = Some(Syncing { checkpoint, flush });
            self.dirty_since = None;
        }
    }
}
