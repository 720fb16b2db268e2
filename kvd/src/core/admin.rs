//! What operators may ask of the core, in plain Rust. The gRPC service and the CLI translate; nothing deeper sees their
//! generated types.

use std::time::Duration;

use kvd_proto::{BlockHash, BlockKey, Epoch, InstanceId, MissReason, NamespaceDigest, Tier};
use thiserror::Error;

pub use object::{
    CostReply, ObjectScrub, ObjectScrubReply, ObjectTierReply, RequestsReply, ScrubbedPacks, StoreCondition,
    StoreSpeedReply,
};

mod object;

/// One page of a long list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Entries to skip.
    pub offset: usize,
    /// Entries to return, at most [`PAGE_ENTRIES_MAX`].
    pub limit: usize,
}

/// The longest page.
pub const PAGE_ENTRIES_MAX: usize = 1000;

/// A question or an order to the core. Each is answered by the [`AdminReply`] of the same name.
#[derive(Debug, Clone, PartialEq)]
pub enum AdminCommand {
    /// How the daemon is.
    Status,
    /// What each tier holds.
    Tiers,
    /// How the object tier is.
    ObjectTier,
    /// How each NVMe device is.
    Devices,
    /// What each namespace holds.
    Namespaces(Page),
    /// Who is connected.
    Sessions(Page),
    /// Who holds what.
    Leases(Page),
    /// Keep blocks from being evicted.
    Pin(Selection),
    /// Let pinned blocks go again.
    Unpin(Selection),
    /// Drop blocks from one tier, or from all.
    Evict {
        /// Which blocks.
        selection: Selection,
        /// From where; `None` for everywhere.
        tier: Option<Tier>,
    },
    /// Forget everything of a namespace, or everything.
    Purge {
        /// Which namespace; `None` for all.
        namespace: Option<NamespaceDigest>,
    },
    /// Bring blocks into DRAM.
    Prefetch(Selection),
    /// Write what only DRAM holds to NVMe.
    Drain,
    /// How much is there of a namespace, or of all.
    Holdings {
        /// Which namespace; `None` for all.
        namespace: Option<NamespaceDigest>,
    },
    /// Verify what the tiers hold, in the background. Joins the run that is under way, if one is.
    Scrub,
    /// How far the verification is.
    ScrubProgress,
    /// The same for the object tier.
    ScrubObject(ObjectScrub),
    /// How far that is.
    ScrubObjectProgress,
    /// Why a block would hit or miss.
    Explain {
        /// The engine's hash.
        hash: BlockHash,
        /// Within this namespace; `None` for all that are known.
        namespace: Option<NamespaceDigest>,
    },
    /// Change settings that a running daemon can change.
    SetConfig(LiveSettings),
}

/// Blocks named by an operator: by their hashes within one namespace or within all that are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The namespace; `None` for all that are known.
    pub namespace: Option<NamespaceDigest>,
    /// The engine's hashes, 1 to 4096.
    pub hashes: Vec<BlockHash>,
}

/// Settings that a running daemon can change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LiveSettings {
    /// Bytes that one instance may hold under leases.
    pub lease_bytes_max: Option<u64>,
    /// After how long an unused lease is taken back.
    pub lease_idle: Option<Duration>,
    /// The default deadline of a match.
    pub match_deadline: Option<Duration>,
    /// Whether loads that lose against computing again are refused.
    pub gate_enabled: Option<bool>,
}

/// The core's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AdminReply {
    /// To [`AdminCommand::Status`].
    Status(StatusReply),
    /// To [`AdminCommand::Tiers`].
    Tiers(Vec<TierReply>),
    /// To [`AdminCommand::ObjectTier`].
    ObjectTier(Box<ObjectTierReply>),
    /// To [`AdminCommand::Devices`].
    Devices(Vec<DeviceReply>),
    /// To [`AdminCommand::Namespaces`]; `total` counts all pages.
    Namespaces {
        /// Entries of all pages.
        total: usize,
        /// This page.
        namespaces: Vec<NamespaceReply>,
    },
    /// To [`AdminCommand::Sessions`].
    Sessions {
        /// Entries of all pages.
        total: usize,
        /// This page.
        sessions: Vec<SessionReply>,
    },
    /// To [`AdminCommand::Leases`].
    Leases {
        /// Entries of all pages.
        total: usize,
        /// This page.
        leases: Vec<LeaseReply>,
    },
    /// To pin, unpin, evict, purge, prefetch and drain.
    Changed(ChangedReply),
    /// To [`AdminCommand::Holdings`]: blocks.
    Holdings(u64),
    /// To [`AdminCommand::Scrub`] and [`AdminCommand::ScrubProgress`].
    Scrub(ScrubReply),
    /// To [`AdminCommand::ScrubObject`] and [`AdminCommand::ScrubObjectProgress`].
    ScrubObject(ObjectScrubReply),
    /// To [`AdminCommand::Explain`]: one entry per namespace and group that was looked at.
    Explain(Vec<ExplainReply>),
    /// To [`AdminCommand::SetConfig`]: what holds now.
    Settings(LiveSettings),
}

/// Why the core did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AdminError {
    /// As many commands as may wait already do.
    #[error("the core has too many commands waiting; try again")]
    Busy,
    /// The core is going down.
    #[error("the daemon is stopping")]
    Stopping,
    /// Nothing of that name.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// The command cannot be carried out as it stands.
    #[error("{0}")]
    BadRequest(&'static str),
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusReply {
    /// Of this start.
    pub epoch: Epoch,
    /// Since ready.
    pub uptime: Duration,
    /// From start to ready.
    pub start_took: Duration,
    /// Blocks that are here: of each group the records of the shard that has the most.
    pub blocks: u64,
    /// Records that are here.
    pub records: u64,
    /// Of those, records that only DRAM holds.
    pub dram_only: u64,
    /// Drains that came to their end since the start.
    pub drains: u64,
    /// Records that only DRAM held when the last one ended.
    pub drain_left: u64,
    /// Connected sessions.
    pub sessions: u32,
    /// Leases held.
    pub leases: u32,
    /// Moves under way.
    pub moves: u32,
    /// Purges that are not at their end yet.
    pub purges: u32,
    /// Purges of the object tier's store that are not at their end yet, and how many failed.
    pub store_purges: u64,
    /// See `store_purges`.
    pub store_purges_failed: u64,
    /// A drain is under way: nothing new is stored until what only DRAM holds lies on the devices.
    pub draining: bool,
    /// Records found at start, by tier.
    pub restored_dram: u64,
    /// The same for NVMe.
    pub restored_nvme: u64,
    /// Bytes of the daemon's own index memory.
    pub index_bytes: u64,
}

/// What one tier holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierReply {
    /// Which.
    pub tier: Tier,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes of slots in use.
    pub used_bytes: u64,
    /// Records it holds.
    pub records: u64,
    /// Of those, held by leases or pins.
    pub held_records: u64,
    /// Records that had to give way since the start.
    pub evicted: u64,
    /// Measured bandwidth of the edge that brings records from here to DRAM, bytes per second; 0 for unknown.
    pub read_bytes_per_second: u64,
    /// The same for the edge that writes here.
    pub write_bytes_per_second: u64,
}

/// How one device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReply {
    /// Its number.
    pub device: u8,
    /// Its file.
    pub path: String,
    /// Which I/O serves it: `uring` or `blocking`.
    pub io: &'static str,
    /// `ok`, `read_only`, or `failed`.
    pub state: DeviceState,
    /// Its size.
    pub capacity_bytes: u64,
    /// Moves it has not finished.
    pub queued: u32,
    /// Bytes read since the start.
    pub read_bytes: u64,
    /// Bytes written since the start.
    pub written_bytes: u64,
    /// Failed operations since the start.
    pub errors: u64,
    /// The last failure, for people.
    pub last_error: Option<String>,
}

/// Whether a device can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceState {
    /// Reads and writes.
    Ok,
    /// Reads only: writes fail.
    ReadOnly,
    /// Neither.
    Failed,
}

impl DeviceState {
    /// Every state, in the order of their codes.
    pub const ALL: [Self; 3] = [Self::Ok, Self::ReadOnly, Self::Failed];

    /// The number that stands for it in a gauge.
    pub const fn code(self) -> u64 {
        self as u64
    }

    /// The state of a gauge's number.
    pub fn of_code(code: u64) -> Self {
        Self::ALL.into_iter().find(|state| state.code() == code).unwrap_or(Self::Failed)
    }

    /// Its name in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ReadOnly => "read_only",
            Self::Failed => "failed",
        }
    }
}

/// What one namespace holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceReply {
    /// Its digest.
    pub digest: NamespaceDigest,
    /// Its model.
    pub model: String,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Views open on it.
    pub views: u32,
    /// Records it has.
    pub records: u64,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReply {
    /// Its number.
    pub session: u64,
    /// Its slot in the pin table.
    pub client_slot: u8,
    /// Its engine.
    pub instance: InstanceId,
    /// What it calls itself.
    pub client_name: String,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// `scheduler`, `worker` or `engine`.
    pub role: &'static str,
    /// Version spoken.
    pub version: u32,
    /// Since when.
    pub connected: Duration,
    /// Requests so far.
    pub requests: u64,
    /// False once the socket is gone while the process lives: its leases wait.
    pub attached: bool,
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseReply {
    /// Its number.
    pub lease: u64,
    /// Who holds it.
    pub instance: InstanceId,
    /// The slot of the session that took it.
    pub client_slot: u8,
    /// Whether it is to fill, not to read.
    pub fill: bool,
    /// Blocks it holds.
    pub blocks: u32,
    /// Bytes it holds.
    pub bytes: u64,
    /// Since when.
    pub age: Duration,
}

/// What an order did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChangedReply {
    /// Blocks it reached.
    pub blocks: u64,
    /// Blocks it named but could not change: unknown, or held.
    pub skipped: u64,
}

/// How the background verification stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubReply {
    /// Whether one is under way.
    pub running: bool,
    /// Runs that came to their end since the start of the daemon.
    pub runs: u64,
    /// Copies verified since the start of the daemon.
    pub verified: u64,
    /// Copies found corrupt and dropped since then.
    pub corrupt: u64,
    /// Copies still to verify in this run, about.
    pub remaining: u64,
}

/// Why a block would hit or miss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainReply {
    /// Where it was looked for.
    pub namespace: NamespaceDigest,
    /// Which group.
    pub group: u16,
    /// The key derived.
    pub key: BlockKey,
    /// Whether a match could use it.
    pub matchable: bool,
    /// Why not.
    pub reason: Option<MissReason>,
    /// Its position in its chain.
    pub position: Option<u32>,
    /// The records it has.
    pub copies: Vec<CopyReply>,
    /// What an operator should know, one sentence each.
    pub notes: Vec<String>,
}

/// One copy of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyReply {
    /// Where.
    pub tier: Tier,
    /// `filling`, `resident`, `moving` and the like.
    pub state: String,
    /// The slot, for people: `segment 3 slot 17`.
    pub place: String,
    /// Leases that hold it.
    pub held: u32,
}
