//! One backend instance: a driver thread that owns a mover, and the handle by which transfers reach it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};

use super::plan::Plan;
use super::posting::Posting;
use super::telemetry::Counters;
use crate::io::{IoError, IoWaker};
use crate::sys::Memory;

/// Posts that wait for the driver to take them in.
const INBOX_MAX: usize = 256;
/// Posts the driver works on at a time.
const ACTIVE_MAX: usize = 256;
/// Pieces started for one post before the next has its turn, so that a small one does not wait for a large one.
const TURN: usize = 8;

/// What moves the bytes of pieces: an `Io`, or a copier.
pub(super) trait Mover {
    /// Starts a piece; `false`: full, try again after completions.
    fn start(&mut self, plan: &Arc<Plan>, piece: usize, tag: u64) -> bool;
    /// Appends what has ended. Never waits.
    fn poll(&mut self, ended: &mut Vec<Ended>);
    /// Sleeps until something ended, a wake-up, or the timeout.
    fn wait(&mut self, timeout: Option<Duration>);
    /// Ends `wait`.
    fn waker(&self) -> IoWaker;
    /// Pins memory for many operations, or lets it go.
    fn register(&mut self, memory: &Arc<dyn Memory>, registered: bool);
}

/// The end of a piece.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) tag: u64,
    pub(super) result: Result<(), IoError>,
    pub(super) bytes: u64,
    pub(super) checksums: Vec<u64>,
}

/// What the driver is told.
#[derive(Debug)]
pub(super) enum Command {
    Post(Posting),
    Register { memory: Arc<dyn Memory>, registered: bool },
}

/// The handle of a driver. The last one to go waits until everything posted has ended.
#[derive(Debug)]
pub(super) struct Engine {
    inbox: Option<Sender<Command>>,
    waker: IoWaker,
    counters: Arc<Counters>,
    /// Taken once, by `drop`; never held with another lock.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The queue is full, or the driver is gone.
#[derive(Debug)]
pub(super) struct Refused;

impl Engine {
    /// Starts a driver thread; `make` runs on it, for movers that are bound to their thread.
    pub(super) fn start<M: Mover, T: Send + 'static, E: Send + 'static>(
        name: &str,
        make: impl FnOnce() -> Result<(M, T), E> + Send + 'static,
    ) -> std::io::Result<Result<(Self, T), E>> {
        let (inbox, commands) = bounded(INBOX_MAX);
        let (ready, made) = bounded(1);
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let thread = std::thread::Builder::new().name(format!("kvd-move-{name}")).spawn(move || {
            let answer = match make() {
                Ok((mover, extra)) => {
                    // The receiver waits in `start`; were it gone, the inbox would be too, and the driver ends at once.
                    let _ = ready.send(Ok((mover.waker(), extra)));
                    Driver::new(mover, commands, counted).run();
                    return;
                }
                Err(error) => Err(error),
            };
            let _ = ready.send(answer);
        })?;
        let Ok(answer) = made.recv() else {
            return Err(std::io::Error::other("the driver thread died while it started"));
        };
        Ok(answer.map(|(waker, extra)| {
            (Self { inbox: Some(inbox), waker, counters, thread: Mutex::new(Some(thread)) }, extra)
        }))
    }

    pub(super) fn send(&self, command: Command) -> Result<(), Refused> {
        let inbox = self.inbox.as_ref().ok_or(Refused)?;
        inbox.try_send(command).map_err(|_| Refused)?;
        self.wake();
        Ok(())
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inbox = None;
        self.waker.wake();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A waker called by the driver may drop the last handle: the thread then ends by itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // If it panicked, its postings were told so when they were dropped.
            let _ = thread.join();
        }
    }
}

/// The thread's state. Fields drop in order: the mover drains before the postings let go of their memory.
struct Driver<M> {
    mover: M,
    slots: Vec<Option<Posting>>,
    free: Vec<usize>,
    /// Slots with pieces left to start.
    turns: VecDeque<usize>,
    commands: Receiver<Command>,
    open: bool,
    counters: Arc<Counters>,
}

impl<M: Mover> Driver<M> {
    fn new(mover: M, commands: Receiver<Command>, counters: Arc<Counters>) -> Self {
        let slots = (0..ACTIVE_MAX).map(|_| None).collect();
        let free = (0..ACTIVE_MAX).rev().collect();
        Self { mover, slots, free, turns: VecDeque::new(), commands, open: true, counters }
    }

    fn run(mut self) {
        let mut ended = Vec::new();
        loop {
            self.take_in();
            self.mover.poll(&mut ended);
            ended.drain(..).for_each(|end| self.end(end));
            let deadline = self.sweep(Instant::now());
            if !self.open && self.free.len() == ACTIVE_MAX {
                return;
            }
            self.start_pieces();
            if !self.free.is_empty() && !self.commands.is_empty() {
                // Slots were full when it was looked for commands, and their wake-up is spent.
                continue;
            }
            let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.mover.wait(timeout);
        }
    }

    fn take_in(&mut self) {
        while self.open && !self.free.is_empty() {
            match self.commands.try_recv() {
                Ok(Command::Post(posting)) => {
                    let slot = self.free.pop().expect("checked above");
                    self.slots[slot] = Some(posting);
                    self.turns.push_back(slot);
                }
                Ok(Command::Register { memory, registered }) => self.mover.register(&memory, registered),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.open = false,
            }
        }
    }

    fn start_pieces(&mut self) {
        'turns: while let Some(slot) = self.turns.pop_front() {
            let Some(posting) = &mut self.slots[slot] else { continue };
            for _ in 0..TURN {
                let Some(piece) = posting.next_piece() else { continue 'turns };
                if !self.mover.start(posting.plan(), piece, tag(slot, piece)) {
                    self.turns.push_front(slot);
                    return;
                }
                posting.started();
                self.counters.operation_started();
            }
            self.turns.push_back(slot);
        }
    }

    fn end(&mut self, end: Ended) {
        self.counters.operation_ended(end.result.is_ok().then_some(end.bytes));
        let (slot, piece) = slot_and_piece(end.tag);
        let posting = self.slots[slot].as_mut().expect("a slot is not reused while its pieces are under way");
        posting.ended(piece, end.result, end.checksums);
    }

    /// Ends what is over; the earliest deadline of the rest.
    fn sweep(&mut self, now: Instant) -> Option<Instant> {
        let mut earliest: Option<Instant> = None;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(posting) = slot else { continue };
            if posting.sweep(now, &self.counters) {
                *slot = None;
                self.turns.retain(|turn| *turn != index);
                self.free.push(index);
            } else if let Some(deadline) = posting.deadline() {
                earliest = Some(earliest.map_or(deadline, |earliest| earliest.min(deadline)));
            }
        }
        earliest
    }
}

fn tag(slot: usize, piece: usize) -> u64 {
    // A list has at most 2^22 descriptors, and there are fewer slots than that.
    (slot as u64) << 32 | piece as u64
}

fn slot_and_piece(tag: u64) -> (usize, usize) {
    ((tag >> 32) as usize, (tag & 0xffff_ffff) as usize)
}
