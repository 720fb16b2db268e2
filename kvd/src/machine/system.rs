//! The machine that this process runs on.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvd_nixl::device::{Device, DeviceError};
use kvd_nixl::io::{UringIo, UringOptions};
use rustix::fs::{Access, Mode, OFlags};
use rustix::process::Resource;

use super::{Entry, EntryKind, Filesystem, Machine, MemoryLimit, SocketState};
use crate::core::ObjectOptions;
use crate::object::store::{Probe, ProbeError, Store};

/// Reads /proc, /sys and the file systems. The root of /proc and /sys can be another folder, in tests.
#[derive(Clone, Debug)]
pub struct SystemMachine {
    root: PathBuf,
}

impl Default for SystemMachine {
    fn default() -> Self {
        SystemMachine { root: PathBuf::from("/") }
    }
}

/// Long enough for a store that answers after a pause, short enough for somebody who waits before a terminal.
const PROBE_MAX: Duration = Duration::from_secs(15);

/// A cgroup v1 without a limit says a number near 2^63; nothing real is this large.
const NO_LIMIT: u64 = 1 << 60;

impl SystemMachine {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    /// The tightest limit from the group `group` under `mount` up to the mount itself.
    fn tightest(&self, mount: &str, group: &str, file: &str, version: u8) -> Option<MemoryLimit> {
        let mut folder = PathBuf::from(mount).join(group.trim_start_matches('/'));
        let mut tightest: Option<MemoryLimit> = None;
        loop {
            let path = folder.join(file);
            let limit = self.read(&path.to_string_lossy()).and_then(|text| text.parse::<u64>().ok());
            if let Some(bytes) = limit.filter(|bytes| *bytes < NO_LIMIT)
                && tightest.as_ref().is_none_or(|known| bytes < known.bytes)
            {
                tightest = Some(MemoryLimit { bytes, version, file: Path::new("/").join(&path) });
            }
            if folder == Path::new(mount) || !folder.pop() {
                return tightest;
            }
        }
    }
}

/// The nearest parent that exists, the path itself included.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("/"))
}

fn kind_name(magic: u64) -> String {
    // From linux/magic.h, statfs(2).
    let name = match magic & 0xffff_ffff {
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x9584_58f6 => "hugetlbfs",
        0x0000_ef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x794c_7630 => "overlayfs",
        0x0000_6969 => "nfs",
        0x0000_517b => "smb",
        0xff53_4d42 => "cifs",
        0x00c3_6400 => "ceph",
        0x0bd0_0bd0 => "lustre",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0x6a65_6a63 => "virtiofs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}

impl Machine for SystemMachine {
    fn memory_bytes(&self) -> Option<u64> {
        let text = self.read("proc/meminfo")?;
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    }

    fn memory_limit(&self) -> Option<MemoryLimit> {
        let groups = self.read("proc/self/cgroup")?;
        let mut limits = Vec::new();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            if controllers.is_empty() {
                limits.extend(self.tightest("sys/fs/cgroup", group, "memory.max", 2));
            } else if controllers.split(',').any(|name| name == "memory") {
                limits.extend(self.tightest("sys/fs/cgroup/memory", group, "memory.limit_in_bytes", 1));
            }
        }
        limits.into_iter().min_by_key(|limit| limit.bytes)
    }

    fn filesystem(&self, path: &Path) -> io::Result<Filesystem> {
        let place = existing(path);
        let kind = rustix::fs::statfs(place)?;
        let space = rustix::fs::statvfs(place)?;
        Ok(Filesystem {
            kind: kind_name(kind.f_type as u64),
            free_bytes: space.f_bavail * space.f_frsize,
            total_bytes: space.f_blocks * space.f_frsize,
            read_only: space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let file_type = meta.file_type();
        let kind = if file_type.is_dir() {
            EntryKind::Folder
        } else if file_type.is_file() {
            EntryKind::File
        } else if file_type.is_socket() {
            EntryKind::Socket
        } else if file_type.is_block_device() {
            EntryKind::BlockDevice
        } else {
            EntryKind::Other
        };
        let allocated_bytes = meta.blocks() * 512;
        Ok(Some(Entry { kind, uid: meta.uid(), mode: meta.mode() & 0o7777, bytes: meta.len(), allocated_bytes }))
    }

    fn folder_bytes(&self, folder: &Path) -> u64 {
        let Ok(entries) = fs::read_dir(folder) else { return 0 };
        entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .filter(|meta| meta.is_file())
            .map(|meta| meta.blocks() * 512)
            .sum()
    }

    fn writable(&self, folder: &Path) -> bool {
        rustix::fs::access(existing(folder), Access::WRITE_OK | Access::EXEC_OK).is_ok()
    }

    fn direct_io(&self, folder: &Path) -> io::Result<()> {
        // An unnamed file: nothing is left behind, whatever happens.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        match rustix::fs::open(existing(folder), flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) => Ok(()),
            // A file system without unnamed files says nothing about O_DIRECT; the NVMe tier finds out when it opens.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn socket(&self, path: &Path) -> SocketState {
        match UnixStream::connect(path) {
            Ok(_) => SocketState::Alive,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => SocketState::Missing,
                io::ErrorKind::PermissionDenied => SocketState::Denied,
                _ => SocketState::Stale,
            },
        }
    }

    fn is_locked(&self, file: &Path) -> bool {
        // Asked, not tried: a lock taken for a look would stop a daemon that starts at this moment.
        let Ok(file) = fs::File::options().read(true).write(true).open(file) else { return false };
        let question = rustix::process::Flock::from(rustix::process::FlockType::WriteLock);
        rustix::process::fcntl_getlk(file, &question).is_ok_and(|holder| holder.is_some())
    }

    fn probe_store(&self, options: &ObjectOptions) -> Result<Probe, ProbeError> {
        let unusable = |why: String| ProbeError::Unusable(why);
        let store = Store::open(options).map_err(|error| unusable(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| unusable(error.to_string()))?;
        let probed = runtime.block_on(store.probe(Instant::now() + PROBE_MAX));
        // A disk that hangs would be waited for otherwise.
        runtime.shutdown_background();
        probed
    }

    fn memlock_bytes(&self) -> Option<u64> {
        rustix::process::getrlimit(Resource::Memlock).current
    }

    fn open_files_max(&self) -> u64 {
        rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
    }

    fn io_uring(&self) -> io::Result<()> {
        if self.read("proc/sys/kernel/io_uring_disabled").is_some_and(|value| value == "2") {
            return Err(io::Error::other("kernel.io_uring_disabled = 2"));
        }
        let options = UringOptions { depth: 1, memories: 1 };
        UringIo::new(options).map(drop).map_err(io::Error::other)
    }

    fn gpu(&self) -> Result<(), DeviceError> {
        Device::cuda(0).map(drop)
    }

    fn kernel_release(&self) -> String {
        rustix::system::uname().release().to_string_lossy().into_owned()
    }

    fn clock_source(&self) -> Option<String> {
        self.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
    }

    fn shared_huge_pages(&self) -> Option<String> {
        let text = self.read("sys/kernel/mm/transparent_hugepage/shmem_enabled")?;
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen.to_owned())
    }

    fn has_cpu_feature(&self, name: &str) -> bool {
        let Some(text) = self.read("proc/cpuinfo") else { return false };
        let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
        line.is_some_and(|line| line.split_whitespace().any(|feature| feature == name))
    }

    fn uid(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine_with(files: &[(&str, &str)]) -> (tempfile::TempDir, SystemMachine) {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, text).expect("a file");
        }
        let machine = SystemMachine { root: root.path().to_owned() };
        (root, machine)
    }

    #[test]
    fn the_tightest_limit_counts_in_version_2() {
        let (_root, machine) = machine_with(&[
            ("proc/self/cgroup", "0::/pod/app\n"),
            ("sys/fs/cgroup/pod/app/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "1073741824\n"),
        ]);
        let limit = machine.memory_limit().expect("a limit");
        assert_eq!((limit.bytes, limit.version), (1 << 30, 2));
        assert!(limit.file.ends_with("pod/memory.max"));
    }

    #[test]
    fn a_container_that_sees_its_own_group_as_root_is_read_in_version_1() {
        let (_root, machine) = machine_with(&[
            ("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ]);
        assert_eq!(machine.memory_limit().map(|limit| (limit.bytes, limit.version)), Some((512 << 20, 1)));
    }

    #[test]
    fn no_limit_is_none() {
        let (_root, machine) = machine_with(&[
            ("proc/self/cgroup", "4:memory:/a\n0::/\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(machine.memory_limit(), None);
    }

    #[test]
    fn this_machine_answers() {
        let machine = SystemMachine::default();
        assert!(machine.memory_bytes().is_some_and(|bytes| bytes > 1 << 28));
        assert!(machine.filesystem(Path::new("/no/such/folder")).is_ok_and(|fs| fs.total_bytes > 0));
        assert!(super::super::kernel_version(&machine.kernel_release()).is_some_and(|version| version >= (4, 0)));
    }
}
