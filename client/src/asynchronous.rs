//! The same calls as futures, for engines that must not block: one thread makes the calls in their order.
//!
//! The futures need no particular runtime.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kvd_proto::{BlockHash, MissReason};

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

/// An engine whose calls are futures.
#[derive(Debug, Clone)]
pub struct AsyncEngine {
    engine: Engine,
    jobs: SyncSender<Job>,
}

/// A view whose calls are futures.
#[derive(Debug, Clone)]
pub struct AsyncView {
    view: View,
    jobs: SyncSender<Job>,
}

impl AsyncEngine {
    /// Joins the daemon, as [`Engine::connect`] does; this call blocks.
    pub fn connect(options: EngineOptions) -> Result<Self, ConnectError> {
        Self::over(Engine::connect(options)?)
    }

    /// Makes futures of an engine's calls.
    pub fn over(engine: Engine) -> Result<Self, ConnectError> {
        let (jobs, inbox) = sync_channel(WAITING_MAX);
        // It ends when the last sender has gone.
        std::thread::Builder::new().name("kvd-dispatch".into()).spawn(move || dispatch(&inbox))?;
        Ok(Self { engine, jobs })
    }

    /// The blocking engine beneath.
    pub fn blocking(&self) -> &Engine {
        &self.engine
    }

    /// Opens a view, as [`Engine::open_view`] does; this call blocks.
    pub fn open_view(&self, spec: &ViewSpec<'_>) -> Result<AsyncView, ViewError> {
        Ok(AsyncView { view: self.engine.open_view(spec)?, jobs: self.jobs.clone() })
    }
}

fn dispatch(inbox: &Receiver<Job>) {
    while let Ok(job) = inbox.recv() {
        job();
    }
}

impl AsyncView {
    /// The blocking view beneath.
    pub fn blocking(&self) -> &View {
        &self.view
    }

    /// [`View::match_prefix`].
    pub fn match_prefix(&self, hashes: Vec<BlockHash>) -> Pending<Match> {
        let view = self.view.clone();
        self.submit(move || view.match_prefix(&hashes), || Match::missed(MissReason::Quota))
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
        let missed = || Loaded { reason: Some(MissReason::Quota), ..Loaded::default() };
        self.submit(move || view.load(&found, blocks, &layout.known(&into)), missed)
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
        self.submit(work, move || Stored { refused: count, reason: Some(MissReason::Quota), ..Stored::default() })
    }

    fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        full: impl FnOnce() -> T,
    ) -> Pending<T> {
        let shared = Arc::new(Promise { state: Mutex::new(State::Waiting(None)), ended: Condvar::new() });
        let promise = shared.clone();
        let job = move || {
            if promise.begin() {
                promise.end(work());
            }
        };
        if self.jobs.try_send(Box::new(job)).is_err() {
            shared.end(full());
        }
        Pending(shared)
    }
}

/// The result of a call to come. Dropped early, a call that has not begun never does, and one that has is waited for
/// (at most its deadline): also then nothing of it moves afterwards.
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
