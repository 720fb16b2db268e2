//! Plain `pread` and `pwrite` on a few threads, for containers whose seccomp profile forbids io_uring.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::file::FileTable;
use super::{FileId, Io, IoDone, IoError, IoFile, IoOp, IoWaker, TooManyFiles};

/// Size of a [`BlockingIo`].
#[derive(Clone, Copy, Debug)]
pub struct BlockingOptions {
    /// Threads; as many operations reach the device at a time.
    pub threads: usize,
    /// Operations that may be in flight.
    pub depth: usize,
}

impl Default for BlockingOptions {
    /// Eight threads reach fio from 256 KiB up on a virtual disk (docs/decisions/0002); 64 operations may wait.
    fn default() -> Self {
        Self { threads: 8, depth: 64 }
    }
}

/// [`Io`] on a small pool of threads.
#[derive(Debug)]
pub struct BlockingIo {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    files: FileTable,
    depth: usize,
    in_flight: usize,
}

#[derive(Debug, Default)]
struct Shared {
    /// Guards the queues only; no other lock is taken under it.
    state: Mutex<State>,
    work: Condvar,
    ready: Condvar,
}

/// Both queues together hold at most `depth` operations.
#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(Option<Arc<IoFile>>, IoOp)>,
    done: VecDeque<IoDone>,
    woken: bool,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot happen between two dependent changes of the state, so a poisoned lock guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some((file, op)) = state.queue.pop_front() {
                drop(state);
                let result = file.map_or(Err(IoError::Malformed), |file| file.perform(&op));
                state = self.lock();
                state.done.push_back(IoDone { tag: op.tag, result, op });
                self.ready.notify_one();
            } else if state.closing {
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl BlockingIo {
    /// Starts the threads.
    pub fn new(options: BlockingOptions) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let depth = options.depth.max(1);
        let mut this = Self { shared, threads: Vec::new(), files: FileTable::default(), depth, in_flight: 0 };
        for index in 0..options.threads.max(1) {
            let shared = Arc::clone(&this.shared);
            let thread = std::thread::Builder::new().name(format!("kvd-io-{index}"));
            this.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(this)
    }

    /// Makes a file usable by operations.
    pub fn add_file(&mut self, file: Arc<IoFile>) -> Result<FileId, TooManyFiles> {
        self.files.add(file)
    }
}

impl Io for BlockingIo {
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        if self.in_flight == self.depth {
            return Err(op);
        }
        self.in_flight += 1;
        let file = self.files.get(op.file).cloned();
        self.shared.lock().queue.push_back((file, op));
        self.shared.work.notify_one();
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<IoDone>) {
        let mut state = self.shared.lock();
        self.in_flight -= state.done.len();
        done.extend(state.done.drain(..));
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let state = self.shared.lock();
        let idle = |state: &mut State| state.done.is_empty() && !state.woken;
        let mut state = match timeout {
            None => self.shared.ready.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.shared.ready.wait_timeout_while(state, limit, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.woken = false;
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn waker(&self) -> IoWaker {
        let shared = Arc::clone(&self.shared);
        IoWaker::new(move || {
            shared.lock().woken = true;
            shared.ready.notify_one();
        })
    }
}

impl Drop for BlockingIo {
    /// Finishes what is queued, then ends the threads.
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker cannot panic; if it did, its operation's memory is gone with it and nothing is left to wait for.
            let _ = thread.join();
        }
    }
}
