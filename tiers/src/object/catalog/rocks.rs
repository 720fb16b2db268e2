//! How the database is set up: 10^8 entries of some 70 bytes, read at random, written once, and nothing that cannot be
//! learned again.

use std::path::Path;
use std::sync::{Arc, RwLock};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, DEFAULT_COLUMN_FAMILY_NAME,
    LogLevel, Options,
};

use super::live::Live;
use super::sweep::Sweeps;

/// What the catalog may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogOptions {
    /// Bytes of memory for blocks that were read, filters and indexes among them.
    pub block_cache_bytes: usize,
    /// Bytes of a memtable, of which there are at most three.
    pub memtable_bytes: usize,
    /// Most packs that it holds; 21 bytes of memory each.
    pub packs_max: u32,
}

impl Default for CatalogOptions {
    fn default() -> Self {
        // Four million packs of 64 MiB are 256 TiB; all of them take 84 MiB of memory.
        Self { block_cache_bytes: 32 << 20, memtable_bytes: 8 << 20, packs_max: 4 << 20 }
    }
}

/// A filter of a byte and a quarter per entry turns 99 of 100 misses away without a read.
const FILTER_BITS: f64 = 10.0;
/// One file per 64 MiB: 10^8 entries are some 120 files, which stay open.
const FILE_BYTES: u64 = 64 << 20;
const OPEN_FILES_MAX: i32 = 256;
/// Entries of packs that are gone are dropped after so long at the latest, should no other compaction meet them: three
/// days.
const COMPACT_AFTER_SECONDS: u64 = 3 * 24 * 60 * 60;
/// Written files are handed to the disk in pieces, so that a flush does not come as one burst beside the records' I/O.
const WRITE_BACK_BYTES: u64 = 1 << 20;
const LOG_BYTES_MAX: usize = 1 << 20;
const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// Opens the database, or makes an empty one. Dead entries are those of packs that are not in `live`.
pub(super) fn open(
    path: &Path,
    options: &CatalogOptions,
    live: &Arc<RwLock<Live>>,
) -> Result<(DB, Cache), rocksdb::Error> {
    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let mut rocks = Options::default();
    rocks.create_if_missing(true);
    rocks.set_block_based_table_factory(&tables(&cache));
    // Keys and checksums are random: there is nothing to compress.
    rocks.set_compression_type(DBCompressionType::None);
    rocks.set_write_buffer_size(options.memtable_bytes);
    rocks.set_max_write_buffer_number(3);
    rocks.set_target_file_size_base(FILE_BYTES);
    rocks.set_max_bytes_for_level_base(2 * FILE_BYTES);
    rocks.set_max_background_jobs(2);
    rocks.set_max_open_files(OPEN_FILES_MAX);
    rocks.set_bytes_per_sync(WRITE_BACK_BYTES);
    rocks.set_wal_bytes_per_sync(WRITE_BACK_BYTES);
    rocks.set_periodic_compaction_seconds(COMPACT_AFTER_SECONDS);
    rocks.set_compaction_filter_factory(Sweeps { live: Arc::clone(live) });
    // What stands in the log behind a torn place is left out: a state that once was, with the cursors that it had.
    rocks.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // Figures of every file would be read at every start.
    rocks.set_skip_stats_update_on_db_open(true);
    rocks.set_stats_dump_period_sec(0);
    rocks.set_stats_persist_period_sec(0);
    rocks.set_log_level(LogLevel::Warn);
    rocks.set_keep_log_file_num(2);
    rocks.set_max_log_file_size(LOG_BYTES_MAX);
    rocks.set_max_manifest_file_size(MANIFEST_BYTES_MAX);
    rocks.set_manifest_preallocation_size(64 << 10);
    // By name: batched reads need the family's handle.
    let db = DB::open_cf_with_opts(&rocks, path, [(DEFAULT_COLUMN_FAMILY_NAME, rocks.clone())])?;
    Ok((db, cache))
}

/// Indexes and filters are cut into blocks that go through the cache as any other; only what leads to them is pinned.
/// So memory is bounded by the cache, whatever the number of entries.
fn tables(cache: &Cache) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(cache);
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_partition_filters(true);
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_top_level_index_and_filter(true);
    tables.set_ribbon_filter(FILTER_BITS);
    tables
}
