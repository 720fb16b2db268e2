//! The rows of the catalog: keys and values of fixed size. Keys hold numbers big-endian, so that they sort as the
//! numbers do; values are little-endian. A value that is not as written here is as good as none.

use kvd_proto::{BlockKey, SHARD_BYTES, Shard};

use super::super::index::{PACK_BYTES_MAX, PackEntry, PackIndex, record_fits};
use super::super::names::{IndexName, NodeName, PackName, Realm};
use super::shards::ShardName;
use crate::record::SECTOR_BYTES;
use crate::record::bytes::{array, put, u32_at, u64_at};

/// Value of the format row: a magic, and the version of all rows.
pub(super) const FORMAT: [u8; 8] = *b"KVDCAT\x02\0";
/// Key of the format row.
pub(super) const FORMAT_KEY: [u8; 1] = [0];
/// Key of the row with the next pack number.
pub(super) const NEXT_KEY: [u8; 1] = [6];

/// Every entry and pack row begins with it.
const VERSION: u8 = 1;

mod space {
    pub(super) const ENTRY: u8 = 1;
    pub(super) const PACK: u8 = 2;
    pub(super) const NAME: u8 = 3;
    pub(super) const OBJECT: u8 = 4;
    pub(super) const CURSOR: u8 = 5;
    pub(super) const SHARD: u8 = 7;
}

/// Where a record lies, by the number of its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryRow {
    pub(super) number: u32,
    pub(super) offset: u32,
    pub(super) record_bytes: u32,
    pub(super) payload_bytes: u32,
    pub(super) generation: u32,
    pub(super) meta_checksum: u64,
}

const ENTRY_KEY_BYTES: usize = 1 + 16 + SHARD_BYTES;
const ENTRY_BYTES: usize = 29;

mod entry_at {
    pub(super) const NUMBER: usize = 1;
    pub(super) const OFFSET: usize = 5;
    pub(super) const RECORD_BYTES: usize = 9;
    pub(super) const PAYLOAD_BYTES: usize = 13;
    pub(super) const GENERATION: usize = 17;
    pub(super) const META_CHECKSUM: usize = 21;
}

const _: () = assert!(entry_at::META_CHECKSUM + 8 == ENTRY_BYTES);

pub(super) fn entry_key(key: &BlockKey, shard: &Shard) -> [u8; ENTRY_KEY_BYTES] {
    let mut bytes = [space::ENTRY; ENTRY_KEY_BYTES];
    put(&mut bytes, 1, key.as_bytes());
    put(&mut bytes, 17, &shard.to_bytes());
    bytes
}

pub(super) fn is_entry_key(key: &[u8]) -> bool {
    key.first() == Some(&space::ENTRY)
}

/// The pack number in an entry's value: all that is asked of entries by the million.
pub(super) fn number_of_entry(value: &[u8]) -> Option<u32> {
    (value.len() == ENTRY_BYTES && value[0] == VERSION).then(|| u32_at(value, entry_at::NUMBER))
}

impl EntryRow {
    pub(super) fn new(number: u32, entry: &PackEntry) -> Self {
        Self {
            number,
            offset: entry.offset,
            record_bytes: entry.record_bytes,
            payload_bytes: entry.payload_bytes,
            generation: entry.generation,
            meta_checksum: entry.meta_checksum,
        }
    }

    pub(super) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [VERSION; ENTRY_BYTES];
        put(&mut bytes, entry_at::NUMBER, &self.number.to_le_bytes());
        put(&mut bytes, entry_at::OFFSET, &self.offset.to_le_bytes());
        put(&mut bytes, entry_at::RECORD_BYTES, &self.record_bytes.to_le_bytes());
        put(&mut bytes, entry_at::PAYLOAD_BYTES, &self.payload_bytes.to_le_bytes());
        put(&mut bytes, entry_at::GENERATION, &self.generation.to_le_bytes());
        put(&mut bytes, entry_at::META_CHECKSUM, &self.meta_checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let row = Self {
            number: number_of_entry(bytes)?,
            offset: u32_at(bytes, entry_at::OFFSET),
            record_bytes: u32_at(bytes, entry_at::RECORD_BYTES),
            payload_bytes: u32_at(bytes, entry_at::PAYLOAD_BYTES),
            generation: u32_at(bytes, entry_at::GENERATION),
            meta_checksum: u64_at(bytes, entry_at::META_CHECKSUM),
        };
        let end = u64::from(row.offset) + u64::from(row.record_bytes);
        let placed = row.offset.is_multiple_of(SECTOR_BYTES as u32) && end <= PACK_BYTES_MAX;
        (placed && record_fits(row.record_bytes, row.payload_bytes)).then_some(row)
    }
}

/// What the catalog knows of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRow {
    /// Which pack.
    pub name: PackName,
    /// Who wrote it.
    pub node: NodeName,
    /// Its place among the packs of that node.
    pub seq: u64,
    /// Whose records it holds.
    pub realm: Realm,
    /// Bytes of the whole object: records, index and trailer.
    pub bytes: u64,
    /// Records in it.
    pub records: u32,
    /// When it was closed, by the clock of its writer: milliseconds since 1970.
    pub created_ms: u64,
}

const PACK_BYTES: usize = 93;

mod pack_at {
    pub(super) const NAME: usize = 1;
    pub(super) const NODE: usize = 17;
    pub(super) const SEQ: usize = 33;
    pub(super) const TENANT: usize = 41;
    pub(super) const NAMESPACE: usize = 57;
    pub(super) const BYTES: usize = 73;
    pub(super) const RECORDS: usize = 81;
    pub(super) const CREATED_MS: usize = 85;
}

const _: () = assert!(pack_at::CREATED_MS + 8 == PACK_BYTES);

impl PackRow {
    pub(super) fn new(name: &IndexName, index: &PackIndex) -> Self {
        Self {
            name: name.pack,
            node: name.node,
            seq: name.seq,
            realm: index.realm,
            bytes: index.pack_bytes(),
            records: u32::try_from(index.entries.len()).expect("an index has at most 65536 entries"),
            created_ms: index.created_ms,
        }
    }

    /// Name of the pack's index object.
    pub fn index_name(&self) -> IndexName {
        IndexName { node: self.node, seq: self.seq, pack: self.name }
    }

    pub(super) fn encode(&self) -> [u8; PACK_BYTES] {
        let mut bytes = [VERSION; PACK_BYTES];
        put(&mut bytes, pack_at::NAME, self.name.as_bytes());
        put(&mut bytes, pack_at::NODE, self.node.as_bytes());
        put(&mut bytes, pack_at::SEQ, &self.seq.to_le_bytes());
        put(&mut bytes, pack_at::TENANT, &self.realm.tenant);
        put(&mut bytes, pack_at::NAMESPACE, &self.realm.namespace);
        put(&mut bytes, pack_at::BYTES, &self.bytes.to_le_bytes());
        put(&mut bytes, pack_at::RECORDS, &self.records.to_le_bytes());
        put(&mut bytes, pack_at::CREATED_MS, &self.created_ms.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != PACK_BYTES || bytes[0] != VERSION {
            return None;
        }
        Some(Self {
            name: PackName::new(array(bytes, pack_at::NAME)),
            node: NodeName::new(array(bytes, pack_at::NODE)),
            seq: u64_at(bytes, pack_at::SEQ),
            realm: Realm { tenant: array(bytes, pack_at::TENANT), namespace: array(bytes, pack_at::NAMESPACE) },
            bytes: u64_at(bytes, pack_at::BYTES),
            records: u32_at(bytes, pack_at::RECORDS),
            created_ms: u64_at(bytes, pack_at::CREATED_MS),
        })
    }
}

/// How the keys of all pack rows begin.
pub(super) const PACKS: [u8; 1] = [space::PACK];
/// How the keys of all object rows begin.
pub(super) const OBJECTS: [u8; 1] = [space::OBJECT];

pub(super) fn pack_key(number: u32) -> [u8; 5] {
    let mut key = [space::PACK; 5];
    put(&mut key, 1, &number.to_be_bytes());
    key
}

pub(super) fn number_of_pack_key(key: &[u8]) -> Option<u32> {
    let (space, number) = key.split_first()?;
    let number = number.try_into().ok().map(u32::from_be_bytes)?;
    (*space == space::PACK).then_some(number)
}

pub(super) fn name_key(pack: PackName) -> [u8; 17] {
    let mut key = [space::NAME; 17];
    put(&mut key, 1, pack.as_bytes());
    key
}

pub(super) fn cursor_key(node: NodeName) -> [u8; 17] {
    let mut key = [space::CURSOR; 17];
    put(&mut key, 1, node.as_bytes());
    key
}

const OBJECT_KEY_BYTES: usize = 41;

/// How the keys of all object rows of a node begin.
pub(super) fn objects_of(node: NodeName) -> [u8; 17] {
    let mut key = [space::OBJECT; 17];
    put(&mut key, 1, node.as_bytes());
    key
}

/// Sorts as [`IndexName`] does.
pub(super) fn object_key(name: &IndexName) -> [u8; OBJECT_KEY_BYTES] {
    let mut key = [space::OBJECT; OBJECT_KEY_BYTES];
    put(&mut key, 1, name.node.as_bytes());
    put(&mut key, 17, &name.seq.to_be_bytes());
    put(&mut key, 25, name.pack.as_bytes());
    key
}

pub(super) fn object_of_key(key: &[u8]) -> Option<IndexName> {
    (key.len() == OBJECT_KEY_BYTES && key[0] == space::OBJECT).then(|| IndexName {
        node: NodeName::new(array(key, 1)),
        seq: u64::from_be_bytes(array(key, 17)),
        pack: PackName::new(array(key, 25)),
    })
}

const SHARD_KEY_BYTES: usize = 35 + SHARD_BYTES;
/// How the keys of all shard rows begin.
pub(super) const SHARDS: [u8; 1] = [space::SHARD];

pub(super) fn shard_key((realm, group, shard): &ShardName) -> [u8; SHARD_KEY_BYTES] {
    let mut key = [space::SHARD; SHARD_KEY_BYTES];
    put(&mut key, 1, &realm.tenant);
    put(&mut key, 17, &realm.namespace);
    put(&mut key, 33, &group.to_be_bytes());
    put(&mut key, 35, shard);
    key
}

pub(super) fn shard_of_key(key: &[u8]) -> Option<ShardName> {
    let whole = key.len() == SHARD_KEY_BYTES && key[0] == space::SHARD;
    let realm = || Realm { tenant: array(key, 1), namespace: array(key, 17) };
    whole.then(|| (realm(), u16::from_be_bytes(array(key, 33)), array(key, 35)))
}

pub(super) fn is_shard_key(key: &[u8]) -> bool {
    key.first() == Some(&space::SHARD)
}

/// A pack number as a value.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_le_bytes)
}

/// A cursor as a value.
pub(super) fn seq(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = IndexName> {
        // Few different bytes, so that neighbours differ late as well.
        (prop::array::uniform16(0u8..2), 0u64..600, prop::array::uniform16(0u8..2))
            .prop_map(|(node, seq, pack)| IndexName { node: NodeName::new(node), seq, pack: PackName::new(pack) })
    }

    fn entry() -> EntryRow {
        EntryRow {
            number: 0x0102_0304,
            offset: 8 << 20,
            record_bytes: 12_288,
            payload_bytes: 8000,
            generation: 9,
            meta_checksum: u64::MAX - 7,
        }
    }

    proptest! {
        #[test]
        fn object_keys_sort_as_names_do(one in name(), other in name()) {
            prop_assert_eq!(object_key(&one).cmp(&object_key(&other)), one.cmp(&other));
            prop_assert_eq!(object_of_key(&object_key(&one)), Some(one));
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (EntryRow::decode(&bytes), PackRow::decode(&bytes), number_of_entry(&bytes), number(&bytes));
            let _ = (object_of_key(&bytes), number_of_pack_key(&bytes), seq(&bytes), is_entry_key(&bytes));
            let _ = (shard_of_key(&bytes), is_shard_key(&bytes));
        }

        #[test]
        fn whatever_entry_is_read_lies_in_a_pack(mut bytes in prop::array::uniform29(any::<u8>())) {
            bytes[0] = VERSION;
            // Most random sizes are far too large; with the upper bytes cleared many come close to the bounds.
            for at in [entry_at::OFFSET, entry_at::RECORD_BYTES, entry_at::PAYLOAD_BYTES] {
                bytes[at + 2] &= 3;
                bytes[at + 3] = 0;
            }
            bytes[entry_at::OFFSET + 1] &= 0xf0;
            bytes[entry_at::RECORD_BYTES + 1] &= 0xf0;
            bytes[entry_at::OFFSET] = 0;
            bytes[entry_at::RECORD_BYTES] = 0;
            if let Some(row) = EntryRow::decode(&bytes) {
                prop_assert_eq!(row.encode(), bytes);
                prop_assert!(row.payload_bytes > 0 && row.payload_bytes < row.record_bytes);
                prop_assert!(u64::from(row.offset) + u64::from(row.record_bytes) <= PACK_BYTES_MAX);
            }
        }
    }

    #[test]
    fn entries_round_trip_and_impossible_ones_are_refused() {
        let row = entry();
        assert_eq!(EntryRow::decode(&row.encode()), Some(row));
        assert_eq!(number_of_entry(&row.encode()), Some(row.number));
        let refused = [
            EntryRow { offset: row.offset + 1, ..row },
            EntryRow { offset: (1 << 30) - 8192, ..row },
            EntryRow { offset: u32::MAX - 4095, ..row },
            EntryRow { record_bytes: 12_289, ..row },
            EntryRow { record_bytes: 8192, ..row },
            EntryRow { record_bytes: 0, ..row },
            EntryRow { payload_bytes: 0, ..row },
            EntryRow { payload_bytes: 12_000, ..row },
            EntryRow { payload_bytes: u32::MAX, ..row },
        ];
        for wrong in refused {
            assert_eq!(EntryRow::decode(&wrong.encode()), None, "{wrong:?}");
        }
        let mut newer = row.encode();
        newer[0] = VERSION + 1;
        assert_eq!((EntryRow::decode(&newer), number_of_entry(&newer)), (None, None));
        assert_eq!(EntryRow::decode(&row.encode()[1..]), None);
    }

    #[test]
    fn packs_round_trip() {
        let row = PackRow {
            name: PackName::new([1; 16]),
            node: NodeName::new([2; 16]),
            seq: 3,
            realm: Realm { tenant: [4; 16], namespace: [5; 16] },
            bytes: 6 << 20,
            records: 7,
            created_ms: 1_790_000_000_000,
        };
        let bytes = row.encode();
        assert_eq!(PackRow::decode(&bytes), Some(row));
        assert_eq!(PackRow::decode(&bytes[..PACK_BYTES - 1]), None);
        assert_eq!(number_of_pack_key(&pack_key(77)), Some(77));
        assert!(pack_key(255) < pack_key(256), "rows come in the order of numbers");
        let shard = (row.realm, 0x0102, [6; SHARD_BYTES]);
        assert_eq!(shard_of_key(&shard_key(&shard)), Some(shard));
        assert!(is_shard_key(&shard_key(&shard)) && !is_entry_key(&shard_key(&shard)));
    }
}
