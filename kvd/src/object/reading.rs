//! Records on their way into DRAM: those that lie side by side in one request, each verified and answered as it comes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use kvd_tiers::ladder::{DeviceFault, Outcome};
use kvd_tiers::object::{PackName, pack_path};
use kvd_tiers::record::{Expect, Mismatch, Scratch, verify_record};

use super::store::Fault;
use super::tier::{Shared, Wanted};

/// Requests for one run, each for what the one before it did not bring.
const ATTEMPTS_MAX: u32 = 3;

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
    scratch: Scratch,
    /// Records that were answered.
    done: usize,
    /// Bytes of the next one that have come.
    filled: usize,
    /// What those are told that are not answered when it ends, however that may be.
    rest: Outcome,
}

/// Reads a run and answers each of its records, whatever comes.
pub(super) async fn read(shared: Arc<Shared>, records: Vec<Wanted>) {
    let Some(number) = records.first().map(|first| first.from.pack) else { return };
    let name = shared.catalog.pack_numbered(number);
    let mut run = Run {
        shared: shared.clone(),
        records,
        started: Instant::now(),
        scratch: Scratch::default(),
        done: 0,
        filled: 0,
        rest: Outcome::Missing,
    };
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
    Corrupt(String),
    /// It is what was stored, but another place of a chain was meant: hashes were asked for that are no chain.
    Elsewhere,
}

impl Run {
    fn range(&self) -> Range<u64> {
        let place = |at: usize| self.records[at].from;
        let last = place(self.records.len() - 1);
        u64::from(place(self.done).offset)..u64::from(last.offset) + u64::from(last.bytes)
    }

    /// Asks for what is not there yet, and takes what comes.
    async fn attempt(&mut self, name: PackName, deadline: Instant) -> Result<(), Fault> {
        self.filled = 0;
        self.shared.counters().runs.add(1);
        let mut body = self.shared.store.get_range(&pack_path(name), self.range(), deadline).await?;
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => self.take(name, &chunk),
                // All is there, whatever else was to come.
                Err(_) if self.done == self.records.len() => break,
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Puts bytes into slots; a record that is whole is verified and answered.
    fn take(&mut self, name: PackName, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.done < self.records.len() {
            let record = &self.records[self.done];
            let whole = record.from.bytes as usize;
            let (now, later) = bytes.split_at(bytes.len().min(whole - self.filled));
            // A slot that is too small for the record fails its verification.
            let _ = record.memory.write(self.filled, now);
            self.filled += now.len();
            bytes = later;
            if self.filled == whole {
                self.finish(name);
            }
        }
    }

    fn finish(&mut self, name: PackName) {
        let verified = self.verify();
        let record = &self.records[self.done];
        let outcome = match verified {
            Ok(()) => {
                self.shared.counters().records_got.add(1);
                self.shared.sharing.used(name);
                Outcome::Done { bytes: u64::from(record.from.bytes), took: self.started.elapsed() }
            }
            Err(Wrong::Elsewhere) => Outcome::Missing,
            Err(Wrong::Corrupt(mismatch)) => {
                tracing::warn!(key = %record.expect.key, pack = %name, mismatch, "a record in the object tier is corrupt");
                forget(&self.shared, name, "a record in it is corrupt");
                Outcome::Corrupt
            }
        };
        self.shared.answer(record.id, outcome);
        self.done += 1;
        self.filled = 0;
    }

    /// Whether what lies in the slot is the record that was asked for, in its place of the chain.
    fn verify(&mut self) -> Result<(), Wrong> {
        let Wanted { from, expect, memory, .. } = &self.records[self.done];
        if from.bytes as usize != memory.len() {
            return Err(Wrong::Corrupt(format!("{} bytes for a slot of {}", from.bytes, memory.len())));
        }
        let corrupt = |mismatch: Mismatch| Wrong::Corrupt(mismatch.to_string());
        let wanted = Expect::from(expect);
        verify_record(memory, &wanted, &mut self.scratch).map_err(corrupt)?;
        let sealed = self.scratch.read(memory).map_err(corrupt)?;
        let found = &sealed.metadata;
        if sealed.meta_checksum != expect.meta_checksum {
            return Err(Wrong::Corrupt("it changed under our eyes".into()));
        }
        let place = (found.parent_key, found.position, found.group);
        if place == (expect.parent_key, expect.position, expect.group) { Ok(()) } else { Err(Wrong::Elsewhere) }
    }
}

impl Drop for Run {
    /// Answers what is left: the ladder waits for every move.
    fn drop(&mut self) {
        for record in self.records.drain(self.done..) {
            if self.rest == Outcome::Missing {
                self.shared.counters().records_missing.add(1);
            }
            self.shared.answer(record.id, self.rest);
        }
    }
}
