//! Whether a configuration fits together and fits the machine. Refusals are `Error`, remarks are `Warning`; each comes with a remedy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kvd_tiers::nvme::Geometry;

use crate::machine::{EntryKind, Machine};

use super::defaults::{PIECE_BYTES, SESSIONS_MAX, arena_room, arena_table_bytes};
use super::error::{Problem, Severity};
use super::units::{Size, rough};
use super::{Loaded, NvmeIo};
use crate::metrics::counters::DEVICES_MAX as NVME_PATHS_MAX;

mod object;

/// Memory that the daemon takes beside its pool: code, tables for 2 M records (128 bytes each), queues, staging.
pub const DAEMON_BYTES: u64 = 512 << 20;

/// What the kernel takes as a Unix socket path (sun_path has 108 bytes with its final zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Registered buffers are locked memory; below this the NVMe tier works without them.
const MEMLOCK_BYTES_MIN: u64 = 64 << 20;

struct Checker<'a> {
    loaded: &'a Loaded,
    machine: &'a dyn Machine,
    problems: Vec<Problem>,
}

/// Every remark about the configuration on this machine, worst first.
pub fn check(loaded: &Loaded, machine: &dyn Machine) -> Vec<Problem> {
    let mut checker = Checker { loaded, machine, problems: Vec::new() };
    checker.plain_values();
    checker.sockets();
    checker.dram();
    checker.nvme();
    checker.object();
    checker.tenant();
    checker.problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    checker.problems
}

impl Checker<'_> {
    fn say(&mut self, severity: Severity, key: &str, message: String, remedy: &str) {
        let origin = self.loaded.origin(key);
        let remedy = Some(remedy.to_owned());
        self.problems.push(Problem { severity, origin, key: Some(key.to_owned()), message, remedy });
    }

    fn refuse(&mut self, key: &str, message: String, remedy: &str) {
        self.say(Severity::Error, key, message, remedy);
    }

    fn warn(&mut self, key: &str, message: String, remedy: &str) {
        self.say(Severity::Warning, key, message, remedy);
    }

    fn plain_values(&mut self) {
        let config = &self.loaded.config;
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log.level) {
            let message = format!("`{}` is no log filter: {error}", config.log.level);
            self.refuse(
                "log.level",
                message,
                "write error, warn, info, debug, trace, or a filter such as info,kvd_tiers=debug",
            );
        }
        if let Some(listen) = config.admin.listen.filter(|listen| !listen.ip().is_loopback()) {
            let message = format!(
                "{listen} can be reached from other machines, and whoever reaches the admin API may purge the cache"
            );
            self.refuse("admin.listen", message, "use 127.0.0.1 or [::1], or leave it out and use the admin socket");
        }
        if config.session.max == 0 || config.session.max > SESSIONS_MAX {
            let message = format!("{} sessions: from 1 to {SESSIONS_MAX} are possible", config.session.max);
            self.refuse("session.max", message, "set session.max = 64");
        }
        for (key, deadline) in [("match.deadline", config.r#match.deadline), ("load.deadline", config.load.deadline)] {
            if deadline.0.is_zero() {
                self.refuse(
                    key,
                    "with no time to answer everything is a miss".into(),
                    "write a time such as \"50ms\", or leave the key out",
                );
            }
        }
        if let Some(endpoint) = &config.telemetry.otlp.endpoint
            && !endpoint.starts_with("http://")
        {
            self.refuse(
                "telemetry.otlp.endpoint",
                "only http:// is spoken".into(),
                "run a collector on this host and give http://127.0.0.1:4317",
            );
        }
    }

    fn sockets(&mut self) {
        let config = &self.loaded.config;
        for (key, path) in [("socket", &config.socket), ("admin.socket", &config.admin.socket)] {
            let bytes = path.as_os_str().len();
            // The admin socket is bound with a suffix first, and then renamed.
            let most = SOCKET_PATH_BYTES_MAX - if key == "admin.socket" { ".new".len() } else { 0 };
            if bytes > most {
                let message = format!("the path has {bytes} bytes; here a Unix socket path has at most {most}");
                self.refuse(key, message, "choose a shorter path, such as /run/kvd/kvd.sock");
            }
            if let Ok(Some(entry)) = self.machine.entry(path)
                && entry.kind != EntryKind::Socket
            {
                self.refuse(
                    key,
                    format!("{} exists and is not a socket", path.display()),
                    "choose another path, or remove what stands there",
                );
            }
        }
        if !config.session.allowed_uids.is_empty()
            && let Some(folder) = config.socket.parent()
            && self.keeps_others_out(folder)
        {
            let message = format!(
                "users {:?} may use the socket, but its folder {} lets nobody in but its owner",
                config.session.allowed_uids,
                folder.display()
            );
            self.warn(
                "socket",
                message,
                "put `socket` into a folder that they may enter, such as /run/kvd with mode 0755",
            );
        }
        if config.socket == config.admin.socket {
            self.refuse(
                "admin.socket",
                "the same path as `socket`".into(),
                "leave admin.socket out: it is then the value of `socket` followed by .admin",
            );
        }
    }

    /// Whether users other than its owner cannot reach what is in a folder. One that is missing is made with mode 0700.
    fn keeps_others_out(&self, folder: &Path) -> bool {
        match self.machine.entry(folder) {
            Ok(Some(entry)) => entry.mode & 0o001 == 0,
            Ok(None) | Err(_) => true,
        }
    }

    fn dram(&mut self) {
        let dram = &self.loaded.config.tiers.dram;
        let (capacity, key) = (dram.capacity, "tiers.dram.capacity");
        if capacity.0 < PIECE_BYTES {
            let message = format!("{capacity} is less than one segment of {}", Size(PIECE_BYTES));
            return self.refuse(key, message, "set tiers.dram.capacity to at least \"64MiB\"");
        }
        if let Some(limit) = self.machine.memory_limit()
            && capacity.0.saturating_add(DAEMON_BYTES) > limit.bytes
        {
            let message = format!(
                "{capacity} of pool and {} for the daemon itself exceed the cgroup's memory limit of {} ({}, cgroup v{})",
                Size(DAEMON_BYTES),
                rough(limit.bytes),
                limit.file.display(),
                limit.version
            );
            let fits = limit.bytes.saturating_sub(DAEMON_BYTES) / PIECE_BYTES * PIECE_BYTES;
            let remedy = if fits == 0 {
                format!("raise the memory limit to at least {}", Size(capacity.0.saturating_add(DAEMON_BYTES)))
            } else {
                let wanted = Size(capacity.0.saturating_add(DAEMON_BYTES));
                format!("set tiers.dram.capacity = \"{}\" or less, or raise the memory limit to {wanted}", Size(fits))
            };
            self.refuse(key, message, &remedy);
        } else if let Some(memory) = self.machine.memory_bytes()
            && capacity.0.saturating_add(DAEMON_BYTES) > memory
        {
            let message = format!("{capacity} of pool do not fit into {} of memory", rough(memory));
            self.refuse(key, message, &format!("set tiers.dram.capacity = \"{}\" or less", fitting(memory / 2)));
        }
        self.dram_room(&dram.path, capacity);
    }

    fn dram_room(&mut self, path: &Path, capacity: Size) {
        let key = "tiers.dram.path";
        if !self.machine.writable(path) {
            return self.refuse(
                key,
                format!("{} cannot be written by user {}", path.display(), self.machine.uid()),
                "choose a folder of this user's, or change its owner",
            );
        }
        let Ok(fs) = self.machine.filesystem(path) else { return };
        if !fs.is_memory() {
            let message = format!(
                "{} is on {}, not in memory: blocks of the DRAM tier would be written to disk",
                path.display(),
                fs.kind
            );
            self.warn(key, message, "use a folder on tmpfs (/dev/shm) or hugetlbfs");
        }
        let room = arena_room(path, self.machine);
        let table = arena_table_bytes(capacity.0);
        if capacity.0.saturating_add(table) > room {
            let message = format!(
                "{capacity} and their table do not fit into the {} free on {} ({})",
                rough(room),
                path.display(),
                fs.kind
            );
            let remedy = format!(
                "set it to \"{}\" or less, or enlarge the file system (mount -o remount,size=...; docker run --shm-size; an emptyDir with medium: Memory)",
                fitting(room / 65 * 64)
            );
            self.refuse("tiers.dram.capacity", message, &remedy);
        }
    }

    fn nvme(&mut self) {
        let nvme = &self.loaded.config.tiers.nvme;
        if !nvme.enabled {
            return;
        }
        if nvme.paths.is_empty() {
            return self.refuse(
                "tiers.nvme.paths",
                "no path, but the tier is enabled".into(),
                "give a path, or set tiers.nvme.enabled = false",
            );
        }
        let mut sorted: Vec<&PathBuf> = nvme.paths.iter().collect();
        sorted.sort();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            self.refuse("tiers.nvme.paths", "the same path twice".into(), "name every disk once");
        }
        if nvme.paths.len() > NVME_PATHS_MAX {
            self.refuse(
                "tiers.nvme.paths",
                format!("{} paths: at most {NVME_PATHS_MAX} are possible", nvme.paths.len()),
                "join disks below kvd (md, lvm)",
            );
        }
        let least = 2 * PIECE_BYTES * nvme.paths.len() as u64;
        if nvme.capacity.0 < least {
            let message = format!("{} is less than two zones of {} on each path", nvme.capacity, Size(PIECE_BYTES));
            let remedy =
                format!("set tiers.nvme.capacity to at least \"{}\", or tiers.nvme.enabled = false", Size(least));
            self.refuse("tiers.nvme.capacity", message, &remedy);
        } else if nvme.capacity < self.loaded.config.tiers.dram.capacity {
            let message = format!(
                "NVMe ({}) is smaller than DRAM ({}): most of what falls from memory is lost",
                nvme.capacity, self.loaded.config.tiers.dram.capacity
            );
            self.warn("tiers.nvme.capacity", message, "give NVMe several times the size of DRAM");
        }
        self.nvme_room();
        if nvme.io == NvmeIo::Blocking {
            return;
        }
        match self.machine.io_uring() {
            Err(error) if nvme.io == NvmeIo::Uring => {
                let message = format!("io_uring is not allowed here: {error}");
                self.refuse("tiers.nvme.io", message, "set tiers.nvme.io = \"auto\" to fall back to threads, or allow io_uring (seccomp profile, sysctl kernel.io_uring_disabled=0)");
            }
            Err(error) => {
                let message = format!(
                    "io_uring is not allowed here ({error}): the NVMe tier works with threads, at a higher cost in CPU"
                );
                self.warn("tiers.nvme.io", message, "allow io_uring (seccomp profile, sysctl kernel.io_uring_disabled=0), or set tiers.nvme.io = \"blocking\" to accept it");
            }
            Ok(()) => self.memlock(),
        }
    }

    fn memlock(&mut self) {
        if let Some(bytes) = self.machine.memlock_bytes().filter(|bytes| *bytes < MEMLOCK_BYTES_MIN)
            && self.machine.uid() != 0
        {
            let message = format!(
                "only {} may be locked in memory: the NVMe tier works without registered buffers",
                rough(bytes)
            );
            self.warn(
                "tiers.nvme.io",
                message,
                "raise it: ulimit -l unlimited, LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (docker)",
            );
        }
    }

    fn nvme_room(&mut self) {
        let nvme = &self.loaded.config.tiers.nvme;
        // Paths on one file system share its room: they are summed by the folder that holds them.
        let mut wanted: BTreeMap<PathBuf, u64> = BTreeMap::new();
        for path in &nvme.paths {
            let entry = self.machine.entry(path).ok().flatten();
            if entry.is_some_and(|entry| entry.kind == EntryKind::BlockDevice) {
                continue;
            }
            if entry.is_some_and(|entry| entry.kind == EntryKind::Folder) {
                self.refuse(
                    "tiers.nvme.paths",
                    format!("{} is a folder", path.display()),
                    "name a file in it, such as nvme.kvd",
                );
                continue;
            }
            let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
            let share = nvme.capacity.0 / nvme.paths.len() as u64;
            // Whole zones of it: a device that lies there as large as that needs nothing more, on however full a disk.
            let device = Geometry::fit(share).map_or(share, |geometry| geometry.end());
            let missing = device.saturating_sub(entry.map_or(0, |entry| entry.allocated_bytes));
            *wanted.entry(folder).or_default() += missing;
        }
        for (folder, bytes) in wanted {
            if !self.machine.writable(&folder) {
                let message = format!("{} cannot be written by user {}", folder.display(), self.machine.uid());
                self.refuse("tiers.nvme.paths", message, "choose a folder of this user's, or change its owner");
                continue;
            }
            let Ok(fs) = self.machine.filesystem(&folder) else { continue };
            if bytes > fs.free_bytes {
                let message = format!(
                    "{} more are needed on {}, and {} are free",
                    rough(bytes),
                    folder.display(),
                    rough(fs.free_bytes)
                );
                let remedy = format!("set tiers.nvme.capacity = \"{}\" or less, or free space", fitting(fs.free_bytes));
                self.refuse("tiers.nvme.capacity", message, &remedy);
            }
        }
    }

    fn tenant(&mut self) {
        let path = &self.loaded.config.tenant.secret_file;
        match self.machine.entry(path) {
            Ok(Some(entry)) if entry.mode & 0o077 != 0 => {
                let message = format!("{} can be read by others (mode {:04o})", path.display(), entry.mode);
                self.refuse("tenant.secret_file", message, &format!("chmod 600 {}", path.display()));
            }
            Ok(None) if self.loaded.origins.contains_key("tenant.secret_file") => {
                let message = format!("{} does not exist", path.display());
                self.refuse(
                    "tenant.secret_file",
                    message,
                    &format!("make it: head -c 32 /dev/urandom > {0} && chmod 600 {0}", path.display()),
                );
            }
            Ok(_) => {}
            Err(error) => {
                self.refuse(
                    "tenant.secret_file",
                    format!("{} cannot be read: {error}", path.display()),
                    "give this user the right to read it",
                );
            }
        }
    }
}

fn fitting(bytes: u64) -> Size {
    Size(bytes / PIECE_BYTES * PIECE_BYTES)
}
