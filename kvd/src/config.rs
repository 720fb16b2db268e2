//! The configuration of `kvd serve`: read, checked, explained and reloaded.
//!
//! A value comes from the default, the TOML file, the environment (`KVD__TIERS__DRAM__CAPACITY`) or `--set`, the later
//! winning, and keeps its origin, so that an error names file, line, column and key. [`load`] gives back a whole
//! [`Loaded`] or every problem at once; nothing is half applied. What the machine must offer is checked by [`check`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::machine::Machine;
use crate::object::options::StoreUrl;

pub use check::{DAEMON_BYTES, SOCKET_PATH_BYTES_MAX, check};
pub use defaults::{admin_socket_of, default_socket};
pub use effective::{EffectiveValue, effective, reference_markdown};
pub use error::{ConfigError, Origin, Problem, Severity};
pub use file::{LogFormat, NvmeIo, PolicyName};
pub use keys::{Key, find, keys, schema, suggest};
pub use limits::{NamespaceName, ObjectLimit};
pub use options::SecretError;
pub use reload::{Reload, compare};
pub use units::{Rate, Size, Span, rough};

mod check;
mod defaults;
mod effective;
mod error;
mod file;
mod keys;
mod layers;
mod limits;
mod options;
mod reload;
mod units;

/// What the tenant of a daemon is called: one socket serves one tenant.
pub const TENANT_NAME: &str = "default";

/// What the name of every environment variable that is a key begins with.
pub const VARIABLE_PREFIX: &str = "KVD__";

/// A configuration in which every key has its value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Folder of everything that outlives the process.
    pub data_dir: PathBuf,
    /// Socket on which engines join.
    pub socket: PathBuf,
    /// The admin service.
    pub admin: Admin,
    /// The Prometheus endpoint.
    pub metrics: Metrics,
    /// Logs.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
    /// Where blocks are kept.
    pub tiers: Tiers,
    /// What falls first.
    pub policy: PolicyName,
    /// Holds of engines.
    pub lease: Lease,
    /// Engine sessions.
    pub session: Session,
    /// Matching.
    pub r#match: Match,
    /// Loading.
    pub load: Load,
    /// The load-or-recompute gate.
    pub gate: Gate,
    /// The tenant of the socket.
    pub tenant: Tenant,
}

/// The admin service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Admin {
    /// Its Unix socket.
    pub socket: PathBuf,
    /// A loopback address beside it.
    pub listen: Option<SocketAddr>,
}

/// The Prometheus endpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Its address; off when `None`.
    pub listen: Option<SocketAddr>,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Log {
    /// A filter of tracing-subscriber.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// Traces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Telemetry {
    /// OpenTelemetry export.
    pub otlp: Otlp,
}

/// OpenTelemetry export.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Otlp {
    /// The collector; off when `None`.
    pub endpoint: Option<String>,
}

/// Where blocks are kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tiers {
    /// Memory.
    pub dram: Dram,
    /// Disks.
    pub nvme: Nvme,
    /// An object store.
    pub object: Object,
}

/// The DRAM tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dram {
    /// Bytes for blocks.
    pub capacity: Size,
    /// Bytes that other instances cannot take from an engine instance.
    pub floor: Size,
    /// Folder of the arena.
    pub path: PathBuf,
    /// Fault all memory in at start.
    pub prefault: bool,
}

/// The NVMe tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nvme {
    /// Whether there is one.
    pub enabled: bool,
    /// One file or block device per disk.
    pub paths: Vec<PathBuf>,
    /// Bytes over all of them.
    pub capacity: Size,
    /// How they are driven.
    pub io: NvmeIo,
    /// Cap on reads over all of them.
    pub read_bandwidth_max: Rate,
    /// Cap on writes over all of them.
    pub write_bandwidth_max: Rate,
}

/// The object tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Object {
    /// Whether there is one.
    pub enabled: bool,
    /// Where the store is.
    pub url: StoreUrl,
    /// Bytes that this node may keep in it.
    pub share: Size,
    /// The server that speaks S3, where it is not AWS.
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    pub region: Option<String>,
    /// Whether the name of an S3 bucket goes into the path.
    pub path_style: bool,
    /// Certificate authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Credentials for S3, in the format of AWS.
    pub credentials_file: Option<PathBuf>,
    /// Bytes of one pack.
    pub pack_bytes: Size,
    /// Age at which a pack is uploaded.
    pub pack_age: Span,
    /// Age at which a pack is deleted; zero for never.
    pub expire_after: Span,
    /// After how long without a read a pack is deleted; zero for never.
    pub idle_after: Span,
    /// Other ages for some of the packs.
    pub limits: Vec<ObjectLimit>,
    /// How long the store may be silent.
    pub request_timeout: Span,
    /// Requests in flight at most.
    pub requests_max: u32,
    /// How often the packs of other nodes are asked for.
    pub sync_every: Span,
    /// Whether anything is written.
    pub writable: bool,
}

/// Holds of engines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lease {
    /// The most bytes one instance may hold.
    pub bytes_max: Size,
    /// After this an unused lease is taken back.
    pub idle: Span,
}

/// Engine sessions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Session {
    /// The most at one time.
    pub max: u32,
    /// Users whose engines may join, besides the daemon's own and root.
    pub allowed_uids: Vec<u32>,
}

/// Matching.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Match {
    /// After this a client takes it for a miss.
    pub deadline: Span,
}

/// Loading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// After this what has not landed is a miss.
    pub deadline: Span,
}

/// The load-or-recompute gate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// Whether it refuses hits that would lose.
    pub enabled: bool,
}

/// The tenant of the socket.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tenant {
    /// The file with its secret.
    pub secret_file: PathBuf,
}

/// Where to read the configuration from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables; those without kvd's prefix are not looked at.
    pub environment: Vec<(String, String)>,
    /// `KEY=VALUE` pairs of the command line.
    pub assignments: Vec<String>,
}

impl Sources {
    /// The file and the assignments given, with the environment of this process.
    pub fn of_process(file: Option<PathBuf>, assignments: Vec<String>) -> Sources {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Sources { file, environment: environment.collect(), assignments }
    }
}

/// A configuration with the origin of every value that is not a default.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// By key.
    pub origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where the value of a key comes from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The remarks of [`check`] which do not stop a start.
    ///
    /// # Errors
    /// All remarks, when one of them does.
    pub fn checked(&self, machine: &dyn Machine) -> Result<Vec<Problem>, ConfigError> {
        let problems = check(self, machine);
        if problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(ConfigError { problems });
        }
        Ok(problems)
    }
}

/// Reads all sources and fills what they leave open with defaults for this machine.
///
/// # Errors
/// Every unknown key and every value that its key does not take.
pub fn load(sources: &Sources, machine: &dyn Machine) -> Result<Loaded, ConfigError> {
    let keys = keys();
    let mut layers = layers::Layers::new(&keys);
    if let Some(file) = &sources.file {
        layers.file(file)?;
    }
    layers.environment(&sources.environment);
    layers.assignments(&sources.assignments);
    let (file, origins) = layers.finish()?;
    Ok(Loaded { config: defaults::fill(file, machine), origins })
}

#[cfg(test)]
mod tests;
