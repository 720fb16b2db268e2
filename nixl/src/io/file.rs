//! Files and block devices that operations run on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{FileId, IoError, IoKind, IoOp};
use crate::sys::{MemoryExtent, Region};

/// Files one `Io` may have: one per device plus a few; the tables of io_uring are sized by it.
pub const FILES_MAX: usize = 64;

/// What offsets, lengths and addresses of direct operations must be multiples of. Every NVMe device and filesystem in
/// use accepts 4 KiB.
pub const DIRECT_ALIGNMENT: u64 = 4096;

/// One write of zeros while a file is prepared on a filesystem that cannot reserve space.
const ZEROS_BYTES: usize = 1 << 20;

/// How to open an [`IoFile`].
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    /// Make the file (mode 0600) if it does not exist.
    pub create: bool,
    /// Go past the page cache where the filesystem allows it. [`IoFile::is_direct`] says what came of it.
    pub direct: bool,
}

/// An open file or block device. Locks taken on it and the operations of every `Io` that it is given to share one open
/// file description: a successor gets the lock only when the kernel has let go of the last operation.
#[derive(Debug)]
pub struct IoFile {
    file: File,
    path: PathBuf,
    direct: bool,
    block_device: bool,
}

impl IoFile {
    /// Opens for reading and writing. Where the filesystem refuses direct access (`EINVAL`), the page cache is used.
    pub fn open(path: &Path, options: FileOptions) -> io::Result<Self> {
        let open = |flags: OFlags| {
            let flags = i32::try_from(flags.bits()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut how = File::options();
            how.read(true).write(true).create(options.create).truncate(false).mode(0o600).custom_flags(flags);
            how.open(path)
        };
        let (file, direct) = match open(if options.direct { OFlags::DIRECT } else { OFlags::empty() }) {
            Err(error) if options.direct && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                (open(OFlags::empty())?, false)
            }
            opened => (opened?, options.direct),
        };
        let kind = file.metadata()?.file_type();
        let block_device = kind.is_block_device();
        if !block_device && !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"));
        }
        Ok(Self { file, path: path.to_owned(), direct, block_device })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether operations go past the page cache; they must then be multiples of [`DIRECT_ALIGNMENT`] everywhere.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether it is a block device: its size cannot be changed.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Size in bytes, of a block device too.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?)
    }

    /// Reserves space so that no later write inside `bytes` can run out of it, and makes the file at least that long.
    /// Content is kept. A filesystem that cannot reserve gets zeros written; a block device must already be that large.
    pub fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let before = self.bytes()?;
        if self.block_device {
            let fits = bytes <= before;
            return if fits { Ok(()) } else { Err(Errno::NOSPC.into()) };
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(before, bytes),
            reserved => Ok(reserved?),
        }
    }

    /// Writes zeros over `from .. to`, `from` rounded up to a whole granule: what is below it is content.
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        if to > from {
            self.file.set_len(to)?;
        }
        let zeros = MemoryExtent::whole(Arc::new(Region::new(ZEROS_BYTES)?));
        let mut at = from.next_multiple_of(DIRECT_ALIGNMENT);
        while at < to {
            let len = usize::try_from(to - at).map_or(ZEROS_BYTES, |left| left.min(ZEROS_BYTES));
            let part = zeros.part(0, len).map_err(io::Error::other)?;
            let wrote = part.write_to_file(self.file.as_fd(), at)?;
            if wrote == 0 {
                return Err(Errno::NOSPC.into());
            }
            at += wrote as u64;
        }
        self.file.sync_all()
    }

    /// Carries out one operation on the calling thread.
    pub(super) fn perform(&self, op: &IoOp) -> Result<(), IoError> {
        let moved = match (op.kind, &op.memory) {
            (IoKind::Sync, None) => self.file.sync_data().map(|()| 0),
            (IoKind::Read, Some(memory)) => again(|| memory.read_from_file(self.file.as_fd(), op.offset)),
            (IoKind::Write, Some(memory)) => again(|| memory.write_to_file(self.file.as_fd(), op.offset)),
            (IoKind::Sync, Some(_)) | (IoKind::Read | IoKind::Write, None) => return Err(IoError::Malformed),
        };
        match moved {
            Ok(moved) if moved as u64 == op.bytes() => Ok(()),
            Ok(moved) => Err(IoError::Short { wanted: op.bytes(), got: moved as u64 }),
            Err(error) => Err(IoError::from_os(&error)),
        }
    }
}

impl AsFd for IoFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Repeats a call that a signal interrupted before it moved anything.
fn again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// The table of an `Io` is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an Io takes at most {FILES_MAX} files")]
pub struct TooManyFiles;

/// The files of one `Io`, by [`FileId`].
#[derive(Debug, Default)]
pub(super) struct FileTable {
    files: Vec<Arc<IoFile>>,
}

impl FileTable {
    pub(super) fn add(&mut self, file: Arc<IoFile>) -> Result<FileId, TooManyFiles> {
        let index =
            u32::try_from(self.files.len()).ok().filter(|_| self.files.len() < FILES_MAX).ok_or(TooManyFiles)?;
        self.files.push(file);
        Ok(FileId::new(index))
    }

    pub(super) fn get(&self, id: FileId) -> Option<&Arc<IoFile>> {
        self.files.get(id.index())
    }
}
