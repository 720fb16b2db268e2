//! What stands when nobody says anything: a private data folder and sizes that this machine can spare.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machine::{EntryKind, Machine};

use super::file::{File, LogFormat, NvmeIo, ObjectFile, PolicyName};
use super::units::{Rate, Size, Span};
use super::{
    Admin, Config, Dram, Gate, Lease, Load, Log, Match, Metrics, Nvme, Object, Otlp, Session, Telemetry, Tenant, Tiers,
};
use crate::object::options::StoreUrl;

/// Both tiers are carved in pieces of this size.
pub(super) const PIECE_BYTES: u64 = 64 << 20;
const DRAM_BYTES_MAX: u64 = 4 << 30;
/// An arena that is on disk for want of anything better stays small.
const DISK_ARENA_BYTES_MAX: u64 = 256 << 20;
const NVME_BYTES_MAX: u64 = 16 << 30;
const OBJECT_FOLDER_BYTES_MAX: u64 = 16 << 30;
/// A bucket has no end of its own: a bound that nobody notices on a bill, and that holds some days of one node.
const OBJECT_BUCKET_BYTES: u64 = 256 << 30;
/// Uploads of this size run at the speed of the network; the records in it are shared two seconds after they were stored.
const PACK_BYTES: u64 = 64 << 20;
const PACK_AGE: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const REQUESTS_MAX: u32 = 32;
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Less is a request for every few records; more is held in memory for long before it is sent as one.
pub(super) const PACK_BYTES_MIN: u64 = 1 << 20;
pub(super) const PACK_BYTES_MAX: u64 = 1 << 30;
/// Sessions are numbered in a 64-bit set of the arena's tables.
pub(super) const SESSIONS_MAX: u32 = 64;
const LEASE_IDLE: Duration = Duration::from_secs(60);
/// The default wait of DESIGN.md: longer, and a miss would have been the better answer.
const MATCH_DEADLINE: Duration = Duration::from_millis(50);

/// The socket of a daemon that was started without any configuration.
pub fn default_socket(machine: &dyn Machine) -> PathBuf {
    socket_for(&data_dir(machine), machine)
}

fn socket_for(data_dir: &Path, machine: &dyn Machine) -> PathBuf {
    match machine.variable("XDG_RUNTIME_DIR") {
        // A data folder of one's own asks for a socket of one's own: the runtime folder has room for one daemon.
        Some(runtime) if data_dir == self::data_dir(machine) => Path::new(&runtime).join("kvd/kvd.sock"),
        _ => data_dir.join("kvd.sock"),
    }
}

/// The admin socket that belongs to an engine socket.
pub fn admin_socket_of(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".admin");
    name.into()
}

fn data_dir(machine: &dyn Machine) -> PathBuf {
    if let Some(state) = machine.variable("XDG_STATE_HOME") {
        return Path::new(&state).join("kvd");
    }
    match machine.variable("HOME") {
        Some(home) => Path::new(&home).join(".local/state/kvd"),
        None => PathBuf::from(format!("/var/tmp/kvd-{}", machine.uid())),
    }
}

/// Long enough for a whole long prompt from one slow disk; an engine that has better to do names its own.
const LOAD_DEADLINE: Duration = Duration::from_secs(2);

pub(super) fn fill(file: File, machine: &dyn Machine) -> Config {
    let data_dir = file.data_dir.map(absolute).unwrap_or_else(|| data_dir(machine));
    let socket = file.socket.map(absolute).unwrap_or_else(|| socket_for(&data_dir, machine));
    let dram_path = file.tiers.dram.path.map(absolute).unwrap_or_else(|| arena_path(&data_dir, machine));
    let capacity = file.tiers.dram.capacity.unwrap_or_else(|| dram_capacity(&dram_path, machine));
    let nvme_paths = match file.tiers.nvme.paths {
        Some(paths) => paths.into_iter().map(absolute).collect(),
        None => vec![data_dir.join("nvme.kvd")],
    };
    let nvme_capacity = file.tiers.nvme.capacity.unwrap_or_else(|| nvme_capacity(&nvme_paths, machine));
    Config {
        admin: Admin {
            socket: file.admin.socket.map(absolute).unwrap_or_else(|| admin_socket_of(&socket)),
            listen: file.admin.listen,
        },
        metrics: Metrics { listen: file.metrics.listen },
        log: Log {
            level: file.log.level.unwrap_or_else(|| "info".into()),
            format: file.log.format.unwrap_or(LogFormat::Text),
        },
        telemetry: Telemetry { otlp: Otlp { endpoint: file.telemetry.otlp.endpoint } },
        tiers: Tiers {
            dram: Dram {
                capacity,
                floor: file.tiers.dram.floor.unwrap_or(Size(capacity.0 / 16)),
                path: dram_path,
                prefault: file.tiers.dram.prefault.unwrap_or(false),
            },
            nvme: Nvme {
                enabled: file.tiers.nvme.enabled.unwrap_or(true),
                paths: nvme_paths,
                capacity: nvme_capacity,
                io: file.tiers.nvme.io.unwrap_or(NvmeIo::Auto),
                read_bandwidth_max: file.tiers.nvme.read_bandwidth_max.unwrap_or(Rate(None)),
                write_bandwidth_max: file.tiers.nvme.write_bandwidth_max.unwrap_or(Rate(None)),
            },
            object: object(file.tiers.object, &data_dir, machine),
        },
        policy: file.policy.unwrap_or(PolicyName::Adaptive),
        lease: Lease {
            bytes_max: file.lease.bytes_max.unwrap_or(Size(capacity.0 / 2)),
            idle: file.lease.idle.unwrap_or(Span(LEASE_IDLE)),
        },
        session: Session {
            max: file.session.max.unwrap_or(SESSIONS_MAX),
            allowed_uids: file.session.allowed_uids.unwrap_or_default(),
        },
        r#match: Match { deadline: file.r#match.deadline.unwrap_or(Span(MATCH_DEADLINE)) },
        load: Load { deadline: file.load.deadline.unwrap_or(Span(LOAD_DEADLINE)) },
        gate: Gate { enabled: file.gate.enabled.unwrap_or(true) },
        tenant: Tenant {
            secret_file: file.tenant.secret_file.map(absolute).unwrap_or_else(|| data_dir.join("tenant.secret")),
        },
        data_dir,
        socket,
    }
}

/// The daemon may be restarted from another folder: what it remembers must not depend on where it was started.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Two daemons with data folders of their own get arenas of their own. Where shared memory has no room for two segments
/// (64 MiB in a plain container), the arena goes to the data folder: slower, but it serves, and `check` says so.
fn arena_path(data_dir: &Path, machine: &dyn Machine) -> PathBuf {
    let id = blake3::hash(data_dir.as_os_str().as_encoded_bytes()).to_hex();
    let path = PathBuf::from(format!("/dev/shm/kvd-{}", &id[..12]));
    let least = 2 * PIECE_BYTES + arena_table_bytes(2 * PIECE_BYTES);
    if arena_room(&path, machine) < least { data_dir.join("arena") } else { path }
}

/// The most that the table of slots takes beside the segments: 96 bytes for each slot of at least 8 KiB, and a head.
pub(super) fn arena_table_bytes(capacity: u64) -> u64 {
    capacity / 64 + (1 << 20)
}

/// What the arena there holds already counts as free, so that a restart comes to the same size.
pub(super) fn arena_room(path: &Path, machine: &dyn Machine) -> u64 {
    machine.filesystem(path).map_or(0, |fs| fs.free_bytes.saturating_add(machine.folder_bytes(path)))
}

fn whole_pieces(bytes: u64) -> Size {
    Size((bytes / PIECE_BYTES).max(1) * PIECE_BYTES)
}

fn dram_capacity(path: &Path, machine: &dyn Machine) -> Size {
    let memory = machine.memory_bytes().unwrap_or(8 << 30);
    let allowed = machine.memory_limit().map_or(memory, |limit| limit.bytes.min(memory));
    let in_memory = machine.filesystem(path).is_ok_and(|fs| fs.is_memory());
    let most = if in_memory { DRAM_BYTES_MAX } else { DISK_ARENA_BYTES_MAX };
    whole_pieces((allowed / 8).min(most).min(arena_room(path, machine) / 4 * 3))
}

fn nvme_capacity(paths: &[PathBuf], machine: &dyn Machine) -> Size {
    let Some(first) = paths.first() else { return Size(PIECE_BYTES) };
    let files = paths.iter().filter_map(|path| machine.entry(path).ok().flatten());
    let existing = files.filter(|entry| entry.kind == EntryKind::File).map(|entry| entry.bytes).sum::<u64>();
    if existing >= PIECE_BYTES {
        return Size(existing);
    }
    let free = machine.filesystem(first).map_or(0, |fs| fs.free_bytes);
    whole_pieces((free / 4).min(NVME_BYTES_MAX))
}

fn object(file: ObjectFile, data_dir: &Path, machine: &dyn Machine) -> Object {
    let given = file.url.is_some();
    let url = file.url.unwrap_or_else(|| StoreUrl::Folder(data_dir.join("objects")));
    let room = url.folder().map(|path| machine.filesystem(path).map_or(0, |fs| fs.free_bytes) / 4);
    let share = file.share.unwrap_or_else(|| match room {
        Some(room) => whole_pieces(room.min(OBJECT_FOLDER_BYTES_MAX)),
        None => Size(OBJECT_BUCKET_BYTES),
    });
    // Where there is no room, and nobody has asked for it, the tier is left out rather than a start refused.
    let roomy = given || room.is_none_or(|room| room >= PIECE_BYTES);
    Object {
        enabled: file.enabled.unwrap_or(roomy),
        path_style: file.path_style.unwrap_or(file.endpoint.is_some()),
        // A share of eight packs at least: what goes to make room should be a small part of what there is.
        pack_bytes: file.pack_bytes.unwrap_or(pack_bytes(share)),
        url,
        share,
        endpoint: file.endpoint,
        region: file.region,
        ca_file: file.ca_file.map(absolute),
        credentials_file: file.credentials_file.map(absolute),
        pack_age: file.pack_age.unwrap_or(Span(PACK_AGE)),
        expire_after: file.expire_after.unwrap_or_default(),
        idle_after: file.idle_after.unwrap_or_default(),
        limits: file.limits.unwrap_or_default(),
        request_timeout: file.request_timeout.unwrap_or(Span(REQUEST_TIMEOUT)),
        requests_max: file.requests_max.unwrap_or(REQUESTS_MAX),
        sync_every: file.sync_every.unwrap_or(Span(SYNC_EVERY)),
        writable: file.writable.unwrap_or(true),
    }
}

fn pack_bytes(share: Size) -> Size {
    let eighth = share.0 / 8 / PACK_BYTES_MIN * PACK_BYTES_MIN;
    Size(eighth.clamp(PACK_BYTES_MIN, PACK_BYTES))
}
