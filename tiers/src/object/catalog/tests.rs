//! The catalog against what it was told: [`learning`] step by step, [`model`] at random, [`damage`] with its files
//! broken.

mod damage;
mod learning;
mod model;

use std::path::Path;

use kvd_proto::{BlockKey, Shard};

use super::rows;
use super::{Catalog, CatalogOptions, Located, Opened};
use crate::object::{IndexName, NodeName, PackEntry, PackIndex, PackName, Realm};

/// Small memtables, so that some hundred packs are several files already.
const OPTIONS: CatalogOptions =
    CatalogOptions { block_cache_bytes: 1 << 20, memtable_bytes: 64 << 10, packs_max: 5000 };

fn open(folder: &Path) -> (Catalog, Opened) {
    Catalog::open(folder, OPTIONS).unwrap()
}

/// Keys are as good as random, as real ones are.
fn key(number: u64) -> BlockKey {
    let spread = u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    BlockKey::new((spread ^ spread >> 61).to_le_bytes())
}

fn shard(heads: u16) -> Shard {
    Shard::whole(32, heads).unwrap()
}

fn pack(number: u32) -> PackName {
    PackName::new(*key(u64::from(number) << 32).as_bytes())
}

fn node(number: u8) -> NodeName {
    NodeName::new([number; 16])
}

/// A pack that node 1 wrote as its `number`th, with the records `keys` of a shard of 8 heads.
fn index(number: u32, keys: impl IntoIterator<Item = u64>) -> PackIndex {
    let entries: Vec<PackEntry> = keys
        .into_iter()
        .zip(0u32..)
        .map(|(block, place)| PackEntry {
            key: key(block),
            shard: shard(8),
            parent_key: None,
            group: 0,
            position: place,
            generation: number + 1,
            offset: place * 12_288,
            record_bytes: 12_288,
            payload_bytes: 5000 + place,
            meta_checksum: u64::from(number) << 32 | u64::from(place),
        })
        .collect();
    PackIndex {
        pack: pack(number),
        node: node(1),
        realm: Realm { tenant: [7; 16], namespace: [8; 16] },
        created_ms: 1_790_000_000_000 + u64::from(number),
        records_bytes: entries.len() as u64 * 12_288,
        entries,
    }
}

fn name_of(index: &PackIndex, seq: u64) -> IndexName {
    IndexName { node: index.node, seq, pack: index.pack }
}

/// Adds it as the `number`th of its node.
fn add(catalog: &Catalog, number: u32, keys: impl IntoIterator<Item = u64>) -> PackIndex {
    let index = index(number, keys);
    catalog.add(name_of(&index, u64::from(number)), &index).unwrap();
    index
}

fn find(catalog: &Catalog, block: u64) -> Option<Located> {
    catalog.lookup(&key(block), &shard(8)).unwrap()
}

/// Whether what was found says exactly what the index says.
fn agrees(found: &Located, index: &PackIndex, block: u64) -> bool {
    index.entries.iter().any(|entry| {
        found.pack == index.pack
            && entry.key == key(block)
            && found.offset == entry.offset
            && found.record_bytes == entry.record_bytes
            && found.payload_bytes == entry.payload_bytes
            && found.generation == entry.generation
            && found.meta_checksum == entry.meta_checksum
    })
}

/// Entries that the database holds, dead ones among them.
fn entries_kept(catalog: &Catalog) -> usize {
    let rows = catalog.db.full_iterator(rocksdb::IteratorMode::Start);
    rows.filter(|row| rows::is_entry_key(&row.as_ref().unwrap().0)).count()
}

fn compact(catalog: &Catalog) {
    catalog.db.compact_range(None::<&[u8]>, None::<&[u8]>);
}
