//! The tenant's segments as this process has mapped them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kvd_nixl::device::{Lane, PinnedMemory};
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
        if lane.failure().is_some() {
            return None;
        }
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if pinned.is_none() {
            let memory: Arc<dyn Memory> = self.mapping.clone();
            *pinned = lane.device().pin(&memory).ok().map(Arc::new);
        }
        pinned.clone()
    }

    /// Whether the daemon still uses this very file: it replaces a segment's file when the segment goes to another tenant,
    /// and may give the number to us again later.
    fn is_current(&self) -> bool {
        !self.mapping.poisoned() && rustix::fs::fstat(self.file.as_fd()).is_ok_and(|found| found.st_nlink > 0)
    }
}

/// All that are mapped.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// Guards the map. Held for a look-up or an insertion only.
    open: RwLock<HashMap<u32, Arc<Segment>>>,
}

impl Segments {
    /// The segment, if it is mapped and still the one that the daemon means. Ask once per call and segment, after the
    /// daemon has named a slot in it: while the slot is held the file is not replaced.
    pub(crate) fn get(&self, number: u32) -> Option<Arc<Segment>> {
        let found = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()?;
        if found.is_current() {
            return Some(found);
        }
        // Its pages would stay in memory as long as they are pinned. Another thread may have mapped the new file by now, and that
        // stays. `found` is dropped behind the lock, which others wait for.
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.get(&number).is_some_and(|current| Arc::ptr_eq(current, &found)) {
            open.remove(&number);
        }
        None
    }

    /// Maps a segment that the daemon has sent.
    pub(crate) fn open(&self, number: u32, file: OwnedFd, bytes: u64) -> Option<Arc<Segment>> {
        let len = usize::try_from(bytes).ok().filter(|_| bytes <= SEGMENT_BYTES_MAX)?;
        let mapping = Arc::new(Mapping::new(file.as_fd(), 0, len).ok()?);
        // Faults in one go what the daemon has brought in already; without it they come one by one, slower.
        let _ = mapping.populate();
        let segment = Arc::new(Segment { mapping, file, pinned: Mutex::default() });
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= SEGMENTS_MAX && !open.contains_key(&number) {
            return None;
        }
        let before = open.insert(number, segment.clone());
        drop(open);
        drop(before);
        Some(segment)
    }
}
