//! The tenant's segments as this process has mapped them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kvd_nixl::device::{Device, Lane, PinnedMemory};
use kvd_nixl::sys::{Mapping, Memory, MemoryExtent};
use rustix::process::{Resource, getrlimit};

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

    /// Whether it is this file.
    fn is_file_of(&self, file: &OwnedFd) -> bool {
        let identity = |file: &OwnedFd| rustix::fs::fstat(file).ok().map(|found| (found.st_dev, found.st_ino));
        identity(&self.file).is_some_and(|known| Some(known) == identity(file))
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
pub(crate) struct Kept {
    /// Guards the map. Held for a look-up, an insertion or a copy of the list.
    segments: RwLock<HashMap<u32, Arc<Segment>>>,
}

impl Kept {
    /// The segment with this file: the one that is known, or this one from now on. `None`: there are too many.
    fn settle(&self, number: u32, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
        let mut segments = self.write();
        let known = segments.get(&number).filter(|known| known.is_current() && known.is_file_of(&segment.file));
        if let Some(known) = known {
            return Some(known.clone());
        }
        if segments.len() >= SEGMENTS_MAX && !segments.contains_key(&number) {
            return None;
        }
        let before = segments.insert(number, segment.clone());
        // Unpinned and unmapped behind the lock, which others wait for.
        drop(segments);
        drop(before);
        Some(segment.clone())
    }

    /// The segment whose file this is, if it was mapped before.
    fn same(&self, number: u32, file: &OwnedFd) -> Option<Arc<Segment>> {
        let found = self.read().get(&number).cloned()?;
        (found.is_current() && found.is_file_of(file)).then_some(found)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    /// Unmaps and unpins segments whose files were replaced, which nobody may ask for again.
    pub(crate) fn let_go_of_stale(&self) {
        let all: Vec<(u32, Arc<Segment>)> = self.read().iter().map(|(at, segment)| (*at, segment.clone())).collect();
        for (number, segment) in all.into_iter().filter(|(_, segment)| !segment.is_current()) {
            self.forget(number, &segment);
        }
    }

    /// Lets go of a segment whose file is another one by now; another thread may have mapped that already.
    fn forget(&self, number: u32, stale: &Arc<Segment>) {
        let mut segments = self.write();
        if segments.get(&number).is_some_and(|current| Arc::ptr_eq(current, stale)) {
            segments.remove(&number);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u32, Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u32, Arc<Segment>>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Descriptors that this process may have; each segment takes one.
pub(crate) fn descriptors_max() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX))
}

/// All that a session has been given: those of [`Kept`] that its daemon has named.
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

    /// Segments that are mapped, those of earlier sessions too.
    pub(crate) fn mapped(&self) -> usize {
        self.kept.len()
    }

    /// Whether another one may be mapped: a quarter of the process's descriptors is the engine's. Without any left the session would
    /// end.
    pub(crate) fn has_room(&self) -> bool {
        self.kept.len() < descriptors_max() / 4 * 3
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

    /// Maps a segment that the daemon has sent, unless a session before did.
    pub(crate) fn open(&self, number: u32, file: OwnedFd, bytes: u64) -> Option<Arc<Segment>> {
        let len = usize::try_from(bytes).ok().filter(|_| bytes <= SEGMENT_BYTES_MAX)?;
        let segment = match self.kept.same(number, &file) {
            Some(known) => known,
            None => {
                let mapping = Arc::new(Mapping::new(file.as_fd(), 0, len).ok()?);
                // Faults in one go what the daemon has brought in already; without it they come one by one, slower.
                let _ = mapping.populate();
                self.kept.settle(number, &Arc::new(Segment { mapping, file, pinned: Mutex::default() }))?
            }
        };
        if segment.mapping.len() != len {
            return None;
        }
        let before = self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, segment.clone());
        drop(before);
        Some(segment)
    }

    /// Lets go of all segments whose files were replaced.
    pub(crate) fn let_go_of_stale(&self) {
        self.kept.let_go_of_stale();
        let numbers: Vec<u32> = self.open.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        // A look at one lets go of it.
        numbers.into_iter().for_each(|number| drop(self.get(number)));
    }
}
