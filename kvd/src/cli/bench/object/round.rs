//! One round after the other: both sides to the store, then both back, all bytes looked at.

use std::time::Instant;

use kvd_nixl::sys::MemoryExtent;

use super::bucket::{Bucket, Run, failed};
use super::engines::{self, Engines};
use super::interrupt::Interrupt;
use super::pace::Pace;
use super::pair::Pair;
use super::plain::Plain;
use super::plan::Plan;
use super::report::Speed;
use crate::cli::bench::cpu::process_cpu;
use crate::cli::bench::node::purge;
use crate::cli::exit::Failure;

/// What a round came to.
pub(super) struct Round {
    pub(super) put: [Speed; 2],
    pub(super) get: [Speed; 2],
    pub(super) puts: u64,
    pub(super) gets: u64,
    pub(super) runs: u64,
    pub(super) hedges: u64,
}

/// Both sides of a case.
pub(super) struct Bench<'a> {
    bucket: &'a Bucket,
    plan: &'a Plan,
    memory: MemoryExtent,
    plain: Plain<'a>,
    writers: Engines<'a>,
    readers: Engines<'a>,
    // Behind those who have joined it.
    pair: Pair,
}

impl<'a> Bench<'a> {
    pub(super) fn start(bucket: &'a Bucket, plan: &'a Plan, interrupt: &Interrupt) -> Result<Bench<'a>, Failure> {
        // What a daemon of the case before said of itself: this one would wait for its turns.
        bucket.clear("")?;
        let (memory, plain) = (plan.memory()?, Plain::new(bucket, plan)?);
        let pair = Pair::start(bucket, plan, interrupt)?;
        Ok(Bench {
            bucket,
            plan,
            memory,
            plain,
            writers: Engines::join(&pair.writer.node.socket(), plan, interrupt)?,
            readers: Engines::join(&pair.reader.node.socket(), plan, interrupt)?,
            pair,
        })
    }

    pub(super) fn round(&self, round: u32) -> Result<Round, Failure> {
        engines::fill(self.plan, round, &self.memory)?;
        let known = self.pair.reader.metrics()?.get(LEARNED);
        // Who goes first changes: a server that grows slower or faster does so for both.
        let (put, plain_put) = match round % 2 {
            0 => (self.put(round)?, self.plain.put()?),
            _ => swapped(self.plain.put()?, self.put(round)?),
        };
        let runs = self.bucket.runs()?;
        let wanted = known + self.plan.packs as u64;
        self.pair.reader.until("packs that were learned of", wanted, |found| found.get(LEARNED))?;
        let (get, plain_get) = match round % 2 {
            0 => (self.get(round)?, self.plain_get(&runs)?),
            _ => swapped(self.plain_get(&runs)?, self.get(round)?),
        };
        purge(&self.pair.writer.node.connection())?;
        self.bucket.clear("plain")?;
        Ok(Round {
            put: [put.0, plain_put],
            get: [get.0, plain_get],
            puts: put.1,
            gets: get.1,
            runs: runs.len() as u64,
            hedges: get.2,
        })
    }

    /// From the first store until the last pack can be found; requests that write.
    fn put(&self, round: u32) -> Result<(Speed, u64), Failure> {
        let (writer, pid) = (&self.pair.writer, self.pair.writer.node.pid());
        let before = writer.metrics()?;
        let (cpu, started) = (process_cpu(pid)?, Instant::now());
        let records = (self.plan.packs * self.plan.pack_records) as u64;
        let pace = Pace::default();
        let after = std::thread::scope(|scope| {
            let storing = scope.spawn(|| self.writers.store(round, &self.memory, &pace));
            let uploaded = writer.until("records that were uploaded", before.get(OWN) + records, |found| {
                pace.allow((found.get(UPLOADED) - before.get(UPLOADED) + self.plan.packs_in_memory) as usize);
                let hopeless = found.lost() > before.lost() || pace.is_over();
                if hopeless { u64::MAX } else { found.get(OWN) }
            });
            pace.end();
            storing.join().map_err(|_| failed("a thread panicked"))??;
            uploaded
        })?;
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), process_cpu(pid)?.saturating_sub(cpu));
        let lost = after.lost() - before.lost();
        if lost > 0 {
            return Err(failed(format!("the store is too slow for this bench: {lost} records were given up")));
        }
        let puts = after.requests("put") - before.requests("put");
        Ok((Speed::of(self.plan.moved_bytes(), seconds, cpu), puts))
    }

    /// From the first match until the last block is in an engine's memory; requests that read, and those made twice.
    fn get(&self, round: u32) -> Result<(Speed, u64, u64), Failure> {
        let (reader, pid) = (&self.pair.reader, self.pair.reader.node.pid());
        self.memory.zero(0, self.memory.len()).map_err(failed)?;
        let before = reader.metrics()?;
        let (cpu, started) = (process_cpu(pid)?, Instant::now());
        self.readers.load(round, &self.memory)?;
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), process_cpu(pid)?.saturating_sub(cpu));
        let after = reader.metrics()?;
        engines::check(self.plan, round, &self.memory)?;
        let hedges = after.get(HEDGES) - before.get(HEDGES);
        let gets = after.requests("get") - before.requests("get");
        Ok((Speed::of(self.plan.moved_bytes(), seconds, cpu), gets, hedges))
    }

    fn plain_get(&self, runs: &[Run]) -> Result<Speed, Failure> {
        self.memory.zero(0, self.memory.len()).map_err(failed)?;
        let speed = self.plain.get(runs, &self.memory)?;
        self.plain.check(runs, &self.memory)?;
        Ok(speed)
    }
}

const LEARNED: &str = "kvd_object_packs_seen_total{outcome=\"learned\"}";
const UPLOADED: &str = "kvd_object_packs_total{outcome=\"uploaded\"}";
const OWN: &str = "kvd_object_own_records";
const HEDGES: &str = "kvd_object_hedges_total";

fn swapped<A, B>(first: A, second: B) -> (B, A) {
    (second, first)
}
