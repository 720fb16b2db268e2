//! A pack being filled, in memory, and how its object ends: docs/formats/pack.md.

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use kvd_proto::{BlockKey, Shard};

use super::index::{
    ENTRIES_MAX, INDEX_BYTES_MAX, INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, PACK_BYTES_MAX, PackEntry, PackIndex,
    record_fits,
};
use super::names::{NodeName, PackName, Realm};
use super::order::in_chains;
use crate::record::bytes::{array, put, u32_at};

/// Bytes behind the index of a pack.
pub const TRAILER_BYTES: usize = 16;

const MAGIC: [u8; 8] = *b"KVDPACK\n";

mod at {
    pub(super) const INDEX_BYTES: usize = 0;
    pub(super) const RESERVED: usize = 4;
    pub(super) const MAGIC: usize = 8;
}

/// How a pack with an index of so many bytes ends: enough to find the index from the end of the object.
pub fn trailer(index_bytes: u32) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    put(&mut bytes, at::INDEX_BYTES, &index_bytes.to_le_bytes());
    put(&mut bytes, at::MAGIC, &MAGIC);
    bytes
}

/// Bytes of the index ahead of a trailer, if these are one: at most [`INDEX_BYTES_MAX`]. Nothing of the index is proven
/// yet.
pub fn parse_trailer(bytes: &[u8]) -> Option<u32> {
    if bytes.len() != TRAILER_BYTES || array::<8>(bytes, at::MAGIC) != MAGIC || u32_at(bytes, at::RESERVED) != 0 {
        return None;
    }
    let index_bytes = u32_at(bytes, at::INDEX_BYTES);
    let entries_bytes = (index_bytes as usize).checked_sub(INDEX_HEADER_BYTES)?;
    let whole = entries_bytes > 0 && entries_bytes.is_multiple_of(INDEX_ENTRY_BYTES);
    (whole && index_bytes as usize <= INDEX_BYTES_MAX).then_some(index_bytes)
}

/// What the index will say of a record; where it lies is decided when the pack is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
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
    /// Bytes of metadata and of payload with its padding; a multiple of 4096.
    pub record_bytes: u32,
    /// Bytes of the payload, without padding.
    pub payload_bytes: u32,
    /// The checksum of the record's metadata: the anchor of trust.
    pub meta_checksum: u64,
}

impl Pushed {
    fn at(self, offset: u32) -> PackEntry {
        let Self { key, shard, parent_key, group, position, generation, record_bytes, payload_bytes, meta_checksum } =
            self;
        PackEntry {
            key,
            shard,
            parent_key,
            group,
            position,
            generation,
            offset,
            record_bytes,
            payload_bytes,
            meta_checksum,
        }
    }
}

/// Why a record did not go into a pack. The pack is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// It goes into the next one.
    #[error("the pack has no room for the record")]
    Full,
    /// The same shard of the same block is there.
    #[error("the pack holds the record already")]
    Present,
    /// No record has such sizes, or these are not its bytes.
    #[error("{bytes} bytes are not a record of {record_bytes} bytes with {payload_bytes} bytes of payload")]
    Sizes {
        /// Bytes that were given.
        bytes: usize,
        /// Bytes of the record.
        record_bytes: u32,
        /// Bytes of its payload.
        payload_bytes: u32,
    },
}

/// A pack that takes records until it is closed.
///
/// Each record comes in memory of its own, an `R`: closing puts them in order without moving a byte.
#[derive(Debug)]
pub struct PackBuilder<R> {
    name: PackName,
    node: NodeName,
    realm: Realm,
    limit_bytes: u64,
    bytes: u64,
    pushed: Vec<Pushed>,
    records: Vec<R>,
    present: HashSet<(BlockKey, Shard)>,
}

impl<R: AsRef<[u8]>> PackBuilder<R> {
    /// An empty pack that is full once its records have `limit_bytes`, and never holds more than [`PACK_BYTES_MAX`] or
    /// [`ENTRIES_MAX`] of them. One record finds room under any limit: else it could never be kept.
    pub fn new(name: PackName, node: NodeName, realm: Realm, limit_bytes: u64) -> Self {
        let limit_bytes = limit_bytes.min(PACK_BYTES_MAX);
        let (pushed, records, present) = (Vec::new(), Vec::new(), HashSet::new());
        Self { name, node, realm, limit_bytes, bytes: 0, pushed, records, present }
    }

    /// Whether a record of so many bytes still goes in.
    pub fn room_for(&self, record_bytes: u32) -> bool {
        let bytes = self.bytes + u64::from(record_bytes);
        self.is_empty() || self.len() < ENTRIES_MAX && bytes <= self.limit_bytes
    }

    /// Adds a record, whole and verified.
    pub fn push(&mut self, entry: Pushed, record: R) -> Result<(), PushError> {
        let (record_bytes, payload_bytes) = (entry.record_bytes, entry.payload_bytes);
        let bytes = record.as_ref().len();
        if !record_fits(record_bytes, payload_bytes) || bytes != record_bytes as usize {
            return Err(PushError::Sizes { bytes, record_bytes, payload_bytes });
        }
        if self.contains(&entry.key, &entry.shard) {
            return Err(PushError::Present);
        }
        if !self.room_for(record_bytes) {
            return Err(PushError::Full);
        }
        self.bytes += u64::from(record_bytes);
        self.present.insert((entry.key, entry.shard.clone()));
        self.pushed.push(entry);
        self.records.push(record);
        Ok(())
    }

    /// Whether this shard of this block is in it.
    pub fn contains(&self, key: &BlockKey, shard: &Shard) -> bool {
        self.present.contains(&(*key, shard.clone()))
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.pushed.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pushed.is_empty()
    }

    /// Bytes of its records, which is also the memory that it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Closes the pack: records in chain order, then the index, then the trailer. `created_ms` is milliseconds since
    /// 1970. `None` if nothing was put in: there is no empty pack.
    pub fn finish(self, created_ms: u64) -> Option<SealedPack<R>> {
        let Self { name: pack, node, realm, bytes: records_bytes, pushed, records, .. } = self;
        let order = in_chains(&pushed);
        let mut left: Vec<_> = pushed.into_iter().zip(records).map(Some).collect();
        let lying = order.into_iter().filter_map(|from| left[from].take());
        let (entries, records) = placed(lying.map(|(pushed, record)| (pushed.at(0), record)));
        let index = PackIndex { pack, node, realm, created_ms, records_bytes, entries };
        (!records.is_empty()).then(|| SealedPack::new(index, records))
    }
}

/// Gives records, in the order in which they shall lie, their places one behind the other.
fn placed<R>(records: impl Iterator<Item = (PackEntry, R)>) -> (Vec<PackEntry>, Vec<R>) {
    let mut offset = 0;
    let place = |(entry, record): (PackEntry, R)| {
        let entry = PackEntry { offset, ..entry };
        offset += entry.record_bytes;
        (entry, record)
    };
    records.map(place).unzip()
}

/// A pack that is ready to be written: each record, then `tail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedPack<R> {
    /// What lies where in it.
    pub index: PackIndex,
    /// The index as bytes: the index object.
    pub index_bytes: Vec<u8>,
    /// The records, as they lie in the pack object.
    pub records: Vec<R>,
    /// What comes behind them: index and trailer.
    pub tail: Vec<u8>,
    /// Bytes of the pack object.
    pub bytes: u64,
}

impl<R> SealedPack<R> {
    fn new(index: PackIndex, records: Vec<R>) -> Self {
        let index_bytes = index.encode();
        let end = trailer(u32::try_from(index_bytes.len()).expect("an index has at most INDEX_BYTES_MAX"));
        let tail = [&index_bytes[..], &end].concat();
        let bytes = index.pack_bytes();
        Self { index, index_bytes, records, tail, bytes }
    }

    /// The same pack without some of its records, given by their places; `None` if nothing is left of it.
    pub fn without(self, left_out: &HashSet<usize>) -> Option<Self> {
        let Self { index, records, .. } = self;
        let all = index.entries.into_iter().zip(records).enumerate();
        let (entries, records) = placed(all.filter(|(at, _)| !left_out.contains(at)).map(|(_, kept)| kept));
        let records_bytes = entries.last().map_or(0, |last| u64::from(last.offset) + u64::from(last.record_bytes));
        (!records.is_empty()).then(|| Self::new(PackIndex { records_bytes, entries, ..index }, records))
    }
}
