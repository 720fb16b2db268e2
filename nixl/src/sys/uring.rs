//! An io_uring that owns the memory of its operations until the kernel is done with them.

use super::eventfd::{EventFd, Signal};
use super::memory::{Memory, MemoryExtent};
use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// `user_data` of the poll on the wake-up eventfd; slots are numbered from 0 and never reach it.
const WAKE: u64 = u64::MAX;

/// What the kernel is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum UringCommand {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
    /// `fdatasync`.
    Sync,
}

/// Where an operation goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UringTarget<'a> {
    /// The file.
    pub(crate) file: BorrowedFd<'a>,
    /// Its place in the table of registered files, if it is there.
    pub(crate) registered: Option<u32>,
    /// First byte in the file.
    pub(crate) offset: u64,
}

/// Sizes of a [`UringQueue`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct UringSizes {
    /// Operations that may be in flight.
    pub(crate) depth: u32,
    /// Entries of the registered file table.
    pub(crate) files: u32,
    /// Entries of the registered buffer table.
    pub(crate) buffers: u32,
}

/// What the kernel granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UringGrants {
    /// Completions are processed only when the owner asks (`DEFER_TASKRUN`).
    pub(crate) deferred: bool,
    /// Files can be registered.
    pub(crate) files: bool,
    /// Memory can be registered.
    pub(crate) buffers: bool,
}

/// One ring with one owner. `P` is what the owner wants back with each completion.
///
/// It is bound to the thread that made it: the kernel refuses others (`SINGLE_ISSUER`).
pub(crate) struct UringQueue<P> {
    ring: IoUring,
    slots: Vec<Option<Slot<P>>>,
    free: Vec<u32>,
    finished: VecDeque<(P, i32)>,
    buffers: Buffers,
    grants: UringGrants,
    wake: Arc<EventFd>,
    wake_armed: bool,
    woken: bool,
    thread_bound: PhantomData<*const ()>,
}

/// An operation that the kernel has, or will have at the next submit.
#[derive(Debug)]
struct Slot<P> {
    payload: P,
    /// Keeps the memory alive until the completion; the kernel writes or reads it meanwhile.
    _hold: Option<MemoryExtent>,
}

/// The registered buffer table: whole memories, by their address. A registration holds its memory, so that no other
/// memory can come to lie at the same address while the kernel has the old pages pinned.
#[derive(Debug, Default)]
struct Buffers {
    indices: HashMap<usize, u16>,
    held: Vec<Option<Arc<dyn Memory>>>,
}

impl<P> UringQueue<P> {
    /// Sets up a ring with the best flags that this kernel takes.
    ///
    /// # Errors
    /// `ENOSYS`, `EPERM` or `EACCES` where io_uring is missing or forbidden.
    pub(crate) fn new(sizes: UringSizes) -> io::Result<Self> {
        // One entry more than operations: the poll on the eventfd.
        let (ring, deferred) = set_up(sizes.depth + 1)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let files = ring.submitter().register_files_sparse(sizes.files).is_ok();
        let buffers = ring.submitter().register_buffers_sparse(sizes.buffers).is_ok();
        let held = if buffers { (0..sizes.buffers).map(|_| None).collect() } else { Vec::new() };
        Ok(Self {
            ring,
            slots: (0..sizes.depth).map(|_| None).collect(),
            free: (0..sizes.depth).rev().collect(),
            finished: VecDeque::new(),
            buffers: Buffers { indices: HashMap::new(), held },
            grants: UringGrants { deferred, files, buffers },
            wake: Arc::new(EventFd::new()?),
            wake_armed: false,
            woken: false,
            thread_bound: PhantomData,
        })
    }

    pub(crate) fn grants(&self) -> UringGrants {
        self.grants
    }

    /// Signalling it ends the current or the next `wait`.
    pub(crate) fn wake(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Operations not yet handed out by `finished`.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.finished.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.in_flight() == self.slots.len()
    }

    /// Puts `file` at `index` of the registered table; `false` if the kernel refuses.
    pub(crate) fn register_file(&self, index: u32, file: BorrowedFd<'_>) -> bool {
        self.grants.files && self.ring.submitter().register_files_update(index, &[file.as_raw_fd()]).is_ok()
    }

    /// Pins all of `memory` for the ring; `false` if it was already.
    pub(crate) fn register_memory(&mut self, memory: &Arc<dyn Memory>) -> io::Result<bool> {
        let base = memory.base();
        if self.buffers.indices.contains_key(&base.addr().get()) {
            return Ok(false);
        }
        let vacant = self.buffers.held.iter().position(Option::is_none).ok_or(io::ErrorKind::OutOfMemory)?;
        let index = u16::try_from(vacant).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let iovec = libc::iovec { iov_base: base.as_ptr().cast(), iov_len: memory.len() };
        // SAFETY: the kernel pins the pages itself; `held` keeps the memory mapped as long as the entry stands.
        unsafe { self.ring.submitter().register_buffers_update(u32::from(index), &[iovec], None) }?;
        self.buffers.held[vacant] = Some(Arc::clone(memory));
        self.buffers.indices.insert(base.addr().get(), index);
        Ok(true)
    }

    /// Ends a registration, if there is one. Operations that the kernel has already keep the pages pinned until they end.
    pub(crate) fn unregister_memory(&mut self, memory: &Arc<dyn Memory>) -> bool {
        // Entries that name the index must reach the kernel while the index means this memory.
        self.flush();
        let Some(index) = self.buffers.indices.remove(&memory.base().addr().get()) else { return false };
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: an empty entry names no memory.
        let emptied = unsafe { self.ring.submitter().register_buffers_update(u32::from(index), &[none], None) };
        if emptied.is_ok() {
            self.buffers.held[usize::from(index)] = None;
        }
        // Otherwise the entry stays held and unused: the kernel has still pinned it.
        true
    }

    /// Queues an operation; it starts with the next `flush` or `wait`. Gives the payload back when the queue is full.
    pub(crate) fn push(
        &mut self,
        command: UringCommand,
        target: UringTarget<'_>,
        memory: Option<MemoryExtent>,
        payload: P,
    ) -> Result<(), P> {
        if self.is_full() {
            return Err(payload);
        }
        let Some(slot) = self.free.pop() else { return Err(payload) };
        let entry = self.entry(command, target, memory.as_ref()).user_data(u64::from(slot));
        self.slots[slot as usize] = Some(Slot { payload, _hold: memory });
        if self.push_entry(&entry) {
            return Ok(());
        }
        self.free.push(slot);
        let slot = self.slots[slot as usize].take().expect("filled a moment ago");
        Err(slot.payload)
    }

    fn entry(&self, command: UringCommand, target: UringTarget<'_>, memory: Option<&MemoryExtent>) -> squeue::Entry {
        let offset = target.offset;
        let (address, len) = memory.map_or((std::ptr::null_mut(), 0), |memory| {
            // Longer than 4 GiB: the kernel moves less than 2 GiB at a time, and the completion is short either way.
            (memory.as_ptr(), u32::try_from(memory.len()).unwrap_or(u32::MAX))
        });
        let buffer = memory.and_then(|memory| self.buffers.indices.get(&memory.memory().base().addr().get()).copied());
        macro_rules! entry {
            ($fd:expr) => {
                match (command, buffer) {
                    (UringCommand::Read, Some(index)) => {
                        opcode::ReadFixed::new($fd, address, len, index).offset(offset).build()
                    }
                    (UringCommand::Read, None) => opcode::Read::new($fd, address, len).offset(offset).build(),
                    (UringCommand::Write, Some(index)) => {
                        opcode::WriteFixed::new($fd, address, len, index).offset(offset).build()
                    }
                    (UringCommand::Write, None) => opcode::Write::new($fd, address, len).offset(offset).build(),
                    (UringCommand::Sync, _) => opcode::Fsync::new($fd).flags(FsyncFlags::DATASYNC).build(),
                }
            };
        }
        match target.registered {
            Some(index) => entry!(Fixed(index)),
            None => entry!(Fd(target.file.as_raw_fd())),
        }
    }

    fn push_entry(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: an operation's address comes from an extent that its slot holds until the completion; a poll has none.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.is_ok()
    }

    /// Hands queued entries to the kernel and takes what is complete. Never waits.
    pub(crate) fn flush(&mut self) {
        let queue = self.ring.submission();
        let wanted = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if wanted {
            // A refusal (EBUSY, EAGAIN, EINTR) leaves the entries queued; the next call tries again.
            let _ = self.ring.submit();
        }
        self.reap();
    }

    /// The next completion: the payload and what the system call would have returned.
    pub(crate) fn finished(&mut self) -> Option<(P, i32)> {
        self.finished.pop_front()
    }

    /// Hands queued entries to the kernel and sleeps until a completion, a wake-up, or the end of `timeout`.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) {
        self.reap();
        if !self.wake_armed {
            let poll = opcode::PollAdd::new(Fd(self.wake.as_fd().as_raw_fd()), libc::POLLIN as u32);
            self.wake_armed = self.push_entry(&poll.build().user_data(WAKE));
        }
        let ready = !self.finished.is_empty() || self.woken;
        // Errors are early returns: EINTR, ETIME, EBUSY. The caller looks at its conditions anyway.
        let _ = match timeout {
            _ if ready => self.ring.submit(),
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let limit = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        self.reap();
        self.woken = false;
    }

    fn reap(&mut self) {
        for completion in self.ring.completion() {
            if completion.user_data() == WAKE {
                self.wake_armed = false;
                self.woken = true;
                // Failure to drain only means another early return of `wait`.
                let _ = self.wake.drain();
                continue;
            }
            let index = usize::try_from(completion.user_data()).expect("user data are slot numbers");
            let slot = self.slots[index].take().expect("the kernel completes each operation once");
            self.free.push(u32::try_from(index).expect("slots are numbered by u32"));
            self.finished.push_back((slot.payload, completion.result()));
        }
    }
}

impl<P> fmt::Debug for UringQueue<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.slots.len() - self.free.len();
        f.debug_struct("UringQueue")
            .field("grants", &self.grants)
            .field("in_flight", &in_flight)
            .finish_non_exhaustive()
    }
}

impl<P> Drop for UringQueue<P> {
    /// Waits until the kernel is done with every operation: only then may their memory go.
    fn drop(&mut self) {
        while self.free.len() < self.slots.len() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => self.reap(),
                Err(error)
                    if [Some(libc::EINTR), Some(libc::EBUSY), Some(libc::EAGAIN)].contains(&error.raw_os_error()) =>
                {
                    self.reap();
                }
                Err(_) => {
                    // The kernel cannot be asked any more. Memory that it may still write is given up, not freed.
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
        }
        // The kernel takes a closed ring apart in the background, tens of milliseconds later; letting go of the files
        // now spares a successor in this process the wait for their locks. Refused: then they go with the ring.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// A ring with the best flags this kernel takes, and whether task work is deferred to the owner's calls.
fn set_up(entries: u32) -> io::Result<(IoUring, bool)> {
    // A ring that a child process inherits would be submitted to from two sides.
    let builder = || {
        let mut builder = IoUring::builder();
        builder.dontfork();
        builder
    };
    let newer_than = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(entries) {
        Err(error) if newer_than(&error) => {}
        deferred => return Ok((deferred?, true)),
    }
    match builder().setup_coop_taskrun().setup_taskrun_flag().build(entries) {
        Err(error) if newer_than(&error) => Ok((builder().build(entries)?, false)),
        cooperative => Ok((cooperative?, false)),
    }
}
