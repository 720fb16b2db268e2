//! Finds records: what a match that falls short asks.

use std::sync::atomic::Ordering;

use kvd_proto::{BlockKey, Shard};
use rocksdb::{ColumnFamily, DBPinnableSlice, DEFAULT_COLUMN_FAMILY_NAME};

use super::super::names::PackName;
use super::open::{Catalog, shows_damage};
use super::rows::{self, EntryRow};
use super::{CatalogError, live::Live};

/// Keys that are asked at once, first, second and from then on. Most chains end at the first key, and what is read
/// behind the end of a chain is read in vain.
const BATCHES: [usize; 3] = [1, 16, 64];

/// Where a record lies, and what it must say about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Which pack.
    pub pack: PackName,
    /// The catalog's own number of the pack: packs that were learned later have higher ones.
    pub number: u32,
    /// Of the record in the pack, in bytes.
    pub offset: u32,
    /// Bytes of metadata and of payload with its padding.
    pub record_bytes: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// Generation of the slot in which the record was sealed.
    pub generation: u32,
    /// The checksum of the record's metadata: the anchor of trust.
    pub meta_checksum: u64,
}

impl Catalog {
    /// Where one record lies; `None` if no pack that is there has it, or if what is known of it cannot be read.
    pub fn lookup(&self, key: &BlockKey, shard: &Shard) -> Result<Option<Located>, CatalogError> {
        Ok(self.lookup_chain(shard, std::slice::from_ref(key))?.pop())
    }

    /// Where the records of a chain lie, up to the first that is nowhere.
    pub fn lookup_chain(&self, shard: &Shard, keys: &[BlockKey]) -> Result<Vec<Located>, CatalogError> {
        let mut found = Vec::new();
        let mut rest = keys;
        for batch in BATCHES.into_iter().chain(std::iter::repeat(BATCHES[2])) {
            let (asked, later) = rest.split_at(batch.min(rest.len()));
            let before = found.len();
            self.lookup_batch(shard, asked, &mut found)?;
            if later.is_empty() || found.len() < before + asked.len() {
                break;
            }
            rest = later;
        }
        Ok(found)
    }

    fn lookup_batch(&self, shard: &Shard, keys: &[BlockKey], found: &mut Vec<Located>) -> Result<(), CatalogError> {
        let keys: Vec<_> = keys.iter().map(|key| rows::entry_key(key, shard)).collect();
        let values = match keys.as_slice() {
            [] => return Ok(()),
            [key] => vec![self.db.get_pinned(key)],
            _ => self.db.batched_multi_get_cf(self.family(), &keys, false),
        };
        for value in values {
            let Some(entry) = self.entry_in(value)? else { break };
            let Some(located) = located(&self.live(), &entry) else { break };
            found.push(located);
        }
        Ok(())
    }

    /// The entry that was read. One that cannot be read, for whatever is wrong with the folder's bytes, is none.
    fn entry_in(
        &self,
        read: Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>,
    ) -> Result<Option<EntryRow>, CatalogError> {
        let value = self.readable("find an entry", read)?.flatten();
        let Some(value) = value else { return Ok(None) };
        let entry = EntryRow::decode(&value);
        if entry.is_none() {
            self.bad_rows.fetch_add(1, Ordering::Relaxed); // counters publish nothing
        }
        Ok(entry)
    }

    /// What was read; `None` where the folder is damaged, which is counted and remembered. Only other trouble is an
    /// error.
    pub(super) fn readable<T>(
        &self,
        doing: &'static str,
        read: Result<T, rocksdb::Error>,
    ) -> Result<Option<T>, CatalogError> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if shows_damage(&error) => {
                self.failed_reads.fetch_add(1, Ordering::Relaxed); // counters publish nothing
                self.mark_damaged();
                Ok(None)
            }
            Err(source) => Err(CatalogError::Database { doing, source }),
        }
    }

    fn family(&self) -> &ColumnFamily {
        self.db.cf_handle(DEFAULT_COLUMN_FAMILY_NAME).expect("the database was opened with this family")
    }
}

fn located(live: &Live, entry: &EntryRow) -> Option<Located> {
    live.name(entry.number).map(|pack| Located {
        pack,
        number: entry.number,
        offset: entry.offset,
        record_bytes: entry.record_bytes,
        payload_bytes: entry.payload_bytes,
        generation: entry.generation,
        meta_checksum: entry.meta_checksum,
    })
}
