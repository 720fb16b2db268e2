//! Memory of this process: private regions of our own, and memory that an engine lends us.

use super::memory::{Memory, sealed};
use std::io;
use std::ptr::NonNull;

/// Alignment of a [`Region`]: one huge page, so that the kernel can back it with huge pages.
const REGION_ALIGN: usize = 2 << 20;

/// Private, zeroed memory, aligned to 2 MiB: engine-side blocks in tests and benches, scratch for I/O.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    whole: reserve::Reservation,
}

// SAFETY: the region owns its memory, and all access goes through raw copies and atomics.
unsafe impl Send for Region {}
// SAFETY: as above; no reference to the bytes exists.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `len` bytes, backed by memory when first touched.
    pub fn new(len: usize) -> io::Result<Self> {
        let (base, whole) = reserve::reserve(len.max(1), REGION_ALIGN)?;
        Ok(Self { base, len, whole })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        reserve::release(&mut self.whole);
    }
}

// SAFETY: the reservation covers `len` bytes from `base` until drop, and no reference to them is ever formed.
unsafe impl sealed::Raw for Region {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Memory for Region {
    fn len(&self) -> usize {
        self.len
    }
}

/// Memory that somebody else owns, mostly an engine's KV cache.
#[derive(Debug)]
pub struct ForeignMemory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the constructor's contract makes the memory usable from any thread until the value is dropped.
unsafe impl Send for ForeignMemory {}
// SAFETY: as above; all access goes through raw copies and atomics.
unsafe impl Sync for ForeignMemory {}

impl ForeignMemory {
    /// Takes over the right to read and write `len` bytes at `address`.
    ///
    /// # Safety
    /// Until the value and every clone of an `Arc` of it are dropped: the bytes stay mapped, readable and writable at this address,
    /// and no Rust reference to them is used while a copy that touches them runs.
    pub unsafe fn new(address: NonNull<u8>, len: usize) -> Self {
        Self { base: address, len }
    }
}

// SAFETY: exactly what the caller of `new` promised.
unsafe impl sealed::Raw for ForeignMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Memory for ForeignMemory {
    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(not(miri))]
mod reserve {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    use std::io;
    use std::ptr::{self, NonNull};

    #[derive(Debug)]
    pub(super) struct Reservation {
        start: NonNull<u8>,
        bytes: usize,
    }

    pub(super) fn reserve(len: usize, align: usize) -> io::Result<(NonNull<u8>, Reservation)> {
        // The kernel aligns to its page only, so reserve a little more and start at the first aligned address.
        let bytes = len.checked_add(align).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start = NonNull::new(start.cast::<u8>()).expect("the kernel maps nothing at address 0 unasked");
        let skip = start.as_ptr().align_offset(align);
        // SAFETY: skip < align, and the mapping is len + align bytes long.
        let base = unsafe { start.add(skip) };
        // SAFETY: the range lies in the mapping made above; the advice changes no content.
        // Huge pages are a wish: without them the memory works the same, only slower.
        let _ = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok((base, Reservation { start, bytes }))
    }

    pub(super) fn release(whole: &mut Reservation) {
        // SAFETY: called once, from the owner's drop; nothing uses the range any more. It cannot fail on a range that was mapped.
        let _ = unsafe { munmap(whole.start.as_ptr().cast(), whole.bytes) };
    }
}

#[cfg(miri)]
mod reserve {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;
    use std::ptr::NonNull;

    #[derive(Debug)]
    pub(super) struct Reservation {
        start: NonNull<u8>,
        layout: Layout,
    }

    pub(super) fn reserve(len: usize, align: usize) -> io::Result<(NonNull<u8>, Reservation)> {
        let layout = Layout::from_size_align(len, align).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the layout has a non-zero size.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok((start, Reservation { start, layout }))
    }

    pub(super) fn release(whole: &mut Reservation) {
        // SAFETY: allocated with this layout, released once, from the owner's drop.
        unsafe { dealloc(whole.start.as_ptr(), whole.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_and_zeroed() {
        let region = Region::new(12345).unwrap();
        assert!(region.base.as_ptr().addr().is_multiple_of(REGION_ALIGN));
        let mut bytes = vec![1; 12345];
        region.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn foreign_memory_writes_what_its_owner_sees() {
        let mut owned = vec![0u8; 64];
        let base = NonNull::new(owned.as_mut_ptr()).unwrap();
        {
            // SAFETY: `owned` outlives the value and is not touched meanwhile.
            let foreign = unsafe { ForeignMemory::new(base, 64) };
            foreign.write(10, b"kv").unwrap();
            assert!(foreign.write(63, b"kv").is_err());
        }
        assert_eq!(&owned[9..13], b"\0kv\0");
    }
}
