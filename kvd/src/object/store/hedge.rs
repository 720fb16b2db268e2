//! A read whose first byte takes longer than that of nearly all before it is asked for once more; the answer that comes first
//! is taken (Dean and Barroso, The Tail at Scale, 2013).

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, Either, select};

use super::client::Client;
use super::ticket::Ticket;
use super::{Fault, Op, Store};

/// Reads of which one may be hedged: a store that is slow because it is busy must not get a twentieth more to do, and the last
/// fiftieth is what is worth it.
const READS_PER_HEDGE: u64 = 50;
/// Hedges before there were so many reads.
const HEDGES_FREE: u64 = 4;
/// Reads under way from which on this node is taken to fill the line; of whole runs the ladder allows 8. Most are slow then
/// because of the others, and a second request would only take from those.
const BUSY_READS: usize = 4;
/// How much slower than nearly all a read must be while the line is full.
const BUSY_FACTOR: u32 = 4;
/// A store that answers at once is not asked again because of this machine's own pauses.
const DELAY_MIN: Duration = Duration::from_millis(5);

impl Store {
    /// As [`Store::attempts`], for reads: the second request takes of the same budget as a retry.
    pub(super) async fn hedged<'s, T>(
        &'s self,
        deadline: Instant,
        ask: impl Fn() -> BoxFuture<'s, Result<T, Fault>>,
    ) -> Result<(T, Ticket), Fault> {
        let begun = Instant::now();
        let silence = self.inner.silence;
        let mut first = pin!(self.attempts(Op::Get, deadline, silence, &ask));
        // A folder's disk does not get faster by being asked twice.
        let Some(slow) = self.inner.estimator.slow().filter(|_| matches!(self.inner.client, Client::Bucket { .. }))
        else {
            return first.await;
        };
        let delay = slow.max(DELAY_MIN);
        for waited in 1..=BUSY_FACTOR {
            if let Ok(ended) = tokio::time::timeout(delay, &mut first).await {
                return ended;
            }
            if waited < BUSY_FACTOR && !self.is_busy() {
                break;
            }
        }
        if !self.may_hedge() {
            return first.await;
        }
        self.inner.counters.hedges.add(1);
        let second = pin!(self.attempts(Op::Get, deadline, silence, &ask));
        // One that was not even asked says nothing about the other.
        let says_nothing = |fault: &Fault| fault.is_transient() || *fault == Fault::Open;
        match select(first, second).await {
            Either::Left((Err(fault), second)) if says_nothing(&fault) => match second.await {
                Err(Fault::Open) => Err(fault),
                ended => ended,
            },
            Either::Left((ended, _)) => ended,
            Either::Right((Err(fault), first)) if says_nothing(&fault) => first.await,
            Either::Right((ended, _)) => {
                if ended.is_ok() {
                    // Else only the fast half of the slow ones would be learned from.
                    self.inner.estimator.first_byte(begun.elapsed());
                }
                ended
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.inner.reads.load(Ordering::Relaxed) >= BUSY_READS
    }

    fn may_hedge(&self) -> bool {
        let counters = &self.inner.counters;
        let few = counters.hedges.get() < HEDGES_FREE + counters.sent(Op::Get) / READS_PER_HEDGE;
        few && self.inner.places.available_permits() > 0 && self.admits(Op::Get) && self.control().budget.retry()
    }
}
