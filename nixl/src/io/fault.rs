//! Disks that fail, lie and dawdle: a decorator for any [`Io`], driven by a seeded plan.

mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use plan::{Fault, FaultPlan, FaultRule, FaultTrigger};

use super::{FileId, Io, IoDone, IoError, IoKind, IoOp, IoWaker, Seeded};
use crate::sys::{Memory, MemoryExtent, Region};

/// Versions of file ranges remembered for stale reads; the oldest is forgotten first.
const HISTORY_MAX: usize = 256;

/// Operations that may be in flight, hung or held back; the decorated `Io` may take fewer.
const FLIGHT_MAX: usize = 1024;

/// What a device writes as one: torn and short operations end at such a border.
const SECTOR: usize = 512;

/// While completions are delayed, `wait` returns at least this often, so that polls count down.
const DELAYED_WAIT: Duration = Duration::from_millis(1);

/// An [`Io`] on which a [`FaultPlan`] happens. With an empty plan it changes nothing.
#[derive(Debug)]
pub struct FaultIo<I> {
    inner: I,
    control: FaultControl,
    random: Seeded,
    /// Operations that `inner` has, by the tag they carry there.
    flight: BTreeMap<u64, Flight>,
    tags: u64,
    /// Completions that wait for so many more polls.
    delayed: Vec<(u32, IoDone)>,
    /// Operations that hang; they reach `inner` after [`FaultControl::release`].
    hung: VecDeque<IoOp>,
    ready: Vec<IoDone>,
    history: History,
    scratch: Vec<IoDone>,
}

/// The test's hand on a [`FaultIo`]: change the plan, let hung operations go, count what happened.
#[derive(Clone, Debug, Default)]
pub struct FaultControl {
    /// Guards the plan and the counters; no other lock is taken under it.
    state: Arc<Mutex<Control>>,
}

#[derive(Debug, Default)]
struct Control {
    plan: FaultPlan,
    release: bool,
    happened: u64,
    waker: Option<IoWaker>,
}

/// What was asked, and the fault that befell it.
#[derive(Debug)]
struct Flight {
    asked: IoOp,
    fault: Option<Fault>,
}

impl FaultControl {
    fn lock(&self) -> MutexGuard<'_, Control> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the plan; operations in flight keep the fault they have.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.lock().plan = plan;
    }

    /// Lets every hung operation go on.
    pub fn release(&self) {
        let mut state = self.lock();
        state.release = true;
        if let Some(waker) = &state.waker {
            waker.wake();
        }
    }

    /// Faults that happened so far.
    pub fn happened(&self) -> u64 {
        self.lock().happened
    }
}

impl<I: Io> FaultIo<I> {
    /// `inner` under `plan`; everything random comes from `seed`.
    pub fn new(inner: I, seed: u64, plan: FaultPlan) -> Self {
        let control = FaultControl::default();
        control.lock().waker = Some(inner.waker());
        control.set_plan(plan);
        Self {
            inner,
            control,
            random: Seeded::new(seed),
            flight: BTreeMap::new(),
            tags: 0,
            delayed: Vec::new(),
            hung: VecDeque::new(),
            ready: Vec::new(),
            history: History::default(),
            scratch: Vec::new(),
        }
    }

    /// The test's hand on the faults.
    pub fn control(&self) -> FaultControl {
        self.control.clone()
    }

    /// The `Io` underneath, for adding files.
    pub fn inner_mut(&mut self) -> &mut I {
        &mut self.inner
    }

    /// Hands an operation to `inner` as the fault has it. `Err`: `inner` is full.
    fn start(&mut self, asked: IoOp, fault: Option<Fault>) -> Result<(), IoOp> {
        self.tags += 1;
        let mut sent = IoOp { tag: self.tags, ..asked.clone() };
        match fault {
            Some(Fault::Errno(_) | Fault::Lost) => {
                let result = match fault {
                    Some(Fault::Errno(errno)) => Err(IoError::Os { errno }),
                    _ => Ok(()),
                };
                self.ready.push(IoDone { tag: asked.tag, result, op: asked });
                return Ok(());
            }
            Some(Fault::Short | Fault::Torn) => sent.memory = sent.memory.and_then(|memory| self.shortened(&memory)),
            Some(Fault::Misdirected { span_bytes }) => sent.offset = self.elsewhere(asked.offset, span_bytes),
            Some(Fault::BitFlip) if asked.kind == IoKind::Write => {
                sent.memory = sent.memory.map(|memory| flipped_copy(&memory, &mut self.random));
            }
            Some(Fault::BitFlip | Fault::Stale | Fault::Delay { .. } | Fault::Hang) | None => {}
        }
        if asked.bytes() > 0 && sent.bytes() == 0 {
            // Shortened to nothing.
            let outcome = Ok(());
            let done = self.outcome(Flight { asked, fault }, outcome, 0);
            self.ready.push(done);
            return Ok(());
        }
        let tag = sent.tag;
        match self.inner.submit(sent) {
            Ok(()) => {
                self.flight.insert(tag, Flight { asked, fault });
                Ok(())
            }
            Err(_) => Err(asked),
        }
    }

    /// The first sectors of `memory`, not all; `None` if nothing is left.
    fn shortened(&mut self, memory: &MemoryExtent) -> Option<MemoryExtent> {
        let sectors = memory.len().div_ceil(SECTOR) as u64;
        let keep = usize::try_from(self.random.below(sectors)).expect("fewer sectors than bytes") * SECTOR;
        if keep == 0 { None } else { Some(memory.part(0, keep).expect("keep is below the extent's length")) }
    }

    /// Another 4 KiB aligned offset below `span_bytes`.
    fn elsewhere(&mut self, offset: u64, span_bytes: u64) -> u64 {
        let sectors = (span_bytes / 4096).max(2);
        let at = offset / 4096;
        let away = 1 + self.random.below(sectors - 1);
        (at + away) % sectors * 4096 + offset % 4096
    }

    /// What the caller is told.
    fn outcome(&mut self, flight: Flight, result: Result<(), IoError>, moved: u64) -> IoDone {
        let Flight { asked, fault } = flight;
        let result = match fault {
            Some(Fault::Short) if result.is_ok() => Err(IoError::Short { wanted: asked.bytes(), got: moved }),
            _ => result,
        };
        if let (Ok(()), Some(memory)) = (result, &asked.memory) {
            match (asked.kind, fault) {
                (IoKind::Read, Some(Fault::BitFlip)) => flip_bit(memory, &mut self.random),
                (IoKind::Read, Some(Fault::Stale)) => self.history.deliver(&asked, memory),
                (IoKind::Write, _) if self.control.lock().plan.has_stale_reads() => self.history.record(&asked, memory),
                (IoKind::Read | IoKind::Write | IoKind::Sync, _) => {}
            }
        }
        IoDone { tag: asked.tag, result, op: asked }
    }

    fn collect(&mut self) {
        let mut arrived = std::mem::take(&mut self.scratch);
        self.inner.poll(&mut arrived);
        for done in arrived.drain(..) {
            let flight = self.flight.remove(&done.tag).expect("inner completes only what it was given, once");
            let delay = match flight.fault {
                Some(Fault::Delay { polls }) => Some(polls),
                _ => None,
            };
            let done = self.outcome(flight, done.result, done.op.bytes());
            match delay {
                Some(polls) => self.delayed.push((polls, done)),
                None => self.ready.push(done),
            }
        }
        self.scratch = arrived;
    }

    fn let_go(&mut self) {
        if !std::mem::take(&mut self.control.lock().release) {
            return;
        }
        while let Some(op) = self.hung.pop_front() {
            if let Err(op) = self.start(op, None) {
                self.hung.push_front(op);
                self.control.lock().release = true;
                return;
            }
        }
    }
}

impl<I: Io> Io for FaultIo<I> {
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        if self.in_flight() >= FLIGHT_MAX {
            return Err(op);
        }
        let plan_before = self.control.lock().plan.clone();
        let random_before = self.random.clone();
        let fault = self.control.lock().plan.next(&op, &mut self.random);
        let started = match fault {
            Some(Fault::Hang) => {
                self.hung.push_back(op);
                Ok(())
            }
            _ => self.start(op, fault),
        };
        let mut control = self.control.lock();
        match started {
            Ok(()) => control.happened += u64::from(fault.is_some()),
            Err(_) => {
                // An operation that was refused leaves no trace: it will be counted when it is taken.
                control.plan = plan_before;
                self.random = random_before;
            }
        }
        started
    }

    fn poll(&mut self, done: &mut Vec<IoDone>) {
        self.let_go();
        self.collect();
        done.append(&mut self.ready);
        for (polls, _) in &mut self.delayed {
            *polls = polls.saturating_sub(1);
        }
        done.extend(self.delayed.extract_if(.., |(polls, _)| *polls == 0).map(|(_, done)| done));
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.let_go();
        if !self.ready.is_empty() {
            return;
        }
        let delayed = (!self.delayed.is_empty()).then_some(DELAYED_WAIT);
        let limit = match (timeout, delayed) {
            (Some(timeout), Some(delayed)) => Some(timeout.min(delayed)),
            (timeout, delayed) => timeout.or(delayed),
        };
        self.inner.wait(limit);
    }

    fn in_flight(&self) -> usize {
        self.flight.len() + self.delayed.len() + self.hung.len() + self.ready.len()
    }

    fn waker(&self) -> IoWaker {
        self.inner.waker()
    }

    fn register_memory(&mut self, memory: &Arc<dyn Memory>) -> bool {
        self.inner.register_memory(memory)
    }

    fn unregister_memory(&mut self, memory: &Arc<dyn Memory>) {
        self.inner.unregister_memory(memory);
    }
}

/// Earlier content of ranges, for stale reads.
#[derive(Debug, Default)]
struct History {
    versions: BTreeMap<RangeKey, Versions>,
    order: VecDeque<RangeKey>,
}

/// File, offset and length of a write.
type RangeKey = (FileId, u64, usize);

#[derive(Debug, Default)]
struct Versions {
    newest: Option<Vec<u8>>,
    before: Option<Vec<u8>>,
}

impl History {
    fn record(&mut self, op: &IoOp, memory: &MemoryExtent) {
        let key = (op.file, op.offset, memory.len());
        let mut content = vec![0; memory.len()];
        memory.read(0, &mut content).expect("an extent covers its own length");
        let versions = self.versions.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Versions::default()
        });
        versions.before = versions.newest.replace(content);
        if self.order.len() > HISTORY_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.versions.remove(&oldest);
        }
    }

    /// Puts the version before the last into memory; without one, zeros, as of a sector never written.
    fn deliver(&self, op: &IoOp, memory: &MemoryExtent) {
        let before =
            self.versions.get(&(op.file, op.offset, memory.len())).and_then(|versions| versions.before.as_ref());
        match before {
            Some(content) => memory.write(0, content),
            None => memory.zero(0, memory.len()),
        }
        .expect("an extent covers its own length");
    }
}

fn flip_bit(memory: &MemoryExtent, random: &mut Seeded) {
    let bit = random.below(memory.len() as u64 * 8);
    let at = usize::try_from(bit / 8).expect("below the extent's length");
    let mut byte = [0];
    memory.read(at, &mut byte).expect("below the extent's length");
    byte[0] ^= 1 << (bit % 8);
    memory.write(at, &byte).expect("below the extent's length");
}

/// A copy of `memory` with one bit flipped: what a faulty path to the disk would store.
fn flipped_copy(memory: &MemoryExtent, random: &mut Seeded) -> MemoryExtent {
    let copy = MemoryExtent::whole(Arc::new(Region::new(memory.len()).expect("tests have memory to spare")));
    let mut content = vec![0; memory.len()];
    memory.read(0, &mut content).expect("an extent covers its own length");
    copy.write(0, &content).expect("the copy is as long");
    flip_bit(&copy, random);
    copy
}
