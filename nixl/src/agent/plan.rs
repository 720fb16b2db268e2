//! What a transfer will do, worked out once: pairs of descriptors, adjacent ones merged.

use std::ops::Range;
use std::sync::Arc;

use super::list::{Extent, Selection};
use super::section::{BackendId, Place, SectionKind};
use crate::io::{FileId, IoError};
use crate::sys::MemoryExtent;
use crate::sys::copy::{StridedRun, Units};

/// Adjacent descriptors are merged up to this size: beyond it an operation is no faster, and shares the device worse.
const MERGED_BYTES_MAX: u64 = 1 << 20;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the remote list to the local one.
    Read,
    /// From the local list to the remote one.
    Write,
}

/// What a transfer between memories does besides copying, in the same pass over the bytes.
#[derive(Clone, Debug, Default)]
pub struct MemoryCopy {
    /// Permutes: each local descriptor is a record, and its remote descriptor is a window in which these fragments make
    /// it up, in this order (offsets count from the start of the window).
    pub layout: Option<Arc<[StridedRun]>>,
    /// Makes checksums of each local descriptor's units.
    pub units: Option<Units>,
}

impl MemoryCopy {
    /// Whether it is more than a copy; then only the memory backend can do it, and descriptors are not merged.
    fn is_plain(&self) -> bool {
        self.layout.is_none() && self.units.is_none()
    }

    /// Bytes of the record that the layout makes up.
    fn record_bytes(&self) -> Option<u64> {
        let bytes = self.layout.as_ref()?.iter().try_fold(0_usize, |sum, run| sum.checked_add(run.bytes()?));
        Some(bytes.map_or(u64::MAX, |bytes| bytes as u64))
    }
}

/// Why two lists make no transfer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The lists differ in length.
    #[error("{local} local descriptors against {remote} remote ones")]
    CountMismatch {
        /// Local descriptors.
        local: usize,
        /// Remote descriptors.
        remote: usize,
    },
    /// Two descriptors that belong together differ in length.
    #[error("descriptor {index}: {local} bytes local, {remote} remote")]
    LengthMismatch {
        /// Position in the selections.
        index: usize,
        /// Local bytes.
        local: u64,
        /// Remote bytes.
        remote: u64,
    },
    /// No backend moves bytes between these kinds, or a list spans several backends, or checksums or a layout were asked
    /// of a backend that does not see the bytes.
    #[error("no backend moves {local:?} <-> {remote:?} this way")]
    NotSupported {
        /// Kind of the local list.
        local: SectionKind,
        /// Kind of the remote list.
        remote: SectionKind,
    },
}

/// Everything a backend needs to carry out a transfer, any number of times. It holds both ends.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    /// Length of each descriptor, for statuses of merged pieces.
    pub(super) lens: Vec<u64>,
    pub(super) operation: Operation,
    pub(super) copy: MemoryCopy,
}

/// One operation of a backend, for one descriptor or several that lie side by side at both ends.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) memory: MemoryExtent,
    pub(super) other: Other,
    pub(super) descriptors: Range<usize>,
}

/// The end that is not the local memory.
#[derive(Debug)]
pub(super) enum Other {
    Stored { file: FileId, offset: u64 },
    Memory(MemoryExtent),
}

impl Plan {
    /// Pairs two selections and finds the backend: `None` is memory to memory.
    pub(super) fn new(
        operation: Operation,
        local: &Selection,
        remote: &Selection,
        copy: MemoryCopy,
    ) -> Result<(Self, Option<BackendId>), PlanError> {
        let (count, others) = (local.descriptors.len(), remote.descriptors.len());
        if count != others {
            return Err(PlanError::CountMismatch { local: count, remote: others });
        }
        let unsupported = PlanError::NotSupported { local: local.kind, remote: remote.kind };
        let record_bytes = copy.record_bytes();
        let mut backend = None;
        let mut pieces: Vec<Piece> = Vec::new();
        for (index, (near, far)) in local.descriptors.iter().zip(&remote.descriptors).enumerate() {
            let expected = record_bytes.unwrap_or(far.len);
            if near.len != expected {
                return Err(PlanError::LengthMismatch { index, local: near.len, remote: expected });
            }
            let merges = index > 0
                && copy.is_plain()
                && follows(near, &local.descriptors[index - 1])
                && follows(far, &remote.descriptors[index - 1]);
            if let Some(last) = pieces.last_mut().filter(|_| merges)
                && last.grow(near.len)
            {
                continue;
            }
            let (piece, of) = Piece::new(near, far, index).ok_or_else(|| unsupported.clone())?;
            if index > 0 && backend != of || !copy.is_plain() && of.is_some() {
                return Err(unsupported);
            }
            backend = of;
            pieces.push(piece);
        }
        let lens = local.descriptors.iter().map(|descriptor| descriptor.len).collect();
        Ok((Self { pieces, lens, operation, copy }, backend))
    }

    /// The statuses of a piece's descriptors, in order, from how the piece ended: of a short one, those that moved
    /// whole are good, the one at the border is short, those behind it moved nothing.
    pub(super) fn statuses(
        &self,
        piece: &Piece,
        result: Result<(), IoError>,
    ) -> impl Iterator<Item = (usize, Result<(), IoError>)> {
        let mut moved = match result {
            Err(IoError::Short { got, .. }) => got,
            Ok(()) | Err(IoError::Os { .. } | IoError::Malformed) => 0,
        };
        piece.descriptors.clone().map(move |index| {
            let wanted = self.lens[index];
            let got = moved.min(wanted);
            moved -= got;
            let status = match result {
                Err(IoError::Short { .. }) if got == wanted => Ok(()),
                Err(IoError::Short { .. }) => Err(IoError::Short { wanted, got }),
                other => other,
            };
            (index, status)
        })
    }
}

impl Piece {
    fn new(near: &Extent, far: &Extent, index: usize) -> Option<(Self, Option<BackendId>)> {
        let (other, backend) = match far.section.place() {
            Place::Stored { backend, file, .. } => (Other::Stored { file: *file, offset: far.offset }, Some(*backend)),
            Place::Memory(_) => (Other::Memory(in_memory(far)?), None),
            Place::Foreign { .. } => return None,
        };
        Some((Self { memory: in_memory(near)?, other, descriptors: index..index + 1 }, backend))
    }

    /// Takes in the descriptor behind it, unless the piece becomes too large.
    fn grow(&mut self, by: u64) -> bool {
        let len = self.memory.len() as u64 + by;
        if len > MERGED_BYTES_MAX {
            return false;
        }
        let longer = |extent: &MemoryExtent| {
            let len = extent.len() + usize::try_from(by).ok()?;
            MemoryExtent::new(extent.memory().clone(), extent.offset(), len).ok()
        };
        let Some(memory) = longer(&self.memory) else { return false };
        if let Other::Memory(other) = &mut self.other {
            let Some(longer) = longer(other) else { return false };
            *other = longer;
        }
        self.memory = memory;
        self.descriptors.end += 1;
        true
    }
}

fn follows(this: &Extent, before: &Extent) -> bool {
    this.section.is_same(&before.section) && before.offset + before.len == this.offset
}

fn in_memory(extent: &Extent) -> Option<MemoryExtent> {
    match extent.section.place() {
        Place::Memory(memory) => {
            let (offset, len) = (usize::try_from(extent.offset).ok()?, usize::try_from(extent.len).ok()?);
            MemoryExtent::new(memory.clone(), offset, len).ok()
        }
        Place::Stored { .. } | Place::Foreign { .. } => None,
    }
}
