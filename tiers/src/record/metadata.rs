//! The metadata of a record as values, its sizes and its limits.

use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::{BlockHash, BlockKey, InstanceId, NamespaceDigest, Shard, UnitOrder};

use super::bytes::{u32_at, u64_at};

pub(super) use kvd_proto::record::{HEADER_BYTES, MAGIC, SEED, VERSION, at};
pub use kvd_proto::record::{META_BYTES_MAX, SECTOR_BYTES, meta_bytes};

/// Most bytes that a payload may have: a slot is never larger than a segment.
pub const PAYLOAD_BYTES_MAX: u32 = 64 << 20;

pub(super) const HAS_PARENT: u8 = 1;

/// Units of a payload; the last one may be shorter.
pub const fn units(payload_bytes: u32, unit_bytes: u32) -> usize {
    payload_bytes.div_ceil(unit_bytes) as usize
}

/// Bytes of a slot that takes a record with so much metadata and payload.
pub const fn slot_bytes(meta_bytes: usize, payload_bytes: u32) -> usize {
    meta_bytes + (payload_bytes as usize).next_multiple_of(SECTOR_BYTES)
}

/// The number of a unit order in the format.
pub(super) const fn order_id(order: UnitOrder) -> u16 {
    match order {
        UnitOrder::TokenKvDim => 1,
        UnitOrder::KvTokenDim => 2,
        UnitOrder::Opaque => 3,
    }
}

/// The unit order with this number.
pub(super) const fn order_from_id(id: u16) -> Option<UnitOrder> {
    match id {
        1 => Some(UnitOrder::TokenKvDim),
        2 => Some(UnitOrder::KvTokenDim),
        3 => Some(UnitOrder::Opaque),
        _ => None,
    }
}

/// Unit checksums as they stand in the metadata or in a commit: little-endian u64, one per unit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UnitChecksums<'a>(&'a [u8]);

impl<'a> UnitChecksums<'a> {
    /// Takes the bytes of whole checksums; bytes beyond the last whole one are ignored.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(&bytes[..bytes.len() / 8 * 8])
    }

    /// Number of units.
    pub fn len(self) -> usize {
        self.0.len() / 8
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The checksum of unit `index`.
    pub fn get(self, index: usize) -> u64 {
        u64_at(self.0, index * 8)
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

impl std::fmt::Debug for UnitChecksums<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnitChecksums({})", self.len())
    }
}

/// The block's token ids, as they stand in the metadata or in an offer: little-endian u32.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenIds<'a>(&'a [u8]);

impl<'a> TokenIds<'a> {
    /// Takes the bytes of whole ids; bytes beyond the last whole one are ignored.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(&bytes[..bytes.len() / 4 * 4])
    }

    /// Number of tokens.
    pub fn len(self) -> usize {
        self.0.len() / 4
    }

    /// Whether the engine gave none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The ids in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.0.chunks_exact(4).map(|id| u32_at(id, 0))
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

impl std::fmt::Debug for TokenIds<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenIds({})", self.len())
    }
}

/// What a record says about itself. Checksums and token ids are borrowed: building or reading one allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// Everything that must agree before two blocks may be exchanged.
    pub namespace: NamespaceDigest,
    /// Group of the namespace.
    pub group: u16,
    /// What tiers index.
    pub key: BlockKey,
    /// Key of the block before it in the chain.
    pub parent_key: Option<BlockKey>,
    /// The engine's own hash of the block.
    pub hash: BlockHash,
    /// The engine's own hash of the block before it.
    pub parent_hash: Option<BlockHash>,
    /// Place in the chain, from 0.
    pub position: u32,
    /// Which part of the block this is.
    pub shard: Shard,
    /// Order of the bytes within a unit.
    pub unit_order: UnitOrder,
    /// The engine that sealed it.
    pub writer: InstanceId,
    /// Generation of the slot in which it was sealed.
    pub generation: u32,
    /// Bytes of payload, without padding.
    pub payload_bytes: u32,
    /// Of the units.
    pub algorithm: ChecksumAlgorithm,
    /// Bytes of a unit; the last may be shorter.
    pub unit_bytes: u32,
    /// One per unit.
    pub checksums: UnitChecksums<'a>,
    /// Of the block; empty when the engine gave none.
    pub tokens: TokenIds<'a>,
}

impl Metadata<'_> {
    /// Bytes that this metadata takes in a slot.
    pub fn meta_bytes(&self) -> usize {
        meta_bytes(self.checksums.len(), self.tokens.len())
    }

    /// What must hold for every record, whoever made it.
    pub(super) fn check(&self) -> Result<(), MetadataError> {
        let sizes = (1..=PAYLOAD_BYTES_MAX).contains(&self.payload_bytes) && self.unit_bytes > 0;
        if !sizes || self.checksums.len() != units(self.payload_bytes, self.unit_bytes) {
            return Err(MetadataError::Malformed("unit_count"));
        }
        if self.parent_key.is_some() != self.parent_hash.is_some() {
            return Err(MetadataError::Malformed("parent"));
        }
        if self.meta_bytes() > META_BYTES_MAX {
            return Err(MetadataError::Malformed("meta_bytes"));
        }
        Ok(())
    }
}

/// Metadata that was read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// What it says.
    pub metadata: Metadata<'a>,
    /// Its own checksum: what tables keep as the anchor of trust.
    pub meta_checksum: u64,
}

/// Why bytes are not the metadata of a record, or values cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Fewer bytes than the metadata needs.
    #[error("{got} bytes of metadata where {wanted} are needed")]
    Short {
        /// Bytes needed.
        wanted: usize,
        /// Bytes there.
        got: usize,
    },
    /// Not a record.
    #[error("no record stands here")]
    Magic,
    /// A record of a version that this program does not read.
    #[error("record version {0} is not known to this program")]
    Version(u16),
    /// Bytes were changed.
    #[error("metadata checksum does not match")]
    Checksum,
    /// Intact, but not as the format says.
    #[error("metadata field `{0}` is not as the format says")]
    Malformed(&'static str),
}
