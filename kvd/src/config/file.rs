//! The configuration as it may be written: every key optional, unknown keys refused.
//!
//! This is the one home of a key's meaning. The doc comment, the default (`x-default`) and whether it can be reloaded
//! (`x-reload`) travel in the JSON schema, and `kvd config explain`, the schema and docs/configuration.md come from there.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::ObjectLimit;
use super::units::{Rate, Size, Span};
use crate::object::options::StoreUrl;

/// Configuration of `kvd serve`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    /// Folder of everything that outlives the process: lock, NVMe file, identity. Made with mode 0700 when missing.
    #[schemars(extend("x-default" = "$XDG_STATE_HOME/kvd, or ~/.local/state/kvd", "x-example" = "\"/var/lib/kvd\""))]
    pub(super) data_dir: Option<PathBuf>,
    /// Unix socket on which engines join. One socket path belongs to one tenant; at most 97 bytes long.
    #[schemars(extend("x-default" = "$XDG_RUNTIME_DIR/kvd/kvd.sock, or data_dir/kvd.sock", "x-example" = "\"/run/kvd/kvd.sock\""))]
    pub(super) socket: Option<PathBuf>,
    pub(super) admin: AdminFile,
    pub(super) metrics: MetricsFile,
    pub(super) log: LogFile,
    pub(super) telemetry: TelemetryFile,
    pub(super) tiers: TiersFile,
    /// What falls first when a tier is full: `adaptive` weighs recency against frequency, `lru` knows recency only.
    #[schemars(extend("x-default" = "adaptive", "x-example" = "\"lru\""))]
    pub(super) policy: Option<PolicyName>,
    pub(super) lease: LeaseFile,
    pub(super) session: SessionFile,
    pub(super) r#match: MatchFile,
    pub(super) load: LoadFile,
    pub(super) gate: GateFile,
    pub(super) tenant: TenantFile,
}

/// The gRPC admin service.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdminFile {
    /// Unix socket of the gRPC admin service, mode 0600.
    #[schemars(extend("x-default" = "the value of `socket` followed by .admin", "x-example" = "\"/run/kvd/admin.sock\""))]
    pub(super) socket: Option<PathBuf>,
    /// Also serve the admin API on this TCP address. Only a loopback address is taken: the API has no other lock than who can reach it.
    #[schemars(extend("x-default" = "off", "x-example" = "\"127.0.0.1:7411\""))]
    pub(super) listen: Option<SocketAddr>,
}

/// The Prometheus endpoint.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetricsFile {
    /// Serve Prometheus metrics over HTTP at this address, path /metrics. Read-only, so any address may be given.
    #[schemars(extend("x-default" = "off", "x-example" = "\"0.0.0.0:9411\""))]
    pub(super) listen: Option<SocketAddr>,
}

/// Logs, on standard error.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogFile {
    /// How much to log: error, warn, info, debug, trace, or a filter such as `info,kvd_tiers=debug`.
    #[schemars(extend("x-default" = "info", "x-reload" = true, "x-example" = "\"debug\""))]
    pub(super) level: Option<String>,
    /// How a line looks: `text` for people, `json` for collectors.
    #[schemars(extend("x-default" = "text", "x-example" = "\"json\""))]
    pub(super) format: Option<LogFormat>,
}

/// Traces.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TelemetryFile {
    pub(super) otlp: OtlpFile,
}

/// OpenTelemetry export.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OtlpFile {
    /// Send traces to this OpenTelemetry collector, over gRPC without TLS. A password in the URL is never printed.
    #[schemars(extend("x-default" = "off", "x-secret" = true, "x-example" = "\"http://127.0.0.1:4317\""))]
    pub(super) endpoint: Option<String>,
}

/// Where blocks are kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TiersFile {
    pub(super) dram: DramFile,
    pub(super) nvme: NvmeFile,
    pub(super) object: ObjectFile,
}

/// The DRAM tier.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DramFile {
    /// Bytes of memory for blocks; rounded down to whole segments of 64 MiB.
    #[schemars(extend("x-default" = "1/8 of memory, at most 4GiB, less where its file system is smaller", "x-example" = "\"64GiB\""))]
    pub(super) capacity: Option<Size>,
    /// Bytes that the other engine instances cannot take from an instance, so that one cannot flush the rest; less where there are so many instances that this would be more than half of the memory.
    #[schemars(extend("x-default" = "1/16 of tiers.dram.capacity", "x-example" = "\"4GiB\""))]
    pub(super) floor: Option<Size>,
    /// Folder of the arena's files, on tmpfs or hugetlbfs. What is in it outlives the process and is adopted by the next one.
    #[schemars(extend("x-default" = "/dev/shm/kvd-<id of data_dir>, or data_dir/arena where /dev/shm has no room", "x-example" = "\"/dev/shm/kvd\""))]
    pub(super) path: Option<PathBuf>,
    /// Fault all memory in at start (about 0.45 s per GiB), so that a full host is found out then and not in the middle of a store.
    #[schemars(extend("x-default" = "false", "x-example" = "true"))]
    pub(super) prefault: Option<bool>,
}

/// The NVMe tier.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NvmeFile {
    /// Keep blocks on disk below DRAM.
    #[schemars(extend("x-default" = "true", "x-example" = "false"))]
    pub(super) enabled: Option<bool>,
    /// Preallocated files or block devices, one per disk; they work in parallel.
    #[schemars(extend("x-default" = "[data_dir/nvme.kvd]", "x-example" = "[\"/mnt/nvme0/kvd\", \"/mnt/nvme1/kvd\"]"))]
    pub(super) paths: Option<Vec<PathBuf>>,
    /// Bytes over all paths, split evenly and taken from the file systems at once; rounded down to whole zones of 64 MiB.
    #[schemars(extend("x-default" = "the size of the existing files, or 1/4 of the free disk, at most 16GiB", "x-example" = "\"2TiB\""))]
    pub(super) capacity: Option<Size>,
    /// How the disk is driven: `uring`, `blocking` (threads, for containers that forbid io_uring), or `auto` to try the first and fall back.
    #[schemars(extend("x-default" = "auto", "x-example" = "\"blocking\""))]
    pub(super) io: Option<NvmeIo>,
    /// Cap on reads over all devices, in bytes per second.
    #[schemars(extend("x-default" = "unlimited", "x-example" = "\"3GiB/s\""))]
    pub(super) read_bandwidth_max: Option<Rate>,
    /// Cap on writes over all devices, against wear and against reads that wait behind writes.
    #[schemars(extend("x-default" = "unlimited", "x-example" = "\"500MiB/s\""))]
    pub(super) write_bandwidth_max: Option<Rate>,
}

/// The object tier.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ObjectFile {
    /// Keep blocks in an object store too, which other nodes may share: a block that one has stored is then found by all.
    #[schemars(extend("x-default" = "true; false where url is not given and less than 256MiB are free for its default", "x-example" = "false"))]
    pub(super) enabled: Option<bool>,
    /// Where the store is: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder. Nodes share it that have the same address and the same tenant secret. Who may ask is said by the environment (AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...), never in this file.
    #[schemars(extend("x-default" = "the folder data_dir/objects", "x-example" = "\"s3://kv-cache/llm\""))]
    pub(super) url: Option<StoreUrl>,
    /// Bytes that this node may keep in the store; its own oldest packs go first. The shares of all nodes sum to what the bucket may hold.
    #[schemars(extend("x-default" = "256GiB in a bucket; in a folder 1/4 of the free disk, at most 16GiB", "x-example" = "\"2TiB\""))]
    pub(super) share: Option<Size>,
    /// The server that speaks S3, where it is not AWS: http://host:port or https://host:port.
    #[schemars(extend("x-default" = "off", "x-secret" = true, "x-example" = "\"http://10.0.0.1:9000\""))]
    pub(super) endpoint: Option<String>,
    /// The region of an S3 bucket.
    #[schemars(extend("x-default" = "AWS_REGION or AWS_DEFAULT_REGION of the environment, else us-east-1", "x-example" = "\"eu-central-1\""))]
    pub(super) region: Option<String>,
    /// Put the name of an S3 bucket into the path of a request (host/bucket/key) instead of the host (bucket.host/key).
    #[schemars(extend("x-default" = "true where tiers.object.endpoint is given", "x-example" = "false"))]
    pub(super) path_style: Option<bool>,
    /// File with certificates (PEM) of the authorities to trust beside the system's, for a store with a certificate of one's own.
    #[schemars(extend("x-default" = "off", "x-example" = "\"/etc/kvd/store-ca.pem\""))]
    pub(super) ca_file: Option<PathBuf>,
    /// File with the credentials for S3 in the format of AWS, profile [default], mode 0600; read again when it changes.
    /// They need the right to list the bucket and to get, put and delete below the prefix, and should have no other: for
    /// administrators some servers (SeaweedFS) make a missing bucket with the first PUT.
    #[schemars(extend("x-default" = "off: those of the environment, or of the instance", "x-example" = "\"/etc/kvd/s3-credentials\""))]
    pub(super) credentials_file: Option<PathBuf>,
    /// Bytes of records that are put into one object, 1MiB to 1GiB: larger ones cost fewer requests, smaller ones are shared sooner.
    #[schemars(extend("x-default" = "64MiB, less where tiers.object.share is below 512MiB", "x-example" = "\"128MiB\""))]
    pub(super) pack_bytes: Option<Size>,
    /// After how long a pack is uploaded although it is not full: how late other nodes may learn of a block.
    #[schemars(extend("x-default" = "2s", "x-example" = "\"10s\""))]
    pub(super) pack_age: Option<Span>,
    /// Age at which a pack is deleted, used or not; 0s for never.
    #[schemars(extend("x-default" = "0s", "x-example" = "\"7days\""))]
    pub(super) expire_after: Option<Span>,
    /// After how long without a read a pack is deleted; 0s for never.
    #[schemars(extend("x-default" = "0s", "x-example" = "\"2days\""))]
    pub(super) idle_after: Option<Span>,
    /// Other ages for some of the packs, in place of `expire_after` and `idle_after`: [[tiers.object.limits]] with a `namespace` (its whole digest, as `kvd namespaces` prints it) or a `tenant` ("default": all of this daemon's), and with `max_age`, `max_idle` or both; 0s for never. What the limit of a namespace leaves open, that of the tenant says, and then the keys above. Old packs are deleted by whichever node collects, idle ones by the node that wrote them, so give all nodes of a pool the same limits.
    #[schemars(extend("x-default" = "[]", "x-example" = "[{ tenant = \"default\", max_age = \"30days\", max_idle = \"2days\" }]"))]
    pub(super) limits: Option<Vec<ObjectLimit>>,
    /// How long the store may be silent before a request is given up and made again; an upload has a second more for every 4 MiB.
    #[schemars(extend("x-default" = "10s", "x-example" = "\"3s\""))]
    pub(super) request_timeout: Option<Span>,
    /// The most requests in flight, 1 to 256.
    #[schemars(extend("x-default" = "32", "x-example" = "64"), range(min = 1, max = 256))]
    pub(super) requests_max: Option<u32>,
    /// How often the packs of other nodes are asked for. Each time costs list requests, which clouds charge for.
    #[schemars(extend("x-default" = "1s", "x-example" = "\"5s\""))]
    pub(super) sync_every: Option<Span>,
    /// Write to the store. A node that does not only reads what others have stored, and needs no right to write.
    #[schemars(extend("x-default" = "true", "x-example" = "false"))]
    pub(super) writable: Option<bool>,
}

/// Holds of engines on blocks.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LeaseFile {
    /// The most DRAM that one engine instance may hold by leases.
    #[schemars(extend("x-default" = "half of tiers.dram.capacity", "x-reload" = true, "x-example" = "\"8GiB\""))]
    pub(super) bytes_max: Option<Size>,
    /// After how long a lease that its engine does not use is taken back.
    #[schemars(extend("x-default" = "1m", "x-reload" = true, "x-example" = "\"5m\""))]
    pub(super) idle: Option<Span>,
}

/// Engine sessions.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SessionFile {
    /// The most engine processes joined at one time, 1 to 64.
    #[schemars(extend("x-default" = "64", "x-example" = "16"), range(min = 1, max = 64))]
    pub(super) max: Option<u32>,
    /// Numbers of users whose engines may join, besides the daemon's own user and root.
    #[schemars(extend("x-default" = "[]", "x-example" = "[1001, 1002]"))]
    pub(super) allowed_uids: Option<Vec<u32>>,
}

/// Matching of prefixes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MatchFile {
    /// How long a client waits for a match before it takes it for a miss; clients may ask for less.
    #[schemars(extend("x-default" = "50ms", "x-reload" = true, "x-example" = "\"20ms\""))]
    pub(super) deadline: Option<Span>,
}

/// Loading of matched blocks.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LoadFile {
    /// How long a load may take when the client names no deadline; what has not landed by then is a miss.
    #[schemars(extend("x-default" = "2s", "x-example" = "\"500ms\""))]
    pub(super) deadline: Option<Span>,
}

/// The load-or-recompute gate.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GateFile {
    /// Refuse a hit which would take longer to load than to compute again, by measured bandwidth and the engine's prefill rate.
    #[schemars(extend("x-default" = "true", "x-reload" = true, "x-example" = "false"))]
    pub(super) enabled: Option<bool>,
}

/// The tenant of this socket.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TenantFile {
    /// File with the tenant's secret (at least 16 bytes, mode 0600), from which block keys are derived; nodes that share it can share blocks.
    #[schemars(extend("x-default" = "data_dir/tenant.secret, made at first start", "x-example" = "\"/etc/kvd/tenant.secret\""))]
    pub(super) secret_file: Option<PathBuf>,
}

/// What falls first when a tier is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// Weighs recency against frequency and refuses what is not worth keeping.
    Adaptive,
    /// Least recently used.
    Lru,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How an NVMe device is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NvmeIo {
    /// io_uring where the kernel allows it, otherwise threads.
    Auto,
    /// io_uring or no start.
    Uring,
    /// A pool of threads with pread and pwrite.
    Blocking,
}
