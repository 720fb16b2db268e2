//! The ladder: every decision about which block lies where, and nothing else.
//!
//! Sans-IO and deterministic: calls and outcomes come in with the time, moves and replies are polled out. No clock, lock,
//! thread or randomness; bounded work per call, what is left is done in [`Ladder::tick`]; every container has its maximum in
//! [`LadderConfig`]. The same code runs in the daemon and in the simulation.
//!
//! ```text
//!            match_prefix  load  offer  commit  release          join  client_died  tick
//!                  │                                                      │
//!   index ── nodes (one per block and shard, linked into chains) ── leases, pins, loads
//!                  │                    │
//!            arena classes         device classes        each: slots in 64 MiB extents, an order of eviction
//!                  │                    │
//!            SlotTable (at once)   Move ──► shell ──► finished
//! ```
//!
//! - A node is one record: a block, and a shard of it. Chains are per shard; a view sees exactly its shard ([`ViewSpec`]).
//! - *Closure*: an attached node's ancestors are attached and resident, or a cut is being worked off (`lineage`).
//! - *Publish after verify, unpublish before reuse*: `guards` for the arena, outcomes of moves for devices; a slot's generation
//!   changes before its space is given away, a device's slot is free only when its entry is gone from the table.
//! - Nothing falls that someone holds: leases and loads hold chains, pins hold slots, moves hold both ends.

mod background;
mod breaker;
mod check;
mod config;
mod copies;
mod dram_space;
mod evict;
mod extents;
mod finish;
mod floor;
mod gate;
mod ghosts;
mod guards;
mod heap;
mod index;
mod lanes;
mod leases;
mod lineage;
mod load;
mod lost;
mod matching;
mod moves;
mod nodes;
mod nvme_space;
mod offer;
mod operator;
mod order;
mod pins;
mod port;
mod purge;
mod recovery;
mod regrow;
mod remote;
mod report;
mod sessions;
mod spill;
mod state;
mod stats;
mod turns;
mod uploads;
mod waiting;
mod work;

pub use config::{DeviceConfig, LadderConfig, ObjectConfig};
pub use lanes::{HashSource, ViewSpec, namespace_prefix};
pub use moves::{
    CommitError, DeviceFault, Explained, ExplainedRecord, Filling, JoinError, LoadEnd, LoadState, Matched, Move,
    Outcome, Reply, VerifyPlace,
};
pub use offer::Offer;
pub use port::SlotTable;
pub use purge::Purge;
pub use remote::{RemoteChain, RemoteRecord};
pub use report::LeaseView;
pub use state::Ladder;
pub use stats::{Counters, DeviceStats, Holding, LADDER_BYTES_PER_RECORD_MAX, ObjectStats, Stats};
pub use turns::{TURNS, Turns};

#[cfg(test)]
mod tests;
