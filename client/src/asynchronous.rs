//! The same calls as futures, for engines that must not block: one thread makes the matches in their order, another one the
//! loads and stores.
//!
//! The futures need no particular runtime.

use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use kvd_proto::{BlockHash, MissReason};

use crate::deadline::deadline_in;
use crate::engine::{Engine, EngineOptions};
use crate::error::{ConnectError, ViewError};
use crate::layout::{BlockMemory, EngineLayout, LayoutBlocks};
use crate::load::Loaded;
use crate::matching::Match;
use crate::store::{StoreRequest, Stored};
use crate::view::{View, ViewSpec};

/// Calls that may wait; more miss at once.
const WAITING_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// What waits for a thread: a match does not wait behind copies.
#[derive(Debug, Clone)]
struct Queues {
    matches: SyncSender<Job>,
    copies: SyncSender<Job>,
}

/// An engine whose calls are futures.
#[derive(Debug, Clone)]
pub struct AsyncEngine {
    engine: Engine,
    queues: Queues,
}

/// A view whose calls are futures.
#[derive(Debug, Clone)]
pub struct AsyncView {
    view: View,
    queues: Queues,
}

impl AsyncEngine {
    /// Joins the daemon, as [`Engine::connect`] does; this call blocks.
    pub fn connect(options: EngineOptions) -> Result<Self, ConnectError> {
        Self::over(Engine::connect(options)?)
    }

    /// Makes futures of an engine's calls.
    pub fn over(engine: Engine) -> Result<Self, ConnectError> {
        Ok(Self { engine, queues: Queues { matches: queue("kvd-match")?, copies: queue("kvd-copy")? } })
    }

    /// The blocking engine beneath.
    pub fn blocking(&self) -> &Engine {
        &self.engine
    }

    /// Opens a view, as [`Engine::open_view`] does; this call blocks.
    pub fn open_view(&self, spec: &ViewSpec<'_>) -> Result<AsyncView, ViewError> {
        Ok(AsyncView { view: self.engine.open_view(spec)?, queues: self.queues.clone() })
    }
}

/// A queue and its thread, which ends when the last sender has gone.
fn queue(name: &str) -> std::io::Result<SyncSender<Job>> {
    let (jobs, inbox) = sync_channel::<Job>(WAITING_MAX);
    let work = move || {
        while let Ok(job) = inbox.recv() {
            job();
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(work)?;
    Ok(jobs)
}

impl AsyncView {
    /// The blocking view beneath.
    pub fn blocking(&self) -> &View {
        &self.view
    }

    /// [`View::match_prefix`].
    pub fn match_prefix(&self, hashes: Vec<BlockHash>) -> Pending<Match> {
        let view = self.view.clone();
        let deadline = deadline_in(view.match_deadline(view.engine.shared.session().as_deref()));
        let work = move || view.match_prefix_within(&hashes, deadline.saturating_duration_since(Instant::now()));
        submit(&self.view, &self.queues.matches, work, Match::missed)
    }

    /// [`View::load`] into blocks `into` of the engine's memory.
    pub fn load(
        &self,
        found: Arc<Match>,
        blocks: Range<u32>,
        layout: Arc<EngineLayout>,
        into: LayoutBlocks,
    ) -> Pending<Loaded> {
        let view = self.view.clone();
        let deadline = deadline_in(view.load_deadline(found.session.as_deref()));
        let work = move || {
            let within = deadline.saturating_duration_since(Instant::now());
            view.load_within(&found, blocks, &layout.known(&into), within)
        };
        submit(&self.view, &self.queues.copies, work, |reason| Loaded { reason: Some(reason), ..Loaded::default() })
    }

    /// [`View::store`] from blocks `from` of the engine's memory.
    pub fn store(
        &self,
        parent: Option<BlockHash>,
        first_position: u32,
        hashes: Vec<BlockHash>,
        layout: Arc<EngineLayout>,
        from: LayoutBlocks,
        tokens: Vec<u32>,
    ) -> Pending<Stored> {
        let view = self.view.clone();
        let count = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
        let work = move || {
            let sources: Vec<BlockMemory<'_>> = layout.known(&from);
            view.store(&StoreRequest { parent, first_position, hashes: &hashes, sources: &sources, tokens: &tokens })
        };
        let missed = move |reason| Stored { refused: count, reason: Some(reason), ..Stored::default() };
        submit(&self.view, &self.queues.copies, work, missed)
    }
}

/// Lets the thread of a queue do `work`. Where that cannot be, or `work` panics, the result is a miss.
fn submit<T: Send + 'static>(
    view: &View,
    queue: &SyncSender<Job>,
    work: impl FnOnce() -> T + Send + 'static,
    missed: impl Fn(MissReason) -> T + Copy + Send + 'static,
) -> Pending<T> {
    let shared = Arc::new(Promise { state: Mutex::new(State::Waiting(None)), ended: Condvar::new() });
    if view.engine.shared.session().is_none() {
        // No daemon; or a child of the process whose threads would have done it.
        shared.end(missed(MissReason::TierDown));
        return Pending(shared);
    }
    let promise = shared.clone();
    let job = move || {
        if promise.begin() {
            // The queue's thread must live on: others wait for it.
            let done = catch_unwind(AssertUnwindSafe(work));
            promise.end(done.unwrap_or_else(|_| missed(MissReason::TierDown)));
        }
    };
    if queue.try_send(Box::new(job)).is_err() {
        shared.end(missed(MissReason::Quota));
    }
    Pending(shared)
}

/// The result of a call to come. Its deadline counts from its making. Dropped early, a call that has not begun never does, and
/// one that has is waited for (a store of several batches: each at most its deadline): also then nothing of it moves afterwards.
#[derive(Debug)]
pub struct Pending<T>(Arc<Promise<T>>);

#[derive(Debug)]
struct Promise<T> {
    /// Guards the result; held for moments only.
    state: Mutex<State<T>>,
    ended: Condvar,
}

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Running(Option<Waker>),
    Done(Option<T>),
    Cancelled,
}

impl<T> Promise<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> bool {
        let mut state = self.lock();
        let State::Waiting(waker) = &mut *state else { return false };
        *state = State::Running(waker.take());
        true
    }

    fn end(&self, result: T) {
        let before = std::mem::replace(&mut *self.lock(), State::Done(Some(result)));
        self.ended.notify_all();
        if let State::Waiting(Some(waker)) | State::Running(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut *self.0.lock() {
            State::Done(result) => Poll::Ready(result.take().expect("a future is not polled after its end")),
            State::Waiting(waker) | State::Running(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            State::Cancelled => Poll::Pending,
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let State::Waiting(_) = *state {
            *state = State::Cancelled;
        }
        while let State::Running(_) = *state {
            state = self.0.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
