//! Shared mappings of files and memfds.

use super::memory::{Memory, sealed};
use super::sigbus::Registration;
use rustix::fs::FileType;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering;

/// A huge page on x86-64, and on AArch64 with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Why a file could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// The range does not lie inside the file: touching it would raise SIGBUS.
    #[error("file of {file_bytes} bytes is shorter than the end of the mapping at {end}")]
    FileTooShort {
        /// Length of the file, in bytes.
        file_bytes: u64,
        /// End of the range asked for, in bytes.
        end: u64,
    },
    /// The length is zero or the range does not fit the address space.
    #[error("range of {len} bytes at offset {offset} cannot be mapped")]
    BadRange {
        /// Offset in the file, in bytes.
        offset: u64,
        /// Length asked for, in bytes.
        len: usize,
    },
    /// The process has as many mappings as the SIGBUS guard can watch.
    #[error("too many mappings: the SIGBUS guard watches at most {max}")]
    TooMany {
        /// How many mappings a process may have.
        max: usize,
    },
    /// The kernel refused.
    #[error("mmap failed: {0}")]
    Os(#[from] io::Error),
}

/// A `MAP_SHARED`, readable and writable mapping of a range of a file, watched by the SIGBUS guard
/// ([`super::sigbus::install`]).
///
/// Other processes may change the bytes at any time, so they are only ever copied in and out ([`Memory`]). When the file is cut
/// short under us, the guard puts zero pages in place of the hole and [`Memory::poisoned`] turns true: from then on reads may be
/// zeros and writes may be lost.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    registration: Registration,
}

// SAFETY: the mapping owns its address range, and all access goes through raw copies and atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above; no reference to the bytes exists.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset` (a multiple of the page size).
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self, MappingError> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        let end = end.filter(|_| len > 0).ok_or(MappingError::BadRange { offset, len })?;
        let stat = rustix::fs::fstat(file).map_err(io::Error::from)?;
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && file_bytes < end {
            return Err(MappingError::FileTooShort { file_bytes, end });
        }
        let base = map(file, offset, len)?;
        match Registration::new(base, len) {
            Some(registration) => Ok(Self { base, len, registration }),
            None => {
                // SAFETY: the range was mapped above and nobody else knows it. Unmapping a whole mapping cannot fail.
                let _ = unsafe { munmap(base.as_ptr().cast(), len) };
                Err(MappingError::TooMany { max: super::sigbus::MAPPINGS_MAX })
            }
        }
    }

    /// Brings all pages into memory, writable, so that later accesses do not fault. Contents stay.
    pub fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is ours until drop; the advice changes no content.
        match unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) } {
            Ok(()) => Ok(()),
            // Kernels before 5.14 do not know the advice.
            Err(rustix::io::Errno::INVAL) => self.touch_every_page(),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the kernel to put huge pages under all whole 2 MiB of the range, whatever the system's settings say; contents stay.
    /// The pages must be there already (the kernel makes none huge over a hole of a file). Takes one to two milliseconds per
    /// piece, and more where memory is fragmented; saves every later mapping of the file most of first touch and of pinning.
    ///
    /// # Errors
    /// A wish that the kernel did not or not everywhere grant: it is older than 6.1, memory is short, pages are pinned. The
    /// memory works the same, only slower.
    pub fn collapse(&self) -> io::Result<()> {
        let (skip, pieces) = whole_pieces(self.base, self.len);
        if pieces == 0 {
            return Ok(());
        }
        // SAFETY: `skip` lies inside the mapping, as at least one whole piece follows it.
        let first = unsafe { self.base.add(skip) };
        // SAFETY: the pieces lie inside the mapping, which is ours until drop; the advice changes no content.
        match unsafe { libc::madvise(first.as_ptr().cast(), pieces * HUGE_PAGE_BYTES, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn touch_every_page(&self) -> io::Result<()> {
        for offset in (0..self.len & !7).step_by(rustix::param::page_size()) {
            // Relaxed: only the page fault is wanted, the value stays.
            self.atomic_u64(offset).fetch_or(0, Ordering::Relaxed);
        }
        if self.poisoned() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// Maps a range of a file, at an address at which huge pages of the file can be mapped as such.
fn map(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<NonNull<u8>> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    if len < HUGE_PAGE_BYTES || !offset.is_multiple_of(HUGE_PAGE_BYTES as u64) {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory of this process.
        let base = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, offset) }?;
        return Ok(NonNull::new(base.cast::<u8>()).expect("the kernel maps nothing at address 0 unasked"));
    }
    // The kernel aligns to its page only, so reserve a little more, map at the first aligned address and give the rest back.
    let reserved = len.checked_add(HUGE_PAGE_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
    let nothing = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory of this process.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), nothing) }?;
    let start = NonNull::new(start.cast::<u8>()).expect("the kernel maps nothing at address 0 unasked");
    let skip = start.as_ptr().align_offset(HUGE_PAGE_BYTES);
    // SAFETY: skip < HUGE_PAGE_BYTES, by which the reservation is longer than `len`.
    let base = unsafe { start.add(skip) };
    let at = base.as_ptr().cast();
    // SAFETY: the range lies inside the reservation, which nobody else knows and nothing was put into.
    let mapped = unsafe { mmap(at, len, access, MapFlags::SHARED | MapFlags::FIXED, file, offset) };
    let (unused, kept) =
        if mapped.is_ok() { (skip, len.next_multiple_of(rustix::param::page_size())) } else { (reserved, 0) };
    // SAFETY: in front of the mapping lies the reservation alone; all of it where there is no mapping.
    let _ = unsafe { munmap(start.as_ptr().cast(), unused) };
    if let Some(behind) = reserved.checked_sub(unused + kept).filter(|behind| *behind > 0) {
        // SAFETY: unused + kept < reserved.
        let end = unsafe { start.add(unused + kept) };
        // SAFETY: behind the mapping's last page lies the reservation alone.
        let _ = unsafe { munmap(end.as_ptr().cast(), behind) };
    }
    mapped?;
    Ok(base)
}

/// Where the first whole huge page begins in a range, and how many there are.
fn whole_pieces(base: NonNull<u8>, len: usize) -> (usize, usize) {
    let skip = base.as_ptr().align_offset(HUGE_PAGE_BYTES);
    (skip, len.saturating_sub(skip) / HUGE_PAGE_BYTES)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.registration.stop_watching();
        // SAFETY: `self` owns the range and nothing uses it any more. Unmapping a whole mapping cannot fail.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: the range stays mapped until drop (the SIGBUS guard replaces pages but keeps the addresses valid), and no reference to
// its bytes other than to atomics is ever formed.
unsafe impl sealed::Raw for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Memory for Mapping {
    fn len(&self) -> usize {
        self.len
    }

    fn poisoned(&self) -> bool {
        self.registration.poisoned()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::sys::memfd_sealed;
    use std::os::fd::AsFd;

    #[test]
    fn two_mappings_of_one_file_share_bytes() {
        let file = memfd_sealed("kvd-test", 3 * 4096).unwrap();
        let one = Mapping::new(file.as_fd(), 0, 3 * 4096).unwrap();
        let two = Mapping::new(file.as_fd(), 4096, 2 * 4096).unwrap();
        one.populate().unwrap();
        one.write(5000, b"shared").unwrap();
        two.populate().unwrap();
        let mut back = [0; 6];
        two.read(5000 - 4096, &mut back).unwrap();
        assert_eq!(&back, b"shared");
        two.atomic_u64(8).store(7, Ordering::Relaxed);
        assert_eq!(one.atomic_u32(4096 + 8).load(Ordering::Relaxed), 7);
        two.touch_every_page().unwrap();
        one.read(5000, &mut back).unwrap();
        assert_eq!(&back, b"shared");
    }

    #[test]
    fn huge_pages_are_a_wish_that_changes_no_byte() {
        let bytes = 2 * HUGE_PAGE_BYTES + 4096;
        let file = memfd_sealed("kvd-test", bytes as u64).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, bytes).unwrap();
        assert!(mapping.base.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES));
        let places = [0, HUGE_PAGE_BYTES - 8, bytes - 8];
        places.iter().for_each(|at| mapping.write(*at, &at.to_le_bytes()).unwrap());
        // Refused on old kernels and where memory is short; of a part that lies askew in the file always.
        let _ = mapping.collapse();
        let askew = Mapping::new(file.as_fd(), 4096, HUGE_PAGE_BYTES).unwrap();
        let _ = askew.collapse();
        for at in places {
            let mut back = [0; 8];
            mapping.read(at, &mut back).unwrap();
            assert_eq!(back, at.to_le_bytes());
        }
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let end = mapping.base.as_ptr().addr() + bytes;
        let range = format!("{:x}-{end:x}", mapping.base.as_ptr().addr());
        drop(mapping);
        assert!(maps.lines().any(|line| line.starts_with(&range)), "no mapping {range}");
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.lines().any(|line| line.starts_with(&range)), "the mapping is left behind");
    }

    #[test]
    fn ranges_beyond_the_file_are_refused() {
        let file = memfd_sealed("kvd-test", 4096).unwrap();
        assert!(matches!(Mapping::new(file.as_fd(), 0, 4097), Err(MappingError::FileTooShort { .. })));
        assert!(matches!(Mapping::new(file.as_fd(), 4096, 4096), Err(MappingError::FileTooShort { .. })));
        assert!(matches!(Mapping::new(file.as_fd(), 0, 0), Err(MappingError::BadRange { .. })));
        assert!(matches!(Mapping::new(file.as_fd(), u64::MAX, 4096), Err(MappingError::BadRange { .. })));
    }
}
