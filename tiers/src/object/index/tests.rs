//! An index is read as it was written or not at all.

use proptest::prelude::*;

use super::codec::{SEED, at, entry_at};
use super::*;
use crate::record::bytes::{put, seal};
use kvd_proto::Interleave;

fn shard() -> impl Strategy<Value = Shard> {
    let range = || (0u16..100, 1u16..100).prop_map(|(start, len)| start..start + len);
    let interleave = (1u16..9).prop_flat_map(|of| (0..of, Just(of)));
    (range(), range(), interleave).prop_map(|(layers, heads, (index, of))| {
        Shard::new(layers, heads, Interleave::new(index, of).unwrap()).unwrap()
    })
}

prop_compose! {
    fn entry()(
        key in any::<[u8; 16]>(),
        parent in any::<Option<[u8; 16]>>(),
        shard in shard(),
        (group, position, generation, meta_checksum) in any::<(u16, u32, u32, u64)>(),
        payload_bytes in 1u32..200_000,
        meta_sectors in 1u32..=32,
    ) -> PackEntry {
        let record_bytes = meta_sectors * 4096 + payload_bytes.next_multiple_of(4096);
        let (key, parent_key) = (BlockKey::new(key), parent.map(BlockKey::new));
        PackEntry {
            key,
            shard,
            parent_key,
            group,
            position,
            generation,
            offset: 0,
            record_bytes,
            payload_bytes,
            meta_checksum,
        }
    }
}

fn index() -> impl Strategy<Value = PackIndex> {
    let head = any::<([u8; 16], [u8; 16], [u8; 16], [u8; 16], u64)>();
    (head, prop::collection::vec(entry(), 1..20)).prop_map(|((pack, node, tenant, namespace, created_ms), entries)| {
        let (pack, node) = (PackName::new(pack), NodeName::new(node));
        laid_out(PackIndex { pack, node, realm: Realm { tenant, namespace }, created_ms, records_bytes: 0, entries })
    })
}

fn laid_out(mut index: PackIndex) -> PackIndex {
    let mut offset = 0;
    for entry in &mut index.entries {
        entry.offset = offset;
        offset += entry.record_bytes;
    }
    index.records_bytes = u64::from(offset);
    index
}

fn sample(count: usize) -> PackIndex {
    let entry = |number: usize| PackEntry {
        key: BlockKey::new([(number as u8).wrapping_add(1); 16]),
        shard: Shard::whole(32, 8).unwrap(),
        parent_key: number.checked_sub(1).map(|parent| BlockKey::new([(parent as u8).wrapping_add(1); 16])),
        group: 1,
        position: number as u32,
        generation: 7,
        offset: 0,
        record_bytes: 12288,
        payload_bytes: 5000,
        meta_checksum: 0x0123_4567_89ab_cdef,
    };
    laid_out(PackIndex {
        pack: PackName::new([1; 16]),
        node: NodeName::new([2; 16]),
        realm: Realm { tenant: [3; 16], namespace: [4; 16] },
        created_ms: 1_700_000_000_000,
        records_bytes: 0,
        entries: (0..count).map(entry).collect(),
    })
}

proptest! {
    #[test]
    fn an_index_is_read_as_it_was_written(index in index()) {
        let bytes = index.encode();
        prop_assert_eq!(bytes.len(), index.index_bytes());
        prop_assert_eq!(PackIndex::decode(&bytes), Ok(index));
    }

    #[test]
    fn what_was_sealed_by_somebody_else_is_read_exactly_or_refused(
        index in index(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = index.encode();
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        seal(SEED, &mut bytes);
        if let Ok(read) = PackIndex::decode(&bytes) {
            prop_assert_eq!(read.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
        prop_assert!(PackIndex::decode(&bytes).is_err());
    }
}

#[test]
fn no_flipped_bit_is_read() {
    let mut bytes = sample(3).encode();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(PackIndex::decode(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(PackIndex::decode(&bytes), Ok(sample(3)));
}

#[test]
fn neither_less_nor_more_is_read() {
    let bytes = sample(3).encode();
    for len in 0..bytes.len() {
        assert!(matches!(PackIndex::decode(&bytes[..len]), Err(IndexError::Length { got, .. }) if got == len), "{len}");
    }
    for more in [1, INDEX_ENTRY_BYTES, 4096] {
        let longer = [&bytes[..], &vec![0; more]].concat();
        let wanted = bytes.len();
        assert_eq!(PackIndex::decode(&longer), Err(IndexError::Length { wanted, got: wanted + more }));
    }
}

/// A right checksum says only that somebody meant what stands there. The second of three entries is changed.
#[test]
fn a_sealed_index_that_says_something_else_is_refused() {
    let second = INDEX_HEADER_BYTES + INDEX_ENTRY_BYTES;
    let head = |field, at: usize, value: &[u8]| (IndexError::Malformed(field), at, value.to_vec());
    let entry = |field, at: usize, value: &[u8]| (IndexError::Entry { entry: 1, field }, second + at, value.to_vec());
    let changes = [
        (IndexError::Magic, at::MAGIC, vec![b'X']),
        (IndexError::Version(2), at::VERSION, vec![2]),
        (IndexError::Length { wanted: 208, got: 368 }, at::COUNT, vec![1]),
        head("count", at::COUNT, &[0]),
        head("count", at::COUNT, &[1, 0, 1, 0]),
        head("count", at::COUNT, &[0xff; 4]),
        head("header_bytes", at::HEADER_BYTES, &[0]),
        head("reserved", at::RESERVED, &[1]),
        head("reserved", INDEX_HEADER_BYTES - 1, &[1]),
        head("records_bytes", at::RECORDS_BYTES, &(3 * 12288_u64 + 4096).to_le_bytes()),
        head("records_bytes", at::RECORDS_BYTES, &(3 * 12288_u64 + (1 << 32)).to_le_bytes()),
        entry("parent_key", entry_at::FLAGS, &[0]),
        entry("flags", entry_at::FLAGS, &[2]),
        entry("flags", entry_at::FLAGS, &[3]),
        entry("reserved", entry_at::RESERVED, &[1]),
        entry("reserved", INDEX_ENTRY_BYTES - 1, &[1]),
        entry("shard", entry_at::SHARD, &[0; 12]),
        entry("offset", entry_at::OFFSET, &0_u32.to_le_bytes()),
        entry("offset", entry_at::OFFSET, &12289_u32.to_le_bytes()),
        entry("offset", entry_at::OFFSET, &16384_u32.to_le_bytes()),
        entry("record_bytes", entry_at::RECORD_BYTES, &0_u32.to_le_bytes()),
        entry("record_bytes", entry_at::RECORD_BYTES, &8192_u32.to_le_bytes()),
        entry("record_bytes", entry_at::RECORD_BYTES, &12289_u32.to_le_bytes()),
        entry("record_bytes", entry_at::RECORD_BYTES, &(8192_u32 + (128 << 10) + 4096).to_le_bytes()),
        entry("record_bytes", entry_at::RECORD_BYTES, &u32::MAX.to_le_bytes()),
        entry("record_bytes", entry_at::PAYLOAD_BYTES, &0_u32.to_le_bytes()),
        entry("record_bytes", entry_at::PAYLOAD_BYTES, &8193_u32.to_le_bytes()),
        entry("record_bytes", entry_at::PAYLOAD_BYTES, &u32::MAX.to_le_bytes()),
    ];
    for (wanted, place, value) in changes {
        let mut bytes = sample(3).encode();
        put(&mut bytes, place, &value);
        seal(SEED, &mut bytes);
        assert_eq!(PackIndex::decode(&bytes), Err(wanted), "{value:?} at {place}");
    }
    // A record that grows moves the next one.
    let mut bytes = sample(3).encode();
    put(&mut bytes, second + entry_at::RECORD_BYTES, &16384_u32.to_le_bytes());
    seal(SEED, &mut bytes);
    assert_eq!(PackIndex::decode(&bytes), Err(IndexError::Entry { entry: 2, field: "offset" }));
}

/// Writes an index that no builder makes.
fn forged(index: &PackIndex, within: &PackIndex) -> Vec<u8> {
    let mut bytes = within.encode();
    put(&mut bytes, at::RECORDS_BYTES, &index.records_bytes.to_le_bytes());
    for (number, entry) in index.entries.iter().enumerate() {
        let place = INDEX_HEADER_BYTES + number * INDEX_ENTRY_BYTES;
        put(&mut bytes, place + entry_at::OFFSET, &entry.offset.to_le_bytes());
        put(&mut bytes, place + entry_at::RECORD_BYTES, &entry.record_bytes.to_le_bytes());
        put(&mut bytes, place + entry_at::PAYLOAD_BYTES, &entry.payload_bytes.to_le_bytes());
    }
    seal(SEED, &mut bytes);
    bytes
}

#[test]
fn records_have_a_gibibyte_together_and_no_more() {
    let record_bytes = PAYLOAD_BYTES_MAX;
    let payload_bytes = PAYLOAD_BYTES_MAX - 4096;
    let small = sample(17);
    let mut full = sample(16);
    full.entries.iter_mut().for_each(|entry| (entry.record_bytes, entry.payload_bytes) = (record_bytes, payload_bytes));
    let full = laid_out(full);
    assert_eq!(full.records_bytes, PACK_BYTES_MAX);
    assert_eq!(PackIndex::decode(&full.encode()), Ok(full.clone()));
    let mut over = full.clone();
    over.entries.push(small.entries[16].clone());
    let over = laid_out(over);
    assert_eq!(PackIndex::decode(&forged(&over, &small)), Err(IndexError::Entry { entry: 16, field: "offset" }));
}

#[test]
fn the_largest_index_is_read_and_a_larger_one_is_not() {
    let mut index = sample(ENTRIES_MAX);
    let tiny = |entry: &mut PackEntry| (entry.record_bytes, entry.payload_bytes) = (8192, 1);
    index.entries.iter_mut().for_each(tiny);
    let index = laid_out(index);
    let mut bytes = index.encode();
    assert_eq!(bytes.len(), INDEX_BYTES_MAX);
    assert_eq!(PackIndex::decode(&bytes), Ok(index));
    let last = bytes.len() - INDEX_ENTRY_BYTES;
    bytes.extend_from_within(last..);
    put(&mut bytes, at::COUNT, &(ENTRIES_MAX as u32 + 1).to_le_bytes());
    seal(SEED, &mut bytes);
    assert_eq!(PackIndex::decode(&bytes), Err(IndexError::Malformed("count")));
}

#[test]
fn an_index_belongs_to_its_own_name_only() {
    let index = sample(1);
    let name = IndexName { node: index.node, seq: 9, pack: index.pack };
    assert!(index.belongs_to(&name));
    assert!(!index.belongs_to(&IndexName { node: NodeName::new([9; 16]), ..name }));
    assert!(!index.belongs_to(&IndexName { pack: PackName::new([9; 16]), ..name }));
}

#[test]
#[should_panic(expected = "an index describes the pack")]
fn no_index_with_a_gap_is_written() {
    let mut index = sample(2);
    index.entries[1].offset += 4096;
    index.encode();
}
