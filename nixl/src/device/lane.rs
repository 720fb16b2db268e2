//! Chunks of records on their way, several at a time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Device, DeviceError, DeviceMemory, LayoutError, PinnedMemory, RecordLayout, Stretch};
use crate::sys::MemoryExtent;

/// A device that has not ended a chunk by then has failed: a chunk takes a millisecond.
pub(crate) const STUCK: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };
/// Looks at a chunk without a pause, and the pause between later ones.
const SPIN: Duration = Duration::from_micros(20);
const PAUSE: Duration = Duration::from_micros(20);
/// How often it is asked whether the device still works.
const ASK_EVERY: Duration = STUCK.checked_div(100).expect("a hundred is not zero");

/// Of records that are smaller than the lane's own a chunk takes so many times as many.
const SMALLER: usize = 16;
/// Pieces that the table of a chunk has room for, beyond those of the lane's own records.
const PIECES_MAX: usize = 4096;

/// Why a lane cannot move parts of other records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// They are no part.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The device did not take it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

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
    /// Multiprocessors that gather and scatter may take, for some ten microseconds per chunk; parts with short rows take four for a
    /// millisecond. Fewer take longer, and an engine whose kernels are short waits for them as long: beside 64 it loses less than beside
    /// 32, 16 or 8.
    pub multiprocessors: u32,
    /// Whether they are taken before an engine's waiting kernels. Those that run are not stopped.
    pub urgent: bool,
    /// A test's look at staging memory between the two steps of a chunk.
    #[doc(hidden)]
    pub between: Option<Between>,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self { chunk_bytes: 32 << 20, chunks: 6, multiprocessors: 64, urgent: true, between: None }
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

/// What each chunk of a lane has room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) staging_bytes: usize,
    pub(crate) records: usize,
    pub(crate) sums: usize,
    pub(crate) pieces: usize,
}

impl Room {
    /// For records of this layout that fill the bytes, one at least, and for as much of smaller ones.
    pub(crate) fn of(layout: &RecordLayout, chunk_bytes: usize) -> Self {
        let records = (chunk_bytes / layout.staging_stride()).max(1);
        let staging_bytes = records * layout.staging_stride();
        let pieces = layout.pieces().len().max(layout.units().min(PIECES_MAX));
        Self { staging_bytes, records: records * SMALLER, sums: records * layout.units(), pieces }
    }

    fn records_of(&self, layout: &RecordLayout) -> usize {
        self.records.min(self.staging_bytes / layout.staging_stride()).min(self.sums / layout.units())
    }
}

/// How a lane moves records of one layout.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) layout: RecordLayout,
    /// What the device must know of the layout. It goes there with the first chunk of this course.
    pub(crate) table: Vec<u8>,
    /// Tells it from others of its lane.
    pub(crate) number: u64,
    records_max: usize,
}

/// What moves a lane's chunks.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// What the device must know of a layout. Asks nothing of the driver.
    fn table(&self, layout: &RecordLayout) -> Result<Vec<u8>, DeviceError>;
    /// Begins to move records of a course through a chunk that is done, or was never begun.
    fn begin(&self, chunk: usize, course: &Course, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError>;
    /// After `begin` failed, and while nothing else is begun: waits until nothing of it moves any more. An error where that cannot
    /// be known.
    fn settle(&self, chunk: usize, way: Way) -> Result<(), DeviceError>;
    /// Whether the chunk's moves are over; never, where `begin` failed half way.
    fn is_done(&self, chunk: usize) -> bool;
    /// Why nothing will ever end any more, if that is so.
    fn is_alive(&self) -> Result<(), DeviceError>;
    /// So many checksums of what the device read, record after record.
    fn sums(&self, chunk: usize, count: usize) -> Vec<u64>;
}

/// Moves records of one layout. Clones are the same lane; any number of threads share it.
#[derive(Debug, Clone)]
pub struct Lane {
    shared: Arc<Shared>,
    course: Arc<Course>,
}

#[derive(Debug)]
struct Shared {
    device: Device,
    backend: Box<dyn Backend>,
    room: Room,
    /// Guards who has which chunk. Held for moments.
    state: Mutex<State>,
    /// Of the next course.
    number: AtomicU64,
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
    sums: usize,
    /// Whether all of it is with the device. Before, what the device says is of the flight before it.
    begun: bool,
}

impl Shared {
    fn course(&self, layout: RecordLayout) -> Result<Arc<Course>, DeviceError> {
        let records_max = self.room.records_of(&layout);
        if records_max == 0 || layout.pieces().len() > self.room.pieces {
            return Err(DeviceError::Memory);
        }
        let table = self.backend.table(&layout)?;
        // Relaxed: a number is handed out, nothing with it.
        Ok(Arc::new(Course { layout, table, number: self.number.fetch_add(1, Ordering::Relaxed), records_max }))
    }

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
        state.ended.push((flying.flight, self.backend.sums(chunk, flying.sums)));
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
        Some(self.backend.sums(chunk, flying.sums))
    }
}

impl Lane {
    pub(super) fn new(
        device: Device,
        backend: Box<dyn Backend>,
        layout: RecordLayout,
        chunks: usize,
        room: Room,
    ) -> Result<Self, DeviceError> {
        let state = State { chunks: vec![None; chunks], ended: Vec::new(), flights: 0, failure: None };
        // 0: none.
        let shared = Shared { device, backend, room, state: Mutex::new(state), number: AtomicU64::new(1) };
        let course = shared.course(layout)?;
        Ok(Self { shared: Arc::new(shared), course })
    }

    /// A lane for other records, of `record_bytes` each, of which these stretches lie in the memory of this one's. Both share chunks
    /// and fail together; nothing is asked of the device.
    pub fn part(&self, record_bytes: usize, stretches: &[Stretch]) -> Result<Self, PartError> {
        let course = self.shared.course(self.course.layout.part(record_bytes, stretches)?)?;
        Ok(Self { shared: self.shared.clone(), course })
    }

    /// Whose memory it is.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// Whether both are the same lane.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.course, &other.course)
    }

    /// How the records lie.
    pub fn layout(&self) -> &RecordLayout {
        &self.course.layout
    }

    /// Why nothing is moved any more, once the device has failed.
    pub fn failure(&self) -> Option<DeviceError> {
        self.shared.lock().failure.clone()
    }

    /// Records of a chunk at most.
    pub fn records_max(&self) -> usize {
        self.course.records_max
    }

    /// Chunks under way at a time, at most.
    pub fn chunks(&self) -> usize {
        self.shared.lock().chunks.len()
    }

    /// Begins to move at most [`Lane::records_max`] records, once the device has ended with one of the chunks. `None`: it had not
    /// until then.
    pub fn begin(&self, way: Way, moves: Vec<RecordMove>, until: Instant) -> Result<Option<Flight>, DeviceError> {
        let layout = self.layout();
        let fits = |one: &RecordMove| one.index < layout.blocks() && one.host.len() == layout.record_bytes();
        if moves.len() > self.records_max() || !moves.iter().all(fits) {
            return Err(DeviceError::Memory);
        }
        loop {
            let mut state = self.shared.lock();
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if let Some(chunk) = self.shared.take_chunk(&mut state) {
                state.flights += 1;
                let flight = state.flights;
                let sums = moves.len() * layout.units();
                state.chunks[chunk] = Some(Flying { flight, sums, begun: false });
                drop(state);
                let (lane, started) = (self.clone(), Instant::now());
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
        match self.shared.backend.begin(flight.chunk, &self.course, way, &flight.moves) {
            Ok(()) => {
                if let Some(flying) = &mut self.shared.lock().chunks[flight.chunk] {
                    flying.begun = true;
                }
                Ok(Some(flight))
            }
            // Of its chunk the device will never say that it has ended: it is used no more, and the lane neither.
            Err(error) => {
                self.shared.fail(&error);
                let settled = self.shared.backend.settle(flight.chunk, way);
                std::mem::forget(flight);
                settled.and(Err(error))
            }
        }
    }
}

/// A chunk under way. Dropped early it is waited for: when it is gone nothing of it moves any more.
#[derive(Debug)]
pub struct Flight {
    lane: Lane,
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
            self.sums = self.lane.shared.end(self.number, self.chunk);
            let waited = waits.elapsed();
            if self.sums.is_some() || waited < SPIN {
                std::hint::spin_loop();
                continue;
            }
            if waited - asked >= ASK_EVERY {
                asked = waited;
                let stuck = self.started.elapsed() >= STUCK;
                let stuck = if stuck { Err(DeviceError::Stuck { seconds: STUCK.as_secs() }) } else { Ok(()) };
                if let Err(error) = self.lane.shared.backend.is_alive().and(stuck) {
                    // We may have stood still ourselves.
                    self.sums = self.lane.shared.end(self.number, self.chunk);
                    self.gone = self.sums.is_none();
                    if self.gone {
                        self.lane.shared.fail(&error);
                    }
                }
            }
            std::thread::sleep(PAUSE);
        }
        match &self.sums {
            Some(_) => Ok(()),
            None => {
                Err(self.lane.shared.lock().failure.clone().unwrap_or(DeviceError::Stuck { seconds: STUCK.as_secs() }))
            }
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
