//! Names of kvd: ids, hashes, namespaces, shards, and the bytes that cross between an engine and the daemon.
//!
//! This crate knows no I/O, no clock and no randomness. Its types are the vocabulary which the daemon, the tiers and the
//! clients share, so that a concept has one home:
//!
//! * identity: [`BlockHash`] (the engine's), [`Namespace`] and its digest, [`GroupKey`] and [`BlockKey`] (what tiers index);
//! * layout: [`GroupSpec`], [`Plane`], [`Shard`] and what shards have in common ([`Cover`]);
//! * answers: [`Tier`], [`MissReason`], [`Epoch`], [`Time`];
//! * the byte map of record metadata: [`record`];
//! * the wire: [`wire::session`] (handshake messages) and [`wire::ring`] (fixed entries and slabs in shared memory).
//!
//! Invariants: every decoder takes arbitrary bytes and never panics; every encoding is little-endian and byte-exact; the
//! canonical encoding of a namespace is injective.

#![forbid(unsafe_code)]

mod answer;
mod codec;
mod cover;
mod hash;
mod ids;
mod key;
mod namespace;
mod plane;
pub mod record;
mod shard;
mod time;
pub mod wire;

pub use answer::{MissReason, Tier};
pub use cover::{Cover, SOURCES_MAX, UnitRun};
pub use hash::{BlockHash, BlockHashError, HASH_BYTES_MAX};
pub use ids::{Epoch, InstanceId, TenantKey};
pub use key::{BlockKey, GroupKey, checksum_seed};
pub use namespace::{NAMESPACE_BYTES_MAX, Namespace, NamespaceDigest, NamespaceError};
pub use plane::{GroupKind, GroupSpec, LayoutError, OPAQUE_UNIT_BYTES, Plane, Sharding, UnitOrder, Units};
pub use shard::{Interleave, SHARD_BYTES, Shard, ShardError};
pub use time::Time;
