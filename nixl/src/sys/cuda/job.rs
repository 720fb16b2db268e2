//! What the kernels are given: the same as in kernels/records.cu.

/// One stretch of every record.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Device address of block 0.
    pub(super) base: u64,
    pub(super) block_stride: u64,
    /// Between fragments on the slow, middle and fast axis.
    pub(super) strides: [u64; 3],
    /// Fragments on these axes.
    pub(super) counts: [u32; 3],
    pub(super) fragment_bytes: u32,
    /// Where the piece begins in what moves of a record.
    pub(super) flat_offset: u32,
    pub(super) bytes: u32,
    pub(super) first_unit: u32,
    /// That unit's number in the whole record, which its checksum is seeded with.
    pub(super) record_unit: u32,
    /// Where the piece begins in the record itself.
    pub(super) in_record: u32,
    pub(super) reserved: u32,
}

/// One record.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Address of what moves of it in one piece, or of all of it.
    pub(super) flat: u64,
    /// Its block in the device's memory.
    pub(super) index: u64,
    pub(super) seed: u64,
}

/// The only argument of a kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) pieces: u64,
    pub(super) records: u64,
    pub(super) sums: u64,
    pub(super) piece_count: u32,
    pub(super) record_count: u32,
    pub(super) units: u32,
    pub(super) unit_bytes: u32,
    /// What moves of a record.
    pub(super) payload_bytes: u32,
    /// Whether `flat` is all of a record, of which the pieces are a part.
    pub(super) flat_is_record: u32,
}

// As in kernels/records.cu.
const _: () = assert!(size_of::<Piece>() == 80 && size_of::<Record>() == 24 && size_of::<Job>() == 48);

pub(super) const RECORD_BYTES: usize = size_of::<Record>();
pub(super) const PIECE_BYTES: usize = size_of::<Piece>();

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip([self.flat, self.index, self.seed]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl Piece {
    pub(super) fn to_bytes(self) -> [u8; PIECE_BYTES] {
        let mut bytes = [0; PIECE_BYTES];
        let words = [self.base, self.block_stride, self.strides[0], self.strides[1], self.strides[2]];
        let halves = [
            self.counts[0],
            self.counts[1],
            self.counts[2],
            self.fragment_bytes,
            self.flat_offset,
            self.bytes,
            self.first_unit,
            self.record_unit,
            self.in_record,
            self.reserved,
        ];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        for (place, half) in bytes[8 * words.len()..].chunks_exact_mut(4).zip(halves) {
            place.copy_from_slice(&half.to_le_bytes());
        }
        bytes
    }
}
