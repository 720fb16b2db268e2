//! Chunks of records on their way, several at a time.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Device, DeviceError, DeviceMemory, RecordLayout};
use crate::sys::MemoryExtent;

/// A device that has not ended a chunk by then has failed: a chunk takes a millisecond.
const STUCK: Duration = Duration::from_secs(10);
/// Looks at a chunk without a pause, and the pause between later ones.
const SPIN: Duration = Duration::from_micros(20);
const PAUSE: Duration = Duration::from_micros(20);

/// Which way records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the device's memory into host memory.
    ToHost,
    /// From host memory into the device's memory.
    ToDevice,
}

/// One record on its way.
#[derive(Debug, Clone)]
pub struct RecordMove {
    /// Its bytes in host memory, in one piece. Held until the device has ended.
    pub host: MemoryExtent,
    /// Its block in the device's memory.
    pub index: usize,
    /// Seed of its checksums.
    pub seed: u64,
}

/// What a lane is made of.
#[derive(Debug, Clone)]
pub struct LaneOptions {
    /// Staging memory of a chunk, in bytes: a millisecond's worth of the bus hides what it costs to begin one. A record that is
    /// larger takes a chunk by itself.
    pub chunk_bytes: usize,
    /// Chunks under way at a time, two at least.
    pub chunks: usize,
    /// Multiprocessors that gather and scatter may take. They run at low priority, for some ten microseconds per chunk.
    pub multiprocessors: u32,
    /// A test's look at staging memory between the two steps of a chunk.
    #[doc(hidden)]
    pub between: Option<Between>,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self { chunk_bytes: 16 << 20, chunks: 4, multiprocessors: 16, between: None }
    }
}

/// Called between a chunk's two steps: what it does to staging memory must be found by checksums.
#[derive(Clone)]
pub struct Between(Arc<Look>);

type Look = dyn Fn(Way, &DeviceMemory) + Send + Sync;

impl Between {
    /// Calls `work`.
    pub fn new(work: impl Fn(Way, &DeviceMemory) + Send + Sync + 'static) -> Self {
        Self(Arc::new(work))
    }

    pub(crate) fn call(&self, way: Way, staging: &DeviceMemory) {
        (self.0)(way, staging);
    }
}

impl fmt::Debug for Between {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Between")
    }
}

/// What moves a lane's chunks. `begin` is called for a chunk that is done, and only for records of the lane's layout.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Begins to move records through a chunk.
    fn begin(&self, chunk: usize, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError>;
    /// Whether the chunk's moves are over.
    fn is_done(&self, chunk: usize) -> Result<bool, DeviceError>;
    /// The checksums of what the device read, record after record.
    fn sums(&self, chunk: usize, records: usize) -> Vec<u64>;
}

/// Moves records of one layout. Clones are the same lane; any number of threads share it.
#[derive(Debug, Clone)]
pub struct Lane(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    device: Device,
    backend: Box<dyn Backend>,
    layout: RecordLayout,
    records_max: usize,
    /// Guards which chunks are free. Held for moments.
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<usize>,
    lost: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self) {
        self.lock().lost = true;
        self.freed.notify_all();
    }
}

impl Lane {
    pub(super) fn new(
        device: Device,
        backend: Box<dyn Backend>,
        layout: RecordLayout,
        chunks: usize,
        records_max: usize,
    ) -> Self {
        let state = Mutex::new(State { free: (0..chunks).collect(), lost: false });
        Self(Arc::new(Shared { device, backend, layout, records_max, state, freed: Condvar::new() }))
    }

    /// Whose memory it is.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Whether both are the same lane.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How the records lie.
    pub fn layout(&self) -> &RecordLayout {
        &self.0.layout
    }

    /// Records of a chunk at most.
    pub fn records_max(&self) -> usize {
        self.0.records_max
    }

    /// Begins to move at most [`Lane::records_max`] records. Waits for a free chunk, so whoever has one under way already uses
    /// [`Lane::try_begin`]. `None`: there was none until then.
    pub fn begin(&self, way: Way, moves: Vec<RecordMove>, until: Instant) -> Result<Option<Flight>, DeviceError> {
        let mut state = self.0.lock();
        while state.free.is_empty() && !state.lost {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.0.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.launch(state, way, moves).map(Some)
    }

    /// The same, if a chunk is free now.
    pub fn try_begin(&self, way: Way, moves: Vec<RecordMove>) -> Result<Option<Flight>, DeviceError> {
        let state = self.0.lock();
        if state.free.is_empty() && !state.lost { Ok(None) } else { self.launch(state, way, moves).map(Some) }
    }

    fn launch(
        &self,
        mut state: MutexGuard<'_, State>,
        way: Way,
        moves: Vec<RecordMove>,
    ) -> Result<Flight, DeviceError> {
        let layout = &self.0.layout;
        let fits = |one: &RecordMove| one.index < layout.blocks() && one.host.len() == layout.record_bytes();
        if moves.len() > self.0.records_max || !moves.iter().all(fits) {
            return Err(DeviceError::Memory);
        }
        if state.lost {
            return Err(DeviceError::Lost);
        }
        let chunk = state.free.pop().ok_or(DeviceError::Lost)?;
        drop(state);
        let flight = Flight { lane: self.0.clone(), chunk, moves, over: false };
        match flight.lane.backend.begin(chunk, way, &flight.moves) {
            Ok(()) => Ok(flight),
            // What was begun of it may run on: it is waited for as any other.
            Err(error) => {
                flight.lane.lose();
                Err(error)
            }
        }
    }
}

/// A chunk under way. Dropped early it is waited for: when it is gone nothing of it moves any more.
#[derive(Debug)]
pub struct Flight {
    lane: Arc<Shared>,
    chunk: usize,
    moves: Vec<RecordMove>,
    over: bool,
}

impl Flight {
    /// Records on their way.
    pub fn records(&self) -> usize {
        self.moves.len()
    }

    /// Waits for the end. The checksums of all units that the device read, record after record, [`RecordLayout::units`] each.
    pub fn finish(mut self) -> Result<Vec<u64>, DeviceError> {
        self.wait()?;
        Ok(self.lane.backend.sums(self.chunk, self.moves.len()))
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        if self.over {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            let done = self.lane.backend.is_done(self.chunk);
            let waited = started.elapsed();
            match done {
                Ok(true) => {
                    self.over = true;
                    return Ok(());
                }
                Ok(false) if waited < SPIN => std::hint::spin_loop(),
                Ok(false) if waited < STUCK => std::thread::sleep(PAUSE),
                Ok(false) => {
                    self.lane.lose();
                    return Err(DeviceError::Stuck { seconds: STUCK.as_secs() });
                }
                Err(error) => {
                    self.lane.lose();
                    return Err(error);
                }
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.wait().is_ok() {
            self.lane.lock().free.push(self.chunk);
            self.lane.freed.notify_one();
        } else {
            // The device may still write there: neither side's memory is ever given back.
            std::mem::forget((self.lane.clone(), std::mem::take(&mut self.moves)));
        }
    }
}
