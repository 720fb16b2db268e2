//! The file of a device: opened, reserved and locked before anything is read from it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvd_nixl::io::{FileOptions, IoFile};
use kvd_nixl::sys::OfdLock;

use super::geometry::{Geometry, GeometryError};

/// Why a path cannot be a device.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened, made or reserved.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon has it, or the I/O of a dead one is not drained yet.
    #[error("{}: in use by another kvd (or the last one's I/O is still under way)", path.display())]
    Locked {
        /// Which path.
        path: PathBuf,
    },
    /// The capacity asked for is none that a device can have.
    #[error("{}: {source}", path.display())]
    Geometry {
        /// Which path.
        path: PathBuf,
        /// What is wrong with it.
        source: GeometryError,
    },
}

/// A file that is ours.
#[derive(Debug)]
pub struct PreparedFile {
    /// For the `Io`.
    pub file: Arc<IoFile>,
    /// Held as long as the device is used: on the same open file description that does its I/O.
    pub lock: OfdLock,
    /// Bytes that the file or block device has.
    pub bytes: u64,
    /// Sizes that the device gets if it has to be formatted.
    pub geometry: Geometry,
    /// Sizes that the capacity asked for.
    pub wanted: Geometry,
}

/// Opens `path` (made if need be, unless it is a block device) and takes its lock. A fresh file gets the space of a device of
/// at most `capacity` bytes; one that is there keeps its size, whosever it is. Never waits, changes no content.
pub fn prepare(path: &Path, capacity: u64) -> Result<PreparedFile, FileError> {
    let at = || path.to_owned();
    let failed = |source| FileError::Io { path: at(), source };
    let fit = |bytes| Geometry::fit(bytes).map_err(|source| FileError::Geometry { path: at(), source });
    let wanted = fit(capacity)?;
    let file = IoFile::open(path, FileOptions { create: true, direct: true }).map_err(failed)?;
    let lock = OfdLock::try_lock(file.as_fd()).map_err(failed)?.ok_or_else(|| FileError::Locked { path: at() })?;
    let before = file.bytes().map_err(failed)?;
    let geometry = match before {
        0 => {
            file.preallocate(wanted.end()).map_err(|source| {
                // What a disk without room gave is given back: else the next start would take it for a small device.
                let _ = std::fs::OpenOptions::new().write(true).open(path).and_then(|part| part.set_len(0));
                failed(source)
            })?;
            wanted
        }
        _ if before < wanted.end() => fit(before)?,
        // Space that a file was given without being written is made sure of.
        _ => {
            file.preallocate(before).map_err(failed)?;
            wanted
        }
    };
    let bytes = file.bytes().map_err(failed)?;
    Ok(PreparedFile { file: Arc::new(file), lock, bytes, geometry, wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_owner_and_keeps_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nvme");
        let first = prepare(&path, 72 << 20).unwrap();
        assert_eq!(first.bytes, first.geometry.end());
        assert!(matches!(prepare(&path, 72 << 20), Err(FileError::Locked { .. })));
        let first_bytes = first.bytes;
        drop(first);
        let again = prepare(&path, 72 << 20).unwrap();
        assert_eq!(again.bytes, again.geometry.end());
        assert!(matches!(prepare(&path, 1 << 20), Err(FileError::Geometry { .. })));
        assert!(matches!(prepare(folder.path(), 72 << 20), Err(FileError::Io { .. })));
        drop(again);
        let grown = prepare(&path, 720 << 20).unwrap();
        assert_eq!((grown.bytes, grown.geometry.zones()), (first_bytes, 1), "it keeps its size");
        assert!(grown.wanted.zones() > 1);
    }

    #[test]
    fn somebody_elses_file_is_not_grown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        std::fs::write(&path, "not yours").unwrap();
        assert!(matches!(prepare(&path, 72 << 20), Err(FileError::Geometry { .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 9);
    }
}
