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
    /// A stretch of another record that is not whole units of one piece after the other, or lies outside one of the two.
    #[error("a stretch of {bytes} bytes that does not lie in both records as whole units")]
    Stretch {
        /// Its length.
        bytes: usize,
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

/// Bytes that another record has in common with a layout's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Where they begin in the other record: whole units, as the next two.
    pub from: usize,
    /// Where they begin in the layout's record.
    pub to: usize,
    /// How many.
    pub bytes: usize,
}

/// The pieces of a record, in its order.
#[derive(Debug, Clone)]
pub struct RecordLayout {
    pieces: Vec<Placed>,
    rows: Vec<Rows>,
    unit_bytes: usize,
    record_bytes: usize,
    moved_bytes: usize,
    blocks: usize,
}

/// A piece, and where its bytes lie elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) piece: RecordPiece,
    pub(crate) bytes: usize,
    /// In the record, in host memory.
    pub(crate) in_record: usize,
    /// In staging memory, where what moves of the record lies in one piece.
    pub(crate) in_staging: usize,
}

/// Stretches of equal length at equal distances in a record, one after the other in staging memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) in_record: usize,
    pub(crate) in_staging: usize,
    pub(crate) bytes: usize,
    /// From one to the next in the record.
    pub(crate) pitch: usize,
    pub(crate) count: usize,
}

impl RecordLayout {
    /// Checks that a device can do it.
    pub fn new(pieces: Vec<RecordPiece>, unit_bytes: usize) -> Result<Self, LayoutError> {
        let (mut record_bytes, mut blocks, mut placed) = (0usize, usize::MAX, Vec::with_capacity(pieces.len()));
        for (at, piece) in pieces.iter().enumerate() {
            let bytes = grains(piece)?;
            let cut = !bytes.is_multiple_of(unit_bytes.max(1)) && at + 1 < pieces.len();
            if cut {
                return Err(LayoutError::Cut { bytes, unit_bytes });
            }
            blocks = blocks.min(blocks_in(piece)?);
            placed.push(Placed { piece: piece.clone(), bytes, in_record: record_bytes, in_staging: record_bytes });
            record_bytes = record_bytes.checked_add(bytes).ok_or(LayoutError::Size)?;
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
        if blocks == 0 {
            return Err(LayoutError::Memory);
        }
        let rows = rows_of(&placed);
        Ok(Self { pieces: placed, rows, unit_bytes, record_bytes, moved_bytes: record_bytes, blocks })
    }

    /// The layout of other records, of `record_bytes` each, of which only these stretches lie in the memory of this one.
    pub fn part(&self, record_bytes: usize, stretches: &[Stretch]) -> Result<Self, LayoutError> {
        let (mut pieces, mut moved_bytes) = (Vec::new(), 0);
        for stretch in stretches {
            let Stretch { from, to, bytes } = *stretch;
            let refused = LayoutError::Stretch { bytes };
            let whole = [from, to, bytes].iter().all(|place| place.is_multiple_of(self.unit_bytes));
            let inside = |start: usize, len| start.checked_add(bytes).is_some_and(|end| end <= len);
            if bytes == 0 || !whole || !inside(from, record_bytes) || !inside(to, self.record_bytes) {
                return Err(refused);
            }
            for placed in &self.pieces {
                let start = to.max(placed.in_record);
                let end = (to + bytes).min(placed.in_record + placed.bytes);
                if start >= end {
                    continue;
                }
                let run = placed.piece.run.part(start - placed.in_record..end - placed.in_record).ok_or(refused)?;
                let piece = RecordPiece { run, ..placed.piece.clone() };
                let (in_record, in_staging) = (from + (start - to), moved_bytes);
                pieces.push(Placed { bytes: grains(&piece)?, piece, in_record, in_staging });
                moved_bytes += end - start;
            }
        }
        if moved_bytes == 0 {
            return Err(LayoutError::Empty);
        }
        i32::try_from(record_bytes.max(moved_bytes)).map_err(|_| LayoutError::Size)?;
        let rows = rows_of(&pieces);
        Ok(Self { pieces, rows, record_bytes, moved_bytes, ..self.clone() })
    }

    /// The pieces that move, in the order of staging memory.
    pub(crate) fn pieces(&self) -> &[Placed] {
        &self.pieces
    }

    /// What goes over the bus of each record.
    pub(crate) fn rows(&self) -> &[Rows] {
        &self.rows
    }

    /// Bytes of a record in host memory.
    pub fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// Bytes of a unit; the last one of a record may be shorter.
    pub fn unit_bytes(&self) -> usize {
        self.unit_bytes
    }

    /// Bytes of a record that move: all, but in a [`part`](Self::part).
    pub fn moved_bytes(&self) -> usize {
        self.moved_bytes
    }

    /// Checksums of what moves of a record, in the order of the pieces; each is the one that the unit has in the whole record.
    pub fn units(&self) -> usize {
        self.moved_bytes.div_ceil(self.unit_bytes)
    }

    /// Blocks that lie in the memory: numbers below are good.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// From one record in staging memory to the next.
    pub(crate) fn staging_stride(&self) -> usize {
        self.moved_bytes.next_multiple_of(STAGING_GRAIN_BYTES)
    }
}

/// What lies in one piece in both, and of that what repeats.
fn rows_of(pieces: &[Placed]) -> Vec<Rows> {
    let mut stretches: Vec<Rows> = Vec::new();
    for piece in pieces {
        let one = Rows {
            in_record: piece.in_record,
            in_staging: piece.in_staging,
            bytes: piece.bytes,
            pitch: piece.bytes,
            count: 1,
        };
        match stretches.last_mut() {
            Some(last) if last.in_record + last.bytes == one.in_record => {
                last.bytes += one.bytes;
                last.pitch = last.bytes;
            }
            _ => stretches.push(one),
        }
    }
    let mut rows: Vec<Rows> = Vec::new();
    for one in stretches {
        match rows.last_mut() {
            Some(last) if last.bytes == one.bytes && last.takes(one.in_record) => {
                last.pitch = (one.in_record - last.in_record) / last.count;
                last.count += 1;
            }
            _ => rows.push(one),
        }
    }
    rows
}

impl Rows {
    /// Whether a stretch of the record that begins there is the next one.
    fn takes(&self, in_record: usize) -> bool {
        match self.count {
            1 => in_record >= self.in_record + self.bytes,
            count => in_record == self.in_record + count * self.pitch,
        }
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
