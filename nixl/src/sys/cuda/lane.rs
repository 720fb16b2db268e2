//! Chunks on a GPU: a kernel between the engine's memory and staging memory, copies between that and the host.
//!
//! A way has a stream for its copies, and each chunk one for its kernels: the kernel of one chunk runs while the bytes of another
//! are on the bus, and where an engine's kernels leave room for a moment only, those of all chunks that wait run in it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use super::copies::{self, Stretches};
use super::driver::{Gpu, check};
use super::job::{Job, PIECE_BYTES, Piece, RECORD_BYTES, Record};
use super::memory::{CudaExtent, HostMemory};
use super::stream::{Event, Priority, Stream};
use crate::device::{
    Backend, Between, Course, DeviceError, DeviceMemory, LaneOptions, Place, Placed, RecordLayout, RecordMove, Room,
    STUCK, Way,
};
use crate::sys::MemoryExtent;
use crate::sys::memory::Memory;

/// Threads of a block, as the kernels are compiled for.
const THREADS: u32 = 512;
/// Rows of a record up to this are read and written over the bus by the kernel itself in every other chunk, for a copy engine takes
/// too long from one to the next: of rows of 16 KiB it moves two thirds of what the bus can, of 32 KiB four fifths. The other chunks
/// go by copies: together they move more than either alone.
const NARROW_BYTES: usize = 32 << 10;
/// Rows up to this are in all chunks: by copies half as much, which holds up the rest.
const NARROWEST_BYTES: usize = 8 << 10;
/// Multiprocessors for that, of each such chunk: taken for as long as the bus needs, a millisecond, and with more it is not faster.
const NARROW_MULTIPROCESSORS: u32 = 4;

/// A lane's side on the device.
#[derive(Debug)]
pub(crate) struct CudaLane {
    to_host: Stream,
    to_device: Stream,
    chunks: Vec<Chunk>,
    multiprocessors: u32,
    between: Option<Between>,
    // Behind all that was made in its context.
    gpu: Gpu,
}

#[derive(Debug)]
struct Chunk {
    kernels: Stream,
    staging: CudaExtent,
    /// How often it has ended, as the device writes it; then a row for each record, and behind them their checksums. We look at
    /// that number and ask no function of the driver: its locks are the engine's too. Last a table of pieces.
    table: HostMemory,
    sums_at: usize,
    /// The table of pieces on the device, and where it is uploaded from.
    pieces: CudaExtent,
    pieces_at: usize,
    /// Whose it is: that of a flight before, mostly.
    course: AtomicU64,
    half: Event,
    begun: AtomicU32,
}

/// Where the device says how often a chunk has ended.
const ENDED_AT: usize = 0;
const ROWS_AT: usize = 64;

impl Gpu {
    pub(crate) fn lane(&self, chunks: usize, room: &Room, options: &LaneOptions) -> Result<CudaLane, DeviceError> {
        let priority = if options.urgent { Priority::Highest } else { Priority::Usual };
        let chunk = || {
            let sums_at = (ROWS_AT + room.records * RECORD_BYTES).next_multiple_of(64);
            let pieces_at = sums_at + (room.sums * 8).next_multiple_of(64);
            Ok(Chunk {
                kernels: Stream::new(self, priority)?,
                staging: self.allocate(room.staging_bytes)?,
                table: self.host(pieces_at + room.pieces * PIECE_BYTES)?,
                sums_at,
                pieces: self.allocate(room.pieces * PIECE_BYTES)?,
                pieces_at,
                course: AtomicU64::new(0),
                half: Event::new(self)?,
                begun: AtomicU32::new(0),
            })
        };
        Ok(CudaLane {
            to_host: Stream::new(self, priority)?,
            to_device: Stream::new(self, priority)?,
            chunks: (0..chunks).map(|_| chunk()).collect::<Result<_, DeviceError>>()?,
            multiprocessors: options.multiprocessors.max(1),
            between: options.between.clone(),
            gpu: self.clone(),
        })
    }
}

/// The table of pieces as the kernels read it.
fn describe(gpu: &Gpu, layout: &RecordLayout) -> Result<Vec<u8>, DeviceError> {
    let mut rows = Vec::new();
    let small = |value: usize| u32::try_from(value).map_err(|_| DeviceError::Memory);
    for Placed { piece, bytes, in_record, in_staging } in layout.pieces() {
        let Place::Cuda(memory) = piece.memory.place() else { return Err(DeviceError::Memory) };
        if !memory.gpu().is(gpu) {
            return Err(DeviceError::Memory);
        }
        let run = &piece.run;
        let [slow, middle, fast] = run.axes;
        let row = Piece {
            base: memory.address() + run.offset as u64,
            block_stride: piece.block_stride as u64,
            strides: [slow.stride as u64, middle.stride as u64, fast.stride as u64],
            counts: [small(slow.count)?, small(middle.count)?, small(fast.count)?],
            fragment_bytes: small(run.fragment_bytes)?,
            flat_offset: small(*in_staging)?,
            bytes: small(*bytes)?,
            first_unit: small(in_staging / layout.unit_bytes())?,
            record_unit: small(in_record / layout.unit_bytes())?,
            in_record: small(*in_record)?,
            reserved: 0,
        };
        rows.extend(row.to_bytes());
    }
    Ok(rows)
}

/// How the bytes of a chunk's records come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// By copies, between which and the engine's memory they lie in staging memory.
    Staged,
    /// By the kernel alone.
    Straight,
}

/// Where kernels find host memory that is pinned, on a GPU that has the same addresses.
fn address(host: &MemoryExtent) -> u64 {
    host.as_ptr().addr() as u64
}

/// Where what moves of a record lies in a chunk's staging memory.
fn flat(chunk: &Chunk, layout: &RecordLayout, at: usize) -> u64 {
    chunk.staging.address() + (at * layout.staging_stride()) as u64
}

impl CudaLane {
    fn copies(&self, way: Way) -> &Stream {
        match way {
            Way::ToHost => &self.to_host,
            Way::ToDevice => &self.to_device,
        }
    }

    /// Kernels reach pinned memory only. Who looks between two steps gets two steps.
    fn means(&self, chunk: usize, layout: &RecordLayout, moves: &[RecordMove]) -> Means {
        let narrow_bytes = if chunk % 2 == 1 { NARROW_BYTES } else { NARROWEST_BYTES };
        let narrow = layout.rows().iter().any(|rows| rows.count > 1 && rows.bytes <= narrow_bytes);
        let pinned = |one: &RecordMove| one.pinned.as_ref().is_some_and(|pinned| pinned.covers(&one.host));
        let reached = |one: &RecordMove| pinned(one) && address(&one.host).is_multiple_of(16);
        let can = narrow && self.gpu.has_same_addresses() && self.between.is_none();
        if can && moves.iter().all(reached) { Means::Straight } else { Means::Staged }
    }

    fn launch(
        &self,
        chunk: &Chunk,
        course: &Course,
        (way, means): (Way, Means),
        records: usize,
    ) -> Result<(), DeviceError> {
        let small = |value: usize| u32::try_from(value).map_err(|_| DeviceError::Memory);
        let layout = &course.layout;
        let mut job = Job {
            pieces: chunk.pieces.address(),
            records: chunk.table.address(ROWS_AT)?,
            sums: chunk.table.address(chunk.sums_at)?,
            piece_count: small(layout.pieces().len())?,
            record_count: small(records)?,
            units: small(layout.units())?,
            unit_bytes: small(layout.unit_bytes())?,
            payload_bytes: small(layout.moved_bytes())?,
            flat_is_record: u32::from(means == Means::Straight),
        };
        let kernel = self.gpu.kernel(way);
        let mut arguments: [*mut c_void; 1] = [(&raw mut job).cast()];
        let grid = match means {
            Means::Staged => self.multiprocessors,
            Means::Straight => self.multiprocessors.min(NARROW_MULTIPROCESSORS),
        };
        let stream = chunk.kernels.handle();
        // SAFETY: the kernel takes one job, which the driver copies during the call. What the job names is held by the lane and by
        // the flight until the chunk has ended: blocks below `layout.blocks()`, records inside the staging memory, or in host memory
        // that is pinned as long, sums in the table.
        let launched = unsafe {
            sys::cuLaunchKernel(
                kernel,
                grid,
                1,
                1,
                THREADS,
                1,
                1,
                0,
                stream,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", launched)
    }

    fn copy(&self, chunk: &Chunk, layout: &RecordLayout, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        // All lies inside the staging memory and inside the host memory, and both are held until the chunk has ended.
        let all = moves.iter().enumerate().flat_map(|(at, one)| {
            let staged = flat(chunk, layout, at);
            layout.rows().iter().map(move |rows| Stretches { staged, host: &one.host, rows: *rows })
        });
        copies::enqueue(&self.gpu, way, all, self.copies(way))
    }

    /// Lets the device say that the chunk has ended, behind what is in the stream.
    fn tell(&self, chunk: &Chunk, stream: &Stream, begun: u32) -> Result<(), DeviceError> {
        stream.write(chunk.table.address(ENDED_AT)?, begun)
    }

    fn enqueue(
        &self,
        chunk: &Chunk,
        course: &Course,
        way: Way,
        moves: &[RecordMove],
        means: Means,
        begun: u32,
    ) -> Result<(), DeviceError> {
        let (kernels, copies) = (&chunk.kernels, self.copies(way));
        // Relaxed, as below: a chunk belongs to one flight at a time.
        if chunk.course.swap(course.number, Ordering::Relaxed) != course.number {
            chunk.table.write(chunk.pieces_at, &course.table).map_err(|_| DeviceError::Memory)?;
            let from = chunk.table.pointer(chunk.pieces_at, course.table.len())?;
            copies::upload(chunk.pieces.address(), from, course.table.len(), kernels)?;
        }
        match (way, means) {
            (_, Means::Straight) => {
                self.launch(chunk, course, (way, means), moves.len())?;
                self.tell(chunk, kernels, begun)
            }
            (Way::ToHost, Means::Staged) => {
                self.launch(chunk, course, (way, means), moves.len())?;
                chunk.half.between(kernels, copies)?;
                self.look(chunk, way, &chunk.half)?;
                self.copy(chunk, &course.layout, way, moves)?;
                self.tell(chunk, copies, begun)
            }
            (Way::ToDevice, Means::Staged) => {
                self.copy(chunk, &course.layout, way, moves)?;
                chunk.half.between(copies, kernels)?;
                self.look(chunk, way, &chunk.half)?;
                self.launch(chunk, course, (way, means), moves.len())?;
                self.tell(chunk, kernels, begun)
            }
        }
    }

    /// Shows a test what lies in the staging memory.
    fn look(&self, chunk: &Chunk, way: Way, half: &Event) -> Result<(), DeviceError> {
        let Some(between) = &self.between else { return Ok(()) };
        half.wait()?;
        between.call(way, &DeviceMemory::cuda(chunk.staging.clone()));
        Ok(())
    }
}

impl Backend for CudaLane {
    fn table(&self, layout: &RecordLayout) -> Result<Vec<u8>, DeviceError> {
        describe(&self.gpu, layout)
    }

    fn begin(&self, chunk: usize, course: &Course, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        let means = self.means(chunk, &course.layout, moves);
        let chunk = &self.chunks[chunk];
        for (at, one) in moves.iter().enumerate() {
            let flat = match means {
                Means::Staged => flat(chunk, &course.layout, at),
                Means::Straight => address(&one.host),
            };
            let record = Record { flat, index: one.index as u64, seed: one.seed };
            chunk.table.write(ROWS_AT + at * RECORD_BYTES, &record.to_bytes()).map_err(|_| DeviceError::Memory)?;
        }
        // Relaxed: a chunk belongs to one flight at a time, which was handed it under a lock. Counted before anything is enqueued:
        // of what breaks off half way nobody is told that it has ended.
        let begun = chunk.begun.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.gpu.bound(|| self.enqueue(chunk, course, way, moves, means, begun))
    }

    fn settle(&self, chunk: usize, way: Way) -> Result<(), DeviceError> {
        let streams = [&self.chunks[chunk].kernels, self.copies(way)];
        let (started, stuck) = (Instant::now(), DeviceError::Stuck { seconds: STUCK.as_secs() });
        loop {
            let idle = self.gpu.bound(|| streams.iter().try_fold(true, |idle, stream| Ok(stream.is_idle()? && idle)));
            match idle {
                Ok(true) => return Ok(()),
                Ok(false) if started.elapsed() < STUCK => std::thread::sleep(Duration::from_micros(100)),
                // Of a driver that answers with errors it is not known.
                Ok(false) | Err(_) => return Err(stuck),
            }
        }
    }

    fn is_done(&self, chunk: usize) -> bool {
        let chunk = &self.chunks[chunk];
        // Acquire: behind the device's word come its bytes.
        let ended = chunk.table.atomic_u32(ENDED_AT).load(Ordering::Acquire);
        ended == chunk.begun.load(Ordering::Relaxed)
    }

    fn is_alive(&self) -> Result<(), DeviceError> {
        let copies = [&self.to_host, &self.to_device];
        let mut streams = copies.into_iter().chain(self.chunks.iter().map(|chunk| &chunk.kernels));
        self.gpu.bound(|| streams.try_for_each(|stream| stream.is_idle().map(drop)))
    }

    fn sums(&self, chunk: usize, count: usize) -> Vec<u64> {
        let chunk = &self.chunks[chunk];
        let mut bytes = vec![0; count * 8];
        // Of a chunk's own records there is always room for the checksums.
        let _ = chunk.table.read(chunk.sums_at, &mut bytes);
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect()
    }
}
