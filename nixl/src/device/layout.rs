//! How records lie in a device's memory.

use super::DeviceMemory;
use crate::sys::copy::StridedRun;

/// What a device moves in one access: fragments start and end at multiples of it.
const GRAIN_BYTES: usize = 16;
/// Units are whole stripes of XXH3's long form, or short enough for its short ones.
const STRIPE_BYTES: usize = 64;
const SHORT_UNIT_BYTES_MAX: usize = 240;
/// Records lie in staging memory at multiples of it.
const STAGING_GRAIN_BYTES: usize = 256;

/// Why records of a layout cannot be moved by a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// There is nothing to move.
    #[error("a record without bytes")]
    Empty,
    /// A size or stride that no device moves.
    #[error("{what} is {bytes} bytes: no multiple of {GRAIN_BYTES}")]
    Grain {
        /// Of what.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// Units whose checksums a device does not make.
    #[error(
        "units of {bytes} bytes: multiples of {GRAIN_BYTES} up to {SHORT_UNIT_BYTES_MAX}, or of {STRIPE_BYTES} beyond, can be checked"
    )]
    Unit {
        /// Their length.
        bytes: usize,
    },
    /// A piece that ends within a unit, and is not the last one.
    #[error("a piece of {bytes} bytes ends within a unit of {unit_bytes}")]
    Cut {
        /// Length of the piece in a record.
        bytes: usize,
        /// Length of a unit.
        unit_bytes: usize,
    },
    /// Sizes beyond what a description holds: 2 GiB for a record.
    #[error("a record or a count is too large")]
    Size,
    /// Not even one block lies in the memory.
    #[error("the memory holds no whole block")]
    Memory,
}

/// One stretch of every record, mostly a layer: where it lies for block 0, and how far away it does for the next one.
#[derive(Debug, Clone)]
pub struct RecordPiece {
    /// The piece for all blocks.
    pub memory: DeviceMemory,
    /// From one block to the next.
    pub block_stride: usize,
    /// The fragments of block 0, in the order of the record.
    pub run: StridedRun,
}

/// The pieces of a record, in its order.
#[derive(Debug, Clone)]
pub struct RecordLayout {
    pieces: Vec<RecordPiece>,
    unit_bytes: usize,
    record_bytes: usize,
    blocks: usize,
}

impl RecordLayout {
    /// Checks that a device can do it.
    pub fn new(pieces: Vec<RecordPiece>, unit_bytes: usize) -> Result<Self, LayoutError> {
        let (mut record_bytes, mut blocks) = (0usize, usize::MAX);
        for (at, piece) in pieces.iter().enumerate() {
            let bytes = grains(piece)?;
            let cut = !bytes.is_multiple_of(unit_bytes.max(1)) && at + 1 < pieces.len();
            if cut {
                return Err(LayoutError::Cut { bytes, unit_bytes });
            }
            record_bytes = record_bytes.checked_add(bytes).ok_or(LayoutError::Size)?;
            blocks = blocks.min(blocks_in(piece)?);
        }
        if record_bytes == 0 {
            return Err(LayoutError::Empty);
        }
        // What no unit and no count may exceed.
        i32::try_from(record_bytes).map_err(|_| LayoutError::Size)?;
        let last = record_bytes % unit_bytes.max(1);
        for bytes in [unit_bytes.min(record_bytes), if last == 0 { unit_bytes.min(record_bytes) } else { last }] {
            let whole = bytes > 0 && bytes.is_multiple_of(GRAIN_BYTES);
            if !whole || (bytes > SHORT_UNIT_BYTES_MAX && !bytes.is_multiple_of(STRIPE_BYTES)) {
                return Err(LayoutError::Unit { bytes });
            }
        }
        if blocks == 0 { Err(LayoutError::Memory) } else { Ok(Self { pieces, unit_bytes, record_bytes, blocks }) }
    }

    /// The pieces, in the order of the record.
    pub fn pieces(&self) -> &[RecordPiece] {
        &self.pieces
    }

    /// Bytes of a record.
    pub fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// Bytes of a unit; the last one of a record may be shorter.
    pub fn unit_bytes(&self) -> usize {
        self.unit_bytes
    }

    /// Checksums of a record.
    pub fn units(&self) -> usize {
        self.record_bytes.div_ceil(self.unit_bytes)
    }

    /// Blocks that lie in the memory: numbers below are good.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// From one record in staging memory to the next.
    pub(crate) fn staging_stride(&self) -> usize {
        self.record_bytes.next_multiple_of(STAGING_GRAIN_BYTES)
    }

    /// Records that so many bytes of staging memory take, one at least.
    pub(super) fn records_in(&self, bytes: usize) -> usize {
        (bytes / self.staging_stride()).max(1)
    }
}

/// Bytes of a piece in a record, if all its sizes are multiples of the grain.
fn grains(piece: &RecordPiece) -> Result<usize, LayoutError> {
    let run = &piece.run;
    let strides = run.axes.iter().filter(|axis| axis.count > 1).map(|axis| ("a stride", axis.stride));
    let sizes = [
        ("a fragment", run.fragment_bytes),
        ("the first fragment's offset", run.offset),
        ("the stride of blocks", piece.block_stride),
        ("the memory's address", piece.memory.place().address_remainder(GRAIN_BYTES)),
    ];
    for (what, bytes) in sizes.into_iter().chain(strides) {
        if !bytes.is_multiple_of(GRAIN_BYTES) {
            return Err(LayoutError::Grain { what, bytes });
        }
    }
    let counts = run.axes.iter().all(|axis| u32::try_from(axis.count).is_ok());
    run.bytes().filter(|bytes| *bytes > 0 && counts).ok_or(LayoutError::Size)
}

/// Whole blocks in a piece's memory.
fn blocks_in(piece: &RecordPiece) -> Result<usize, LayoutError> {
    let end = piece.run.end().ok_or(LayoutError::Size)?;
    let room = piece.memory.len().checked_sub(end).ok_or(LayoutError::Memory)?;
    Ok(room.checked_div(piece.block_stride).unwrap_or(0) + 1)
}
