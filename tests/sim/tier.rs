//! The object thread in one life of the daemon: what `kvd/src/object` does with the ladder's moves, without its threads. It
//! dies with the daemon, and with it what it has gathered and not uploaded.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use kvd_nixl::sys::MemoryExtent;
use kvd_proto::Time;
use kvd_tiers::ladder::{DeviceFault, Outcome, Purge};
use kvd_tiers::record::{Expect, SECTOR_BYTES, Scratch, verify_bytes, verify_metadata, verify_record};
use kvd_tiers::{MoveId, ObjectPlace, SlotEntry, SlotId};

use crate::blocks::Names;
use crate::config::{Disks, ObjectHabits};
use crate::oracle::Oracle;
use crate::store::{Read, Record, Store, takes};
use crate::table::Table;

/// As the object thread's own.
const UPLOADS_MAX: usize = 2;
const UPLOAD_FAILURES_MAX: u32 = 4;
const ATTEMPTS_MAX: u32 = 3;
const PURGE_TRIES_MAX: u32 = 8;
/// How long a record waits for room in a pack.
const ROOM_PATIENCE: Duration = Duration::from_millis(20);
const ROOM_PAUSE: Duration = Duration::from_millis(1);

/// Everything that the tier meets when it works.
pub(crate) struct Around<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) table: &'a Table,
    pub(crate) names: &'a Names,
    pub(crate) oracle: &'a Oracle,
    /// Slots that living processes may touch.
    pub(crate) touched: BTreeSet<SlotId>,
    pub(crate) now: Time,
}

/// A record to be fetched.
pub(crate) struct Wanted {
    pub(crate) id: MoveId,
    pub(crate) from: ObjectPlace,
    pub(crate) to: SlotId,
    pub(crate) expect: SlotEntry,
}

/// A record that is to be packed.
struct Waiting {
    since: Time,
    due: Time,
    id: MoveId,
    from: SlotId,
    entry: SlotEntry,
}

/// Records of one lane in a pack that is not in the store.
struct Gathered {
    lane: usize,
    /// Since when it is filled; then, when its upload may begin; then, when that ends.
    at: Time,
    records: Vec<Record>,
    failures: u32,
}

/// Records that lie side by side, read by one request.
struct Run {
    started: Time,
    due: Time,
    wanted: VecDeque<Wanted>,
    /// The first half of the next one has come.
    half: bool,
    attempts: u32,
}

struct Purging {
    purge: Purge,
    asked: u64,
    due: Time,
    tries: u32,
}

pub(crate) struct Tier {
    habits: ObjectHabits,
    /// Whether reads and writes are worth asking for, as the core was told.
    pub(crate) up: (bool, bool),
    wanted: Vec<Wanted>,
    waiting: Vec<Waiting>,
    open: Vec<Gathered>,
    closed: VecDeque<Gathered>,
    uploads: Vec<Gathered>,
    runs: Vec<Run>,
    purges: VecDeque<Purging>,
    /// Purges that are over.
    purged: Vec<(Purge, u64)>,
    scratch: Scratch,
}

fn whole(table: &Table, slot: SlotId, entry: &SlotEntry) -> MemoryExtent {
    let payload = (entry.payload_bytes as usize).next_multiple_of(SECTOR_BYTES);
    table.extent(slot, SECTOR_BYTES + payload).expect("moves name slots of assigned segments")
}

impl Tier {
    pub(crate) fn new(habits: ObjectHabits) -> Self {
        Self {
            habits,
            up: (true, true),
            wanted: Vec::new(),
            waiting: Vec::new(),
            open: Vec::new(),
            closed: VecDeque::new(),
            uploads: Vec::new(),
            runs: Vec::new(),
            purges: VecDeque::new(),
            purged: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    pub(crate) fn put(&mut self, id: MoveId, from: SlotId, entry: SlotEntry, now: Time, store: &mut Store) {
        self.waiting.push(Waiting { since: now, due: now + store.delay(), id, from, entry });
    }

    pub(crate) fn get(&mut self, wanted: Wanted) {
        self.wanted.push(wanted);
    }

    /// What was asked for in one turn: records that lie side by side are one request.
    pub(crate) fn start_runs(&mut self, now: Time, store: &mut Store) {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.sort_by_key(|record| (record.from.pack, record.from.offset));
        let first = self.runs.len();
        for record in wanted {
            let behind = |run: &&mut Run| {
                let last = run.wanted.back().map(|last| last.from);
                last.is_some_and(|last| (last.pack, last.offset + last.bytes) == (record.from.pack, record.from.offset))
            };
            match self.runs[first..].last_mut().filter(behind) {
                Some(run) => run.wanted.push_back(record),
                None => {
                    let due = now + store.delay();
                    let wanted = VecDeque::from([record]);
                    self.runs.push(Run { started: now, due, wanted, half: false, attempts: 0 });
                }
            }
        }
    }

    /// A purge of the store: behind everything that was given to the tier before.
    pub(crate) fn start_purge(&mut self, purge: Purge, asked: u64, at: &mut Around<'_>, out: &mut Outcomes) {
        for waiting in std::mem::take(&mut self.waiting) {
            let taken = at.store.chance.percent(70).then(|| self.pack(&waiting, at)).flatten();
            out.push((waiting.id, taken.unwrap_or(Outcome::Failed(DeviceFault::NoSpace))));
        }
        let kept = |pack: &Gathered| !takes(at.names, purge, pack.lane);
        self.open.retain(kept);
        self.closed.retain(kept);
        self.purges.push_back(Purging { purge, asked, due: at.now, tries: 0 });
    }

    /// What is being read comes later.
    pub(crate) fn stall(&mut self, until: Time) {
        self.runs.iter_mut().for_each(|run| run.due = run.due.max(until));
    }

    pub(crate) fn purges_open(&self) -> bool {
        !self.purges.is_empty()
    }

    /// Purges that have come to their end since the last call, and when they were asked for.
    pub(crate) fn take_purged(&mut self) -> Vec<(Purge, u64)> {
        std::mem::take(&mut self.purged)
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let moves = self.waiting.is_empty() && self.runs.is_empty() && self.wanted.is_empty();
        let packs = self.open.is_empty() && self.closed.is_empty() && self.uploads.is_empty();
        moves && packs && self.purges.is_empty()
    }

    /// When it wants to be called.
    pub(crate) fn due(&self) -> Option<Time> {
        let waiting = self.waiting.iter().map(|waiting| waiting.due);
        let closing = self.open.iter().map(|open| open.at + self.habits.pack_age);
        let uploads = self.uploads.iter().map(|upload| upload.at);
        let starts = self.closed.front().filter(|_| self.may_upload()).map(|closed| closed.at);
        let runs = self.runs.iter().map(|run| run.due);
        let purge = self.purges.front().filter(|_| self.uploads.is_empty()).map(|purge| purge.due);
        waiting.chain(closing).chain(uploads).chain(starts).chain(runs).chain(purge).min()
    }

    fn may_upload(&self) -> bool {
        self.up.1 && self.purges.is_empty() && self.uploads.len() < UPLOADS_MAX
    }

    /// Does what is due.
    pub(crate) fn pump(&mut self, at: &mut Around<'_>, out: &mut Outcomes) {
        self.take_waiting(at, out);
        self.end_uploads(at);
        self.start_uploads(at);
        for mut run in std::mem::take(&mut self.runs) {
            if run.due > at.now || !self.read_on(&mut run, at, out) {
                self.runs.push(run);
            }
        }
        self.purge_on(at);
    }

    fn take_waiting(&mut self, at: &mut Around<'_>, out: &mut Outcomes) {
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.due > at.now {
                self.waiting.push(waiting);
                continue;
            }
            match self.pack(&waiting, at) {
                Some(outcome) => out.push((waiting.id, outcome)),
                None if at.now.since(waiting.since) >= ROOM_PATIENCE => {
                    out.push((waiting.id, Outcome::Failed(DeviceFault::NoSpace)));
                    self.closed.pop_front();
                }
                None => {
                    waiting.due = at.now + ROOM_PAUSE;
                    self.waiting.push(waiting);
                    if self.closed.is_empty() && !self.open.is_empty() {
                        self.close(0, at.now);
                    }
                }
            }
        }
    }

    fn gathered(&self) -> impl Iterator<Item = &Record> {
        self.open.iter().chain(&self.closed).chain(&self.uploads).flat_map(|pack| &pack.records)
    }

    /// Copies a record out of its slot and checks the copy; `None`: there is no room.
    fn pack(&mut self, waiting: &Waiting, at: &mut Around<'_>) -> Option<Outcome> {
        let Waiting { from, entry, .. } = waiting;
        let known = self.gathered().any(|record| record.key == entry.key);
        if known || at.store.catalog.lookup(&entry.key).is_some() {
            return Some(Outcome::Done { bytes: 0, took: Duration::ZERO });
        }
        let memory = whole(at.table, *from, entry);
        let expect = Expect::from(entry);
        if verify_metadata(&memory, &expect, &mut self.scratch).is_err() {
            return Some(Self::corrupt_slot(*from, at));
        }
        if self.gathered().count() >= self.habits.records_max {
            return None;
        }
        let mut bytes = vec![0; memory.len()];
        memory.read(0, &mut bytes).expect("inside the slot");
        if verify_bytes(&bytes, &expect).is_err() {
            return Some(Self::corrupt_slot(*from, at));
        }
        let block = at.store.block(&entry.key);
        assert!(at.names.is(block, &bytes[SECTOR_BYTES..][..entry.payload_bytes as usize]), "wrong bytes of {block:?}");
        let (lane, moved) = (block.lane, u64::from(at.names.lanes[block.lane].slot_bytes));
        let since = at.oracle.stored(block);
        let (generation, meta_checksum) = (entry.generation, entry.meta_checksum);
        let record = Record {
            key: entry.key,
            generation,
            meta_checksum,
            slot_bytes: at.names.lanes[lane].slot_bytes,
            bytes,
            since,
        };
        match self.open.iter_mut().find(|open| open.lane == lane) {
            Some(open) => open.records.push(record),
            None => self.open.push(Gathered { lane, at: at.now, records: vec![record], failures: 0 }),
        }
        let full = |open: &Gathered| open.records.len() >= self.habits.pack_records;
        if let Some(full) = self.open.iter().position(full) {
            self.close(full, at.now);
        }
        Some(Outcome::Done { bytes: moved, took: Duration::from_micros(5) })
    }

    fn corrupt_slot(from: SlotId, at: &Around<'_>) -> Outcome {
        assert!(at.oracle.rotted.contains(&from), "{from:?} changed while it was given to the object tier");
        Outcome::Corrupt
    }

    fn close(&mut self, which: usize, now: Time) {
        let open = self.open.swap_remove(which);
        self.closed.push_back(Gathered { at: now, ..open });
    }

    fn start_uploads(&mut self, at: &mut Around<'_>) {
        let age = self.habits.pack_age;
        let old = |open: &Gathered| open.at + age <= at.now;
        while let Some(which) = self.open.iter().position(old) {
            self.close(which, at.now);
        }
        while self.may_upload() && self.closed.front().is_some_and(|closed| closed.at <= at.now) {
            let mut upload = self.closed.pop_front().expect("looked at above");
            upload.at = at.now + at.store.delay();
            self.uploads.push(upload);
        }
    }

    fn end_uploads(&mut self, at: &mut Around<'_>) {
        for mut upload in std::mem::take(&mut self.uploads) {
            if upload.at > at.now {
                self.uploads.push(upload);
            } else if at.store.writes {
                // What another node has uploaded meanwhile is left out.
                upload.records.retain(|record| at.store.catalog.lookup(&record.key).is_none());
                if !upload.records.is_empty() {
                    at.store.publish(upload.lane, upload.records, true);
                }
            } else if !self.purges.iter().any(|purging| takes(at.names, purging.purge, upload.lane))
                && upload.failures < UPLOAD_FAILURES_MAX
            {
                upload.failures += 1;
                upload.at = at.now + Duration::from_millis(2);
                self.closed.push_front(upload);
            }
        }
    }

    /// The daemon is killed: an upload under way may have come to its end in the store, and nobody here knows.
    pub(crate) fn killed(&mut self, store: &mut Store) {
        for upload in std::mem::take(&mut self.uploads) {
            if store.writes && store.chance.percent(50) {
                store.publish(upload.lane, upload.records, false);
            }
        }
    }

    /// The next that comes of a run; whether it is over.
    fn read_on(&mut self, run: &mut Run, at: &mut Around<'_>, out: &mut Outcomes) -> bool {
        let Some(wanted) = run.wanted.front() else { return true };
        let trouble = at.store.chance.index(40);
        let manners = self.habits.manners;
        if trouble < 2 {
            run.due = at.now + at.store.delay();
            return false;
        }
        if !at.store.reads || (manners != Disks::Sound && trouble < 4) {
            (run.attempts, run.half) = (run.attempts + 1, false);
            run.due = at.now + Duration::from_millis(1);
            return run.attempts >= ATTEMPTS_MAX && Self::end_run(run, Outcome::Failed(DeviceFault::Io), out);
        }
        let number = wanted.from.pack;
        let bytes = match at.store.read(wanted.from) {
            Read::Bytes(bytes) if manners == Disks::Lying && trouble == 4 => {
                let len = bytes.len();
                at.store.others_bytes(len)
            }
            Read::Bytes(bytes) if manners != Disks::Lying || trouble != 5 => bytes.to_vec(),
            // The pack is gone, or was never as long as its index says.
            Read::Bytes(_) | Read::Gone => {
                Self::forget(number, at);
                return Self::end_run(run, Outcome::Missing, out);
            }
        };
        assert!(!at.touched.contains(&wanted.to), "{:?} is fetched into while a live client may touch it", wanted.to);
        let memory = whole(at.table, wanted.to, &wanted.expect);
        if !run.half && at.store.chance.percent(50) {
            memory.write(0, &bytes[..bytes.len() / 2]).expect("inside the slot");
            run.half = true;
            run.due = at.now + at.store.delay();
            return false;
        }
        let came = if run.half { bytes.len() / 2 } else { 0 };
        memory.write(came, &bytes[came..]).expect("inside the slot");
        let outcome = self.verify(wanted, &memory, run.started, at);
        out.push((wanted.id, outcome));
        run.wanted.pop_front();
        (run.half, run.due) = (false, at.now + at.store.chance.micros(0..200));
        run.wanted.is_empty()
    }

    /// Whether what lies in the slot is the record that was asked for, in its place of the chain.
    fn verify(&mut self, wanted: &Wanted, memory: &MemoryExtent, started: Time, at: &mut Around<'_>) -> Outcome {
        let expect = &wanted.expect;
        let verified = verify_record(memory, &Expect::from(expect), &mut self.scratch).is_ok();
        let sealed = verified.then(|| self.scratch.read(memory).ok()).flatten();
        let Some(sealed) = sealed.filter(|sealed| sealed.meta_checksum == expect.meta_checksum) else {
            assert!(at.store.lies(), "{:?} is not what was fetched into it", wanted.to);
            Self::forget(wanted.from.pack, at);
            return Outcome::Corrupt;
        };
        let found = &sealed.metadata;
        if (found.parent_key, found.position, found.group) != (expect.parent_key, expect.position, expect.group) {
            return Outcome::Missing;
        }
        let block = at.store.block(&expect.key);
        let mut bytes = vec![0; expect.payload_bytes as usize];
        memory.read(SECTOR_BYTES, &mut bytes).expect("inside the slot");
        assert!(at.names.is(block, &bytes), "wrong bytes for {block:?} in {:?}", wanted.to);
        Outcome::Done { bytes: u64::from(wanted.from.bytes), took: at.now.since(started) }
    }

    fn forget(number: u32, at: &mut Around<'_>) {
        if let Some(pack) = at.store.catalog.pack(number) {
            at.store.catalog.forget(pack);
        }
    }

    fn end_run(run: &mut Run, outcome: Outcome, out: &mut Outcomes) -> bool {
        out.extend(run.wanted.drain(..).map(|wanted| (wanted.id, outcome)));
        true
    }

    fn purge_on(&mut self, at: &mut Around<'_>) {
        let Some(front) = self.purges.front_mut().filter(|purge| self.uploads.is_empty() && purge.due <= at.now) else {
            return;
        };
        let (purge, asked) = (front.purge, front.asked);
        if !(at.store.reads && at.store.writes) {
            front.tries += 1;
            front.due = at.now + Duration::from_millis(5);
            if front.tries >= PURGE_TRIES_MAX {
                self.purges.pop_front();
            }
        } else if at.store.purge_one(at.names, purge) {
            self.purges.pop_front();
            self.purged.push((purge, asked));
        } else {
            front.due = at.now + at.store.chance.micros(1..500);
        }
    }
}

/// Outcomes on their way to the core.
pub(crate) type Outcomes = Vec<(MoveId, Outcome)>;
