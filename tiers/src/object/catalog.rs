//! The catalog: where a record lies in the store, by what this node learned of packs.
//!
//! A rocksdb in a folder, and a cache: the witnesses are the index objects in the store. So whatever is wrong with it -
//! it cannot be opened, is damaged, is of another version - it is deleted and made anew, and the node learns everything
//! again. It believes what it was told; whether a record is what it should be says the record itself, against the
//! anchor that lies here.
//!
//! ```text
//! folder/lock      who owns the folder
//! folder/damaged   stands there once a read showed damage: the next to open begins anew
//! folder/db        0                        -> format, version
//!                  1 key shard              -> pack number, offset, sizes, generation, anchor      one per record
//!                  2 pack number            -> pack, node, seq, realm, sizes, time                 three per pack
//!                  3 pack                   -> pack number
//!                  4 node seq pack          -> pack number
//!                  5 node                   -> highest seq seen                                    one per node
//!                  6                        -> next pack number
//!                  7 realm group shard      -> number of the pack learned last that holds such records     a few per realm
//! ```
//!
//! Invariants:
//!
//! * A pack number is never used twice. So a pack is gone as soon as its number leaves the set of live ones, which is
//!   kept in memory; its entries are misses from then on, and are dropped when a compaction meets them.
//! * Everything that is learned with a pack is one batch. The log is not flushed to disk by every batch: a loss of power
//!   takes the last ones away, whole and with their cursors, and they are learned again.
//! * Only one thread changes it at a time; any number may read.

mod error;
mod find;
mod learn;
mod live;
mod open;
mod packs;
mod rocks;
mod rows;
mod shards;
mod sweep;

#[cfg(test)]
mod tests;

pub use error::CatalogError;
pub use find::Located;
pub use learn::{Added, Mark, Reconciled};
pub use open::{Catalog, Opened};
pub use packs::CatalogStats;
pub use rocks::CatalogOptions;
pub use rows::PackRow;
