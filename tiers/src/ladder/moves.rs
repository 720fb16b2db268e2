//! What the ladder asks of the shells, and what they answer.

use std::time::Duration;

use kvd_proto::wire::slab::Landed;
use kvd_proto::{BlockHash, BlockKey, MissReason, Shard};

use crate::ids::{ClientSlot, DeviceId, LeaseId, MoveId, NvmeSlot, ObjectPlace, RequestId, SlotEntry, SlotId, ZoneId};

/// One asynchronous move. Every move is answered by exactly one `finished`, in any order; the ladder gives none of its
/// places away before. `expect` and `entry` are what the table must say, state `Resident`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// DRAM to NVMe. Done means: data landed and the entry is journaled.
    Spill {
        /// This move.
        id: MoveId,
        /// Where the record lies; it stays there.
        from: SlotId,
        /// Free slot of the same size.
        to: NvmeSlot,
        /// What the device's table shall say.
        entry: SlotEntry,
    },
    /// NVMe to DRAM, identity and every unit verified before it is done.
    Fetch {
        /// This move.
        id: MoveId,
        /// Where the record lies; it stays there.
        from: NvmeSlot,
        /// A slot that is nobody else's until the answer.
        to: SlotId,
        /// What must be found.
        expect: SlotEntry,
    },
    /// Object tier to DRAM, identity and every unit verified before it is done.
    Get {
        /// This move.
        id: MoveId,
        /// Where the record lies.
        from: ObjectPlace,
        /// A slot that is nobody else's until the answer.
        to: SlotId,
        /// What must be found.
        expect: SlotEntry,
    },
    /// DRAM to the object tier. Done means: the tier has what it needs, or, with 0 bytes moved, knew the record already.
    Put {
        /// This move.
        id: MoveId,
        /// Where the record lies; it stays there.
        from: SlotId,
        /// What it is.
        entry: SlotEntry,
    },
    /// The slot's entry goes from the device's table. Done means journaled: the slot may be written again.
    Vacate {
        /// This move.
        id: MoveId,
        /// Which slot.
        slot: NvmeSlot,
    },
    /// An empty zone gets slots of another size.
    FormatZone {
        /// This move.
        id: MoveId,
        /// Of which device.
        device: DeviceId,
        /// Which zone.
        zone: ZoneId,
        /// Size of its slots.
        slot_bytes: u32,
    },
    /// Read and compare in full, for a scrub.
    Verify {
        /// This move.
        id: MoveId,
        /// Which copy.
        place: VerifyPlace,
        /// What must be found.
        expect: SlotEntry,
    },
    /// Read anything small: is the device back?
    Probe {
        /// This move.
        id: MoveId,
        /// Which device.
        device: DeviceId,
    },
}

impl Move {
    /// Its id.
    pub const fn id(&self) -> MoveId {
        match self {
            Self::Spill { id, .. }
            | Self::Fetch { id, .. }
            | Self::Get { id, .. }
            | Self::Put { id, .. }
            | Self::Vacate { id, .. }
            | Self::FormatZone { id, .. }
            | Self::Verify { id, .. }
            | Self::Probe { id, .. } => *id,
        }
    }
}

/// The copy that a [`Move::Verify`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyPlace {
    /// In the arena.
    Dram(SlotId),
    /// On a device.
    Nvme(NvmeSlot),
}

/// What went wrong with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceFault {
    /// EIO, a short transfer, an unknown errno.
    Io,
    /// ENOSPC or EDQUOT.
    NoSpace,
    /// EROFS.
    ReadOnly,
    /// The device or its file is not there any more.
    Gone,
}

/// How a move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked. `bytes` moved in `took`, from submission to completion, for the bandwidth of the edge; 0 where none moved.
    Done {
        /// Bytes moved.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// The source is not what was expected: it is quarantined.
    Corrupt,
    /// The object tier does not have the record any more.
    Missing,
    /// The device failed; what was at the source is unknown, nothing came to be at the destination.
    Failed(DeviceFault),
}

/// What a match found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched {
    /// Length of the longest prefix that is here, in blocks.
    pub blocks: u32,
    /// A hold on it, if asked for and something matched.
    pub lease: Option<LeaseId>,
    /// Why the first block behind the prefix is none of it; `None` if all matched.
    pub miss: Option<MissReason>,
    /// The slowest tier that holds a part of it.
    pub slowest: Option<kvd_proto::Tier>,
    /// How long a load of it takes, by what was measured; without the client's own copy.
    pub estimate: Duration,
}

/// Whether a load is answered already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadState {
    /// All landed or missed: `out` is the answer. `reason` says why it ends before `count` blocks.
    Done {
        /// Why the load ends early.
        reason: Option<MissReason>,
    },
    /// `out` is the landed prefix so far; the rest follows as [`Reply`]s.
    Pending,
}

/// More of a load that was pending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Who waits.
    pub client: ClientSlot,
    /// The load.
    pub request: RequestId,
    /// Blocks landed before, so the place of `landed` in the answer.
    pub first: u32,
    /// What landed since, in chain order; the last reply may end with a missed one.
    pub landed: Vec<Landed>,
    /// `None`: more follows. `Some`: the end, with the reason if it is early.
    pub end: Option<LoadEnd>,
}

/// How a load ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadEnd {
    /// Blocks landed in all.
    pub blocks: u32,
    /// Why it ended before all blocks.
    pub reason: Option<MissReason>,
}

/// A slot that a client fills: what its metadata must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filling {
    /// Where.
    pub slot: SlotId,
    /// Bytes of the slot.
    pub slot_bytes: u32,
    /// Generation, key, parent, position, shard; `meta_checksum` still 0.
    pub entry: SlotEntry,
    /// The engine's name for the block.
    pub hash: BlockHash,
    /// The engine's name for the block before it.
    pub parent_hash: Option<BlockHash>,
}

/// Why a commit was not taken. The client's copy is dropped; the slot is free again where it was the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// No such lease, or another instance's.
    #[error("the fill lease is gone")]
    NoLease,
    /// No such grant in the lease, or committed or given up before.
    #[error("the lease has no such slot to fill")]
    NoGrant,
    /// The block was purged, or its prefix cut, while it was filled.
    #[error("the block is no longer wanted")]
    Unwanted,
}

/// Why an instance or a view cannot be had. All are bounds of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// All instances are taken.
    #[error("too many engine instances")]
    Instances,
    /// All views are taken.
    #[error("too many views")]
    Views,
    /// All pairs of namespace group and shard are taken.
    #[error("too many distinct namespace groups and shards")]
    Lanes,
    /// A record of the view does not fit in a segment.
    #[error("a record of {0} bytes does not fit in a slot")]
    SlotBytes(u64),
    /// The client slot has not joined.
    #[error("the client has not joined")]
    NotJoined,
}

/// Where a block is and why, for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Which block.
    pub key: BlockKey,
    /// Its records, one per shard of the group that the ladder knows.
    pub records: Vec<ExplainedRecord>,
    /// Why there is none, where there is none.
    pub miss: Option<MissReason>,
}

/// One record of an explained block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedRecord {
    /// Which part.
    pub shard: Shard,
    /// Place in its chain.
    pub position: u32,
    /// All its ancestors are here: a match can reach it.
    pub reachable: bool,
    /// A writer is filling it.
    pub filling: bool,
    /// Its copy in the arena.
    pub dram: Option<SlotId>,
    /// Its copy on a device.
    pub nvme: Option<NvmeSlot>,
    /// Its copy in the object tier, where that is the only one and somebody asked for it.
    pub object: Option<ObjectPlace>,
    /// One of its copies can be read now.
    pub readable: bool,
    /// An operator pinned it.
    pub pinned: bool,
    /// Leases that end at it.
    pub leases: u32,
    /// Children in its chain.
    pub children: u32,
    /// Rank the policy gave it.
    pub rank: u64,
}
