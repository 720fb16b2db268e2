//! Records on their way into DRAM: those that lie side by side in one request, each verified as it comes, and answered soon.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use kvd_tiers::ladder::{DeviceFault, Outcome};
use kvd_tiers::object::{PackName, pack_path};
use kvd_tiers::record::{Arrival, Expect, Mismatch};
use kvd_tiers::{MoveId, SlotEntry};

use super::store::{Body, Fault};
use super::tier::{Shared, Wanted};

/// Requests for one run, each for what the one before it did not bring.
const ATTEMPTS_MAX: u32 = 3;

/// Small records are answered together, a mebibyte of them or what came in a millisecond or two: each answer wakes the core
/// and an engine.
const ANSWER_BYTES: u64 = 1 << 20;
const ANSWER_PATIENCE: Duration = Duration::from_millis(1);

/// Groups records whose bytes touch, in the order in which they lie, at most `bytes_max` together: several runs are read at
/// once, and one that fails is read again.
pub(super) fn runs(mut wanted: Vec<Wanted>, bytes_max: u64) -> Vec<Vec<Wanted>> {
    wanted.sort_by_key(|record| (record.from.pack, record.from.offset));
    let mut runs: Vec<Vec<Wanted>> = Vec::new();
    for record in wanted {
        let fits = |run: &&mut Vec<Wanted>| {
            run.first().zip(run.last()).is_some_and(|(first, last)| {
                let end = u64::from(last.from.offset) + u64::from(last.from.bytes);
                let whole = end + u64::from(record.from.bytes) - u64::from(first.from.offset);
                record.from.pack == last.from.pack && u64::from(record.from.offset) == end && whole <= bytes_max
            })
        };
        match runs.last_mut().filter(fits) {
            Some(run) => run.push(record),
            None => runs.push(vec![record]),
        }
    }
    runs
}

/// A run being read.
struct Run {
    shared: Arc<Shared>,
    records: Vec<Wanted>,
    started: Instant,
    /// Records that came, or were found wrong.
    done: usize,
    /// What became of the last ones of those, which nobody was told yet; since when that is so, and how many bytes they have.
    answers: Vec<(MoveId, Outcome)>,
    answers_since: Instant,
    answers_bytes: u64,
    /// The next one, once something of it has come.
    arrival: Option<Arrival>,
    /// What those are told that are not answered when it ends, however that may be.
    rest: Outcome,
}

/// Reads a run and answers each of its records, whatever comes.
pub(super) async fn read(shared: Arc<Shared>, records: Vec<Wanted>) {
    let Some(number) = records.first().map(|first| first.from.pack) else { return };
    let name = shared.catalog.pack_numbered(number);
    let mut run = Run::new(shared.clone(), records);
    let Some(name) = name else { return };
    run.rest = Outcome::Failed(DeviceFault::Io);
    let deadline = Instant::now() + shared.options.request_timeout;
    for _ in 0..ATTEMPTS_MAX {
        let Err(fault) = run.attempt(name, deadline).await else { return };
        match fault {
            // The pack is gone, or was never as long as its index says.
            Fault::NotFound | Fault::Short { cut: false, .. } => {
                forget(&shared, name, "it is gone");
                run.rest = Outcome::Missing;
                return;
            }
            fault if !fault.is_transient() || Instant::now() >= deadline => return,
            _ => {}
        }
    }
}

/// A pack that is not what the catalog says is asked for nothing more, until a listing shows it again.
fn forget(shared: &Arc<Shared>, name: PackName, why: &str) {
    tracing::info!(pack = %name, why, "a pack is forgotten");
    let shared = shared.clone();
    // It may have to wait for a listing that is being compared.
    tokio::task::spawn_blocking(move || match shared.catalog.remove(name) {
        Ok(was) => shared.counters().packs_gone.add(u64::from(was)),
        Err(error) => tracing::warn!(%error, "the catalog does not hear of a pack that is gone"),
    });
}

/// Why a record is not the one that was asked for.
enum Wrong {
    /// It is not what was stored.
    Corrupt(Mismatch),
    /// It is what was stored, but another place of a chain was meant: hashes were asked for that are no chain.
    Elsewhere,
}

impl Run {
    fn new(shared: Arc<Shared>, records: Vec<Wanted>) -> Run {
        Run {
            shared,
            records,
            started: Instant::now(),
            done: 0,
            answers: Vec::new(),
            answers_since: Instant::now(),
            answers_bytes: 0,
            arrival: None,
            rest: Outcome::Missing,
        }
    }

    fn range(&self) -> Range<u64> {
        let place = |at: usize| self.records[at].from;
        let last = place(self.records.len() - 1);
        u64::from(place(self.done).offset)..u64::from(last.offset) + u64::from(last.bytes)
    }

    /// Asks for what is not there yet, and takes what comes.
    async fn attempt(&mut self, name: PackName, deadline: Instant) -> Result<(), Fault> {
        self.arrival = None;
        self.tell();
        self.shared.counters().runs.add(1);
        let mut body = self.shared.store.get_range(&pack_path(name), self.range(), deadline).await?;
        while let Some(chunk) = self.next_chunk(&mut body).await {
            match chunk {
                Ok(chunk) => self.take(name, &chunk),
                // All is there, whatever else was to come.
                Err(_) if self.done == self.records.len() => break,
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// The next bytes. Answers do not wait for them longer than their patience.
    async fn next_chunk(&mut self, body: &mut Body) -> Option<Result<Bytes, Fault>> {
        if !self.answers.is_empty() {
            let until = self.answers_since + ANSWER_PATIENCE;
            if let Ok(chunk) = tokio::time::timeout_at(until.into(), body.next()).await {
                return chunk;
            }
            self.tell();
        }
        body.next().await
    }

    /// Gives the answers that have gathered.
    fn tell(&mut self) {
        if !self.answers.is_empty() {
            self.shared.answer_all(self.answers.drain(..));
            self.answers_bytes = 0;
        }
    }

    /// Puts bytes into slots.
    fn take(&mut self, name: PackName, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.done < self.records.len() {
            let Wanted { from, expect, memory, .. } = &self.records[self.done];
            let new = || Arrival::new(memory.clone(), from.bytes as usize, Expect::from(expect));
            let mut arrival = self.arrival.take().unwrap_or_else(new);
            bytes = arrival.take(bytes);
            match arrival.left() {
                0 => self.finish(name, &arrival),
                _ => self.arrival = Some(arrival),
            }
        }
    }

    fn finish(&mut self, name: PackName, arrival: &Arrival) {
        let record = &self.records[self.done];
        let outcome = match judge(arrival, &record.expect) {
            Ok(()) => {
                self.shared.counters().records_got.add(1);
                self.shared.sharing.used(name);
                Outcome::Done { bytes: u64::from(record.from.bytes), took: self.started.elapsed() }
            }
            Err(Wrong::Elsewhere) => Outcome::Missing,
            Err(Wrong::Corrupt(mismatch)) => {
                tracing::warn!(key = %record.expect.key, pack = %name, %mismatch, "a record in the object tier is corrupt");
                forget(&self.shared, name, "a record in it is corrupt");
                Outcome::Corrupt
            }
        };
        if self.answers.is_empty() {
            self.answers_since = Instant::now();
        }
        self.answers.push((record.id, outcome));
        self.answers_bytes += u64::from(record.from.bytes);
        self.done += 1;
        if self.answers_bytes >= ANSWER_BYTES || self.done == self.records.len() {
            self.tell();
        }
    }
}

/// Whether what came is the record that was asked for, in its place of the chain.
fn judge(arrival: &Arrival, expect: &SlotEntry) -> Result<(), Wrong> {
    let found = arrival.finish().map_err(Wrong::Corrupt)?.metadata;
    let place = (found.parent_key, found.position, found.group);
    if place == (expect.parent_key, expect.position, expect.group) { Ok(()) } else { Err(Wrong::Elsewhere) }
}

impl Drop for Run {
    /// Answers what is left: the ladder waits for every move.
    fn drop(&mut self) {
        let rest = &self.records[self.done..];
        if self.rest == Outcome::Missing {
            self.shared.counters().records_missing.add(rest.len() as u64);
        }
        self.answers.extend(rest.iter().map(|record| (record.id, self.rest)));
        self.tell();
    }
}

#[cfg(test)]
mod tests;
