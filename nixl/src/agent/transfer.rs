//! Transfers as their user sees them: prepare once, post any number of times, await, cancel, let go.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::engine::{Command, Engine};
use super::notify::NotificationQueue;
use super::plan::Plan;
use super::posting::{Posting, Shared};
use crate::io::IoError;

/// Why a descriptor is not known to have landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The backend tried and failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The deadline came first. The move goes on and may still land: both ends stay held, see [`Transfer::drained`].
    #[error("not landed at the deadline")]
    TimedOut,
    /// Cancelled before it was started: it has not landed and never will.
    #[error("cancelled before it started")]
    Cancelled,
    /// The backend's thread is gone.
    #[error("the backend stopped")]
    Stopped,
}

/// How a transfer ended: one status per descriptor, in the order of the selections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Per descriptor; `Ok` only if every byte of it landed.
    pub statuses: Vec<Result<(), DescriptorError>>,
    /// Per descriptor the checksums of its units, where they were asked for.
    pub checksums: Vec<Vec<u64>>,
}

impl Report {
    /// Whether everything landed.
    pub fn is_ok(&self) -> bool {
        self.statuses.iter().all(Result::is_ok)
    }

    /// The first failed descriptor.
    pub fn first_error(&self) -> Option<(usize, DescriptorError)> {
        self.statuses.iter().enumerate().find_map(|(index, status)| status.err().map(|error| (index, error)))
    }
}

/// How to post.
#[derive(Clone, Debug, Default)]
pub struct PostOptions {
    /// When to stop waiting; the waiter is detached then, never the move.
    pub deadline: Option<Duration>,
    /// A message for a queue, delivered when every descriptor has landed, and only then.
    pub notify: Option<(NotificationQueue, Vec<u8>)>,
}

/// Why a transfer was not posted. Nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// It is still under way from the last post, perhaps detached or cancelled: await [`Transfer::drained`].
    #[error("the transfer is still under way")]
    Active,
    /// The backend's queue is full.
    #[error("the backend's queue is full")]
    Busy,
    /// The notification queue is full, or the message too long.
    #[error("no room for the notification")]
    NotificationRefused,
}

/// A prepared pair of lists with a direction. It can be posted again whenever the last post has ended.
///
/// Dropping it does not stop what was posted: the backend holds both ends until the hardware is done.
#[derive(Debug)]
pub struct Transfer {
    plan: Arc<Plan>,
    engine: Arc<Engine>,
    posted: Option<Arc<Shared>>,
}

impl Transfer {
    pub(super) fn new(plan: Plan, engine: Arc<Engine>) -> Self {
        Self { plan: Arc::new(plan), engine, posted: None }
    }

    /// Operations it takes, after merging.
    pub fn operations(&self) -> usize {
        self.plan.pieces.len()
    }

    /// Starts it.
    pub fn post(&mut self, options: PostOptions) -> Result<TransferFuture, PostError> {
        if self.is_active() {
            return Err(PostError::Active);
        }
        let ticket = match options.notify {
            Some((queue, message)) => Some(queue.reserve(message).ok_or(PostError::NotificationRefused)?),
            None => None,
        };
        let shared = Arc::new(Shared::default());
        let now = Instant::now();
        let deadline = options.deadline.and_then(|after| now.checked_add(after));
        let posting = Posting::new(Arc::clone(&self.plan), Arc::clone(&shared), now, deadline, ticket);
        self.engine.send(Command::Post(posting)).map_err(|_| PostError::Busy)?;
        self.posted = Some(Arc::clone(&shared));
        Ok(TransferFuture { shared, engine: Arc::clone(&self.engine) })
    }

    /// Whether the last post is still under way; both ends are held meanwhile.
    pub fn is_active(&self) -> bool {
        self.posted.as_ref().is_some_and(|shared| !shared.is_finished())
    }

    /// Resolves when nothing of the last post is under way any more: after it, nothing will land.
    pub async fn drained(&mut self) {
        if let Some(shared) = &self.posted {
            std::future::poll_fn(|context| shared.poll_finished(context)).await;
        }
    }
}

/// Resolves to the [`Report`] of one post, or at its deadline.
///
/// Dropping it lets go of the report only: the move goes on and holds both ends until the hardware is done.
#[derive(Debug)]
#[must_use = "dropping it loses the statuses"]
pub struct TransferFuture {
    shared: Arc<Shared>,
    engine: Arc<Engine>,
}

impl TransferFuture {
    /// Stops what has not started. The future returned resolves once drained: everything is then either landed (`Ok`),
    /// failed, or [`Cancelled`](DescriptorError::Cancelled) and will never land.
    pub fn cancel(self) -> Cancelling {
        self.shared.cancel();
        self.engine.wake();
        Cancelling { shared: self.shared }
    }
}

impl Future for TransferFuture {
    type Output = Report;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Report> {
        self.shared.poll_report(context)
    }
}

/// A cancelled post on its way to drained. Dropping it changes nothing: the post stays cancelled.
#[derive(Debug)]
#[must_use = "only when it resolves is it certain that nothing lands any more"]
pub struct Cancelling {
    shared: Arc<Shared>,
}

impl Future for Cancelling {
    type Output = Report;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Report> {
        self.shared.poll_last_report(context)
    }
}
