//! The epoch file: a number that grows with every start on one data folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kvd_nixl::sys::OfdLock;
use kvd_proto::Epoch;
use thiserror::Error;

/// Why a data folder cannot be used.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another daemon uses it.
    #[error("another kvd uses the data folder {0}: stop it, or give this one another data_dir")]
    InUse(PathBuf),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A data folder that is ours alone.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: OfdLock,
}

impl DataDir {
    /// Makes the folder with mode 0700 if it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |path: PathBuf| move |source| DataDirError::Io { path, source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path.into()))?;
        let lock_path = path.join("lock");
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let file = file.map_err(failed(lock_path.clone()))?;
        let lock = OfdLock::try_lock(file.as_fd()).map_err(failed(lock_path))?;
        let lock = lock.ok_or_else(|| DataDirError::InUse(path.into()))?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// The epoch after the last one written; 1 for a new folder, or where the file cannot be understood (the arena and the
    /// devices keep their own and only ever raise it).
    pub(crate) fn next_epoch(&self) -> Result<Epoch, DataDirError> {
        let path = self.path.join("epoch");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Epoch::new(text.trim().parse::<u64>().unwrap_or(0).saturating_add(1))),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Epoch::new(1)),
            Err(source) if source.kind() == io::ErrorKind::InvalidData => Ok(Epoch::new(1)),
            Err(source) => Err(DataDirError::Io { path, source }),
        }
    }

    /// Writes the epoch down, whole or not at all.
    pub(crate) fn write_epoch(&self, epoch: Epoch) -> Result<(), DataDirError> {
        let (path, fresh) = (self.path.join("epoch"), self.path.join("epoch.new"));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { path, source }
        };
        let mut file = File::create(&fresh).map_err(failed(&fresh))?;
        writeln!(file, "{epoch}").and_then(|()| file.sync_all()).map_err(failed(&fresh))?;
        fs::rename(&fresh, &path).map_err(failed(&path))?;
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(failed(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_and_folders_have_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let data = DataDir::open(&path).unwrap();
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse(_))));
        assert_eq!(data.next_epoch().unwrap(), Epoch::new(1));
        data.write_epoch(Epoch::new(7)).unwrap();
        drop(data);
        let data = DataDir::open(&path).unwrap();
        assert_eq!(data.next_epoch().unwrap(), Epoch::new(8));
        fs::write(path.join("epoch"), [0xff, 0xfe]).unwrap();
        assert_eq!(data.next_epoch().unwrap(), Epoch::new(1));
    }
}
