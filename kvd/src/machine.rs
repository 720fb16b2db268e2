//! What kvd asks of the machine it runs on, as a trait, so that a test can be any machine.

use std::io;
use std::path::{Path, PathBuf};

use kvd_nixl::device::DeviceError;

use crate::core::ObjectOptions;
use crate::object::store::{Probe, ProbeError};

pub use system::SystemMachine;

#[cfg(test)]
pub(crate) mod fake;
mod system;

/// A file system that holds a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// Its kind: `tmpfs`, `ext4`, `overlayfs`, ...; a hexadecimal magic where the kind has no name here.
    pub kind: String,
    /// Bytes an unprivileged process may still take.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

impl Filesystem {
    /// Whether what is written there is gone with the power.
    pub fn is_memory(&self) -> bool {
        matches!(self.kind.as_str(), "tmpfs" | "ramfs" | "hugetlbfs")
    }

    /// Whether other hosts may write the same files.
    pub fn is_network(&self) -> bool {
        matches!(self.kind.as_str(), "nfs" | "smb" | "cifs" | "ceph" | "lustre" | "fuse" | "9p" | "virtiofs")
    }
}

/// The memory limit of the control group that this process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The tightest limit up to the root, in bytes.
    pub bytes: u64,
    /// 1 or 2.
    pub version: u8,
    /// The file it stands in.
    pub file: PathBuf,
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// The owner.
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Length in bytes.
    pub bytes: u64,
    /// Bytes that the file system has given to it.
    pub allocated_bytes: u64,
}

/// The kind of an [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Folder,
    /// A plain file.
    File,
    /// A Unix socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// Anything else.
    Other,
}

/// What answers on a Unix socket path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// Nothing is there.
    Missing,
    /// A socket file that nobody listens on.
    Stale,
    /// Somebody listens.
    Alive,
    /// It may not be connected to.
    Denied,
}

/// The facts. Every answer is a reading of this moment; `None` means that the machine does not say.
pub trait Machine {
    /// Physical memory in bytes.
    fn memory_bytes(&self) -> Option<u64>;
    /// The limit of the control group; `None` without one.
    fn memory_limit(&self) -> Option<MemoryLimit>;
    /// The file system of a path, or of its nearest existing parent.
    fn filesystem(&self, path: &Path) -> io::Result<Filesystem>;
    /// What stands at a path; `None` when nothing does.
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>>;
    /// Bytes allocated to the files directly in a folder; 0 when there is none.
    fn folder_bytes(&self, folder: &Path) -> u64;
    /// Whether this process may write into the folder, or into its nearest existing parent.
    fn writable(&self, folder: &Path) -> bool;
    /// Whether files in the folder can be opened with O_DIRECT; the refusal otherwise.
    fn direct_io(&self, folder: &Path) -> io::Result<()>;
    /// What answers on a Unix socket.
    fn socket(&self, path: &Path) -> SocketState;
    /// Whether some process holds a lock on this file.
    fn is_locked(&self, file: &Path) -> bool;
    /// Whether a store is fit for the object tier: it is written to and read, with a deadline.
    ///
    /// # Errors
    /// What is wrong with it.
    fn probe_store(&self, options: &ObjectOptions) -> Result<Probe, ProbeError>;
    /// Bytes that may be locked in memory; `None` without a limit.
    fn memlock_bytes(&self) -> Option<u64>;
    /// File descriptors this process may hold.
    fn open_files_max(&self) -> u64;
    /// Whether io_uring can be used; the refusal otherwise.
    fn io_uring(&self) -> io::Result<()>;
    /// Whether blocks can be moved by a GPU: its driver is there, and takes the kernels.
    ///
    /// # Errors
    /// Why not.
    fn gpu(&self) -> Result<(), DeviceError>;
    /// The kernel's release, `6.8.0-45-generic`.
    fn kernel_release(&self) -> String;
    /// The clock the kernel reads time from.
    fn clock_source(&self) -> Option<String>;
    /// The chosen mode of huge pages in shared memory (`never`, `advise`, ...).
    fn shared_huge_pages(&self) -> Option<String>;
    /// Whether the processor has a feature, by its name in /proc/cpuinfo.
    fn has_cpu_feature(&self, name: &str) -> bool;
    /// The user this process acts as.
    fn uid(&self) -> u32;
    /// An environment variable, where it is set and not empty.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The major and minor number of a kernel release.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
