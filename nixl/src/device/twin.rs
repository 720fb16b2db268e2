//! A device on CPUs: the same layouts, bytes and checksums, through staging memory as well, done when `begin` returns.

use std::sync::{Arc, Mutex, PoisonError};

use super::lane::{Backend, Between, LaneOptions, RecordMove, Way};
use super::{DeviceError, DeviceMemory, Place, RecordLayout};
use crate::sys::copy::{Units, copy, gather_checksum, scatter_checksum};
use crate::sys::{ChecksumAlgorithm, Memory, MemoryExtent, Region, seed_from_unit};

#[derive(Debug)]
pub(super) struct Twin {
    pieces: Vec<Piece>,
    layout: RecordLayout,
    between: Option<Between>,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Piece {
    memory: MemoryExtent,
    bytes: usize,
}

#[derive(Debug)]
struct Chunk {
    staging: MemoryExtent,
    /// Guards the checksums of what moved last. Held for a copy of them.
    sums: Mutex<Vec<u64>>,
}

impl Twin {
    pub(super) fn new(
        layout: &RecordLayout,
        chunks: usize,
        records: usize,
        options: &LaneOptions,
    ) -> Result<Self, DeviceError> {
        let pieces = layout.pieces().iter().map(|piece| match piece.memory.place() {
            Place::Twin(memory) => {
                Ok(Piece { memory: memory.clone(), bytes: piece.run.bytes().ok_or(DeviceError::Memory)? })
            }
            Place::Cuda(_) => Err(DeviceError::Memory),
        });
        let chunk = || {
            let region = Region::new(records * layout.staging_stride()).map_err(|_| DeviceError::Memory)?;
            let staging: Arc<dyn Memory> = Arc::new(region);
            Ok(Chunk { staging: MemoryExtent::whole(staging), sums: Mutex::default() })
        };
        Ok(Self {
            pieces: pieces.collect::<Result<_, DeviceError>>()?,
            layout: layout.clone(),
            between: options.between.clone(),
            chunks: (0..chunks).map(|_| chunk()).collect::<Result<_, DeviceError>>()?,
        })
    }

    /// Moves one record between its pieces and staging memory.
    fn pieces(&self, staged: &MemoryExtent, one: &RecordMove, way: Way, sums: &mut [u64]) -> Result<(), DeviceError> {
        let unit_bytes = self.layout.unit_bytes();
        let mut done = 0;
        for (piece, described) in self.pieces.iter().zip(self.layout.pieces()) {
            let first = done / unit_bytes;
            let seed = seed_from_unit(one.seed, u32::try_from(first).unwrap_or(u32::MAX));
            let units = Units { unit_bytes, algorithm: ChecksumAlgorithm::Xxh3, seed };
            let sums = &mut sums[first..first + units.count(piece.bytes)];
            let flat = staged.part(done, piece.bytes).map_err(|_| DeviceError::Memory)?;
            let start = one.index * described.block_stride;
            let rest = piece.memory.len().checked_sub(start).ok_or(DeviceError::Memory)?;
            let block = piece.memory.part(start, rest).map_err(|_| DeviceError::Memory)?;
            let run = std::slice::from_ref(&described.run);
            match way {
                Way::ToHost => gather_checksum(&block, run, &flat, &units, sums),
                Way::ToDevice => scatter_checksum(&flat, &block, run, &units, sums),
            }
            .map_err(|_| DeviceError::Memory)?;
            done += piece.bytes;
        }
        Ok(())
    }
}

impl Backend for Twin {
    fn begin(&self, chunk: usize, way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        let chunk = &self.chunks[chunk];
        let units = self.layout.units();
        let mut sums = vec![0; moves.len() * units];
        let staged = |at: usize| {
            let (stride, bytes) = (self.layout.staging_stride(), self.layout.record_bytes());
            chunk.staging.part(at * stride, bytes).map_err(|_| DeviceError::Memory)
        };
        let on_device = |sums: &mut [u64]| {
            let mut each = moves.iter().zip(sums.chunks_mut(units)).enumerate();
            each.try_for_each(|(at, (one, sums))| self.pieces(&staged(at)?, one, way, sums))
        };
        let over_bus = || {
            moves.iter().enumerate().try_for_each(|(at, one)| {
                let staged = staged(at)?;
                let (from, to) = if way == Way::ToHost { (&staged, &one.host) } else { (&one.host, &staged) };
                copy(from, to).map_err(|_| DeviceError::Memory)
            })
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

    fn sums(&self, chunk: usize, _records: usize) -> Vec<u64> {
        std::mem::take(&mut *self.chunks[chunk].sums.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
