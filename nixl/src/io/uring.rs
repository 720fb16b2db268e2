//! io_uring: one ring per device thread, registered files and buffers, sleeping in the kernel instead of polling.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::file::{FILES_MAX, FileTable};
use super::{FileId, Io, IoDone, IoError, IoFile, IoKind, IoOp, IoWaker, TooManyFiles};
use crate::sys::{Memory, MemoryExtent, Signal, UringCommand, UringQueue, UringSizes, UringTarget};

/// Size of a [`UringIo`].
#[derive(Clone, Copy, Debug)]
pub struct UringOptions {
    /// Operations that may be in flight, at most 4096.
    pub depth: u32,
    /// Memories that may be registered at a time, at most 16 384 (the kernel's limit).
    pub memories: u32,
}

impl Default for UringOptions {
    /// 64 operations fill an NVMe device at 64 KiB; 16 384 segments of 64 MiB are 1 TiB.
    fn default() -> Self {
        Self { depth: 64, memories: 16_384 }
    }
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The kernel has no (sufficient) io_uring, or a seccomp profile or sysctl forbids it: use
    /// [`BlockingIo`](super::BlockingIo).
    #[error("io_uring is not available here: {0}")]
    Unavailable(io::Error),
    /// It exists but could not be set up (descriptors or memory ran out).
    #[error("io_uring could not be set up: {0}")]
    Failed(io::Error),
}

/// What the kernel granted, and how memory registration went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UringState {
    /// Completions cost no interrupt of the owner (`SINGLE_ISSUER | DEFER_TASKRUN`).
    pub deferred: bool,
    /// Files of the table are registered.
    pub files_registered: bool,
    /// Memories registered now.
    pub memories_registered: u32,
    /// Registrations that the kernel refused; operations on such memory pin it each time.
    pub memories_refused: u32,
    /// Error number of the last refusal: `ENOMEM` is the memlock limit.
    pub refusal_errno: Option<i32>,
}

/// [`Io`] on io_uring.
///
/// Make it on the thread that will use it: the ring is bound to that thread, and the type is not `Send`.
///
/// ```compile_fail
/// fn elsewhere<T: Send>() {}
/// elsewhere::<kvd_nixl::io::UringIo>();
/// ```
#[derive(Debug)]
pub struct UringIo {
    // Declared first, dropped first: it drains before the files close.
    queue: UringQueue<IoOp>,
    files: FileTable,
    /// Operations that failed before they reached the kernel.
    malformed: Vec<IoDone>,
    state: UringState,
}

impl UringIo {
    /// Sets up the ring.
    pub fn new(options: UringOptions) -> Result<Self, UringError> {
        let depth = options.depth.clamp(1, 4096);
        let sizes = UringSizes { depth, files: FILES_MAX as u32, buffers: options.memories.clamp(1, 16_384) };
        let queue = UringQueue::new(sizes).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EINVAL) => UringError::Unavailable(error),
            _ => UringError::Failed(error),
        })?;
        let grants = queue.grants();
        let state = UringState { deferred: grants.deferred, files_registered: grants.files, ..UringState::default() };
        Ok(Self { queue, files: FileTable::default(), malformed: Vec::new(), state })
    }

    /// Makes a file usable by operations.
    pub fn add_file(&mut self, file: Arc<IoFile>) -> Result<FileId, TooManyFiles> {
        let id = self.files.add(Arc::clone(&file))?;
        let index = u32::try_from(id.index()).expect("the table has few files");
        self.state.files_registered &= self.queue.register_file(index, file.as_fd());
        Ok(id)
    }

    /// What the kernel granted so far.
    pub fn state(&self) -> UringState {
        self.state
    }

    /// The kernel's view of an operation, unless it is malformed.
    fn command(op: &IoOp) -> Option<(UringCommand, Option<MemoryExtent>)> {
        match (op.kind, &op.memory) {
            (IoKind::Read, Some(memory)) => Some((UringCommand::Read, Some(memory.clone()))),
            (IoKind::Write, Some(memory)) => Some((UringCommand::Write, Some(memory.clone()))),
            (IoKind::Sync, None) => Some((UringCommand::Sync, None)),
            (IoKind::Sync, Some(_)) | (IoKind::Read | IoKind::Write, None) => None,
        }
    }
}

impl Io for UringIo {
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        if self.queue.is_full() || self.malformed.len() == FILES_MAX {
            return Err(op);
        }
        let (Some(file), Some((command, memory))) = (self.files.get(op.file), Self::command(&op)) else {
            self.malformed.push(IoDone { tag: op.tag, result: Err(IoError::Malformed), op });
            return Ok(());
        };
        let registered = self.state.files_registered.then(|| u32::try_from(op.file.index()).ok()).flatten();
        let target = UringTarget { file: file.as_fd(), registered, offset: op.offset };
        self.queue.push(command, target, memory, op)
    }

    fn poll(&mut self, done: &mut Vec<IoDone>) {
        self.queue.flush();
        done.append(&mut self.malformed);
        while let Some((op, returned)) = self.queue.finished() {
            done.push(IoDone { tag: op.tag, result: outcome(&op, returned), op });
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if self.malformed.is_empty() {
            self.queue.wait(timeout);
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight() + self.malformed.len()
    }

    fn waker(&self) -> IoWaker {
        let wake = self.queue.wake();
        // An eventfd's write fails only when its counter is full, and then the wake-up stands already.
        IoWaker::new(move || drop(wake.signal()))
    }

    fn register_memory(&mut self, memory: &Arc<dyn Memory>) -> bool {
        match self.queue.register_memory(memory) {
            Ok(fresh) => {
                self.state.memories_registered += u32::from(fresh);
                true
            }
            Err(error) => {
                self.state.memories_refused += 1;
                self.state.refusal_errno = error.raw_os_error();
                false
            }
        }
    }

    fn unregister_memory(&mut self, memory: &Arc<dyn Memory>) {
        self.state.memories_registered -= u32::from(self.queue.unregister_memory(memory));
    }
}

/// The result of an operation from what the system call returned.
fn outcome(op: &IoOp, returned: i32) -> Result<(), IoError> {
    match u64::try_from(returned) {
        Ok(moved) if moved == op.bytes() => Ok(()),
        Ok(moved) => Err(IoError::Short { wanted: op.bytes(), got: moved }),
        Err(_) => Err(IoError::Os { errno: -returned }),
    }
}
