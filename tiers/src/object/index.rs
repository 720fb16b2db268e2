//! What lies where in a pack: docs/formats/pack.md, "Index". The same bytes stand at the end of the pack and alone in
//! the index object from which other nodes learn of it.

mod codec;
#[cfg(test)]
mod tests;

use kvd_proto::{BlockKey, Shard};

use super::names::{IndexName, NodeName, PackName, Realm};
use super::pack::TRAILER_BYTES;
use crate::record::{META_BYTES_MAX, PAYLOAD_BYTES_MAX, SECTOR_BYTES};

/// Most records of a pack: an index stays below 6 MiB.
pub const ENTRIES_MAX: usize = 65_536;
/// Most bytes that the records of a pack may have together, so that any offset is a `u32` with room to add to it.
pub const PACK_BYTES_MAX: u64 = 1 << 30;
/// Bytes ahead of the entries.
pub const INDEX_HEADER_BYTES: usize = 128;
/// Bytes of an entry.
pub const INDEX_ENTRY_BYTES: usize = 80;
/// Most bytes of an index: no reader needs to fetch more.
pub const INDEX_BYTES_MAX: usize = INDEX_HEADER_BYTES + ENTRIES_MAX * INDEX_ENTRY_BYTES;

/// Where a record lies in its pack, and what it must say about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Which block.
    pub key: BlockKey,
    /// Which part of the block.
    pub shard: Shard,
    /// The block before it in the chain; `None` for a first block.
    pub parent_key: Option<BlockKey>,
    /// Group of the namespace.
    pub group: u16,
    /// Place in the chain, from 0.
    pub position: u32,
    /// Generation of the slot in which the record was sealed.
    pub generation: u32,
    /// Of the record in the pack, in bytes; a multiple of 4096.
    pub offset: u32,
    /// Bytes of metadata and of payload with its padding; a multiple of 4096.
    pub record_bytes: u32,
    /// Bytes of the payload, without padding.
    pub payload_bytes: u32,
    /// The checksum of the record's metadata: the anchor of trust.
    pub meta_checksum: u64,
}

/// The index of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackIndex {
    /// Which pack.
    pub pack: PackName,
    /// Who wrote it.
    pub node: NodeName,
    /// Whose records it holds.
    pub realm: Realm,
    /// When it was closed, by the clock of its writer: milliseconds since 1970.
    pub created_ms: u64,
    /// Bytes of all records together: where the index stands in the pack.
    pub records_bytes: u64,
    /// The records as they lie, without a gap, from offset 0.
    pub entries: Vec<PackEntry>,
}

/// Why bytes are not the index of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Cut short, or with something behind it.
    #[error("{got} bytes of pack index where {wanted} are needed")]
    Length {
        /// Bytes needed.
        wanted: usize,
        /// Bytes there.
        got: usize,
    },
    /// Not an index.
    #[error("no pack index stands here")]
    Magic,
    /// An index of a version that this program does not read.
    #[error("pack index version {0} is not known to this program")]
    Version(u16),
    /// Bytes were changed.
    #[error("pack index checksum does not match")]
    Checksum,
    /// Intact, but its head is not as the format says.
    #[error("pack index field `{0}` is not as the format says")]
    Malformed(&'static str),
    /// Intact, but an entry is not as the format says.
    #[error("field `{field}` of pack index entry {entry} is not as the format says")]
    Entry {
        /// Which entry, from 0.
        entry: usize,
        /// Which field.
        field: &'static str,
    },
}

impl PackIndex {
    /// Bytes of the encoded index.
    pub fn index_bytes(&self) -> usize {
        INDEX_HEADER_BYTES + self.entries.len() * INDEX_ENTRY_BYTES
    }

    /// Bytes of the whole pack object: records, index, trailer.
    pub fn pack_bytes(&self) -> u64 {
        self.records_bytes + (self.index_bytes() + TRAILER_BYTES) as u64
    }

    /// Whether it is what an index object of this name must hold. An intact index in the wrong place is none.
    pub fn belongs_to(&self, name: &IndexName) -> bool {
        self.node == name.node && self.pack == name.pack
    }

    /// What must hold for every index, whoever made it.
    fn check(&self) -> Result<(), IndexError> {
        if !(1..=ENTRIES_MAX).contains(&self.entries.len()) {
            return Err(IndexError::Malformed("count"));
        }
        let mut end = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            let malformed = |field| IndexError::Entry { entry: index, field };
            if u64::from(entry.offset) != end {
                return Err(malformed("offset"));
            }
            if !record_fits(entry.record_bytes, entry.payload_bytes) {
                return Err(malformed("record_bytes"));
            }
            end += u64::from(entry.record_bytes);
            if end > PACK_BYTES_MAX {
                return Err(malformed("offset"));
            }
        }
        (end == self.records_bytes).then_some(()).ok_or(IndexError::Malformed("records_bytes"))
    }
}

/// Whether a record of `record_bytes` can hold a payload of `payload_bytes`: the rest is metadata, in whole sectors.
pub(super) fn record_fits(record_bytes: u32, payload_bytes: u32) -> bool {
    if !(1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes) {
        return false;
    }
    let padded = payload_bytes.next_multiple_of(SECTOR_BYTES as u32);
    record_bytes.checked_sub(padded).is_some_and(|meta_bytes| {
        let meta_bytes = meta_bytes as usize;
        meta_bytes.is_multiple_of(SECTOR_BYTES) && (SECTOR_BYTES..=META_BYTES_MAX).contains(&meta_bytes)
    })
}
