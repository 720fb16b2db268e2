use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A data folder on disk and a DRAM folder on tmpfs, both gone with the value.
#[derive(Debug)]
pub struct Scratch {
    data: TempDir,
    dram: TempDir,
}

impl Scratch {
    /// Folders named after `test`, for a human who finds them after a crash.
    pub fn new(test: &str) -> Self {
        let named = |parent: &Path| {
            tempfile::Builder::new().prefix(&format!("kvd-{test}-")).tempdir_in(parent).expect("scratch folder")
        };
        let tmpfs = Path::new("/dev/shm");
        let dram = if tmpfs.is_dir() { named(tmpfs) } else { named(&std::env::temp_dir()) };
        Self { data: named(&std::env::temp_dir()), dram }
    }

    /// The daemon's data folder.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The folder of the DRAM arena.
    pub fn dram(&self) -> &Path {
        self.dram.path()
    }

    /// Deletes what lies in DRAM, as a restart of the machine does.
    pub fn delete_dram(&self) {
        for entry in std::fs::read_dir(self.dram()).expect("the arena's folder").flatten() {
            let path = entry.path();
            let gone = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            gone.expect("ours to delete");
        }
    }

    /// The engine socket.
    pub fn socket(&self) -> PathBuf {
        self.data.path().join("kvd.sock")
    }
}
