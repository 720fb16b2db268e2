//! Records: one shard of one block, metadata then payload, the same image on every tier.
//!
//! docs/formats/record.md is the byte map. A record is served only after [`verify_record`] has compared its metadata with what
//! the pointing table says and its payload with the unit checksums in that metadata; [`Arrival`] does so while a record comes.

mod arrival;
pub(crate) mod bytes;
mod decode;
mod encode;
mod metadata;
mod verify;

pub use arrival::Arrival;
pub use metadata::{
    META_BYTES_MAX, Metadata, MetadataError, PAYLOAD_BYTES_MAX, SECTOR_BYTES, Sealed, TokenIds, UnitChecksums,
    meta_bytes, slot_bytes, units,
};
pub use verify::{Expect, Mismatch, Scratch, verify_bytes, verify_metadata, verify_record};
