//! The object tier as an operator sees it.

use std::time::Duration;

/// How the object tier is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectTierReply {
    /// Where the store is.
    pub url: String,
    /// The server that is spoken to, where it is not the cloud's own.
    pub endpoint: Option<String>,
    /// The name of this node in the store.
    pub node: String,
    /// Whether anything may be written.
    pub writable: bool,
    /// Whether the store answers.
    pub condition: StoreCondition,
    /// Since when it does not, where it does not.
    pub failing: Option<Duration>,
    /// What went wrong last, while it does not answer or is being tried.
    pub last_error: Option<String>,
    /// Whether records are read from it.
    pub reads: bool,
    /// Whether packs are uploaded to it.
    pub writes: bool,
    /// Bytes that this node may keep in the store.
    pub share_bytes: u64,
    /// Bytes of this node's packs in it.
    pub own_bytes: u64,
    /// This node's packs.
    pub own_packs: u64,
    /// Records in them.
    pub own_records: u64,
    /// Packs of all nodes that are known here.
    pub known_packs: u64,
    /// Records in them, about.
    pub known_records: u64,
    /// Nodes that write to the store.
    pub nodes: u64,
    /// Bytes in packs that are not uploaded yet.
    pub buffered_bytes: u64,
    /// Records that wait for their turn to be packed.
    pub waiting_records: u64,
    /// Records on their way from the store.
    pub fetching_records: u64,
    /// Requests since the start; outcomes that never came are left out.
    pub requests: Vec<RequestsReply>,
    /// Bytes of bodies sent since the start.
    pub bytes_up: u64,
    /// Bytes of bodies received since the start.
    pub bytes_down: u64,
    /// Requests that were made again.
    pub retries: u64,
    /// Requests that were not made again because retries have a budget.
    pub retries_saved: u64,
    /// Reads asked for twice because the answer was late.
    pub hedges: u64,
    /// Blocks whose match needed the store.
    pub hit_blocks: u64,
    /// Records that came and were what they should be.
    pub loaded_records: u64,
    /// Records whose pack was gone.
    pub missing_records: u64,
    /// Records that did not verify.
    pub corrupt_records: u64,
    /// Packs uploaded since the start.
    pub packs_uploaded: u64,
    /// Packs that were given up.
    pub packs_given_up: u64,
    /// Own packs deleted because the share was full.
    pub packs_evicted: u64,
    /// Packs deleted because of their age.
    pub packs_expired: u64,
    /// Own packs deleted because nobody read them.
    pub packs_idle: u64,
    /// Leftovers of crashes that were deleted.
    pub orphans_collected: u64,
    /// How fast the store reads.
    pub speed: StoreSpeedReply,
    /// What it costs by the day.
    pub cost: CostReply,
}

/// Whether a store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreCondition {
    /// It does.
    Up,
    /// It did not, and is being tried.
    Trying,
    /// It is left alone for a while.
    Down,
}

/// Requests of one kind that ended in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestsReply {
    /// `put`, `get`, `list`, `delete` or `head`.
    pub op: &'static str,
    /// `ok`, or what went wrong.
    pub outcome: &'static str,
    /// How many.
    pub count: u64,
}

/// How fast a store reads; zeros before the first read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreSpeedReply {
    /// What the load-or-recompute gate reckons with.
    pub gate_bytes_per_second: u64,
    /// The same: from the order to fetch a record to its landing.
    pub gate_latency: Duration,
    /// From a request to the first byte of its answer, on average.
    pub first_byte: Duration,
    /// Within this 95 of 100 of the last requests had their first byte.
    pub first_byte_p95: Duration,
    /// Of one body after its first byte, on average.
    pub body_bytes_per_second: u64,
}

/// What a day costs, extrapolated from what was counted in `window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CostReply {
    /// At most the last day.
    pub window: Duration,
    /// PUT and LIST requests.
    pub put_list_per_day: u64,
    /// GET and HEAD requests.
    pub get_head_per_day: u64,
    /// DELETE requests.
    pub delete_per_day: u64,
    /// Bytes sent.
    pub bytes_up_per_day: u64,
    /// Bytes received.
    pub bytes_down_per_day: u64,
    /// Bytes of this node's packs in the store now.
    pub stored_bytes: u64,
}

/// What of the object tier is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectScrub {
    /// Whose packs.
    pub packs: ScrubbedPacks,
    /// How fast the store is read at most.
    pub bytes_per_second_max: u64,
}

/// Whose packs are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScrubbedPacks {
    /// Those of this node.
    Own,
    /// Those of the tenant, whichever node wrote them.
    Known,
}

/// How the verification of the object tier stands. Counts are since the start of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObjectScrubReply {
    /// Runs that came to their end.
    pub runs: u64,
    /// Of those, runs that ended because the store could not be read.
    pub failed: u64,
    /// Records read.
    pub verified: u64,
    /// Records that are not what their index says.
    pub corrupt: u64,
    /// Packs in which damage was found.
    pub damaged_packs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Records still to read in this run.
    pub remaining: u64,
}
