//! Two defects of NIXL 1.5.1 that must be impossible here.
//!
//! Goal: a transfer never reports done for bytes that did not land. Method: each check runs over every backend, and over
//! a deliberately wrong one that behaves as NIXL's did; the check must pass the former and catch the latter.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::error::Error;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

#[path = "agent/support.rs"]
#[expect(dead_code, reason = "shared with another test; this one needs a part of it")]
mod support;

use kvd_nixl::agent::{
    Agent, DescriptorError, MemoryCopy, Operation, PostError, PostOptions, Section, SectionKind, Stored, wait_blocking,
};
use kvd_nixl::io::{
    BlockingIo, BlockingOptions, Fault, FaultIo, FaultPlan, FaultRule, FaultTrigger, FileId, FileOptions, Io, IoDone,
    IoError, IoFile, IoOp, IoWaker, Seeded, SimDisk, SimOptions, UringError, UringIo, UringOptions,
};
use support::{BLOCK, FILE_BYTES, blocks, bytes, look, memory, noise, until};

/// Behaves as NIXL's storage engine after a release in flight: completions of old requests are counted for new ones.
struct Confused<I> {
    inner: I,
    /// Submitted and not yet reported, oldest first.
    open: Vec<IoOp>,
}

impl<I: Io> Io for Confused<I> {
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        self.inner.submit(op.clone())?;
        self.open.push(op);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<IoDone>) {
        let mut arrived = Vec::new();
        self.inner.poll(&mut arrived);
        for IoDone { result, .. } in arrived {
            let op = self.open.pop().unwrap();
            done.push(IoDone { tag: op.tag, result, op });
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.inner.wait(timeout);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn waker(&self) -> IoWaker {
        self.inner.waker()
    }
}

/// Reports what moved in part as done, as NIXL's object and earlier POSIX plugins did.
struct ShortIsDone<I>(I);

impl<I: Io> Io for ShortIsDone<I> {
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        self.0.submit(op)
    }

    fn poll(&mut self, done: &mut Vec<IoDone>) {
        self.0.poll(done);
        for done in done.iter_mut() {
            if matches!(done.result, Err(IoError::Short { .. })) {
                done.result = Ok(());
            }
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.0.wait(timeout);
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn waker(&self) -> IoWaker {
        self.0.waker()
    }
}

/// Leaves a transfer in flight (dropped or cancelled, by the seed), posts another on the same engine, and holds every
/// report of the second against its memory at that very moment, after each single completion of the disk.
fn release_and_post_again<I: Io>(
    seed: u64,
    wrap: impl FnOnce(kvd_nixl::io::SimIo) -> I + Send + 'static,
) -> Result<(), String> {
    let mut random = Seeded::new(seed);
    let disk = SimDisk::new(seed, SimOptions { depth: 24, ..SimOptions::default() });
    let file = disk.add_file(FILE_BYTES);
    let content = noise(FILE_BYTES, seed);
    disk.alter(file, 0, &content);
    let mut agent = Agent::new().unwrap();
    let io = disk.io();
    let stored = vec![Stored { file, bytes: FILE_BYTES, kind: SectionKind::File }];
    let section = agent.add_io("disk", move || Ok((wrap(io), stored))).unwrap().1.remove(0);
    let (first_memory, second_memory) = (memory(FILE_BYTES), memory(FILE_BYTES));
    let prepare = |memory: &Arc<dyn kvd_nixl::sys::Memory>, indices: &[u32]| {
        let local = blocks(&Section::memory(Arc::clone(memory)), 1, 64).select(indices).unwrap();
        let remote = blocks(&section, 1, 64).select(indices).unwrap();
        agent.prepare(Operation::Read, &local, &remote, MemoryCopy::default()).unwrap()
    };
    // Every other block, so that nothing merges.
    let evens: Vec<u32> = (0..12).map(|index| index * 2).collect();
    let odds: Vec<u32> = (0..10).map(|index| 40 + index * 2).collect();
    let mut first = prepare(&first_memory, &evens);
    let mut second = prepare(&second_memory, &odds);

    let released = first.post(PostOptions::default()).unwrap();
    until("the first is in flight", || agent.telemetry()[1].1.in_flight == 12);
    let early = random.below(6);
    for _ in 0..early {
        disk.step();
    }
    if random.chance(500_000) {
        drop(released);
    } else {
        drop(released.cancel());
    }
    if first.is_active() && first.post(PostOptions::default()).err() != Some(PostError::Active) {
        return Err("posted again over itself".to_owned());
    }
    let mut future = second.post(PostOptions::default()).unwrap();
    until("the second is in flight", || agent.telemetry()[1].1.in_flight == 22 - early);
    let mut completions = early;
    let report = loop {
        if let Some(report) = look(&mut future) {
            break report;
        }
        if disk.step().is_none() {
            // All has landed; the driver is about to say so.
            let mut last = None;
            until("the second transfer ends", || {
                last = look(&mut future);
                last.is_some()
            });
            break last.unwrap();
        }
        completions += 1;
        until("the driver saw it", || agent.telemetry()[1].1.operations == completions);
    };
    let verdict = judge(&report.statuses, &odds, &second_memory, &content);
    // Whatever the verdict, the driver must be able to end.
    disk.set_automatic(true);
    wait_blocking(first.drained());
    verdict.map_err(|how| format!("seed {seed}: {how}"))
}

fn judge(
    statuses: &[Result<(), DescriptorError>],
    indices: &[u32],
    memory: &Arc<dyn kvd_nixl::sys::Memory>,
    content: &[u8],
) -> Result<(), String> {
    for (index, status) in indices.iter().zip(statuses) {
        let at = u64::from(*index) * BLOCK;
        let landed = bytes(memory, at, BLOCK) == content[at as usize..(at + BLOCK) as usize];
        match status {
            Ok(()) if !landed => return Err(format!("block {index} is reported done and has not landed")),
            Ok(()) => {}
            Err(error) => return Err(format!("block {index}: {error}")),
        }
    }
    Ok(())
}
#[test]
fn release_in_flight_never_reports_done_for_data_that_did_not_land() {
    for seed in 0..40 {
        release_and_post_again(seed, |io| io).unwrap();
        release_and_post_again(seed, |io| FaultIo::new(io, 1, FaultPlan::default())).unwrap();
    }
}

#[test]
fn the_check_finds_an_engine_that_counts_old_completions_for_new_requests() {
    for seed in 0..10 {
        let found = release_and_post_again(seed, |inner| Confused { inner, open: Vec::new() });
        assert!(found.is_err_and(|how| how.contains("has not landed")), "seed {seed}");
    }
}

/// A disk that hangs on the released transfer: the next one is served, and the old one lands in its own memory only.
#[test]
fn a_released_transfer_that_hangs_holds_its_memory_and_nobody_elses() {
    let hang = FaultRule::new(Fault::Hang, FaultTrigger::Nth(1));
    let support::Rig { agent, disk, file, content, faults } = support::rig(8, FaultPlan::new([hang]));
    disk.set_automatic(true);
    let (first_memory, second_memory) = (memory(BLOCK), memory(BLOCK));
    let remote = blocks(&file, 1, 1).all();
    let prepare = |memory: &Arc<dyn kvd_nixl::sys::Memory>| {
        let local = blocks(&Section::memory(Arc::clone(memory)), 1, 1).all();
        agent.prepare(Operation::Read, &local, &remote, MemoryCopy::default()).unwrap()
    };
    let mut first = prepare(&first_memory);
    let mut cancelling = first.post(PostOptions::default()).unwrap().cancel();
    // Either the cancel came first, or the operation hangs: find out which by waiting for the driver.
    let mut cancelled = None;
    until("cancelled or started", || {
        cancelled = look(&mut cancelling);
        cancelled.is_some() || agent.telemetry()[1].1.in_flight == 1
    });
    let mut second = prepare(&second_memory);
    if let Some(report) = cancelled {
        assert_eq!(report.statuses, [Err(DescriptorError::Cancelled)]);
        return;
    }
    assert!(wait_blocking(second.post(PostOptions::default()).unwrap()).is_ok());
    assert_eq!(bytes(&second_memory, 0, BLOCK), content[..BLOCK as usize]);
    assert!(look(&mut cancelling).is_none(), "drained while the disk hangs");
    assert!(bytes(&first_memory, 0, BLOCK).iter().all(|byte| *byte == 0));
    second_memory.zero(0, BLOCK as usize).unwrap();
    faults.release();
    assert_eq!(wait_blocking(cancelling).statuses, [Ok(())]);
    assert_eq!(bytes(&first_memory, 0, BLOCK), content[..BLOCK as usize]);
    assert!(bytes(&second_memory, 0, BLOCK).iter().all(|byte| *byte == 0), "a late byte in another's memory");
}

type Make<I> = Result<(I, FileId), Box<dyn Error + Send + Sync>>;

/// Reads 16 blocks of a file that ends inside the eighth: those before are good, that one and all behind are short.
fn read_past_the_end<I: Io>(make: impl FnOnce() -> Make<I> + Send + 'static) -> Result<(), String> {
    let mut agent = Agent::new().unwrap();
    let build = move || {
        let (io, file) = make()?;
        // The section claims what the file had before it was cut.
        Ok((io, vec![Stored { file, bytes: 16 * BLOCK, kind: SectionKind::File }]))
    };
    let (_, sections) = agent.add_io("cut", build).map_err(|error| error.to_string())?;
    for every in [1, 2] {
        // Merged in one operation, then one by one.
        let local = blocks(&Section::memory(memory(32 * BLOCK)), every, 16).all();
        let remote = blocks(&sections[0], 1, 16).all();
        let mut transfer = agent.prepare(Operation::Read, &local, &remote, MemoryCopy::default()).unwrap();
        let report = wait_blocking(transfer.post(PostOptions::default()).unwrap());
        for (index, status) in report.statuses.iter().enumerate() {
            let got = CUT.saturating_sub(index as u64 * BLOCK).min(BLOCK);
            let wanted = match got {
                BLOCK => Ok(()),
                got => Err(DescriptorError::Io(IoError::Short { wanted: BLOCK, got })),
            };
            if *status != wanted {
                return Err(format!("block {index}: {status:?} instead of {wanted:?}"));
            }
        }
    }
    Ok(())
}

/// Where the file ends after the cut.
const CUT: u64 = 7 * BLOCK + 4096;

/// A real file that is cut under an open descriptor.
fn cut_file(folder: &tempfile::TempDir, direct: bool) -> Arc<IoFile> {
    let path = folder.path().join("cut");
    let file = IoFile::open(&path, FileOptions { create: true, direct }).unwrap();
    file.preallocate(16 * BLOCK).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(CUT).unwrap();
    Arc::new(file)
}

fn cut_disk() -> (SimDisk, FileId) {
    let disk = SimDisk::new(1, SimOptions::default());
    disk.set_automatic(true);
    let file = disk.add_file(CUT);
    (disk, file)
}

#[test]
fn short_read_is_an_error_never_done() {
    for direct in [false, true] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = cut_file(&folder, direct);
        let shared = Arc::clone(&file);
        read_past_the_end(move || {
            let mut io = BlockingIo::new(BlockingOptions::default())?;
            let file = io.add_file(shared)?;
            Ok((io, file))
        })
        .unwrap();
        match UringIo::new(UringOptions::default()) {
            Err(UringError::Unavailable(why)) => eprintln!("SKIPPED: io_uring is not available here ({why})"),
            probe => {
                drop(probe.unwrap());
                read_past_the_end(move || {
                    let mut io = UringIo::new(UringOptions::default())?;
                    let file = io.add_file(file)?;
                    Ok((io, file))
                })
                .unwrap();
            }
        }
    }
    let (disk, file) = cut_disk();
    read_past_the_end(move || Ok((FaultIo::new(disk.io(), 1, FaultPlan::default()), file))).unwrap();
}

#[test]
fn the_check_finds_an_engine_that_calls_short_reads_done() {
    let (disk, file) = cut_disk();
    let found = read_past_the_end(move || Ok((ShortIsDone(disk.io()), file)));
    assert!(found.unwrap_err().contains("instead of Err"));
}
