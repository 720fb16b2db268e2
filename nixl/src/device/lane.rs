//! Chunks of records on their way, several at a time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Device, DeviceError, DeviceMemory, PinnedMemory, RecordLayout};
use crate::sys::MemoryExtent;

/// A device that has not ended a chunk by then has failed: a chunk takes a millisecond.
pub(crate) const STUCK: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };
/// Looks at a chunk without a pause, and the pause between later ones.
const SPIN: Duration = Duration::from_micros(20);
const PAUSE: Duration = Duration::from_micros(20);
/// How often it is asked whether the device still works.
const ASK_EVERY: Duration = STUCK.checked_div(100).expect("a hundred is not zero");

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
    /// What lets the device use them by itself ([`Device::pin`]), held as long. Without it the copy is slow, and whoever begins
    /// it may have to wait for it.
    pub pinned: Option<Arc<PinnedMemory>>,
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
    /// Multiprocessors that gather and scatter may take, for some ten microseconds per chunk.
    pub multiprocessors: u32,
    /// Whether they are taken before an engine's waiting kernels. Those that run are not stopped.
    pub urgent: bool,
    /// A test's look at staging memory between the two steps of a chunk.
    #[doc(hidden)]
    pub between: Option<Between>,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self { chunk_bytes: 32 << 20, chunks: 6, multiprocessors: 32, urgent: true, between: None }
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

/// What moves a lane's chunks.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Begins to move records of the lane's layout through a chunk that is done, or was never begun.
    fn begin(&self, chunk: usize, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError>;
    /// After `begin` failed, and while nothing else is begun: waits until nothing of it moves any more. An error where that cannot
    /// be known.
    fn settle(&self, chunk: usize, way: Way) -> Result<(), DeviceError>;
    /// Whether the chunk's moves are over; never, where `begin` failed half way.
    fn is_done(&self, chunk: usize) -> bool;
    /// Why nothing will ever end any more, if that is so.
    fn is_alive(&self) -> Result<(), DeviceError>;
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
    /// Guards who has which chunk. Held for moments.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    chunks: Vec<Option<Flying>>,
    /// Checksums of flights whose chunk another one has by now.
    ended: Vec<(u64, Vec<u64>)>,
    flights: u64,
    /// Why nothing is begun any more.
    failure: Option<DeviceError>,
}

/// Who has a chunk.
#[derive(Debug, Clone, Copy)]
struct Flying {
    flight: u64,
    records: usize,
    /// Whether all of it is with the device. Before, what the device says is of the flight before it.
    begun: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first error: the others follow from it.
    fn fail(&self, error: &DeviceError) {
        self.lock().failure.get_or_insert_with(|| error.clone());
    }

    /// A chunk that nobody has. One whose flight has ended is taken from it: nobody has to wait for its owner.
    fn take_chunk(&self, state: &mut State) -> Option<usize> {
        if let Some(free) = state.chunks.iter().position(Option::is_none) {
            return Some(free);
        }
        let ended = |(chunk, flying): (usize, &Option<Flying>)| {
            flying.filter(|flying| flying.begun && self.backend.is_done(chunk)).map(|flying| (chunk, flying))
        };
        let (chunk, flying) = state.chunks.iter().enumerate().find_map(ended)?;
        state.ended.push((flying.flight, self.backend.sums(chunk, flying.records)));
        state.chunks[chunk] = None;
        Some(chunk)
    }

    /// The checksums of a flight, if it has ended.
    fn end(&self, flight: u64, chunk: usize) -> Option<Vec<u64>> {
        let mut state = self.lock();
        if let Some(at) = state.ended.iter().position(|(ended, _)| *ended == flight) {
            return Some(state.ended.swap_remove(at).1);
        }
        let flying = state.chunks[chunk].filter(|_| self.backend.is_done(chunk))?;
        state.chunks[chunk] = None;
        Some(self.backend.sums(chunk, flying.records))
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
        let state = State { chunks: vec![None; chunks], ended: Vec::new(), flights: 0, failure: None };
        Self(Arc::new(Shared { device, backend, layout, records_max, state: Mutex::new(state) }))
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

    /// Why nothing is moved any more, once the device has failed.
    pub fn failure(&self) -> Option<DeviceError> {
        self.0.lock().failure.clone()
    }

    /// Records of a chunk at most.
    pub fn records_max(&self) -> usize {
        self.0.records_max
    }

    /// Chunks under way at a time, at most.
    pub fn chunks(&self) -> usize {
        self.0.lock().chunks.len()
    }

    /// Begins to move at most [`Lane::records_max`] records, once the device has ended with one of the chunks. `None`: it had not
    /// until then.
    pub fn begin(&self, way: Way, moves: Vec<RecordMove>, until: Instant) -> Result<Option<Flight>, DeviceError> {
        let layout = &self.0.layout;
        let fits = |one: &RecordMove| one.index < layout.blocks() && one.host.len() == layout.record_bytes();
        if moves.len() > self.0.records_max || !moves.iter().all(fits) {
            return Err(DeviceError::Memory);
        }
        loop {
            let mut state = self.0.lock();
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if let Some(chunk) = self.0.take_chunk(&mut state) {
                state.flights += 1;
                let flight = state.flights;
                state.chunks[chunk] = Some(Flying { flight, records: moves.len(), begun: false });
                drop(state);
                let (lane, started) = (self.0.clone(), Instant::now());
                return self
                    .launch(Flight { lane, number: flight, chunk, moves, started, sums: None, gone: false }, way);
            }
            drop(state);
            if Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn launch(&self, flight: Flight, way: Way) -> Result<Option<Flight>, DeviceError> {
        match self.0.backend.begin(flight.chunk, way, &flight.moves) {
            Ok(()) => {
                if let Some(flying) = &mut self.0.lock().chunks[flight.chunk] {
                    flying.begun = true;
                }
                Ok(Some(flight))
            }
            // Of its chunk the device will never say that it has ended: it is used no more, and the lane neither.
            Err(error) => {
                self.0.fail(&error);
                let settled = self.0.backend.settle(flight.chunk, way);
                std::mem::forget(flight);
                settled.and(Err(error))
            }
        }
    }
}

/// A chunk under way. Dropped early it is waited for: when it is gone nothing of it moves any more.
#[derive(Debug)]
pub struct Flight {
    lane: Arc<Shared>,
    number: u64,
    chunk: usize,
    moves: Vec<RecordMove>,
    started: Instant,
    /// Once it has ended.
    sums: Option<Vec<u64>>,
    /// It did not end in time, or the device has failed.
    gone: bool,
}

impl Flight {
    /// Records on their way.
    pub fn records(&self) -> usize {
        self.moves.len()
    }

    /// Waits for the end. The checksums of all units that the device read, record after record, [`RecordLayout::units`] each.
    pub fn finish(mut self) -> Result<Vec<u64>, DeviceError> {
        self.wait()?;
        Ok(self.sums.as_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Until it has ended, or the device had its time. That is counted from the flight's beginning, so that several flights of a
    /// device that hangs are waited for once.
    fn wait(&mut self) -> Result<(), DeviceError> {
        let (waits, mut asked) = (Instant::now(), Duration::ZERO);
        while self.sums.is_none() && !self.gone {
            self.sums = self.lane.end(self.number, self.chunk);
            let waited = waits.elapsed();
            if self.sums.is_some() || waited < SPIN {
                std::hint::spin_loop();
                continue;
            }
            if waited - asked >= ASK_EVERY {
                asked = waited;
                let stuck = self.started.elapsed() >= STUCK;
                let stuck = if stuck { Err(DeviceError::Stuck { seconds: STUCK.as_secs() }) } else { Ok(()) };
                if let Err(error) = self.lane.backend.is_alive().and(stuck) {
                    // We may have stood still ourselves.
                    self.sums = self.lane.end(self.number, self.chunk);
                    self.gone = self.sums.is_none();
                    if self.gone {
                        self.lane.fail(&error);
                    }
                }
            }
            std::thread::sleep(PAUSE);
        }
        match &self.sums {
            Some(_) => Ok(()),
            None => Err(self.lane.lock().failure.clone().unwrap_or(DeviceError::Stuck { seconds: STUCK.as_secs() })),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.wait().is_err() {
            // The device may still write there: neither side's memory is ever given back.
            std::mem::forget((self.lane.clone(), std::mem::take(&mut self.moves)));
        }
    }
}

#[cfg(test)]
mod tests;
