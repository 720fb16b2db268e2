//! Sealed memfds and the lock that tells who owns a file.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The seals that make it safe to map a memfd from somebody else: its length can never change.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A memfd of `len` bytes whose length can never change again. `name` is for /proc only.
pub fn memfd_sealed(name: &str, len: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len)?;
    fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

/// Whether the length of a file received from a peer can never change (false for anything that is no sealed memfd).
pub fn is_sealed(file: BorrowedFd<'_>) -> bool {
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK | SealFlags::GROW))
}

/// An exclusive lock on a whole file, held by the open file description given: everything that uses this description keeps it,
/// also an io_uring request that outlives its process, and the kernel releases it when the last use is gone.
#[derive(Debug)]
pub struct OfdLock {
    file: OwnedFd,
}

impl OfdLock {
    /// Locks, or tells that somebody else holds the lock (`None`). Never waits. The file must be open for writing.
    ///
    /// The lock keeps a duplicate of the descriptor; it is released when the last duplicate of the description is closed, in
    /// whatever process or request, and not before.
    pub fn try_lock(file: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let whole = libc::flock {
            l_type: i16::try_from(libc::F_WRLCK).expect("a constant of the kernel that fits"),
            l_whence: i16::try_from(libc::SEEK_SET).expect("a constant of the kernel that fits"),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // SAFETY: F_OFD_SETLK reads one flock, which lives until the call is over.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
        if result == 0 {
            return Ok(Some(Self { file: file.try_clone_to_owned()? }));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(None),
            _ => Err(error),
        }
    }
}

impl AsFd for OfdLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_sealed_memfd_keeps_its_length() {
        let fd = memfd_sealed("kvd-test", 8192).unwrap();
        assert!(is_sealed(fd.as_fd()));
        let file = File::from(fd);
        assert_eq!(file.metadata().unwrap().len(), 8192);
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(16384).is_err());
        assert!(!is_sealed(tempfile::tempfile().unwrap().as_fd()));
    }

    #[test]
    fn the_lock_belongs_to_the_description_not_to_the_process() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let first = open();
        let lock = OfdLock::try_lock(first.as_fd()).unwrap().unwrap();
        let second = open();
        assert!(OfdLock::try_lock(second.as_fd()).unwrap().is_none());
        let duplicate = first.try_clone().unwrap();
        drop(lock);
        drop(first);
        // Somebody (a request in flight) still uses the description.
        assert!(OfdLock::try_lock(second.as_fd()).unwrap().is_none());
        drop(duplicate);
        assert!(OfdLock::try_lock(second.as_fd()).unwrap().is_some());
    }
}
