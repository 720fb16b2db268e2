//! Index to bytes and back. Reading is bounded, never panics, and accepts nothing but what writing writes; a record may be named twice.

use kvd_proto::{BlockKey, SHARD_BYTES, Shard};

use super::{ENTRIES_MAX, INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, IndexError, PackEntry, PackIndex};
use crate::object::names::{NodeName, PackName, Realm};
use crate::record::bytes::{all_zero, array, checked, put, seal, u16_at, u32_at, u64_at};

const MAGIC: [u8; 8] = *b"KVDPIDX\n";
const VERSION: u16 = 1;
pub(super) const SEED: u64 = u64::from_le_bytes(*b"KVDPIDX1");
const HAS_PARENT: u8 = 1;

/// Offsets of the head's fields.
pub(super) mod at {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 8;
    pub(crate) const HEADER_BYTES: usize = 10;
    pub(crate) const COUNT: usize = 12;
    pub(crate) const PACK: usize = 24;
    pub(crate) const NODE: usize = 40;
    pub(crate) const TENANT: usize = 56;
    pub(crate) const NAMESPACE: usize = 72;
    pub(crate) const CREATED_MS: usize = 88;
    pub(crate) const RECORDS_BYTES: usize = 96;
    pub(crate) const RESERVED: usize = 104;
}

/// Offsets of an entry's fields, in the entry.
pub(super) mod entry_at {
    pub(crate) const KEY: usize = 0;
    pub(crate) const PARENT_KEY: usize = 16;
    pub(crate) const META_CHECKSUM: usize = 32;
    pub(crate) const GENERATION: usize = 40;
    pub(crate) const POSITION: usize = 44;
    pub(crate) const OFFSET: usize = 48;
    pub(crate) const RECORD_BYTES: usize = 52;
    pub(crate) const PAYLOAD_BYTES: usize = 56;
    pub(crate) const SHARD: usize = 60;
    pub(crate) const GROUP: usize = 72;
    pub(crate) const FLAGS: usize = 74;
    pub(crate) const RESERVED: usize = 75;
}

const _: () = assert!(at::RESERVED <= INDEX_HEADER_BYTES);
const _: () = assert!(entry_at::SHARD + SHARD_BYTES == entry_at::GROUP);
const _: () = assert!(entry_at::RESERVED + 5 == INDEX_ENTRY_BYTES);

impl PackIndex {
    /// The index as it stands in the pack and in the index object.
    ///
    /// Stops if the index is not one that [`PackIndex::decode`] takes: what is written here is believed by other nodes.
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.check(), Ok(()), "an index describes the pack that it was made for");
        let mut out = vec![0; self.index_bytes()];
        put(&mut out, at::MAGIC, &MAGIC);
        put(&mut out, at::VERSION, &VERSION.to_le_bytes());
        put(&mut out, at::HEADER_BYTES, &(INDEX_HEADER_BYTES as u16).to_le_bytes());
        put(&mut out, at::COUNT, &(self.entries.len() as u32).to_le_bytes());
        put(&mut out, at::PACK, self.pack.as_bytes());
        put(&mut out, at::NODE, self.node.as_bytes());
        put(&mut out, at::TENANT, &self.realm.tenant);
        put(&mut out, at::NAMESPACE, &self.realm.namespace);
        put(&mut out, at::CREATED_MS, &self.created_ms.to_le_bytes());
        put(&mut out, at::RECORDS_BYTES, &self.records_bytes.to_le_bytes());
        let places = out[INDEX_HEADER_BYTES..].as_chunks_mut::<INDEX_ENTRY_BYTES>().0;
        places.iter_mut().zip(&self.entries).for_each(|(place, entry)| encode_entry(entry, place));
        seal(SEED, &mut out);
        out
    }

    /// Reads what [`PackIndex::encode`] wrote, and nothing else: neither shorter nor longer.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let count = bounds(bytes)?;
        checked(SEED, bytes).ok_or(IndexError::Checksum)?;
        if usize::from(u16_at(bytes, at::HEADER_BYTES)) != INDEX_HEADER_BYTES {
            return Err(IndexError::Malformed("header_bytes"));
        }
        if !all_zero(&bytes[at::RESERVED..INDEX_HEADER_BYTES]) {
            return Err(IndexError::Malformed("reserved"));
        }
        let mut entries = Vec::with_capacity(count);
        for (index, place) in bytes[INDEX_HEADER_BYTES..].as_chunks::<INDEX_ENTRY_BYTES>().0.iter().enumerate() {
            entries.push(decode_entry(place).map_err(|field| IndexError::Entry { entry: index, field })?);
        }
        let index = Self {
            pack: PackName::new(array(bytes, at::PACK)),
            node: NodeName::new(array(bytes, at::NODE)),
            realm: Realm { tenant: array(bytes, at::TENANT), namespace: array(bytes, at::NAMESPACE) },
            created_ms: u64_at(bytes, at::CREATED_MS),
            records_bytes: u64_at(bytes, at::RECORDS_BYTES),
            entries,
        };
        index.check()?;
        Ok(index)
    }
}

/// The count of entries, once it is known that so many stand in `bytes` and nothing behind them.
fn bounds(bytes: &[u8]) -> Result<usize, IndexError> {
    let got = bytes.len();
    if got < INDEX_HEADER_BYTES {
        return Err(IndexError::Length { wanted: INDEX_HEADER_BYTES, got });
    }
    if array::<8>(bytes, at::MAGIC) != MAGIC {
        return Err(IndexError::Magic);
    }
    if u16_at(bytes, at::VERSION) != VERSION {
        return Err(IndexError::Version(u16_at(bytes, at::VERSION)));
    }
    let count = u32_at(bytes, at::COUNT) as usize;
    if !(1..=ENTRIES_MAX).contains(&count) {
        return Err(IndexError::Malformed("count"));
    }
    let wanted = INDEX_HEADER_BYTES + count * INDEX_ENTRY_BYTES;
    (got == wanted).then_some(count).ok_or(IndexError::Length { wanted, got })
}

fn encode_entry(entry: &PackEntry, out: &mut [u8; INDEX_ENTRY_BYTES]) {
    put(out, entry_at::KEY, entry.key.as_bytes());
    if let Some(parent) = &entry.parent_key {
        put(out, entry_at::PARENT_KEY, parent.as_bytes());
        out[entry_at::FLAGS] = HAS_PARENT;
    }
    put(out, entry_at::META_CHECKSUM, &entry.meta_checksum.to_le_bytes());
    put(out, entry_at::GENERATION, &entry.generation.to_le_bytes());
    put(out, entry_at::POSITION, &entry.position.to_le_bytes());
    put(out, entry_at::OFFSET, &entry.offset.to_le_bytes());
    put(out, entry_at::RECORD_BYTES, &entry.record_bytes.to_le_bytes());
    put(out, entry_at::PAYLOAD_BYTES, &entry.payload_bytes.to_le_bytes());
    put(out, entry_at::SHARD, &entry.shard.to_bytes());
    put(out, entry_at::GROUP, &entry.group.to_le_bytes());
}

/// The entry, or which field is not as the format says. Sizes and offsets are judged with all entries at hand.
fn decode_entry(bytes: &[u8; INDEX_ENTRY_BYTES]) -> Result<PackEntry, &'static str> {
    let parent: [u8; 16] = array(bytes, entry_at::PARENT_KEY);
    let parent_key = match bytes[entry_at::FLAGS] {
        0 if all_zero(&parent) => None,
        0 => return Err("parent_key"),
        HAS_PARENT => Some(BlockKey::new(parent)),
        _ => return Err("flags"),
    };
    if !all_zero(&bytes[entry_at::RESERVED..]) {
        return Err("reserved");
    }
    Ok(PackEntry {
        key: BlockKey::new(array(bytes, entry_at::KEY)),
        shard: Shard::from_bytes(&array(bytes, entry_at::SHARD)).map_err(|_| "shard")?,
        parent_key,
        group: u16_at(bytes, entry_at::GROUP),
        position: u32_at(bytes, entry_at::POSITION),
        generation: u32_at(bytes, entry_at::GENERATION),
        offset: u32_at(bytes, entry_at::OFFSET),
        record_bytes: u32_at(bytes, entry_at::RECORD_BYTES),
        payload_bytes: u32_at(bytes, entry_at::PAYLOAD_BYTES),
        meta_checksum: u64_at(bytes, entry_at::META_CHECKSUM),
    })
}
