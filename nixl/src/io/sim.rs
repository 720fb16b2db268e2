//! A simulated disk: content in memory, a volatile cache in front of durable bytes, virtual time, one seed.
//!
//! [`SimDisk`] is the disk itself, held by the test; [`SimIo`] is the queue that device code owns. Operations complete
//! when the test steps the disk, in an order drawn from the seed. [`SimDisk::kill`] is the end of the process (what was
//! in flight landed or did not), [`SimDisk::crash`] is the end of power (unsynced writes are lost or torn as well).

mod content;
mod image;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use content::Content;

use super::{FileId, Io, IoDone, IoError, IoOp, IoWaker, Seeded};

/// The make of a simulated disk.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// Operations that may be in flight.
    pub depth: usize,
    /// Virtual time of the smallest operation; each takes between half and one and a half of it.
    pub latency: Duration,
    /// Virtual time that a MiB adds.
    pub latency_per_mib: Duration,
    /// Volatile cache per file: beyond it the oldest unsynced writes become durable by themselves, as in a real device.
    pub cache_bytes_max: usize,
}

impl Default for SimOptions {
    /// A plain NVMe device.
    fn default() -> Self {
        Self {
            depth: 64,
            latency: Duration::from_micros(80),
            latency_per_mib: Duration::from_micros(400),
            cache_bytes_max: 16 << 20,
        }
    }
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Guards everything; no other lock is taken under it.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    options: SimOptions,
    random: Seeded,
    now: Duration,
    slowdown: u32,
    automatic: bool,
    files: Vec<Content>,
    /// By the instant at which they complete, then by arrival.
    flight: BTreeMap<(Duration, u64), Flight>,
    arrivals: u64,
    done: VecDeque<IoDone>,
    woken: bool,
    /// The queue that is connected, if any; queues of dead processes have other numbers.
    connected: Option<u64>,
    connections: u64,
}

/// One operation on its way.
#[derive(Debug)]
struct Flight {
    op: IoOp,
    /// For a sync: the last write of its file whose completion the owner had seen when it asked.
    covers: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a failed test already; the state is only looked at for its report.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn step(&mut self) -> Option<Duration> {
        let ((due, _), flight) = self.flight.pop_first()?;
        self.now = self.now.max(due);
        let result = self.land(&flight);
        self.done.push_back(IoDone { tag: flight.op.tag, result, op: flight.op });
        Some(self.now)
    }

    fn land(&mut self, flight: &Flight) -> Result<(), IoError> {
        let cache_bytes_max = self.options.cache_bytes_max;
        let content = self.files.get_mut(flight.op.file.index()).ok_or(IoError::Malformed)?;
        content.land(&flight.op, flight.covers, cache_bytes_max)
    }

    fn latency(&mut self, op: &IoOp) -> Duration {
        let base = u64::try_from(self.options.latency.as_nanos()).unwrap_or(u64::MAX);
        let jittered = Duration::from_nanos(base / 2 + self.random.below(base.saturating_add(1)));
        let moving = self.options.latency_per_mib.mul_f64(op.bytes() as f64 / f64::from(1 << 20));
        (jittered + moving) * self.slowdown
    }
}

impl SimDisk {
    /// An empty disk whose order and latencies come from `seed`.
    pub fn new(seed: u64, options: SimOptions) -> Self {
        Self::with_files(seed, options, Vec::new())
    }

    fn with_files(seed: u64, options: SimOptions, files: Vec<Content>) -> Self {
        let state = State {
            options,
            random: Seeded::new(seed),
            now: Duration::ZERO,
            slowdown: 1,
            automatic: false,
            files,
            flight: BTreeMap::new(),
            arrivals: 0,
            done: VecDeque::new(),
            woken: false,
            connected: None,
            connections: 0,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// Adds a file of a fixed size, all zeros.
    pub fn add_file(&self, bytes: u64) -> FileId {
        let mut state = self.shared.lock();
        let id = FileId::new(u32::try_from(state.files.len()).expect("a test has few files"));
        state.files.push(Content::new(bytes));
        id
    }

    /// Connects the owner's queue.
    ///
    /// # Panics
    /// If another queue is still connected: a disk has one owner (drop it, or [`kill`](Self::kill) its process).
    pub fn io(&self) -> SimIo {
        let mut state = self.shared.lock();
        assert!(state.connected.is_none(), "the disk already has an owner");
        state.connections += 1;
        state.connected = Some(state.connections);
        SimIo { shared: Arc::clone(&self.shared), connection: state.connections }
    }

    /// Whether `poll` and `wait` of the owner step the disk by themselves, for owners with a thread of their own.
    pub fn set_automatic(&self, automatic: bool) {
        self.shared.lock().automatic = automatic;
        self.shared.changed.notify_all();
    }

    /// Makes every operation submitted from now on `factor` times slower.
    pub fn set_slowdown(&self, factor: u32) {
        self.shared.lock().slowdown = factor;
    }

    /// Virtual time since the disk was made.
    pub fn now(&self) -> Duration {
        self.shared.lock().now
    }

    /// The virtual instant at which the next operation completes.
    pub fn next_due(&self) -> Option<Duration> {
        self.shared.lock().flight.first_key_value().map(|((due, _), _)| *due)
    }

    /// Completes the operation that is due next and moves time there; `None` when nothing is in flight.
    pub fn step(&self) -> Option<Duration> {
        let stepped = self.shared.lock().step();
        self.shared.changed.notify_all();
        stepped
    }

    /// Completes everything due until `now`, and moves time there.
    pub fn advance(&self, now: Duration) {
        let mut state = self.shared.lock();
        while state.flight.first_key_value().is_some_and(|((due, _), _)| *due <= now) {
            state.step();
        }
        state.now = state.now.max(now);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The owner's process is gone: each operation in flight lands or not, by the seed; nobody sees completions. What
    /// had landed stays, synced or not. The next owner may connect.
    pub fn kill(&self) {
        let mut state = self.shared.lock();
        while let Some((_, flight)) = state.flight.pop_first() {
            if state.random.chance(500_000) {
                // Nobody is left to be told how it ended.
                let _ = state.land(&flight);
            }
        }
        state.done.clear();
        state.connected = None;
    }

    /// What power loss at this instant leaves behind, as a disk of its own; this one is not changed, so that many
    /// seeds can be tried from one state. Every unsynced or unfinished write survives whole, in part (torn at 4 KiB or
    /// 512 bytes) or not at all, independently of older and newer ones.
    pub fn crash(&self, seed: u64) -> Self {
        let state = self.shared.lock();
        let mut random = Seeded::new(seed);
        let mut files = Vec::new();
        for (index, content) in state.files.iter().enumerate() {
            let in_flight = state.flight.values().map(|flight| &flight.op).filter(|op| op.file.index() == index);
            files.push(content.after_power_loss(in_flight, &mut random));
        }
        Self::with_files(random.bits(), state.options, files)
    }

    /// Copies out what the file holds now, past any queue: for oracles.
    pub fn inspect(&self, file: FileId, offset: u64, bytes: &mut [u8]) {
        self.shared.lock().files[file.index()].inspect(offset, bytes);
    }

    /// Changes what the file holds, cached and durable, past any queue: rot, and tests that flip bits.
    pub fn alter(&self, file: FileId, offset: u64, bytes: &[u8]) {
        self.shared.lock().files[file.index()].alter(offset, bytes);
    }
}

/// The owner's queue to a [`SimDisk`].
#[derive(Debug)]
pub struct SimIo {
    shared: Arc<Shared>,
    connection: u64,
}

impl SimIo {
    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.shared.lock();
        (state.connected == Some(self.connection)).then_some(state)
    }
}

impl Io for SimIo {
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        let Some(mut state) = self.lock() else { return Err(op) };
        if state.flight.len() + state.done.len() >= state.options.depth {
            return Err(op);
        }
        let due = state.now + state.latency(&op);
        let covers = state.files.get(op.file.index()).map_or(0, Content::seen);
        state.arrivals += 1;
        let key = (due, state.arrivals);
        state.flight.insert(key, Flight { op, covers });
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<IoDone>) {
        let Some(mut state) = self.lock() else { return };
        if state.automatic && state.done.is_empty() {
            state.step();
        }
        done.extend(state.done.drain(..));
        state.files.iter_mut().for_each(Content::mark_seen);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let Some(state) = self.lock() else { return };
        let idle = |state: &mut State| {
            if state.automatic && state.done.is_empty() {
                state.step();
            }
            state.done.is_empty() && !state.woken
        };
        let changed = &self.shared.changed;
        let mut state = match timeout {
            None => changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => changed.wait_timeout_while(state, limit, idle).unwrap_or_else(PoisonError::into_inner).0,
        };
        state.woken = false;
    }

    fn in_flight(&self) -> usize {
        self.lock().map_or(0, |state| state.flight.len() + state.done.len())
    }

    fn waker(&self) -> IoWaker {
        let shared = Arc::clone(&self.shared);
        IoWaker::new(move || {
            shared.lock().woken = true;
            shared.changed.notify_all();
        })
    }
}

impl Drop for SimIo {
    /// An orderly end: what is in flight lands first.
    fn drop(&mut self) {
        if let Some(mut state) = self.lock() {
            while state.step().is_some() {}
            state.done.clear();
            state.connected = None;
        }
    }
}
