//! The byte map of record metadata (docs/formats/record.md): what the daemon writes at the front of a slot and a client
//! reads the unit checksums from. The codec of all fields is the daemon's; here is what both must agree on.

use crate::SHARD_BYTES;

/// Everything is written in whole sectors of this size.
pub const SECTOR_BYTES: usize = 4096;
/// Most bytes that a record's metadata may take: room for 16 352 units.
pub const META_BYTES_MAX: usize = 128 << 10;

/// How metadata begins.
pub const MAGIC: [u8; 8] = *b"KVDREC\r\n";
/// The version of the format.
pub const VERSION: u16 = 1;
/// Bytes of the fixed part; the unit checksums follow, then the token ids.
pub const HEADER_BYTES: usize = 256;
/// Seed of the metadata's own checksum: CRC-64/NVME over what is before [`at::META_CHECKSUM`], then, seeded with that, over
/// what is behind it.
pub const SEED: u64 = u64::from_le_bytes(*b"KVDMETA1");

/// Offsets of the header's fields.
pub mod at {
    #![expect(missing_docs, reason = "docs/formats/record.md says what each field is")]
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const HEADER_BYTES: usize = 10;
    pub const META_BYTES: usize = 12;
    pub const META_CHECKSUM: usize = 16;
    pub const PAYLOAD_BYTES: usize = 24;
    pub const GENERATION: usize = 32;
    pub const POSITION: usize = 36;
    pub const KEY: usize = 40;
    pub const PARENT_KEY: usize = 56;
    pub const NAMESPACE: usize = 72;
    pub const WRITER: usize = 104;
    pub const HASH: usize = 120;
    pub const PARENT_HASH: usize = 152;
    pub const HASH_LENGTH: usize = 184;
    pub const PARENT_HASH_LENGTH: usize = 185;
    pub const FLAGS: usize = 186;
    pub const ALGORITHM: usize = 187;
    pub const UNIT_BYTES: usize = 188;
    pub const UNIT_COUNT: usize = 192;
    pub const TOKEN_COUNT: usize = 196;
    pub const SHARD: usize = 200;
    pub const GROUP: usize = 212;
    pub const LAYOUT: usize = 214;
    pub const RESERVED: usize = 216;
}

const _: () = assert!(at::RESERVED + 40 == HEADER_BYTES);
const _: () = assert!(at::SHARD + SHARD_BYTES == at::GROUP);
const _: () = assert!(META_BYTES_MAX.is_multiple_of(SECTOR_BYTES));

/// Bytes of metadata for a record of `units` units and `tokens` token ids: whole sectors.
pub const fn meta_bytes(units: usize, tokens: usize) -> usize {
    (HEADER_BYTES + 8 * units + 4 * tokens).next_multiple_of(SECTOR_BYTES)
}
