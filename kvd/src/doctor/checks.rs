//! The checks beyond those of the configuration, one function each.

use std::path::Path;

use crate::config::{Config, NvmeIo, SOCKET_PATH_BYTES_MAX, rough};
use crate::machine::{EntryKind, Machine, SocketState, kernel_version};

use super::{Check, Notes};

mod gpu;
mod object;

pub(super) const ALL: &[Check] = &[
    Check { name: "kernel", run: kernel },
    Check { name: "cpu", run: cpu },
    Check { name: "clock", run: clock },
    Check { name: "open files", run: open_files },
    Check { name: "memlock", run: memlock },
    Check { name: "io_uring", run: io_uring },
    Check { name: "huge pages", run: huge_pages },
    Check { name: "cgroup memory", run: cgroup_memory },
    Check { name: "dram folder", run: dram_folder },
    Check { name: "dram room", run: dram_room },
    Check { name: "data folder", run: data_folder },
    Check { name: "data file system", run: data_filesystem },
    Check { name: "direct i/o", run: direct_io },
    Check { name: "disk room", run: disk_room },
    Check { name: "object store", run: object::store },
    Check { name: "gpu", run: gpu::lanes },
    Check { name: "socket path", run: socket_path },
    Check { name: "daemon", run: daemon },
];

/// pidfd_open came with 5.3, SO_PEERPIDFD with 6.5; io_uring registered files and buffers are solid from 5.15 on.
const KERNEL_MIN: (u32, u32) = (5, 10);
const KERNEL_GOOD: (u32, u32) = (6, 5);
/// 64 sessions with five descriptors each, segments and devices.
const OPEN_FILES_MIN: u64 = 1024;
const OPEN_FILES_GOOD: u64 = 8192;
/// Registered buffers of the NVMe tier.
const MEMLOCK_GOOD_BYTES: u64 = 64 << 20;

fn kernel(_: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let release = machine.kernel_release();
    match kernel_version(&release) {
        Some(version) if version < KERNEL_MIN => {
            notes.fail(format!("kernel {release} is older than 5.10"), "use a kernel of 5.10 or newer; 6.5 is better");
        }
        Some(version) if version < KERNEL_GOOD => notes.warn(
            format!("kernel {release} has no SO_PEERPIDFD: an engine's death is known by its pid and start time only"),
            "use a kernel of 6.5 or newer",
        ),
        Some(_) => notes.ok(format!("kernel {release}")),
        None => notes.warn(format!("kernel release `{release}` is not understood"), "check that it is 5.10 or newer"),
    }
}

fn cpu(_: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let missing: Vec<&str> = ["avx2", "vpclmulqdq"].into_iter().filter(|name| !machine.has_cpu_feature(name)).collect();
    if missing.is_empty() {
        return notes.ok("AVX2 and VPCLMULQDQ");
    }
    notes.warn(
        format!("the processor lacks {}: copies and checksums are slower", missing.join(" and ")),
        "in a virtual machine, pass the host's processor through (-cpu host)",
    );
}

fn clock(_: &Config, machine: &dyn Machine, notes: &mut Notes) {
    match machine.clock_source().as_deref() {
        Some(source @ ("hpet" | "acpi_pm" | "jiffies")) => notes.warn(
            format!("the clock source is {source}: every look at the time is a system call of a microsecond"),
            "boot with clocksource=tsc, or find out why the kernel does not trust the TSC (dmesg | grep -i tsc)",
        ),
        Some(source) => notes.ok(format!("clock source {source}")),
        None => notes.ok("clock source not shown here"),
    }
}

fn open_files(_: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let limit = machine.open_files_max();
    let remedy = "raise it: ulimit -n 65536, LimitNOFILE=65536 (systemd), --ulimit nofile=65536 (docker)";
    if limit < OPEN_FILES_MIN {
        notes.fail(format!("only {limit} open files are allowed"), remedy);
    } else if limit < OPEN_FILES_GOOD {
        notes.warn(format!("{limit} open files are allowed: enough for one engine, tight for many"), remedy);
    } else {
        notes.ok(format!("{limit} open files"));
    }
}

fn memlock(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    match machine.memlock_bytes() {
        _ if !config.tiers.nvme.enabled => notes.ok("not needed without the NVMe tier"),
        Some(bytes) if bytes < MEMLOCK_GOOD_BYTES => notes.warn(
            format!("{} may be locked in memory: without registered buffers the NVMe tier costs more CPU, and engines cannot pin the arena for a GPU", rough(bytes)),
            "ulimit -l unlimited, LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 (docker)",
        ),
        Some(bytes) => notes.ok(format!("{} may be locked", rough(bytes))),
        None => notes.ok("no limit on locked memory"),
    }
}

fn io_uring(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let nvme = &config.tiers.nvme;
    match machine.io_uring() {
        Ok(()) => notes.ok("io_uring works"),
        Err(_) if !nvme.enabled || nvme.io == NvmeIo::Blocking => notes.ok("io_uring is forbidden, and not asked for"),
        Err(error) => {
            let cause = format!("io_uring is forbidden here: {error}");
            let remedy = "allow it in the seccomp profile and with sysctl kernel.io_uring_disabled=0, or set tiers.nvme.io = \"blocking\"";
            if nvme.io == NvmeIo::Uring { notes.fail(cause, remedy) } else { notes.warn(cause, remedy) }
        }
    }
}

fn huge_pages(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let on_hugetlbfs = machine.filesystem(&config.tiers.dram.path).is_ok_and(|fs| fs.kind == "hugetlbfs");
    // From 6.1 on kvd asks for them piece by piece, whatever the setting; only `deny` forbids that.
    let asks = kernel_version(&machine.kernel_release()).is_some_and(|version| version >= (6, 1));
    match machine.shared_huge_pages().as_deref() {
        _ if on_hugetlbfs => notes.ok("the arena is on hugetlbfs"),
        Some("never") if asks => notes.ok("huge pages in shared memory: asked for by kvd itself"),
        Some("never" | "deny") => notes.warn(
            "shared memory gets no huge pages: first touch and pinning of the arena take about ten times as long",
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or put tiers.dram.path on hugetlbfs",
        ),
        Some(mode) => notes.ok(format!("huge pages in shared memory: {mode}")),
        None => notes.ok("huge pages in shared memory are not shown here"),
    }
}

fn cgroup_memory(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let Some(limit) = machine.memory_limit() else { return notes.ok("no memory limit") };
    let wanted = config.tiers.dram.capacity.0.saturating_add(crate::config::DAEMON_BYTES);
    let shown =
        format!("memory limit of {} in {} (cgroup v{})", rough(limit.bytes), limit.file.display(), limit.version);
    if wanted > limit.bytes {
        notes.fail(
            format!("pool and daemon take {}, over the {shown}: the kernel would kill kvd", rough(wanted)),
            "lower tiers.dram.capacity, or raise the limit",
        );
    } else if wanted > limit.bytes / 10 * 9 {
        notes.warn(
            format!("pool and daemon take {}, close to the {shown}", rough(wanted)),
            "leave a tenth of the limit free",
        );
    } else {
        notes.ok(shown);
    }
}

fn dram_folder(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let path = &config.tiers.dram.path;
    private_folder(path, machine, notes);
    match machine.filesystem(path) {
        Ok(fs) if !fs.is_memory() => notes.warn(
            format!("{} is on {}, not in memory", path.display(), fs.kind),
            "set tiers.dram.path to a folder on tmpfs (/dev/shm) or hugetlbfs",
        ),
        Ok(_) => {}
        Err(error) => notes.fail(
            format!("{} cannot be looked at: {error}", path.display()),
            "set tiers.dram.path to a folder on tmpfs",
        ),
    }
}

fn dram_room(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let dram = &config.tiers.dram;
    let Ok(fs) = machine.filesystem(&dram.path) else { return };
    let room = fs.free_bytes.saturating_add(machine.folder_bytes(&dram.path));
    if dram.capacity.0 > room {
        notes.fail(
            format!("{} of pool, and {} are free on {} ({})", dram.capacity, rough(room), dram.path.display(), fs.kind),
            "lower tiers.dram.capacity, or enlarge it: mount -o remount,size=..., docker run --shm-size, an emptyDir with medium: Memory",
        );
    } else if dram.capacity.0 > room / 10 * 9 {
        notes.warn(
            format!("{} of pool take almost all of the {} on {}", dram.capacity, rough(room), dram.path.display()),
            "leave a tenth of it free for the table of slots and for others",
        );
    } else {
        notes.ok(format!("{} of pool fit into {}", dram.capacity, rough(room)));
    }
}

/// A folder of kvd holds prompts in another form: nobody else may look into it.
fn private_folder(path: &Path, machine: &dyn Machine, notes: &mut Notes) {
    let shown = path.display();
    match machine.entry(path) {
        Ok(None) if machine.writable(path) => notes.ok(format!("{shown} will be made")),
        Ok(None) => notes.fail(
            format!("{shown} does not exist and cannot be made by user {}", machine.uid()),
            format!("mkdir -m 700 {shown}; chown it to this user"),
        ),
        Ok(Some(entry)) if entry.kind != EntryKind::Folder => {
            notes.fail(format!("{shown} is not a folder"), "remove what stands there, or choose another path");
        }
        Ok(Some(entry)) if entry.uid != machine.uid() => notes.fail(
            format!("{shown} belongs to user {}, kvd runs as {}", entry.uid, machine.uid()),
            format!("chown -R {} {shown}, or run kvd as its owner", machine.uid()),
        ),
        Ok(Some(entry)) if entry.mode & 0o077 != 0 => {
            notes.fail(
                format!("{shown} can be entered by others (mode {:04o})", entry.mode),
                format!("chmod 700 {shown}"),
            );
        }
        Ok(Some(_)) if !machine.writable(path) => {
            notes.fail(format!("{shown} cannot be written"), "is it mounted read-only?")
        }
        Ok(Some(_)) => notes.ok(format!("{shown} is private")),
        Err(error) => {
            notes.fail(format!("{shown} cannot be looked at: {error}"), "give this user the right to enter its parents")
        }
    }
}

fn data_folder(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    private_folder(&config.data_dir, machine, notes);
}

fn data_filesystem(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let folders = config.tiers.nvme.paths.iter().filter(|_| config.tiers.nvme.enabled);
    let folders = folders.filter_map(|path| path.parent()).chain([config.data_dir.as_path()]);
    let mut seen = Vec::new();
    for folder in folders {
        if seen.contains(&folder) {
            continue;
        }
        seen.push(folder);
        let shown = folder.display();
        match machine.filesystem(folder) {
            Err(error) => {
                notes.fail(format!("{shown} cannot be looked at: {error}"), "choose a folder on a local disk")
            }
            Ok(fs) if fs.read_only => {
                notes.fail(format!("{shown} is mounted read-only"), "remount it, or choose another folder")
            }
            Ok(fs) if fs.is_network() => notes.fail(
                format!("{shown} is on {}: locks and O_DIRECT do not hold across hosts there", fs.kind),
                "choose a folder on a local disk",
            ),
            Ok(fs) if fs.kind == "overlayfs" => notes.warn(
                format!("{shown} is on overlayfs, the container's own layer: slow, and gone with the container"),
                "mount a volume there",
            ),
            Ok(fs) if fs.is_memory() => notes.warn(
                format!("{shown} is on {}: the NVMe tier would be kept in memory", fs.kind),
                "choose a folder on a disk, or set tiers.nvme.enabled = false",
            ),
            Ok(fs) => notes.ok(format!("{shown} is on {}", fs.kind)),
        }
    }
}

fn direct_io(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    if !config.tiers.nvme.enabled {
        return notes.ok("not needed without the NVMe tier");
    }
    for path in &config.tiers.nvme.paths {
        let folder = path.parent().unwrap_or(Path::new("/"));
        match machine.direct_io(folder) {
            Ok(()) => notes.ok(format!("O_DIRECT works in {}", folder.display())),
            Err(error) => notes.warn(
                format!("files in {} cannot be opened with O_DIRECT ({error}): the page cache takes memory and copies twice", folder.display()),
                "use ext4 or xfs on a local disk, or a block device",
            ),
        }
    }
}

fn disk_room(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let nvme = &config.tiers.nvme;
    for path in nvme.paths.iter().filter(|_| nvme.enabled) {
        let entry = machine.entry(path).ok().flatten();
        if entry.is_some_and(|entry| entry.kind == EntryKind::BlockDevice) {
            continue;
        }
        let Ok(fs) = machine.filesystem(path) else { continue };
        let share = nvme.capacity.0 / nvme.paths.len() as u64;
        let missing = share.saturating_sub(entry.map_or(0, |entry| entry.allocated_bytes));
        if missing > fs.free_bytes {
            notes.fail(
                format!("{} needs {} more, and {} are free", path.display(), rough(missing), rough(fs.free_bytes)),
                "lower tiers.nvme.capacity, or free space",
            );
        } else if missing > 0 && missing > fs.free_bytes / 10 * 9 {
            notes
                .warn(format!("{} will take almost all of the disk", path.display()), "leave a tenth of the disk free");
        } else {
            notes.ok(format!("{} has its room", path.display()));
        }
    }
}

fn socket_path(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    for path in [&config.socket, &config.admin.socket] {
        let shown = path.display();
        let bytes = path.as_os_str().len();
        let folder = path.parent().unwrap_or(Path::new("/"));
        if bytes > SOCKET_PATH_BYTES_MAX {
            notes.fail(
                format!("{shown} has {bytes} bytes, a socket path at most {SOCKET_PATH_BYTES_MAX}"),
                "set socket to a shorter path, such as /run/kvd/kvd.sock",
            );
        } else if !machine.writable(folder) {
            notes.fail(
                format!("{} cannot be written by user {}", folder.display(), machine.uid()),
                "set socket to a path in a folder of this user's",
            );
        } else if machine
            .entry(folder)
            .ok()
            .flatten()
            .is_some_and(|entry| entry.mode & 0o002 != 0 && entry.mode & 0o1000 == 0)
        {
            notes.fail(
                format!("everybody may write into {} and put another socket in this one's place", folder.display()),
                format!("chmod o-w {}", folder.display()),
            );
        } else {
            match machine.socket(path) {
                SocketState::Stale => notes.warn(
                    format!("{shown} is left over: nobody listens on it"),
                    "nothing to do: the next start of kvd replaces it",
                ),
                SocketState::Denied => notes.fail(
                    format!("{shown} may not be used by user {}", machine.uid()),
                    "run as the user that runs kvd",
                ),
                SocketState::Missing | SocketState::Alive => notes.ok(format!("{shown} can be used")),
            }
        }
    }
}

fn daemon(config: &Config, machine: &dyn Machine, notes: &mut Notes) {
    match machine.socket(&config.socket) {
        SocketState::Alive => notes.ok(format!("a daemon answers on {}", config.socket.display())),
        SocketState::Missing | SocketState::Stale | SocketState::Denied
            if machine.is_locked(&lock_of(&config.data_dir)) =>
        {
            notes.fail(
                format!(
                    "a process holds {}, but does not listen on {}",
                    config.data_dir.display(),
                    config.socket.display()
                ),
                format!(
                    "find it with `fuser {}`; end it before another kvd is started on this folder",
                    lock_of(&config.data_dir).display()
                ),
            )
        }
        SocketState::Missing | SocketState::Stale | SocketState::Denied => {
            notes.ok("no daemon runs on this data folder")
        }
    }
}

/// The file whose lock says that a daemon runs on this data folder.
pub(crate) fn lock_of(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("lock")
}
