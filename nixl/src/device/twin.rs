//! A device on CPUs: the same layouts, bytes and checksums, through staging memory as well, done when `begin` returns.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use super::lane::{Backend, Between, Course, LaneOptions, RecordMove, Room, Way};
use super::{DeviceError, DeviceMemory, Place, Placed, RecordLayout};
use crate::sys::copy::{Units, copy, gather_checksum, scatter_checksum};
use crate::sys::{ChecksumAlgorithm, Memory, MemoryExtent, Region, seed_from_unit};

#[derive(Debug)]
pub(super) struct Twin {
    between: Option<Between>,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    staging: MemoryExtent,
    /// Guards the checksums of what moved last. Held for a copy of them.
    sums: Mutex<Vec<u64>>,
}

impl Twin {
    pub(super) fn new(chunks: usize, room: &Room, options: &LaneOptions) -> Result<Self, DeviceError> {
        let chunk = || {
            let region = Region::new(room.staging_bytes).map_err(|_| DeviceError::Memory)?;
            let staging: Arc<dyn Memory> = Arc::new(region);
            Ok(Chunk { staging: MemoryExtent::whole(staging), sums: Mutex::default() })
        };
        let chunks = (0..chunks).map(|_| chunk()).collect::<Result<_, DeviceError>>()?;
        Ok(Self { between: options.between.clone(), chunks })
    }
}

fn on_twin(memory: &DeviceMemory) -> Result<&MemoryExtent, DeviceError> {
    match memory.place() {
        Place::Twin(memory) => Ok(memory),
        Place::Cuda(_) => Err(DeviceError::Memory),
    }
}

fn outside(_: impl Error) -> DeviceError {
    DeviceError::Memory
}

/// Moves one record between its pieces and staging memory.
fn move_pieces(
    layout: &RecordLayout,
    staged: &MemoryExtent,
    one: &RecordMove,
    way: Way,
    sums: &mut [u64],
) -> Result<(), DeviceError> {
    let unit_bytes = layout.unit_bytes();
    for Placed { piece, bytes, in_record, in_staging } in layout.pieces() {
        let seed = seed_from_unit(one.seed, u32::try_from(in_record / unit_bytes).unwrap_or(u32::MAX));
        let units = Units { unit_bytes, algorithm: ChecksumAlgorithm::Xxh3, seed };
        let first = in_staging / unit_bytes;
        let sums = &mut sums[first..first + units.count(*bytes)];
        let flat = staged.part(*in_staging, *bytes).map_err(outside)?;
        let memory = on_twin(&piece.memory)?;
        let start = one.index * piece.block_stride;
        let rest = memory.len().checked_sub(start).ok_or(DeviceError::Memory)?;
        let block = memory.part(start, rest).map_err(outside)?;
        let run = std::slice::from_ref(&piece.run);
        match way {
            Way::ToHost => gather_checksum(&block, run, &flat, &units, sums),
            Way::ToDevice => scatter_checksum(&flat, &block, run, &units, sums),
        }
        .map_err(outside)?;
    }
    Ok(())
}

/// Moves what moves of a record between staging and host memory.
fn move_rows(layout: &RecordLayout, staged: &MemoryExtent, host: &MemoryExtent, way: Way) -> Result<(), DeviceError> {
    for rows in layout.rows() {
        for row in 0..rows.count {
            let staged = staged.part(rows.in_staging + row * rows.bytes, rows.bytes).map_err(outside)?;
            let host = host.part(rows.in_record + row * rows.pitch, rows.bytes).map_err(outside)?;
            let (from, to) = if way == Way::ToHost { (&staged, &host) } else { (&host, &staged) };
            copy(from, to).map_err(outside)?;
        }
    }
    Ok(())
}

impl Backend for Twin {
    fn table(&self, layout: &RecordLayout) -> Result<Vec<u8>, DeviceError> {
        layout.pieces().iter().try_for_each(|placed| on_twin(&placed.piece.memory).map(drop))?;
        Ok(Vec::new())
    }

    fn begin(&self, chunk: usize, course: &Course, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        let (chunk, layout) = (&self.chunks[chunk], &course.layout);
        let units = layout.units();
        let mut sums = vec![0; moves.len() * units];
        let staged =
            |at: usize| chunk.staging.part(at * layout.staging_stride(), layout.moved_bytes()).map_err(outside);
        let on_device = |sums: &mut [u64]| {
            let mut each = moves.iter().zip(sums.chunks_mut(units)).enumerate();
            each.try_for_each(|(at, (one, sums))| move_pieces(layout, &staged(at)?, one, way, sums))
        };
        let over_bus = || {
            let mut each = moves.iter().enumerate();
            each.try_for_each(|(at, one)| move_rows(layout, &staged(at)?, &one.host, way))
        };
        let between =
            || self.between.iter().for_each(|between| between.call(way, &DeviceMemory::twin(chunk.staging.clone())));
        match way {
            Way::ToHost => {
                on_device(&mut sums)?;
                between();
                over_bus()?;
            }
            Way::ToDevice => {
                over_bus()?;
                between();
                on_device(&mut sums)?;
            }
        }
        *chunk.sums.lock().unwrap_or_else(PoisonError::into_inner) = sums;
        Ok(())
    }

    fn settle(&self, _chunk: usize, _way: Way) -> Result<(), DeviceError> {
        Ok(())
    }

    fn is_done(&self, _chunk: usize) -> bool {
        true
    }

    fn is_alive(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn sums(&self, chunk: usize, _count: usize) -> Vec<u64> {
        std::mem::take(&mut *self.chunks[chunk].sums.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
