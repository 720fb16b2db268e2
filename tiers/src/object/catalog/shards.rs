//! Which shards of a group packs hold records of: one row for each, all of them in memory too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use kvd_proto::{SHARD_BYTES, Shard};
use rocksdb::DB;

use super::super::index::PackIndex;
use super::super::names::Realm;
use super::live::Live;
use super::open::{Catalog, scan};
use super::rows;

/// Rows that are kept in memory; more are not told of. A realm has a handful.
const ROWS_MAX: usize = 16 * 1024;

/// Whose, of which group, and which.
pub(super) type ShardName = (Realm, u16, [u8; SHARD_BYTES]);

/// The pack that was learned last of those that hold records of a shard, by its number.
#[derive(Debug, Default)]
pub(super) struct Shards(BTreeMap<ShardName, u32>);

impl Shards {
    /// Those that the database knows of packs that are there, as far as they can be read.
    pub(super) fn known(db: &DB, live: &Live) -> Self {
        let rows = scan(db, rows::SHARDS).map_while(Result::ok);
        let rows = rows.filter_map(|(key, value)| Some((rows::shard_of_key(&key)?, rows::number(&value)?)));
        Self(rows.filter(|(_, number)| live.name(*number).is_some()).take(ROWS_MAX).collect())
    }

    /// A pack with these shards was learned.
    fn note(&mut self, names: BTreeSet<ShardName>, number: u32, live: &Live) {
        let unknown = names.iter().filter(|name| !self.0.contains_key(*name)).count();
        if unknown > 0 && self.0.len() + unknown > ROWS_MAX {
            self.0.retain(|_, number| live.name(*number).is_some());
        }
        for name in names {
            if self.0.len() < ROWS_MAX || self.0.contains_key(&name) {
                self.0.insert(name, number);
            }
        }
    }
}

impl Catalog {
    /// The shards that packs of a realm hold records of a group of: each that the pack learned last of those with it holds, if that
    /// one is there. Where it has gone and older ones are left, the shard is told of again with the next pack.
    pub fn shards(&self, realm: &Realm, group: u16) -> Vec<Shard> {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        let live = self.live();
        let rows = shards.0.range((*realm, group, [0; SHARD_BYTES])..=(*realm, group, [u8::MAX; SHARD_BYTES]));
        let there = rows.filter(|(_, number)| live.name(**number).is_some());
        there.filter_map(|((.., shard), _)| Shard::from_bytes(shard).ok()).collect()
    }

    /// The pack with these shards was learned.
    pub(super) fn note_shards(&self, names: BTreeSet<ShardName>, number: u32) {
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.note(names, number, &self.live());
    }
}

pub(super) fn shards_of(index: &PackIndex) -> BTreeSet<ShardName> {
    index.entries.iter().map(|entry| (index.realm, entry.group, entry.shard.to_bytes())).collect()
}
