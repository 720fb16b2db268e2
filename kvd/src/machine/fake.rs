//! A healthy machine whose every fact a test can change.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvd_nixl::device::DeviceError;

use super::{Entry, Filesystem, Machine, MemoryLimit, SocketState};
use crate::core::ObjectOptions;
use crate::object::store::{Probe, ProbeError};

/// The facts, as data. Paths without an entry of their own take that of their nearest parent.
#[derive(Clone, Debug)]
pub(crate) struct FakeMachine {
    pub(crate) memory_bytes: u64,
    pub(crate) memory_limit: Option<MemoryLimit>,
    pub(crate) filesystems: BTreeMap<PathBuf, Filesystem>,
    pub(crate) entries: BTreeMap<PathBuf, Entry>,
    pub(crate) folder_bytes: BTreeMap<PathBuf, u64>,
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) no_direct_io: bool,
    pub(crate) sockets: BTreeMap<PathBuf, SocketState>,
    pub(crate) locked: Vec<PathBuf>,
    pub(crate) store: Result<Probe, ProbeError>,
    pub(crate) memlock_bytes: Option<u64>,
    pub(crate) open_files_max: u64,
    pub(crate) io_uring: Result<(), &'static str>,
    pub(crate) gpu: Result<(), DeviceError>,
    pub(crate) kernel_release: &'static str,
    pub(crate) clock_source: &'static str,
    pub(crate) shared_huge_pages: &'static str,
    pub(crate) cpu_features: Vec<&'static str>,
    pub(crate) variables: BTreeMap<&'static str, String>,
}

impl FakeMachine {
    /// 64 GiB of memory, half of it tmpfs, an ext4 disk with 400 GiB free, nothing forbidden.
    pub(crate) fn healthy() -> FakeMachine {
        let disk = Filesystem { kind: "ext4".into(), free_bytes: 400 << 30, total_bytes: 500 << 30, read_only: false };
        let shm = Filesystem { kind: "tmpfs".into(), free_bytes: 32 << 30, total_bytes: 32 << 30, read_only: false };
        FakeMachine {
            memory_bytes: 64 << 30,
            memory_limit: None,
            filesystems: [("/".into(), disk), ("/dev/shm".into(), shm)].into(),
            entries: BTreeMap::new(),
            folder_bytes: BTreeMap::new(),
            read_only: Vec::new(),
            no_direct_io: false,
            sockets: BTreeMap::new(),
            locked: Vec::new(),
            store: Ok(Probe { took: Duration::from_millis(12), written: true }),
            memlock_bytes: None,
            open_files_max: 1 << 20,
            io_uring: Ok(()),
            gpu: Ok(()),
            kernel_release: "6.8.0-45-generic",
            clock_source: "tsc",
            shared_huge_pages: "advise",
            cpu_features: vec!["avx2", "vpclmulqdq"],
            variables: [("HOME", "/home/kv".to_owned())].into(),
        }
    }
}

impl Machine for FakeMachine {
    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }
    fn memory_limit(&self) -> Option<MemoryLimit> {
        self.memory_limit.clone()
    }
    fn filesystem(&self, path: &Path) -> io::Result<Filesystem> {
        let found = path.ancestors().find_map(|parent| self.filesystems.get(parent));
        found.cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        Ok(self.entries.get(path).copied())
    }
    fn folder_bytes(&self, folder: &Path) -> u64 {
        self.folder_bytes.get(folder).copied().unwrap_or(0)
    }
    fn writable(&self, folder: &Path) -> bool {
        !folder.ancestors().any(|parent| self.read_only.iter().any(|path| path == parent))
    }
    fn direct_io(&self, _folder: &Path) -> io::Result<()> {
        if self.no_direct_io { Err(io::Error::from(io::ErrorKind::InvalidInput)) } else { Ok(()) }
    }
    fn socket(&self, path: &Path) -> SocketState {
        self.sockets.get(path).copied().unwrap_or(SocketState::Missing)
    }
    fn is_locked(&self, file: &Path) -> bool {
        self.locked.iter().any(|path| path == file)
    }
    fn probe_store(&self, _options: &ObjectOptions) -> Result<Probe, ProbeError> {
        self.store.clone()
    }
    fn memlock_bytes(&self) -> Option<u64> {
        self.memlock_bytes
    }
    fn open_files_max(&self) -> u64 {
        self.open_files_max
    }
    fn io_uring(&self) -> io::Result<()> {
        self.io_uring.map_err(io::Error::other)
    }
    fn gpu(&self) -> Result<(), DeviceError> {
        self.gpu.clone()
    }
    fn kernel_release(&self) -> String {
        self.kernel_release.to_owned()
    }
    fn clock_source(&self) -> Option<String> {
        Some(self.clock_source.to_owned())
    }
    fn shared_huge_pages(&self) -> Option<String> {
        Some(self.shared_huge_pages.to_owned())
    }
    fn has_cpu_feature(&self, name: &str) -> bool {
        self.cpu_features.contains(&name)
    }
    fn uid(&self) -> u32 {
        1000
    }
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }
}
