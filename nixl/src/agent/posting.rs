//! One post of a transfer: the driver's side, and what it shares with whoever waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::notify::Ticket;
use super::plan::Plan;
use super::telemetry::Counters;
use super::transfer::{DescriptorError, Report};
use crate::io::IoError;

/// What driver and waiter share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Guards reports and wakers; no other lock is taken under it, and wakers are called after it is released.
    state: Mutex<State>,
    cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The report at the deadline, while the move goes on.
    interim: Option<Report>,
    /// The report of the end, until it is taken.
    last: Option<Report>,
    finished: bool,
    waiter: Option<Waker>,
    drainer: Option<Waker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half way, so a poisoned lock guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cancel(&self) {
        // Release: pairs with the acquire in `is_cancelled`; nothing else is handed over with it.
        self.cancelled.store(true, Ordering::Release);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.lock().finished
    }

    /// For the waiter: the last report, or the interim one.
    pub(super) fn poll_report(&self, context: &Context<'_>) -> Poll<Report> {
        let mut state = self.lock();
        let interim = state.interim.take();
        if let Some(report) = state.last.take().or(interim) {
            return Poll::Ready(report);
        }
        state.waiter = Some(context.waker().clone());
        Poll::Pending
    }

    /// For whoever cancelled: the last report only.
    pub(super) fn poll_last_report(&self, context: &Context<'_>) -> Poll<Report> {
        let mut state = self.lock();
        if let Some(report) = state.last.take() {
            return Poll::Ready(report);
        }
        state.waiter = Some(context.waker().clone());
        Poll::Pending
    }

    /// For whoever wants to post again.
    pub(super) fn poll_finished(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.finished {
            return Poll::Ready(());
        }
        state.drainer = Some(context.waker().clone());
        Poll::Pending
    }

    fn tell_interim(&self, report: Report) {
        let mut state = self.lock();
        state.interim = Some(report);
        let waiter = state.waiter.take();
        drop(state);
        waiter.into_iter().for_each(Waker::wake);
    }

    fn finish(&self, report: Report) {
        let mut state = self.lock();
        state.last = Some(report);
        state.finished = true;
        let wakers = [state.waiter.take(), state.drainer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// The driver's side of one post. It holds both ends through the plan, whatever became of its waiter.
#[derive(Debug)]
pub(super) struct Posting {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    posted: Instant,
    deadline: Option<Instant>,
    ticket: Option<Ticket>,
    next_piece: usize,
    in_flight: usize,
    statuses: Vec<Option<Result<(), DescriptorError>>>,
    checksums: Vec<Vec<u64>>,
    finished: bool,
}

impl Posting {
    pub(super) fn new(
        plan: Arc<Plan>,
        shared: Arc<Shared>,
        posted: Instant,
        deadline: Option<Instant>,
        ticket: Option<Ticket>,
    ) -> Self {
        let statuses = vec![None; plan.lens.len()];
        let checksums = if plan.copy.units.is_some() { vec![Vec::new(); plan.lens.len()] } else { Vec::new() };
        Self {
            plan,
            shared,
            posted,
            deadline,
            ticket,
            next_piece: 0,
            in_flight: 0,
            statuses,
            checksums,
            finished: false,
        }
    }

    pub(super) fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The piece to start next.
    pub(super) fn next_piece(&self) -> Option<usize> {
        (self.next_piece < self.plan.pieces.len()).then_some(self.next_piece)
    }

    pub(super) fn started(&mut self) {
        self.next_piece += 1;
        self.in_flight += 1;
    }

    /// A piece came to its end.
    pub(super) fn ended(&mut self, piece: usize, result: Result<(), IoError>, checksums: Vec<u64>) {
        assert!(self.in_flight > 0, "a completion for a transfer that has nothing under way");
        self.in_flight -= 1;
        let plan = Arc::clone(&self.plan);
        let piece = &plan.pieces[piece];
        for (index, status) in plan.statuses(piece, result) {
            assert!(self.statuses[index].is_none(), "a descriptor ended twice");
            self.statuses[index] = Some(status.map_err(DescriptorError::Io));
        }
        if let Some(slot) = self.checksums.get_mut(piece.descriptors.start) {
            *slot = checksums;
        }
    }

    /// Looks at cancellation, deadline and end; true when it is over and may be forgotten.
    pub(super) fn sweep(&mut self, now: Instant, counters: &Counters) -> bool {
        if self.shared.is_cancelled() {
            self.next_piece = self.plan.pieces.len();
        }
        if self.next_piece == self.plan.pieces.len() && self.in_flight == 0 {
            // Counted first: whoever has the report finds it in the telemetry.
            counters.transfer_ended(now.saturating_duration_since(self.posted));
            self.finish(DescriptorError::Cancelled);
            return true;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            counters.timed_out();
            self.shared.tell_interim(self.report(DescriptorError::TimedOut));
        }
        false
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn report(&self, otherwise: DescriptorError) -> Report {
        let statuses = self.statuses.iter().map(|status| status.unwrap_or(Err(otherwise))).collect();
        Report { statuses, checksums: self.checksums.clone() }
    }

    fn finish(&mut self, otherwise: DescriptorError) {
        self.finished = true;
        let report = self.report(otherwise);
        if let Some(ticket) = self.ticket.take()
            && report.is_ok()
        {
            ticket.deliver();
        }
        self.shared.finish(report);
    }
}

impl Drop for Posting {
    /// Nobody waits for ever, not even for a driver that died.
    fn drop(&mut self) {
        if !self.finished {
            self.finish(DescriptorError::Stopped);
        }
    }
}
