//! Segment files: the arena's bytes, one file of 64 MiB per segment.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kvd_nixl::sys::{Mapping, MappingError, Memory};
use rustix::fs::FallocateFlags;

use crate::ids::{SEGMENT_BYTES, SegmentId};

/// Why a segment's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The file could not be created, opened or allocated.
    #[error("{}: {source}", path.display())]
    File {
        /// The segment's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be mapped.
    #[error("{}: {source}", path.display())]
    Map {
        /// The segment's file.
        path: PathBuf,
        /// Why.
        source: MappingError,
    },
}

/// An open segment: what engines of its tenant get a descriptor of.
#[derive(Debug)]
pub struct Segment {
    file: File,
    mapping: Arc<Mapping>,
    /// Nobody but this process has ever had a descriptor, and every byte is zero.
    fresh: AtomicBool,
}

impl Segment {
    /// Its memory. `Mapping::populate` brings the pages in.
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Whether bytes were lost because somebody cut the file short.
    pub fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }

    /// Ends the freshness; whether it was fresh until now.
    pub(super) fn take_fresh(&self) -> bool {
        // The flag guards no memory of its own: the segment becomes known to others through the ladder, later.
        self.fresh.swap(false, Ordering::AcqRel)
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The segment files of an arena, shared between the owner of the table and the threads that create segments and hand
/// out their descriptors.
#[derive(Debug)]
pub struct SegmentFiles {
    folder: PathBuf,
    /// Each lock guards one segment's place and is held over the system calls that replace its file; none is taken
    /// while another is held.
    open: Box<[Mutex<Option<Arc<Segment>>>]>,
}

impl SegmentFiles {
    pub(super) fn new(folder: &Path, segments: u32) -> Self {
        Self { folder: folder.to_path_buf(), open: (0..segments).map(|_| Mutex::new(None)).collect() }
    }

    /// Segments that there may be.
    pub fn segments(&self) -> u32 {
        u32::try_from(self.open.len()).expect("made from a u32")
    }

    /// The segment, if it is open.
    pub fn get(&self, segment: SegmentId) -> Option<Arc<Segment>> {
        self.place(segment)?.clone()
    }

    /// Opens the segment ahead of its use, so that the owner of the table need not: allocated in full, all zero. Does
    /// nothing where it is open already. Takes tens of milliseconds; meant for a background thread, which then calls
    /// `Mapping::populate` on the memory.
    pub fn prepare(&self, segment: SegmentId) -> Result<Arc<Segment>, SegmentError> {
        let mut place = self.place(segment).ok_or_else(|| self.out_of_range(segment))?;
        match &*place {
            Some(open) => Ok(Arc::clone(open)),
            None => self.create_at(&mut place, segment),
        }
    }

    /// Makes the segment anew: all zero, allocated in full, unknown to every other process. What was there before is
    /// released, also for those who still map it.
    pub(super) fn create(&self, segment: SegmentId) -> Result<Arc<Segment>, SegmentError> {
        let mut place = self.place(segment).ok_or_else(|| self.out_of_range(segment))?;
        self.create_at(&mut place, segment)
    }

    fn create_at(&self, place: &mut Option<Arc<Segment>>, segment: SegmentId) -> Result<Arc<Segment>, SegmentError> {
        let path = self.path(segment);
        if let Some(before) = place.take() {
            release(&before.file);
        }
        let made = create_file(&path).map_err(|source| SegmentError::File { path: path.clone(), source })?;
        Ok(Arc::clone(place.insert(map(made, path, true)?)))
    }

    /// Opens the file that an earlier daemon left.
    pub(super) fn adopt(&self, segment: SegmentId) -> Result<Arc<Segment>, SegmentError> {
        let path = self.path(segment);
        let mut place = self.place(segment).ok_or_else(|| self.out_of_range(segment))?;
        let file = options().open(&path).map_err(|source| SegmentError::File { path: path.clone(), source })?;
        Ok(Arc::clone(place.insert(map(file, path, false)?)))
    }

    /// Removes the segment's file and gives its memory back, also where others still map it.
    pub(super) fn discard(&self, segment: SegmentId) {
        let path = self.path(segment);
        let before = self.place(segment).and_then(|mut place| place.take());
        match before {
            Some(before) => release(&before.file),
            None => {
                if let Ok(file) = options().open(&path) {
                    release(&file);
                }
            }
        }
        // A file that is not there, or cannot be removed, is replaced when the segment is created again.
        let _ = std::fs::remove_file(&path);
    }

    /// Removes the files of segments from `from` on.
    pub(super) fn discard_from(&self, from: u32) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("seg-")).and_then(|n| n.parse::<u32>().ok());
            if let Some(number) = number.filter(|number| *number >= from) {
                self.discard(SegmentId(number));
            }
        }
        Ok(())
    }

    fn out_of_range(&self, segment: SegmentId) -> SegmentError {
        SegmentError::File { path: self.path(segment), source: io::ErrorKind::InvalidInput.into() }
    }

    fn path(&self, segment: SegmentId) -> PathBuf {
        self.folder.join(format!("seg-{:05}", segment.0))
    }

    fn place(&self, segment: SegmentId) -> Option<MutexGuard<'_, Option<Arc<Segment>>>> {
        let place = self.open.get(segment.0 as usize)?;
        Some(place.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn create_file(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = options().create_new(true).open(path)?;
    // All of it now: a full tmpfs is an error here and not a SIGBUS later.
    if let Err(error) = allocate(&file, 0, u64::from(SEGMENT_BYTES)) {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(file)
}

/// Allocates memory for a range of a file, growing it if needed.
pub(super) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Gives the memory of a file back, whoever still maps it: they read zeros from now on.
fn release(file: &File) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // Without hole punching the memory goes when the last mapping goes.
    let _ = rustix::fs::fallocate(file, hole, 0, u64::from(SEGMENT_BYTES));
}

fn map(file: File, path: PathBuf, fresh: bool) -> Result<Arc<Segment>, SegmentError> {
    let len = SEGMENT_BYTES as usize;
    match Mapping::new(file.as_fd(), 0, len) {
        Ok(mapping) => Ok(Arc::new(Segment { file, mapping: Arc::new(mapping), fresh: AtomicBool::new(fresh) })),
        Err(source) => Err(SegmentError::Map { path, source }),
    }
}
