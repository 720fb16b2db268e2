//! One file of a simulated disk: what is durable, what only the cache has, and what power loss makes of it.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::image::{Image, pieces};
use crate::io::{IoError, IoKind, IoOp, Seeded};
use crate::sys::MemoryExtent;

/// A file's bytes, twice: as the owner reads them, and as they would be found after power loss at the worst.
#[derive(Clone, Debug)]
pub(super) struct Content {
    bytes: u64,
    current: Image,
    durable: Image,
    /// Writes that landed in `current` but not yet in `durable`, oldest first; bounded in bytes.
    cached: VecDeque<Cached>,
    cached_bytes: usize,
    /// Number of the newest write that landed.
    landed: u64,
    /// Number of the newest write whose completion the owner has taken.
    seen: u64,
}

#[derive(Clone, Debug)]
struct Cached {
    number: u64,
    offset: u64,
    data: Vec<u8>,
}

impl Content {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            current: Image::default(),
            durable: Image::default(),
            cached: VecDeque::new(),
            cached_bytes: 0,
            landed: 0,
            seen: 0,
        }
    }

    /// What a sync submitted now covers.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// The owner has taken all completions.
    pub(super) fn mark_seen(&mut self) {
        self.seen = self.landed;
    }

    /// Carries out one operation.
    pub(super) fn land(&mut self, op: &IoOp, covers: u64, cache_bytes_max: usize) -> Result<(), IoError> {
        match (op.kind, &op.memory) {
            (IoKind::Read, Some(memory)) => self.read(op.offset, memory),
            (IoKind::Write, Some(memory)) => {
                self.write(op.offset, memory)?;
                while self.cached_bytes > cache_bytes_max {
                    self.destage();
                }
                Ok(())
            }
            (IoKind::Sync, None) => {
                while self.cached.front().is_some_and(|write| write.number <= covers) {
                    self.destage();
                }
                Ok(())
            }
            (IoKind::Sync, Some(_)) | (IoKind::Read | IoKind::Write, None) => Err(IoError::Malformed),
        }
    }

    fn read(&self, offset: u64, memory: &MemoryExtent) -> Result<(), IoError> {
        let wanted = memory.len() as u64;
        let got = self.bytes.saturating_sub(offset).min(wanted);
        let mut bytes = vec![0; usize::try_from(got).expect("got <= the extent's length")];
        self.current.read(offset, &mut bytes);
        memory.write(0, &bytes).expect("got <= the extent's length");
        if got == wanted { Ok(()) } else { Err(IoError::Short { wanted, got }) }
    }

    fn write(&mut self, offset: u64, memory: &MemoryExtent) -> Result<(), IoError> {
        let len = memory.len();
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(IoError::Os { errno: Errno::NOSPC.raw_os_error() });
        }
        let data = contents(memory);
        self.current.write(offset, &data);
        self.landed += 1;
        self.cached.push_back(Cached { number: self.landed, offset, data });
        self.cached_bytes += len;
        Ok(())
    }

    /// Makes the oldest cached write durable.
    fn destage(&mut self) {
        if let Some(write) = self.cached.pop_front() {
            self.durable.write(write.offset, &write.data);
            self.cached_bytes -= write.data.len();
        }
    }

    /// The file after power loss. Each sector of a write that was not durable survives or not on its own account, so
    /// a newer write may survive an older one (reordering) and a write may survive in part (tearing).
    pub(super) fn after_power_loss<'a>(&self, in_flight: impl Iterator<Item = &'a IoOp>, random: &mut Seeded) -> Self {
        // Whole writes, 4 KiB or 512-byte sectors; and nothing, everything or a seeded part of them.
        let granule = [usize::MAX >> 1, 4096, 512][random.below(3) as usize];
        let keep = [0, 1_000_000, 900_000, 500_000, 100_000][random.below(5) as usize];
        let mut found = self.durable.clone();
        let mut survive = |offset: u64, data: &[u8]| {
            for (at, range) in pieces(offset, data.len(), granule) {
                if random.chance(keep) {
                    found.write(at, &data[range]);
                }
            }
        };
        for write in &self.cached {
            survive(write.offset, &write.data);
        }
        for op in in_flight {
            if let (IoKind::Write, Some(memory)) = (op.kind, &op.memory)
                && op.offset.checked_add(op.bytes()).is_some_and(|end| end <= self.bytes)
            {
                survive(op.offset, &contents(memory));
            }
        }
        Self { current: found.clone(), durable: found, ..Self::new(self.bytes) }
    }

    pub(super) fn inspect(&self, offset: u64, bytes: &mut [u8]) {
        self.current.read(offset, bytes);
    }

    pub(super) fn alter(&mut self, offset: u64, bytes: &[u8]) {
        self.current.write(offset, bytes);
        self.durable.write(offset, bytes);
    }
}

fn contents(memory: &MemoryExtent) -> Vec<u8> {
    let mut data = vec![0; memory.len()];
    memory.read(0, &mut data).expect("an extent covers its own length");
    data
}
