//! What the daemon needs to know to serve, checked and resolved. The configuration file is one way to make it.

use std::path::PathBuf;
use std::time::Duration;

use kvd_proto::{NamespaceDigest, TenantKey};

use crate::object::options::StoreUrl;

/// Everything [`serve`](super::serve) needs.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The daemon's private folder: epoch, lock, and by default the tiers' files.
    pub data_dir: PathBuf,
    /// The Unix socket for engines. Its folder is private to the user.
    pub socket: PathBuf,
    /// The tenant whose socket it is.
    pub tenant: TenantOptions,
    /// Sessions at most, 1 to 64.
    pub sessions_max: usize,
    /// Users that may connect besides the daemon's own and root.
    pub allowed_uids: Vec<u32>,
    /// The DRAM tier.
    pub dram: DramOptions,
    /// The NVMe tier; `None` serves from DRAM alone.
    pub nvme: Option<NvmeOptions>,
    /// The object tier; `None` keeps everything on this node.
    pub object: Option<ObjectOptions>,
    /// What falls first.
    pub policy: PolicyChoice,
    /// Bytes that one instance may hold under leases.
    pub lease_bytes_max: u64,
    /// After how long an unused lease is taken back.
    pub lease_idle: Duration,
    /// The default deadline of a match.
    pub match_deadline: Duration,
    /// The default deadline of a load.
    pub load_deadline: Duration,
    /// Whether loads that lose against computing again are refused.
    pub gate_enabled: bool,
    /// How long a stop may wait for moves under way.
    pub stop_deadline: Duration,
}

/// Whose socket it is.
#[derive(Debug, Clone)]
pub struct TenantOptions {
    /// For operators.
    pub name: String,
    /// From the configured secret, the same on every node and after every restart.
    pub key: TenantKey,
}

/// The arena.
#[derive(Debug, Clone)]
pub struct DramOptions {
    /// The folder of its files, on tmpfs or hugetlbfs.
    pub path: PathBuf,
    /// Bytes; rounded down to whole segments of 64 MiB.
    pub capacity_bytes: u64,
    /// Bytes that other instances cannot take from an engine instance.
    pub floor_bytes: u64,
    /// Whether all pages are taken at start.
    pub prefault: bool,
}

/// The NVMe tier.
#[derive(Debug, Clone)]
pub struct NvmeOptions {
    /// One preallocated file or block device per path, 1 to 16.
    pub paths: Vec<PathBuf>,
    /// Bytes over all paths, split evenly.
    pub capacity_bytes: u64,
    /// Which I/O serves them.
    pub io: IoChoice,
    /// Bytes per second that may be read over all devices; `None` for no bound.
    pub read_bytes_per_second_max: Option<u64>,
    /// The same for writes.
    pub write_bytes_per_second_max: Option<u64>,
}

/// The object tier: a store that may be shared with other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectOptions {
    /// Where the store is.
    pub url: StoreUrl,
    /// Bytes that this node may keep in it.
    pub share_bytes: u64,
    /// The server to speak to in place of the cloud's own, `http://10.0.0.1:9000`; for S3 only.
    pub endpoint: Option<String>,
    /// The region of the bucket; for S3 only. `None`: as the environment says, or us-east-1.
    pub region: Option<String>,
    /// Whether the bucket's name goes into the path of a request, not into the host; for S3 only.
    pub path_style: bool,
    /// Certificate authorities to trust beside the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Credentials in the format of AWS; for S3 only. `None`: those of the environment.
    pub credentials_file: Option<PathBuf>,
    /// Bytes of records at which a pack is closed.
    pub pack_bytes: u64,
    /// Age at which a pack is closed although it is not full.
    pub pack_age: Duration,
    /// Age at which a pack is deleted; `None` for never.
    pub expire_after: Option<Duration>,
    /// After how long without a read a pack is deleted; `None` for never.
    pub idle_after: Option<Duration>,
    /// Other ages for some of the packs.
    pub limits: Vec<ObjectLimit>,
    /// How long the store may be silent before a request is given up, and perhaps made again.
    pub request_timeout: Duration,
    /// Requests in flight at most, 1 to 256.
    pub requests_max: usize,
    /// How often the packs of other nodes are learned of.
    pub sync_every: Duration,
    /// Whether anything is written or deleted; otherwise the store is only read.
    pub writable: bool,
}

#[cfg(test)]
impl ObjectOptions {
    /// A store with nothing special about it.
    pub(crate) fn sample(url: StoreUrl) -> Self {
        Self {
            url,
            share_bytes: 1 << 30,
            endpoint: None,
            region: None,
            path_style: false,
            ca_file: None,
            credentials_file: None,
            pack_bytes: 1 << 20,
            pack_age: Duration::from_secs(2),
            expire_after: None,
            idle_after: None,
            limits: Vec::new(),
            request_timeout: Duration::from_secs(10),
            requests_max: 4,
            sync_every: Duration::from_secs(1),
            writable: true,
        }
    }
}

/// How long packs of a namespace are kept, or of the whole tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLimit {
    /// Which namespace; `None` for all of the daemon's tenant.
    pub namespace: Option<NamespaceDigest>,
    /// Age at which a pack is deleted: zero for never, `None` for what else is said.
    pub max_age: Option<Duration>,
    /// After how long without a read a pack is deleted: zero for never, `None` for what else is said.
    pub max_idle: Option<Duration>,
}

/// Which I/O serves a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoChoice {
    /// io_uring where the kernel allows it, else threads.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// Threads that read and write.
    Blocking,
}

/// What falls first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyChoice {
    /// What was not used for longest.
    Lru,
    /// What is least likely to be used again, by what was seen.
    Adaptive,
}
