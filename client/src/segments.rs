//! The tenant's segments as this process has mapped them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kvd_nixl::device::{Device, Lane, PinnedMemory};
use kvd_nixl::sys::{Mapping, Memory, MemoryExtent};

/// Segments mapped at a time: 1 TiB of arena. Beyond, calls miss.
const SEGMENTS_MAX: usize = 16_384;
/// The most that a segment may have.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A mapped segment.
#[derive(Debug)]
pub(crate) struct Segment {
    mapping: Arc<Mapping>,
    file: OwnedFd,
    /// Guards the pin, made when a device uses the segment first. Held while it is made: some milliseconds.
    pinned: Mutex<Option<Arc<PinnedMemory>>>,
}

impl Segment {
    /// A range of the segment.
    pub(crate) fn extent(&self, offset: u64, len: usize) -> Option<MemoryExtent> {
        MemoryExtent::new(self.mapping.clone(), usize::try_from(offset).ok()?, len).ok()
    }

    /// Pins it, so that devices read and write it by themselves. Memory that is not pinned they would copy while the driver, and
    /// who calls it, waits without a deadline.
    pub(crate) fn pin(&self, lane: &Lane) -> Option<Arc<PinnedMemory>> {
        if lane.failure().is_some() { None } else { self.pin_for(lane.device()) }
    }

    /// The same ahead of any use.
    pub(crate) fn pin_for(&self, device: &Device) -> Option<Arc<PinnedMemory>> {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if pinned.is_none() {
            let memory: Arc<dyn Memory> = self.mapping.clone();
            *pinned = device.pin(&memory).ok().map(Arc::new);
        }
        pinned.clone()
    }

    /// Whether the daemon still uses this very file: it replaces a segment's file when the segment goes to another tenant,
    /// and may give the number to us again later.
    fn is_current(&self) -> bool {
        !self.mapping.poisoned() && rustix::fs::fstat(self.file.as_fd()).is_ok_and(|found| found.st_nlink > 0)
    }
}

/// Segments that sessions of this process have mapped and pinned, so that the next session need not do so again: what is still the
/// same file is the same memory.
#[derive(Debug, Default)]
pub(crate) struct Kept(RwLock<HashMap<u32, Arc<Segment>>>);

impl Kept {
    /// The segment whose file this is, if it was mapped before.
    fn same(&self, number: u32, file: &OwnedFd) -> Option<Arc<Segment>> {
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()?;
        let identity = |file: &OwnedFd| rustix::fs::fstat(file).ok().map(|found| (found.st_dev, found.st_ino));
        let same = found.is_current() && identity(&found.file).is_some_and(|known| Some(known) == identity(file));
        same.then_some(found)
    }

    /// Keeps a segment in the place of the one that had its number.
    fn keep(&self, number: u32, segment: &Arc<Segment>) -> bool {
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= SEGMENTS_MAX && !kept.contains_key(&number) {
            return false;
        }
        let before = kept.insert(number, segment.clone());
        // Unpinned and unmapped behind the lock, which others wait for.
        drop(kept);
        drop(before);
        true
    }

    /// Lets go of a segment whose file is another one by now.
    fn forget(&self, number: u32, stale: &Arc<Segment>) {
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if kept.get(&number).is_some_and(|current| Arc::ptr_eq(current, stale)) {
            kept.remove(&number);
        }
    }
}

/// All that a session has been given.
#[derive(Debug)]
pub(crate) struct Segments {
    /// Guards the map. Held for a look-up or an insertion only.
    open: RwLock<HashMap<u32, Arc<Segment>>>,
    kept: Arc<Kept>,
}

impl Segments {
    pub(crate) fn new(kept: Arc<Kept>) -> Self {
        Self { open: RwLock::default(), kept }
    }

    /// The segment, if it is mapped and still the one that the daemon means. Ask once per call and segment, after the
    /// daemon has named a slot in it: while the slot is held the file is not replaced.
    pub(crate) fn get(&self, number: u32) -> Option<Arc<Segment>> {
        let found = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()?;
        if found.is_current() {
            return Some(found);
        }
        // Its pages would stay in memory as long as they are pinned. Another thread may have mapped the new file by now, and that
        // stays. `found` is dropped behind the locks, which others wait for.
        self.kept.forget(number, &found);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.get(&number).is_some_and(|current| Arc::ptr_eq(current, &found)) {
            open.remove(&number);
        }
        None
    }

    /// Lets go of all segments whose files were replaced.
    pub(crate) fn let_go_of_stale(&self) {
        let mut gone = take_stale(&self.open);
        gone.append(&mut take_stale(&self.kept.0));
        // Dropped here, behind the locks.
    }

    /// Maps a segment that the daemon has sent, unless a session before did.
    pub(crate) fn open(&self, number: u32, file: OwnedFd, bytes: u64) -> Option<Arc<Segment>> {
        let len = usize::try_from(bytes).ok().filter(|_| bytes <= SEGMENT_BYTES_MAX)?;
        let known = self.kept.same(number, &file).filter(|known| known.mapping.len() == len);
        let segment = match known {
            Some(known) => known,
            None => {
                let mapping = Arc::new(Mapping::new(file.as_fd(), 0, len).ok()?);
                // Faults in one go what the daemon has brought in already; without it they come one by one, slower.
                let _ = mapping.populate();
                let segment = Arc::new(Segment { mapping, file, pinned: Mutex::default() });
                self.kept.keep(number, &segment).then_some(segment)?
            }
        };
        let before = self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, segment.clone());
        drop(before);
        Some(segment)
    }
}

fn take_stale(segments: &RwLock<HashMap<u32, Arc<Segment>>>) -> Vec<Arc<Segment>> {
    let is_stale = |segment: &Arc<Segment>| !segment.is_current();
    let some = segments.read().unwrap_or_else(PoisonError::into_inner).values().any(is_stale);
    if !some {
        return Vec::new();
    }
    let mut segments = segments.write().unwrap_or_else(PoisonError::into_inner);
    segments.extract_if(|_, segment| is_stale(segment)).map(|(_, segment)| segment).collect()
}
