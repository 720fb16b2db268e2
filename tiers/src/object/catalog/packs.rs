//! Tells of packs, cursors and cost.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use rocksdb::properties::{CUR_SIZE_ALL_MEM_TABLES, ESTIMATE_NUM_KEYS, ESTIMATE_TABLE_READERS_MEM, PropName};

use super::super::names::{IndexName, NodeName, PackName};
use super::CatalogError;
use super::open::{Catalog, scan};
use super::rows::{self, PackRow};

/// What the catalog holds and costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatalogStats {
    /// Packs that are known.
    pub packs: u64,
    /// Entries, as the database estimates them: those of packs that are gone count until they are dropped.
    pub entries_estimate: u64,
    /// Bytes that the database takes on disk, its logs among them.
    pub bytes_on_disk: u64,
    /// Bytes of memory: cached blocks, memtables, open tables and the list of packs.
    pub memory_bytes: u64,
    /// Reads that failed because the folder is damaged.
    pub failed_reads: u64,
    /// Rows that were intact by their checksum and yet not as the format says.
    pub bad_rows: u64,
}

impl Catalog {
    /// The highest sequence number that was seen of a node; 0 if none was, or if it cannot be read: what was learned
    /// already is then learned again. A node's packs are to be added by sequence number, since nobody looks again
    /// behind the cursor.
    pub fn cursor(&self, node: NodeName) -> u64 {
        self.read_cursor(node).ok().flatten().unwrap_or(0)
    }

    /// What is known of a pack.
    pub fn pack(&self, name: PackName) -> Option<PackRow> {
        let value = self.readable("look for a pack", self.db.get_pinned(rows::name_key(name))).ok()??;
        let number = rows::number(&value?)?;
        self.known(number)
    }

    /// The name of the pack with this number, while it is there.
    pub fn pack_numbered(&self, number: u32) -> Option<PackName> {
        self.live().name(number)
    }

    /// All packs, in the order in which they were learned, as far as they can be read: of one node that is the order in
    /// which they were made. What comes or goes meanwhile may be in it or not.
    pub fn packs(&self) -> impl Iterator<Item = PackRow> + '_ {
        let rows = scan(&self.db, rows::PACKS);
        rows.map_while(|row| self.readable("read packs", row).ok().flatten()).filter_map(|(key, value)| {
            self.live().name(rows::number_of_pack_key(&key)?)?;
            self.pack_in(&value)
        })
    }

    /// The packs of one node by sequence number, as far as they can be read.
    pub fn packs_of(&self, node: NodeName) -> impl Iterator<Item = PackRow> + '_ {
        let objects = self.objects(rows::objects_of(node));
        objects.map_while(Result::ok).filter_map(|(_, number)| self.known(number))
    }

    /// What the catalog holds and costs. Reads the folder's file sizes.
    pub fn stats(&self) -> CatalogStats {
        let packs = self.live().len() as u64;
        let property = |name: &PropName| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        let memory = [CUR_SIZE_ALL_MEM_TABLES, ESTIMATE_TABLE_READERS_MEM].map(property).iter().sum::<u64>();
        CatalogStats {
            packs,
            // Every pack has three rows that are no entries; rows of nodes are few.
            entries_estimate: property(ESTIMATE_NUM_KEYS).saturating_sub(3 * packs),
            bytes_on_disk: self.bytes_on_disk(),
            memory_bytes: memory + (self.cache.get_usage() + self.live().memory_bytes()) as u64,
            failed_reads: self.failed_reads.load(Ordering::Relaxed), // counters publish nothing
            bad_rows: self.bad_rows.load(Ordering::Relaxed),
        }
    }

    /// The row of a live pack, if it can be read.
    fn known(&self, number: u32) -> Option<PackRow> {
        self.live().name(number)?;
        self.row(number).ok().flatten()
    }

    /// The row with this number, if it can be read and stands there.
    pub(super) fn row(&self, number: u32) -> Result<Option<PackRow>, CatalogError> {
        let value = self.readable("read a pack", self.db.get_pinned(rows::pack_key(number)))?.flatten();
        Ok(value.and_then(|value| self.pack_in(&value)))
    }

    fn pack_in(&self, value: &[u8]) -> Option<PackRow> {
        let row = PackRow::decode(value);
        if row.is_none() {
            self.bad_rows.fetch_add(1, Ordering::Relaxed); // counters publish nothing
        }
        row
    }

    /// The names of index objects whose rows begin so, with their packs' numbers. An error is the last that it gives.
    pub(super) fn objects<K: Into<Vec<u8>>>(
        &self,
        prefix: K,
    ) -> impl Iterator<Item = Result<(IndexName, u32), CatalogError>> + use<'_, K> {
        scan(&self.db, prefix).filter_map(|row| match row {
            Ok((key, value)) => {
                let object = rows::object_of_key(&key).zip(rows::number(&value));
                if object.is_none() {
                    self.bad_rows.fetch_add(1, Ordering::Relaxed); // counters publish nothing
                }
                object.map(Ok)
            }
            Err(error) => Some(Err(self.failed("read names of packs", error))),
        })
    }

    fn bytes_on_disk(&self) -> u64 {
        let Ok(files) = fs::read_dir(self.database_folder()) else { return 0 };
        // Of 512 bytes each, whatever the file system's own block size: files are allocated ahead, and sizes do not
        // tell.
        files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.blocks() * 512).sum()
    }
}
