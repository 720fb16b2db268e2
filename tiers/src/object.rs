//! The object tier without its I/O: what a pack is, how things are called in the store, and where a record lies.
//!
//! docs/formats/pack.md is the byte map, docs/decisions/0009-object-tier.md the design. Bytes go to and from the store
//! in the shell above; here nothing waits and nothing is sent.
//!
//! ```text
//! records of one realm -> PackBuilder -> SealedPack -> packs/ab/<pack>             written first
//!                                          its index -> index/<node>/<seq>-<pack>  written second: others can learn
//! index/... of all nodes -> Catalog -> pack, offset, anchor -> a range of the pack -> verified as any record
//! ```
//!
//! * names: [`PackName`], [`NodeName`], [`Realm`], [`IndexName`], [`PresenceName`] and the paths of objects;
//! * [`PackIndex`]: what lies where in a pack, as bytes and as values;
//! * [`pack`]: a pack being filled in memory, and how its object ends;
//! * [`catalog`]: where a record lies, by what was learned of packs.
//!
//! Invariants: a decoder takes arbitrary bytes and accepts only what is written here; a pack holds one realm; an index
//! is a directory, not a witness: what it says of a record is compared with the record before anybody sees a byte.

pub mod catalog;
mod index;
mod names;
mod order;
pub mod pack;

pub use index::{
    ENTRIES_MAX, INDEX_BYTES_MAX, INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, IndexError, PACK_BYTES_MAX, PackEntry,
    PackIndex,
};
pub use names::{
    COLLECTOR_PREFIX, INDEX_PREFIX, IndexName, NODES_PREFIX, NodeName, PACKS_PREFIX, PackName, PresenceName, Realm,
    node_prefix, pack_path, parse_pack_path,
};
