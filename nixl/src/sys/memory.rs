//! What all kinds of memory have in common: bounds, copies in and out, atomics, and holds through `Arc`.

use super::raw;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Why a range of memory was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The range does not lie inside the memory.
    #[error("range of {len} bytes at offset {offset} lies outside memory of {size} bytes")]
    OutOfBounds {
        /// Offset asked for, in bytes.
        offset: usize,
        /// Length asked for, in bytes.
        len: usize,
        /// Length of the memory, in bytes.
        size: usize,
    },
}

pub(super) mod sealed {
    use std::ptr::NonNull;

    /// Seals [`super::Memory`] and carries the address, which must not leave `sys`.
    ///
    /// # Safety
    /// `base()` must stay the same and valid for reads and writes of `Memory::len()` bytes as long as the value lives, and no
    /// Rust reference to these bytes (other than to atomics) may exist meanwhile.
    pub unsafe trait Raw {
        /// The address of the first byte.
        fn base(&self) -> NonNull<u8>;
    }
}

/// A stretch of memory whose bytes may be changed by others (another process, a device) at any time.
///
/// Nothing here hands out `&[u8]`: bytes are copied in and out. Whoever needs the memory to stay alive (an I/O in flight) keeps an
/// `Arc<dyn Memory>`, mostly inside a [`MemoryExtent`]. Sealed: implemented in this crate only.
pub trait Memory: sealed::Raw + fmt::Debug + Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether the memory has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether bytes were lost under us (file truncated or unreadable): what is read since then may be zeros.
    fn poisoned(&self) -> bool {
        false
    }

    /// Copies bytes out, each read exactly once.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = locate(self, offset, into.len())?;
        // SAFETY: locate() found the range inside the memory, and `into` is private to the caller, so the two cannot overlap.
        unsafe { raw::copy_bytes(into.as_mut_ptr(), from.as_ptr(), into.len()) };
        Ok(())
    }

    /// Copies bytes in.
    fn write(&self, offset: usize, from: &[u8]) -> Result<(), MemoryError> {
        let to = locate(self, offset, from.len())?;
        // SAFETY: locate() found the range inside the memory, and `from` is a Rust reference, so the two cannot overlap.
        unsafe { raw::copy_bytes(to.as_ptr(), from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Sets bytes to zero.
    fn zero(&self, offset: usize, len: usize) -> Result<(), MemoryError> {
        let to = locate(self, offset, len)?;
        // SAFETY: locate() found the range inside the memory.
        unsafe { raw::fill_bytes(to.as_ptr(), 0, len) };
        Ok(())
    }

    /// The four bytes at `offset` as an atomic in native byte order.
    ///
    /// # Panics
    /// If the offset is out of bounds or not a multiple of 4: offsets of atomics are constants of a format, never input.
    fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        let at = locate(self, offset, 4).expect("atomics lie inside the memory by the format's layout");
        assert!(at.as_ptr().addr().is_multiple_of(4), "atomic u32 at unaligned offset {offset}");
        // SAFETY: in bounds, aligned, alive as long as `self`; nobody in this process forms a reference to these bytes but to atomics.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }

    /// The eight bytes at `offset` as an atomic in native byte order.
    ///
    /// # Panics
    /// If the offset is out of bounds or not a multiple of 8: offsets of atomics are constants of a format, never input.
    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        let at = locate(self, offset, 8).expect("atomics lie inside the memory by the format's layout");
        assert!(at.as_ptr().addr().is_multiple_of(8), "atomic u64 at unaligned offset {offset}");
        // SAFETY: in bounds, aligned, alive as long as `self`; nobody in this process forms a reference to these bytes but to atomics.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }
}

/// The address of a range that was found to lie inside `memory`.
pub(super) fn locate<M: Memory + ?Sized>(memory: &M, offset: usize, len: usize) -> Result<NonNull<u8>, MemoryError> {
    let size = memory.len();
    match offset.checked_add(len) {
        Some(end) if end <= size => {
            // SAFETY: offset <= size, and base() is valid for size bytes, so the sum stays inside (or one past) the same memory.
            Ok(unsafe { memory.base().add(offset) })
        }
        _ => Err(MemoryError::OutOfBounds { offset, len, size }),
    }
}

/// A range of memory together with a hold that keeps it alive.
#[derive(Clone)]
pub struct MemoryExtent {
    memory: Arc<dyn Memory>,
    offset: usize,
    len: usize,
}

impl MemoryExtent {
    /// The range `offset .. offset + len` of `memory`.
    pub fn new(memory: Arc<dyn Memory>, offset: usize, len: usize) -> Result<Self, MemoryError> {
        locate(&*memory, offset, len)?;
        Ok(Self { memory, offset, len })
    }

    /// All of `memory`.
    pub fn whole(memory: Arc<dyn Memory>) -> Self {
        let len = memory.len();
        Self { memory, offset: 0, len }
    }

    /// The range `offset .. offset + len` of this extent.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, MemoryError> {
        self.check(offset, len)?;
        Ok(Self { memory: Arc::clone(&self.memory), offset: self.offset + offset, len })
    }

    /// The memory held.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Where the extent starts in its memory, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the extent has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out; `offset` counts from the start of the extent.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), MemoryError> {
        self.check(offset, into.len())?;
        self.memory.read(self.offset + offset, into)
    }

    /// Copies bytes in; `offset` counts from the start of the extent.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), MemoryError> {
        self.check(offset, from.len())?;
        self.memory.write(self.offset + offset, from)
    }

    /// Sets bytes to zero; `offset` counts from the start of the extent.
    pub fn zero(&self, offset: usize, len: usize) -> Result<(), MemoryError> {
        self.check(offset, len)?;
        self.memory.zero(self.offset + offset, len)
    }

    /// One `pread` of the file into the extent: bytes read, which may be fewer than asked for. Not retried on `EINTR`.
    pub fn read_from_file(&self, file: BorrowedFd<'_>, file_offset: u64) -> io::Result<usize> {
        let at = i64::try_from(file_offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the extent lies inside memory that `self` keeps alive; the kernel writes at most `len` bytes there.
        let got = unsafe { libc::pread64(file.as_raw_fd(), self.as_ptr().cast(), self.len, at) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// One `pwrite` of the extent to the file: bytes written, which may be fewer than asked for. Not retried on `EINTR`.
    pub fn write_to_file(&self, file: BorrowedFd<'_>, file_offset: u64) -> io::Result<usize> {
        let at = i64::try_from(file_offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the extent lies inside memory that `self` keeps alive; the kernel reads at most `len` bytes there.
        let put = unsafe { libc::pwrite64(file.as_raw_fd(), self.as_ptr().cast(), self.len, at) };
        usize::try_from(put).map_err(|_| io::Error::last_os_error())
    }

    /// The address of the first byte, valid for `len()` bytes as long as a clone of this extent lives.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: checked in `new` and `part`: the offset lies inside the memory.
        unsafe { self.memory.base().add(self.offset) }.as_ptr()
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), MemoryError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(MemoryError::OutOfBounds { offset, len, size: self.len }),
        }
    }
}

impl fmt::Debug for MemoryExtent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryExtent").field("offset", &self.offset).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Region;

    #[test]
    fn ranges_outside_are_refused_and_inside_come_back() {
        let memory: Arc<dyn Memory> = Arc::new(Region::new(8192).unwrap());
        memory.write(100, b"hello").unwrap();
        let mut back = [0; 5];
        memory.read(100, &mut back).unwrap();
        assert_eq!(&back, b"hello");
        memory.zero(101, 3).unwrap();
        memory.read(100, &mut back).unwrap();
        assert_eq!(&back, b"h\0\0\0o");
        for (offset, len) in [(8190, 3), (usize::MAX, 1), (8193, 0)] {
            assert_eq!(memory.zero(offset, len), Err(MemoryError::OutOfBounds { offset, len, size: 8192 }));
            assert!(MemoryExtent::new(Arc::clone(&memory), offset, len).is_err());
        }
        let extent = MemoryExtent::new(memory, 96, 64).unwrap();
        let part = extent.part(4, 5).unwrap();
        part.read(0, &mut back).unwrap();
        assert_eq!(&back, b"h\0\0\0o");
        assert!(part.read(1, &mut back).is_err());
        assert!(extent.part(60, 5).is_err());
    }

    #[test]
    #[should_panic(expected = "unaligned")]
    fn an_unaligned_atomic_panics() {
        let memory = Region::new(4096).unwrap();
        memory.atomic_u64(4);
    }

    #[test]
    #[cfg(not(miri))]
    fn files_are_read_and_written_through_extents() {
        use std::os::fd::AsFd;
        let file = tempfile::tempfile().unwrap();
        let memory: Arc<dyn Memory> = Arc::new(Region::new(4096).unwrap());
        memory.write(0, &[7; 4096]).unwrap();
        let extent = MemoryExtent::whole(memory);
        assert_eq!(extent.write_to_file(file.as_fd(), 10).unwrap(), 4096);
        extent.zero(0, 4096).unwrap();
        assert_eq!(extent.read_from_file(file.as_fd(), 4096).unwrap(), 10);
        let mut back = [0; 11];
        extent.read(0, &mut back).unwrap();
        assert_eq!(back, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
        assert!(extent.read_from_file(file.as_fd(), u64::MAX).is_err());
    }
}
