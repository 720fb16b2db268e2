//! The two ways of moving: an `Io` towards storage, and copies between memories.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::sync::{Parker, Unparker};

use super::engine::{Ended, Mover};
use super::plan::{MemoryCopy, Operation, Other, Plan};
use crate::io::{Io, IoDone, IoError, IoOp, IoWaker};
use crate::sys::copy::{CopyError, StridedRun, Units, copy, gather_checksum, scatter_checksum};
use crate::sys::{ChecksumAlgorithm, Memory, MemoryExtent};

/// Moves between memory and an `Io`'s files.
#[derive(Debug)]
pub(super) struct IoMover<I> {
    io: I,
    done: Vec<IoDone>,
}

impl<I: Io> IoMover<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, done: Vec::new() }
    }
}

impl<I: Io> Mover for IoMover<I> {
    fn start(&mut self, plan: &Arc<Plan>, piece: usize, tag: u64) -> bool {
        let piece = &plan.pieces[piece];
        let Other::Stored { file, offset } = piece.other else {
            unreachable!("the agent gives an Io transfers with stored sections only");
        };
        let op = match plan.operation {
            Operation::Read => IoOp::read(tag, file, offset, piece.memory.clone()),
            Operation::Write => IoOp::write(tag, file, offset, piece.memory.clone()),
        };
        self.io.submit(op).is_ok()
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        self.io.poll(&mut self.done);
        for IoDone { tag, result, op } in self.done.drain(..) {
            ended.push(Ended { tag, result, bytes: op.bytes(), checksums: Vec::new() });
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.io.wait(timeout);
    }

    fn waker(&self) -> IoWaker {
        self.io.waker()
    }

    fn register(&mut self, memory: &Arc<dyn Memory>, registered: bool) {
        if registered {
            // Refusal costs speed only, and the backend counts it.
            let _ = self.io.register_memory(memory);
        } else {
            self.io.unregister_memory(memory);
        }
    }
}

/// Pieces that wait for their copy.
const COPIES_MAX: usize = 64;

/// Copies between memories on its own thread, one piece per poll, so that deadlines are looked at in between.
#[derive(Debug)]
pub(super) struct Copier {
    queue: VecDeque<(Arc<Plan>, usize, u64)>,
    parker: Parker,
}

impl Copier {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new(), parker: Parker::new() }
    }
}

impl Mover for Copier {
    fn start(&mut self, plan: &Arc<Plan>, piece: usize, tag: u64) -> bool {
        if self.queue.len() == COPIES_MAX {
            return false;
        }
        self.queue.push_back((Arc::clone(plan), piece, tag));
        true
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) {
        let Some((plan, piece, tag)) = self.queue.pop_front() else { return };
        let piece = &plan.pieces[piece];
        let Other::Memory(other) = &piece.other else {
            unreachable!("the agent gives the copier transfers between memories only");
        };
        let (result, checksums) = match copied(plan.operation, &plan.copy, &piece.memory, other) {
            Ok(checksums) => (Ok(()), checksums),
            // The ends overlap, or the layout leaves its window.
            Err(_) => (Err(IoError::Malformed), Vec::new()),
        };
        let bytes = piece.memory.len() as u64;
        ended.push(Ended { tag, result, bytes, checksums });
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if !self.queue.is_empty() {
            return;
        }
        match timeout {
            Some(timeout) => self.parker.park_timeout(timeout),
            None => self.parker.park(),
        }
    }

    fn waker(&self) -> IoWaker {
        let unparker: Unparker = self.parker.unparker().clone();
        IoWaker::new(move || unparker.unpark())
    }

    fn register(&mut self, _memory: &Arc<dyn Memory>, _registered: bool) {}
}

/// Copies one piece; the checksums of its units, if asked for.
fn copied(
    operation: Operation,
    how: &MemoryCopy,
    record: &MemoryExtent,
    window: &MemoryExtent,
) -> Result<Vec<u64>, CopyError> {
    if how.layout.is_none() && how.units.is_none() {
        match operation {
            Operation::Read => copy(window, record)?,
            Operation::Write => copy(record, window)?,
        }
        return Ok(Vec::new());
    }
    let whole = [StridedRun::contiguous(record.len())];
    let runs = how.layout.as_deref().unwrap_or(&whole);
    // A permutation without checksums takes the same road; what it computes is dropped.
    let unasked = Units { unit_bytes: record.len(), algorithm: ChecksumAlgorithm::Xxh3, seed: 0 };
    let units = how.units.unwrap_or(unasked);
    if units.unit_bytes == 0 {
        return Err(CopyError::UnitBytes);
    }
    let mut checksums = vec![0; units.count(record.len())];
    match operation {
        Operation::Read => gather_checksum(window, runs, record, &units, &mut checksums)?,
        Operation::Write => scatter_checksum(record, window, runs, &units, &mut checksums)?,
    }
    Ok(if how.units.is_some() { checksums } else { Vec::new() })
}
