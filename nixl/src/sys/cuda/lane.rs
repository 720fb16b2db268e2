//! Chunks on a GPU: a kernel between the engine's memory and staging memory, copies between that and the host.
//!
//! A way has two streams of its own, one for kernels at the lowest priority and one for copies, so that the kernel of one chunk
//! runs while the bytes of another are on the bus, and neither way waits for the other.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU8, Ordering};

use cudarc::driver::sys;

use super::driver::{Gpu, check};
use super::job::{Job, Piece, RECORD_BYTES, Record};
use super::memory::{CudaExtent, HostMemory};
use super::stream::{Event, Stream};
use crate::device::{Backend, Between, DeviceError, DeviceMemory, LaneOptions, Place, RecordLayout, RecordMove, Way};
use crate::sys::memory::Memory;

/// Threads of a block, as the kernels are compiled for.
const THREADS: u32 = 512;

/// A lane's side on the device.
#[derive(Debug)]
pub(crate) struct CudaLane {
    to_host: Streams,
    to_device: Streams,
    chunks: Vec<Chunk>,
    pieces: CudaExtent,
    layout: RecordLayout,
    multiprocessors: u32,
    between: Option<Between>,
    // Behind all that was made in its context.
    gpu: Gpu,
}

#[derive(Debug)]
struct Streams {
    kernels: Stream,
    copies: Stream,
}

#[derive(Debug)]
struct Chunk {
    staging: CudaExtent,
    /// A row for each record, and behind them their checksums.
    table: HostMemory,
    sums_at: usize,
    half: Event,
    done: Event,
    /// One of the states below.
    state: AtomicU8,
}

/// Nothing was begun, or all that was has been waited for by `done`.
const RECORDED: u8 = 0;
/// Something was enqueued that `done` does not tell of.
const BEGUN: u8 = 1;

impl Gpu {
    pub(crate) fn lane(
        &self,
        layout: &RecordLayout,
        chunks: usize,
        records: usize,
        options: &LaneOptions,
    ) -> Result<CudaLane, DeviceError> {
        let rows = describe(self, layout)?;
        let pieces = self.allocate(rows.len())?;
        pieces.write(0, &rows)?;
        let chunk = || {
            let sums_at = records * RECORD_BYTES;
            Ok(Chunk {
                staging: self.allocate(records * layout.staging_stride())?,
                table: self.host(sums_at + records * layout.units() * 8)?,
                sums_at,
                half: Event::new(self)?,
                done: Event::new(self)?,
                state: AtomicU8::new(RECORDED),
            })
        };
        Ok(CudaLane {
            to_host: Streams::new(self)?,
            to_device: Streams::new(self)?,
            chunks: (0..chunks).map(|_| chunk()).collect::<Result<_, DeviceError>>()?,
            pieces,
            layout: layout.clone(),
            multiprocessors: options.multiprocessors.max(1),
            between: options.between.clone(),
            gpu: self.clone(),
        })
    }
}

/// The table of pieces as the kernels read it.
fn describe(gpu: &Gpu, layout: &RecordLayout) -> Result<Vec<u8>, DeviceError> {
    let mut rows = Vec::new();
    let mut done = 0;
    let small = |value: usize| u32::try_from(value).map_err(|_| DeviceError::Memory);
    for piece in layout.pieces() {
        let Place::Cuda(memory) = piece.memory.place() else { return Err(DeviceError::Memory) };
        if !memory.gpu().is(gpu) {
            return Err(DeviceError::Memory);
        }
        let (run, bytes) = (&piece.run, piece.run.bytes().ok_or(DeviceError::Memory)?);
        let [slow, middle, fast] = run.axes;
        let row = Piece {
            base: memory.address() + run.offset as u64,
            block_stride: piece.block_stride as u64,
            strides: [slow.stride as u64, middle.stride as u64, fast.stride as u64],
            counts: [small(slow.count)?, small(middle.count)?, small(fast.count)?],
            fragment_bytes: small(run.fragment_bytes)?,
            record_offset: small(done)?,
            bytes: small(bytes)?,
            first_unit: small(done / layout.unit_bytes())?,
            reserved: 0,
        };
        rows.extend(row.to_bytes());
        done += bytes;
    }
    Ok(rows)
}

impl CudaLane {
    fn streams(&self, way: Way) -> &Streams {
        match way {
            Way::ToHost => &self.to_host,
            Way::ToDevice => &self.to_device,
        }
    }

    fn flat(&self, chunk: &Chunk, at: usize) -> u64 {
        chunk.staging.address() + (at * self.layout.staging_stride()) as u64
    }

    fn launch(&self, chunk: &Chunk, way: Way, records: usize) -> Result<(), DeviceError> {
        let small = |value: usize| u32::try_from(value).map_err(|_| DeviceError::Memory);
        let mut job = Job {
            pieces: self.pieces.address(),
            records: chunk.table.address(0)?,
            sums: chunk.table.address(chunk.sums_at)?,
            piece_count: small(self.layout.pieces().len())?,
            record_count: small(records)?,
            units: small(self.layout.units())?,
            unit_bytes: small(self.layout.unit_bytes())?,
            record_bytes: small(self.layout.record_bytes())?,
            reserved: 0,
        };
        let kernel = self.gpu.kernel(way)?;
        let mut arguments: [*mut c_void; 1] = [(&raw mut job).cast()];
        let (stream, grid) = (self.streams(way).kernels.handle(), self.multiprocessors);
        // SAFETY: the kernel takes one job, which the driver copies during the call. What the job names is held by the lane and by
        // the flight until `done` has come: blocks below `layout.blocks()`, records inside the staging memory, sums in the table.
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

    fn copy(&self, chunk: &Chunk, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        let stream = self.streams(way).copies.handle();
        for (at, one) in moves.iter().enumerate() {
            let (host, flat, bytes): (*mut c_void, _, _) =
                (one.host.as_ptr().cast(), self.flat(chunk, at), one.host.len());
            match way {
                Way::ToHost => {
                    // SAFETY: the record lies inside the staging memory and inside the host memory, and both are held until `done`.
                    let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(host, flat, bytes, stream) };
                    check("cuMemcpyDtoHAsync", copied)?;
                }
                Way::ToDevice => {
                    // SAFETY: as above.
                    let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(flat, host, bytes, stream) };
                    check("cuMemcpyHtoDAsync", copied)?;
                }
            }
        }
        Ok(())
    }

    fn enqueue(&self, chunk: &Chunk, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        let Streams { kernels, copies } = self.streams(way);
        match way {
            Way::ToHost => {
                self.launch(chunk, way, moves.len())?;
                chunk.half.between(kernels, copies)?;
                self.look(chunk, way, &chunk.half)?;
                self.copy(chunk, way, moves)?;
                chunk.done.record(copies)
            }
            Way::ToDevice => {
                self.copy(chunk, way, moves)?;
                chunk.half.between(copies, kernels)?;
                self.look(chunk, way, &chunk.half)?;
                self.launch(chunk, way, moves.len())?;
                chunk.done.record(kernels)
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

impl Streams {
    fn new(gpu: &Gpu) -> Result<Self, DeviceError> {
        Ok(Self { kernels: Stream::new(gpu)?, copies: Stream::new(gpu)? })
    }
}

impl Backend for CudaLane {
    fn begin(&self, chunk: usize, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        let chunk = &self.chunks[chunk];
        for (at, one) in moves.iter().enumerate() {
            let record = Record { flat: self.flat(chunk, at), index: one.index as u64, seed: one.seed };
            chunk.table.write(at * RECORD_BYTES, &record.to_bytes()).map_err(|_| DeviceError::Memory)?;
        }
        // Relaxed: a chunk belongs to one flight at a time, which was handed it under a lock.
        chunk.state.store(BEGUN, Ordering::Relaxed);
        self.gpu.bound(|| self.enqueue(chunk, way, moves))?;
        chunk.state.store(RECORDED, Ordering::Relaxed);
        Ok(())
    }

    fn is_done(&self, chunk: usize) -> Result<bool, DeviceError> {
        let chunk = &self.chunks[chunk];
        if chunk.state.load(Ordering::Relaxed) == BEGUN {
            return Err(DeviceError::Lost);
        }
        self.gpu.bound(|| chunk.done.is_over())
    }

    fn sums(&self, chunk: usize, records: usize) -> Vec<u64> {
        let chunk = &self.chunks[chunk];
        let mut bytes = vec![0; records * self.layout.units() * 8];
        // Of a chunk's own records there is always room for the checksums.
        let _ = chunk.table.read(chunk.sums_at, &mut bytes);
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect()
    }
}
