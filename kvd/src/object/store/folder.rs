//! A folder as a store: whether it is there, its files, and ranges of them.
//!
//! | file | is |
//! |---|---|
//! | `drafts` | what a crash leaves in it |
//! | `walk` | its files as a list |

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::bounded;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore as _, PutMode, PutOptions, PutPayload, PutResult};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::Semaphore;

use super::Fault;
use super::fault::of_disk;
use crate::object::memory::Memory;

mod drafts;
mod walk;

/// Large enough that a disk is read at its speed, small enough that the first bytes come soon.
const CHUNK_BYTES: usize = 1 << 20;
/// What is kept of the memory that files are read into.
const IDLE_BYTES_MAX: u64 = 64 << 20;
/// A file system of another machine may never answer; the daemon starts all the same.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Writes under way, also those that nobody waits for any more: each holds what it writes.
const WRITES_MAX: usize = 8;
/// Tells the store from the empty folder that another file system is mounted over.
const MARK: &str = ".kvd-store";

/// A folder that is a store.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) store: LocalFileSystem,
    root: PathBuf,
    /// What its mark says; one that is only read may have none.
    mark: Option<Vec<u8>>,
    memory: Memory,
    writes: Arc<Semaphore>,
}

impl Folder {
    /// Opens a folder, which is made if it is to be written to, and clears it of what dead writers left.
    pub(super) fn open(path: &Path, writable: bool) -> io::Result<Folder> {
        let (opened, result) = bounded(1);
        let path = path.to_owned();
        thread::Builder::new().name("kvd-folder".into()).spawn(move || {
            // Nobody waits for the second: it may take long, and nothing depends on it.
            if opened.send(open(&path, writable)).is_ok() && writable {
                let _ = drafts::remove_drafts(&path);
            }
        })?;
        result
            .recv_timeout(OPEN_MAX)
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")))
    }

    /// A folder that is not mounted must not look like an empty store, nor be written to.
    pub(super) async fn stands(&self) -> Result<(), Fault> {
        let (root, mark) = (self.root.clone(), self.mark.clone());
        let look = tokio::task::spawn_blocking(move || match mark {
            Some(mark) => fs::read(root.join(MARK)).map(|found| found == mark),
            None => fs::metadata(&root).map(|meta| meta.is_dir()),
        });
        let root = self.root.display();
        match look.await.map_err(io::Error::other).flatten() {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(Fault::NoBucket(format!("another store stands at {root}: if that is meant, start kvd anew")))
            }
            Err(error) => match of_disk(&error) {
                Fault::NotFound => Err(Fault::NoBucket(format!(
                    "{root} is not the folder that it was ({MARK} is missing): is its file system mounted?"
                ))),
                fault => Err(fault),
            },
        }
    }

    /// Writes a file where there is none. What nobody waits for any more goes on, and few of those are let run.
    pub(super) async fn put(
        self: &Arc<Self>,
        path: &ObjectPath,
        payload: PutPayload,
    ) -> object_store::Result<PutResult> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic {
            store: "a folder",
            source: error,
        };
        let place = Arc::clone(&self.writes).acquire_owned().await.map_err(|error| failed(error.into()))?;
        let (folder, path) = (Arc::clone(self), path.clone());
        let writing = tokio::spawn(async move {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let written = folder.store.put_opts(&path, payload, options).await;
            drop(place);
            written
        });
        writing.await.map_err(|error| failed(error.into()))?
    }

    /// The first `max` files below `prefix` in order of names, of those behind `after`.
    pub(super) async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectMeta>, Fault> {
        self.stands().await?;
        let (root, prefix, after) = (self.root.clone(), prefix.to_owned(), after.map(str::to_owned));
        let walking = tokio::task::spawn_blocking(move || walk::walk(&root, &prefix, after.as_deref(), max));
        let listed = walking.await.map_err(io::Error::other).flatten().map_err(|error| of_disk(&error))?;
        // Unmounted meanwhile, it would be a list of nothing.
        self.stands().await?;
        Ok(listed)
    }

    /// The first bytes of a range of a file of this folder; nothing where there are none.
    pub(super) async fn read_chunk(&self, file: Arc<File>, range: Range<u64>) -> io::Result<Option<Bytes>> {
        read_chunk(file, self.memory.clone(), range).await
    }
}

fn open(path: &Path, writable: bool) -> io::Result<Folder> {
    if writable {
        // Prompts in another form: private, unless somebody has made the folder for several to share. Its parent is not made:
        // where that is missing, a file system is not mounted.
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    if !fs::metadata(path)?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    let mark = mark(path, writable)?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(io::Error::other)?;
    // An index object must not outlive the pack that it speaks of, and a folder without files is none in a bucket.
    let store = store.with_fsync(true).with_automatic_cleanup(true);
    let writes = Arc::new(Semaphore::new(WRITES_MAX));
    Ok(Folder { store, root: path.to_owned(), mark, memory: Memory::new(IDLE_BYTES_MAX), writes })
}

/// What the mark says; it is made where there is none.
fn mark(root: &Path, writable: bool) -> io::Result<Option<Vec<u8>>> {
    let path = root.join(MARK);
    match fs::read(&path) {
        Ok(mark) => return Ok(Some(mark)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) if !writable => return Ok(None),
        Err(_) => {}
    }
    let mut draft = tempfile::Builder::new().permissions(Permissions::from_mode(0o644)).tempfile_in(root)?;
    writeln!(draft, "{:032x}", SmallRng::from_os_rng().random::<u128>())?;
    draft.as_file().sync_all()?;
    match draft.persist_noclobber(&path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        // Perhaps another node was faster.
        Ok(_) | Err(_) => fs::read(&path).map(Some),
    }
}

/// The first bytes of a range of a file; nothing where there are none.
async fn read_chunk(file: Arc<File>, memory: Memory, range: Range<u64>) -> io::Result<Option<Bytes>> {
    let most = range.end.saturating_sub(range.start).min(CHUNK_BYTES as u64) as usize;
    if most == 0 {
        return Ok(None);
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut chunk = memory.take(CHUNK_BYTES);
        let bytes = &mut chunk.as_mut()[..most];
        let mut filled = 0;
        while filled < most {
            match file.read_at(&mut bytes[filled..], range.start + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(chunk.freeze().slice(..filled))
    });
    let bytes = read.await.map_err(io::Error::other)??;
    Ok((!bytes.is_empty()).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_that_something_is_mounted_over_or_that_was_unmounted_is_no_store() {
        let place = tempfile::tempdir().expect("a folder");
        let root = place.path().join("objects");
        let folder = Folder::open(&root, true).expect("opened");
        folder.stands().await.expect("it is there");
        let aside = place.path().join("aside");
        fs::rename(&root, &aside).and_then(|()| fs::create_dir(&root)).expect("another stands there");
        assert!(matches!(folder.list("", None, 9).await, Err(Fault::NoBucket(_))), "an empty folder is no empty store");
        fs::remove_dir(&root).expect("gone");
        let other = Folder::open(&root, true).expect("another store");
        assert!(matches!(folder.stands().await, Err(Fault::NoBucket(_))));
        other.stands().await.expect("to who opened it, it is the store");
        fs::remove_dir_all(&root).and_then(|()| fs::rename(&aside, &root)).expect("it comes back");
        folder.stands().await.expect("it is there again");
        assert_eq!(folder.list("", None, 9).await, Ok(vec![]));
    }

    #[test]
    fn a_folder_whose_parent_is_missing_is_not_made() {
        let place = tempfile::tempdir().expect("a folder");
        let error = Folder::open(&place.path().join("mount/objects"), true).expect_err("no parent");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!place.path().join("mount").exists());
    }
}
