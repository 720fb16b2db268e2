//! The engine's side of kvd: join the daemon, match prefixes, load and store blocks.
//!
//! [`Engine`] is one process of an engine; any number of its threads share it. A [`View`] is what one rank reads and
//! writes: a namespace, a group and a shard. [`View::match_prefix`] finds the longest prefix, [`View::load`] copies its
//! blocks into the engine's memory, [`View::store`] gives new ones to the daemon. [`AsyncEngine`] offers the same as futures.
//!
//! What holds, whatever the daemon does:
//!
//! * **Correct or miss.** A block is told to the engine only after every unit of it has passed its checksum, in the same
//!   pass as the copy.
//! * **In time.** Every call has a deadline. A daemon that is stopped, dead or restarting gives misses with a reason, never
//!   errors; the client joins the next one by itself. Of a device that hangs a call waits ten seconds for what it had begun,
//!   once; what it has not ended then keeps its slots, and this process does not join again.
//! * **Nothing late.** Bytes are copied by the thread that called, or by a device for which it waits: when a call returns,
//!   nothing of it moves any more.
//! * **No panic.** What the daemon writes in shared memory is checked before it is used.
//!
//! A child made by `fork` must not use its parent's engine: calls there miss. It knows no tier, policy or disk.

#![forbid(unsafe_code)]

mod asynchronous;
mod convoy;
mod deadline;
mod engine;
mod error;
mod layout;
mod link;
mod load;
mod matching;
mod metadata;
mod pinning;
mod segments;
mod session;
mod shards;
mod store;
mod view;

pub use asynchronous::{AsyncEngine, AsyncView, Pending};
pub use engine::{Engine, EngineOptions, Role};
pub use error::{ConnectError, LayoutError, ViewError};
pub use layout::{BlockMemory, EngineLayout, LayoutBlocks, PlaneMemory};
pub use load::{LayersLoaded, Loaded};
pub use matching::Match;
pub use pinning::Pinned;
pub use store::{StoreRequest, Stored};
pub use view::{View, ViewSpec};

// What stands in the signatures above, so that an engine links one crate.
pub use kvd_nixl::device;
pub use kvd_nixl::sys::{ForeignMemory, Memory, MemoryExtent, adopt_device_memory, mark_stream};
pub use kvd_proto::{
    BlockHash, Epoch, GroupKind, GroupSpec, InstanceId, Interleave, MissReason, Namespace, Plane, Shard, Sharding,
    Tier, UnitOrder,
};
