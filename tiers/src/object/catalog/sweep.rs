//! Drops the entries of packs that are gone, and shards that only they had, when a compaction comes by.

use std::ffi::CStr;
use std::sync::{Arc, PoisonError, RwLock};

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use super::live::{Live, Snapshot};
use super::rows;

const NAME: &CStr = c"kvd.catalog.gone";

/// Makes one filter for every compaction.
pub(super) struct Sweeps {
    /// Until the packs are known nothing is dead: an empty set has no number in use.
    pub(super) live: Arc<RwLock<Live>>,
}

impl CompactionFilterFactory for Sweeps {
    type Filter = Sweep;

    fn create(&mut self, _: CompactionFilterContext) -> Sweep {
        // A snapshot, so that a compaction takes the lock once and not once per entry. A pack enters the set before its
        // entries are written, so that no compaction sees an entry of a pack that it would take for dead.
        Sweep(self.live.read().unwrap_or_else(PoisonError::into_inner).snapshot())
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

/// The filter of one compaction.
pub(super) struct Sweep(Snapshot);

impl CompactionFilter for Sweep {
    fn filter(&mut self, _: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        let number = match key {
            entry if rows::is_entry_key(entry) => rows::number_of_entry(value),
            shard if rows::is_shard_key(shard) => rows::number(value),
            _ => return CompactionDecision::Keep,
        };
        let gone = number.is_none_or(|number| self.0.dead(number));
        if gone { CompactionDecision::Remove } else { CompactionDecision::Keep }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}
