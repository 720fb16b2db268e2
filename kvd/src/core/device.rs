//! One thread per NVMe device: it owns the device, its queue, and the verification of what it reads.
//!
//! The thread opens the device, streams what it finds to the core, and then carries out orders until their channel closes.
//! The queue of an io_uring belongs to the thread that made it, so everything about a device happens here.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError};
use kvd_nixl::io::{BlockingIo, BlockingOptions, FileId, Io, IoWaker, TooManyFiles, UringError, UringIo, UringOptions};
use kvd_nixl::sys::{EventFd, Memory, MemoryExtent, Signal};
use kvd_proto::Epoch;
use kvd_tiers::ladder::{DeviceFault, Outcome};
use kvd_tiers::nvme::{
    Command, Device, DeviceOptions, Failure, FileError, Finished, OpenError, OpenOptions, PreparedFile, Restored, Uuid,
    formatted_zones, prepare,
};
use kvd_tiers::{DeviceId, MoveId, SegmentId};
use thiserror::Error;

use crate::core::admin::DeviceState;
use crate::core::clock;
use crate::core::options::IoChoice;
use crate::core::predecessor::patiently;
use crate::metrics::counters::Counters;

/// Orders that may wait for a device. The ladder's own bounds per device are far below.
pub(super) const ORDERS_WAITING_MAX: usize = 512;
/// Found records per message to the core.
const RESTORED_PER_MESSAGE: usize = 1024;
/// Messages of found records that may wait for the core.
pub(super) const FOUND_WAITING_MAX: usize = 16;
/// How long to wait for the lock of a device whose last user's I/O is still being drained.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// The longest sleep of a device thread: what it costs to miss a wake-up.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// The move that stands for the flush before the end; the ladder counts from 1.
const LAST_FLUSH: MoveId = MoveId(u64::MAX);

/// Why a device cannot be used.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Its file cannot be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it holds cannot be taken over.
    #[error("{}: {source}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// io_uring was asked for and is not to be had.
    #[error("{}: {source}; tiers.nvme.io = \"auto\" falls back to threads", path.display())]
    Uring {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: UringError,
    },
    /// No thread, no descriptors.
    #[error("{}: {source}", path.display())]
    System {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A bound of the I/O below.
    #[error(transparent)]
    Files(#[from] TooManyFiles),
}

/// How a device is opened.
#[derive(Debug, Clone)]
pub(super) struct DeviceSetup {
    pub(super) id: DeviceId,
    pub(super) path: PathBuf,
    pub(super) capacity_bytes: u64,
    pub(super) io: IoChoice,
    pub(super) read_bytes_per_second_max: Option<u64>,
    pub(super) write_bytes_per_second_max: Option<u64>,
    pub(super) epoch: Epoch,
    pub(super) uuid: Uuid,
}

/// What a device thread tells while it opens.
pub(super) enum Opening {
    /// The file is ours; the device has, or will get, so many zones.
    Prepared { zones: u32 },
    /// What it holds.
    Found(Vec<Restored>),
    /// It takes orders now.
    Ready(Opened),
    /// It cannot be used.
    Failed(DeviceError),
}

/// A device that takes orders.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) zones: u32,
    pub(super) epoch: Epoch,
    pub(super) records: u64,
    pub(super) reformatted: Option<&'static str>,
    pub(super) waker: IoWaker,
    pub(super) io: &'static str,
}

/// A command, and the segment that its memory belongs to, so that the I/O below can keep it pinned.
pub(super) struct Order {
    pub(super) command: Command,
    pub(super) segment: Option<SegmentId>,
}

/// How a device is, for operators. Written by its thread.
#[derive(Debug, Default)]
pub(super) struct DeviceHealth {
    state: AtomicU8,
    /// Guards the text alone; nothing is called under it.
    last_error: Mutex<Option<String>>,
}

impl DeviceHealth {
    pub(super) fn state(&self) -> DeviceState {
        // Relaxed: a report orders nothing.
        match self.state.load(Ordering::Relaxed) {
            0 => DeviceState::Ok,
            1 => DeviceState::ReadOnly,
            _ => DeviceState::Failed,
        }
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `true` if the state changed.
    fn set(&self, state: DeviceState) -> bool {
        let code = match state {
            DeviceState::Ok => 0,
            DeviceState::ReadOnly => 1,
            DeviceState::Failed => 2,
        };
        self.state.swap(code, Ordering::Relaxed) != code
    }

    fn remember(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// The device thread's ends of its channels.
pub(super) struct DeviceEnds {
    pub(super) opening: Sender<Opening>,
    pub(super) orders: Receiver<Order>,
    pub(super) outcomes: Sender<(MoveId, Outcome)>,
    pub(super) doorbell: Arc<EventFd>,
    pub(super) counters: Arc<Counters>,
    pub(super) health: Arc<DeviceHealth>,
}

/// Starts the thread of a device. It ends when the channel of its orders closes, after a flush.
pub(super) fn spawn(setup: DeviceSetup, ends: DeviceEnds) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("kvd-nvme-{}", setup.id.0)).spawn(move || {
        if let Err(error) = open_and_run(&setup, &ends) {
            // Nobody listening means that the start was given up for another reason.
            let _ = ends.opening.send(Opening::Failed(error));
        }
    })
}

fn open_and_run(setup: &DeviceSetup, ends: &DeviceEnds) -> Result<(), DeviceError> {
    let prepared = prepare_patiently(setup)?;
    if setup.io != IoChoice::Blocking {
        match UringIo::new(UringOptions::default()) {
            Ok(mut io) => {
                let file = io.add_file(Arc::clone(&prepared.file))?;
                return run(setup, ends, &prepared, (io, file, "uring"));
            }
            Err(source) if setup.io == IoChoice::Uring => {
                return Err(DeviceError::Uring { path: setup.path.clone(), source });
            }
            Err(error) => {
                tracing::warn!(device = %setup.path.display(), %error, "threads read and write instead of io_uring");
            }
        }
    }
    let system = |source| DeviceError::System { path: setup.path.clone(), source };
    let mut io = BlockingIo::new(BlockingOptions::default()).map_err(system)?;
    let file = io.add_file(Arc::clone(&prepared.file))?;
    run(setup, ends, &prepared, (io, file, "blocking"))
}

/// Takes the file over. The kernel lets go of a predecessor's lock when it has drained the last of its I/O, a moment after
/// the process is gone.
fn prepare_patiently(setup: &DeviceSetup) -> Result<PreparedFile, FileError> {
    let locked = |error: &FileError| matches!(error, FileError::Locked { .. });
    patiently(LOCK_PATIENCE, locked, || prepare(&setup.path, setup.capacity_bytes))
}

fn run<I: Io>(
    setup: &DeviceSetup,
    ends: &DeviceEnds,
    prepared: &PreparedFile,
    (mut io, file, kind): (I, FileId, &'static str),
) -> Result<(), DeviceError> {
    let failed = |source| DeviceError::Open { path: setup.path.clone(), source };
    // A device that was formatted before keeps its size, whatever was configured since.
    let zones = formatted_zones(&mut io, file, prepared.bytes).map_err(failed)?;
    let kept = zones.unwrap_or(prepared.geometry.zones());
    if kept != prepared.wanted.zones() {
        tracing::warn!(
            device = %setup.path.display(),
            zones = kept,
            configured = prepared.wanted.zones(),
            "the device keeps the size it was made with, whatever tiers.nvme.capacity says now: to change it, stop, remove the file, and start"
        );
    }
    let _ = ends.opening.send(Opening::Prepared { zones: kept });
    let open = OpenOptions { bytes: prepared.bytes, geometry: prepared.geometry, uuid: setup.uuid, epoch: setup.epoch };
    let options = DeviceOptions {
        read_bandwidth_max: setup.read_bytes_per_second_max,
        write_bandwidth_max: setup.write_bytes_per_second_max,
        moves_max: ORDERS_WAITING_MAX,
        ..DeviceOptions::new(setup.id)
    };
    let mut found = Vec::with_capacity(RESTORED_PER_MESSAGE);
    let mut show = |one| {
        found.push(one);
        if found.len() == RESTORED_PER_MESSAGE {
            let full = std::mem::replace(&mut found, Vec::with_capacity(RESTORED_PER_MESSAGE));
            let _ = ends.opening.send(Opening::Found(full));
        }
    };
    let opened = Device::open(io, file, open, options, &mut show);
    let (device, opened) = opened.map_err(failed)?;
    let _ = ends.opening.send(Opening::Found(found));
    let _ = ends.opening.send(Opening::Ready(Opened {
        zones: device.geometry().zones(),
        epoch: opened.epoch,
        records: opened.records,
        reformatted: opened.reformatted,
        waker: device.waker(),
        io: kind,
    }));
    Worker { device, ends, path: &setup.path, id: setup.id, writes: HashMap::new(), registered: HashMap::new() }.work();
    Ok(())
}

/// A device at work.
struct Worker<'a, I> {
    device: Device<I>,
    ends: &'a DeviceEnds,
    path: &'a Path,
    id: DeviceId,
    /// Whether an unanswered order writes; at most [`ORDERS_WAITING_MAX`].
    writes: HashMap<MoveId, bool>,
    /// Memory told to the I/O below, by segment: at most one per segment of the arena.
    registered: HashMap<SegmentId, Arc<dyn Memory>>,
}

impl<I: Io> Worker<'_, I> {
    fn work(mut self) {
        let mut open = true;
        while open || self.device.unanswered() > 0 {
            open = open && self.take_orders();
            self.device.pump(clock::now());
            self.answer();
            let now = clock::now();
            let wait = self.device.poll_timeout().map_or(SLEEP_MAX, |at| at.since(now).min(SLEEP_MAX));
            if !wait.is_zero() && (open || self.device.unanswered() > 0) {
                self.device.wait(Some(wait));
            }
        }
    }

    /// Gives waiting orders to the device; `false` once there will be no more.
    fn take_orders(&mut self) -> bool {
        while self.device.unanswered() < ORDERS_WAITING_MAX {
            match self.ends.orders.try_recv() {
                Ok(order) => self.give(order),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    self.give(Order { command: Command::Flush { id: LAST_FLUSH }, segment: None });
                    return false;
                }
            }
        }
        true
    }

    fn give(&mut self, order: Order) {
        let id = order.command.id();
        let (writes, memory) = match &order.command {
            Command::Write { memory, .. } => (true, Some(memory)),
            Command::Read { memory, .. } => (false, Some(memory)),
            Command::Vacate { .. } | Command::FormatZone { .. } | Command::Flush { .. } => (true, None),
            Command::Verify { .. } | Command::Probe { .. } => (false, None),
        };
        if let (Some(segment), Some(memory)) = (order.segment, memory) {
            self.register(segment, &memory.clone());
        }
        self.writes.insert(id, writes);
        if self.device.handle(order.command, clock::now()).is_err() {
            // take_orders leaves room for one, so this cannot be; an answer is owed all the same.
            self.writes.remove(&id);
            self.tell(id, Outcome::Failed(DeviceFault::Io));
        }
        self.ends.counters.device(self.id.0).queued.set(self.device.unanswered() as u64);
    }

    /// Keeps the segment's memory pinned for the I/O below. A segment that was made anew replaces its former memory.
    fn register(&mut self, segment: SegmentId, memory: &MemoryExtent) {
        let memory = memory.memory();
        match self.registered.get(&segment) {
            Some(before) if Arc::ptr_eq(before, memory) => return,
            Some(before) => self.device.unregister_memory(&before.clone()),
            None => {}
        }
        // Refused or not, it is not tried again: operations work either way.
        self.device.register_memory(memory);
        self.registered.insert(segment, Arc::clone(memory));
    }

    fn answer(&mut self) {
        let mut finished: Vec<Finished> = Vec::new();
        self.device.take_outcomes(|one| finished.push(one));
        if finished.is_empty() {
            return;
        }
        for one in &finished {
            self.count(one);
            if one.id != LAST_FLUSH {
                self.tell(one.id, one.outcome());
            }
        }
        self.ends.counters.device(self.id.0).queued.set(self.device.unanswered() as u64);
        let _ = self.ends.doorbell.signal();
    }

    fn tell(&self, id: MoveId, outcome: Outcome) {
        // The core takes outcomes in every turn; one that is gone needs none.
        let _ = self.ends.outcomes.send((id, outcome));
    }

    fn count(&mut self, finished: &Finished) {
        let writes = self.writes.remove(&finished.id).unwrap_or(false);
        let counters = self.ends.counters.device(self.id.0);
        match &finished.result {
            Ok(moved) => {
                let (times, bytes) = if writes {
                    (&counters.writes, &counters.written_bytes)
                } else {
                    (&counters.reads, &counters.read_bytes)
                };
                times.add(1);
                bytes.add(moved.bytes);
                counters.latency.record(moved.took);
                // A read that works says nothing of writes.
                let better = writes || self.ends.health.state() == DeviceState::Failed;
                if better && self.ends.health.set(DeviceState::Ok) {
                    tracing::info!(device = %self.path.display(), "the device works again");
                }
            }
            Err(Failure::Corrupt(mismatch)) => {
                tracing::warn!(device = %self.path.display(), %mismatch, "a record on the device is corrupt");
            }
            Err(failure @ (Failure::Io(_) | Failure::Refused(_))) => {
                let errors = if writes { &counters.write_errors } else { &counters.read_errors };
                errors.add(1);
                self.ends.health.remember(failure.to_string());
                let state = match finished.outcome() {
                    Outcome::Failed(DeviceFault::Gone) => DeviceState::Failed,
                    _ if writes => DeviceState::ReadOnly,
                    _ => DeviceState::Failed,
                };
                if self.ends.health.set(state) {
                    tracing::error!(device = %self.path.display(), %failure, state = state.as_str(), "the device fails");
                }
            }
        }
    }
}
