//! Whether the bytes in a slot are the record that a table says they are.

use kvd_nixl::sys::copy::{Units, checksum_units};
use kvd_nixl::sys::{MemoryExtent, unit_seed};

use kvd_proto::{BlockKey, Shard, checksum_seed};

use crate::ids::SlotEntry;

use super::decode::announced;
use super::metadata::{META_BYTES_MAX, Metadata, MetadataError, SECTOR_BYTES, Sealed};

/// What a table says about the record that it points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Block.
    pub key: BlockKey,
    /// Part of the block.
    pub shard: Shard,
    /// Generation under which it was sealed.
    pub generation: u32,
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// The metadata's own checksum.
    pub meta_checksum: u64,
}

impl From<&SlotEntry> for Expect {
    fn from(entry: &SlotEntry) -> Self {
        Self {
            key: entry.key,
            shard: entry.shard.clone(),
            generation: entry.generation,
            payload_bytes: entry.payload_bytes,
            meta_checksum: entry.meta_checksum,
        }
    }
}

/// Why a record is not served. Each one is a miss and a quarantined slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The metadata does not check.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// An intact record of another block, shard, generation or length, or another sealing of the same.
    #[error("another record stands here: {0} differs")]
    Identity(&'static str),
    /// Payload bytes were changed.
    #[error("checksum of unit {unit} does not match")]
    Unit {
        /// First unit that differs.
        unit: u32,
    },
    /// The record does not fit in the memory it should lie in.
    #[error("record of {wanted} bytes in a slot of {got}")]
    Bounds {
        /// Bytes of metadata and payload.
        wanted: usize,
        /// Bytes of the slot.
        got: usize,
    },
}

/// Private memory into which metadata is read once, so that nobody can change it between check and use, and room for the
/// checksums of a payload's units. Made once per thread.
#[derive(Debug)]
pub struct Scratch {
    bytes: Box<[u8]>,
    found: Box<[u64]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            bytes: vec![0; META_BYTES_MAX].into_boxed_slice(),
            found: vec![0; META_BYTES_MAX / 8].into_boxed_slice(),
        }
    }
}

impl Scratch {
    /// Reads and checks the metadata at the start of `slot`.
    pub fn read(&mut self, slot: &MemoryExtent) -> Result<Sealed<'_>, Mismatch> {
        read(&mut self.bytes, slot)
    }
}

fn read<'a>(bytes: &'a mut [u8], slot: &MemoryExtent) -> Result<Sealed<'a>, Mismatch> {
    let got = slot.len();
    let bounds = |wanted| Mismatch::Bounds { wanted, got };
    slot.read(0, &mut bytes[..SECTOR_BYTES]).map_err(|_| bounds(SECTOR_BYTES))?;
    let wanted = announced(&bytes[..SECTOR_BYTES])?;
    // Only what follows the first sector: no byte is read twice.
    slot.read(SECTOR_BYTES, &mut bytes[SECTOR_BYTES..wanted]).map_err(|_| bounds(wanted))?;
    Ok(Metadata::decode(&bytes[..wanted])?)
}

fn identify<'a>(bytes: &'a mut [u8], slot: &MemoryExtent, expect: &Expect) -> Result<Sealed<'a>, Mismatch> {
    compare(read(bytes, slot)?, expect)
}

pub(super) fn compare<'a>(sealed: Sealed<'a>, expect: &Expect) -> Result<Sealed<'a>, Mismatch> {
    let found = &sealed.metadata;
    let differs = [
        ("key", found.key != expect.key),
        ("shard", found.shard != expect.shard),
        ("generation", found.generation != expect.generation),
        ("length", found.payload_bytes != expect.payload_bytes),
        ("meta_checksum", sealed.meta_checksum != expect.meta_checksum),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(Mismatch::Identity(what)),
        None => Ok(sealed),
    }
}

/// Checks the metadata at the start of `slot` against `expect`, and returns it. The payload is not looked at.
pub fn verify_metadata<'a>(
    slot: &MemoryExtent,
    expect: &Expect,
    scratch: &'a mut Scratch,
) -> Result<Sealed<'a>, Mismatch> {
    identify(&mut scratch.bytes, slot, expect)
}

/// Checks a whole record in private memory: its metadata against `expect`, then every unit of its payload.
pub fn verify_bytes<'a>(record: &'a [u8], expect: &Expect) -> Result<Sealed<'a>, Mismatch> {
    let sealed = compare(Metadata::decode(record)?, expect)?;
    let found = &sealed.metadata;
    let (start, len) = (found.meta_bytes(), found.payload_bytes as usize);
    let payload = record.get(start..start + len).ok_or(Mismatch::Bounds { wanted: start + len, got: record.len() })?;
    let seed = checksum_seed(&found.key, &found.shard);
    for (unit, bytes) in payload.chunks(found.unit_bytes as usize).enumerate() {
        if found.algorithm.checksum(unit_seed(seed, unit as u32), bytes) != found.checksums.get(unit) {
            return Err(Mismatch::Unit { unit: unit as u32 });
        }
    }
    Ok(sealed)
}

/// Checks the whole record in `slot`: its metadata against `expect`, then every unit of its payload. Allocates nothing.
pub fn verify_record(slot: &MemoryExtent, expect: &Expect, scratch: &mut Scratch) -> Result<(), Mismatch> {
    let Scratch { bytes, found } = scratch;
    let sealed = identify(bytes, slot, expect)?;
    let record = &sealed.metadata;
    let (start, len) = (record.meta_bytes(), record.payload_bytes as usize);
    let bounds = Mismatch::Bounds { wanted: start + len, got: slot.len() };
    let payload = slot.part(start, len).map_err(|_| bounds)?;
    let units = Units {
        unit_bytes: record.unit_bytes as usize,
        algorithm: record.algorithm,
        seed: checksum_seed(&record.key, &record.shard),
    };
    let found = &mut found[..record.checksums.len()];
    checksum_units(&payload, &units, found).map_err(|_| bounds)?;
    match found.iter().enumerate().position(|(unit, checksum)| record.checksums.get(unit) != *checksum) {
        Some(unit) => Err(Mismatch::Unit { unit: unit as u32 }),
        None => Ok(()),
    }
}
