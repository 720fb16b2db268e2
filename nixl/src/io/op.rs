//! Operations and their outcomes.

use crate::sys::MemoryExtent;

/// A file known to one [`Io`](crate::io::Io); handed out where the file was given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(u32);

impl FileId {
    /// The `index`-th file of an `Io`.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Position in the table of its `Io`.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
    /// Makes the writes that completed before durable (`fdatasync`). Its extent is empty.
    Sync,
}

/// One move between a file and memory. It owns its memory: in flight, the extent's hold keeps it alive.
#[derive(Clone, Debug)]
pub struct IoOp {
    /// The caller's name for it, given back untouched.
    pub tag: u64,
    /// Direction.
    pub kind: IoKind,
    /// Which file.
    pub file: FileId,
    /// First byte in the file.
    pub offset: u64,
    /// Where in memory; its length is the length of the operation. `None` only for [`IoKind::Sync`].
    pub memory: Option<MemoryExtent>,
}

impl IoOp {
    /// A read of `memory.len()` bytes at `offset`.
    pub fn read(tag: u64, file: FileId, offset: u64, memory: MemoryExtent) -> Self {
        Self { tag, kind: IoKind::Read, file, offset, memory: Some(memory) }
    }

    /// A write of `memory.len()` bytes at `offset`.
    pub fn write(tag: u64, file: FileId, offset: u64, memory: MemoryExtent) -> Self {
        Self { tag, kind: IoKind::Write, file, offset, memory: Some(memory) }
    }

    /// A sync of `file`.
    pub fn sync(tag: u64, file: FileId) -> Self {
        Self { tag, kind: IoKind::Sync, file, offset: 0, memory: None }
    }

    /// Bytes that `Ok` stands for; 0 for a sync.
    pub fn bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |extent| extent.len() as u64)
    }
}

/// An operation that came to its end, given back with its memory.
#[derive(Debug)]
pub struct IoDone {
    /// The operation's tag.
    pub tag: u64,
    /// `Ok` only if every byte moved.
    pub result: Result<(), IoError>,
    /// The operation as it was submitted.
    pub op: IoOp,
}

/// Why an operation did not do what was asked. After a failed read the memory's content is undefined, after a failed
/// write that of the file's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IoError {
    /// The device moved less than asked: end of file, full disk, or a fault.
    #[error("short: {got} of {wanted} bytes")]
    Short {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes moved.
        got: u64,
    },
    /// The operating system refused; `errno` as in `errno.h`.
    #[error("{}", std::io::Error::from_raw_os_error(*errno))]
    Os {
        /// The error number.
        errno: i32,
    },
    /// The operation makes no sense: no such file in this `Io`, memory with a sync, none with a read or write, or a
    /// copy whose ends overlap.
    #[error("operation is malformed: no such file, memory missing or too much, or overlapping")]
    Malformed,
}

impl IoError {
    /// What the operating system said.
    pub(crate) fn from_os(error: &std::io::Error) -> Self {
        // Errors that std makes up itself carry no number: they stand for an argument the kernel would have refused.
        Self::Os { errno: error.raw_os_error().unwrap_or(rustix::io::Errno::INVAL.raw_os_error()) }
    }

    /// The operating system's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { errno } => Some(*errno),
            Self::Short { .. } | Self::Malformed => None,
        }
    }
}
