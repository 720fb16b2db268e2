//! What the client counts, and what it has learned of the store's speed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Fault;
use crate::metrics::counters::Count;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// An object is written.
    Put,
    /// An object, or a range of it, is read.
    Get,
    /// Names are listed.
    List,
    /// An object is deleted.
    Delete,
    /// An object is looked at.
    Head,
}

impl Op {
    /// Every kind.
    pub const ALL: [Op; 5] = [Op::Put, Op::Get, Op::List, Op::Delete, Op::Head];

    /// The word for it in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Get => "get",
            Op::List => "list",
            Op::Delete => "delete",
            Op::Head => "head",
        }
    }

    const fn index(self) -> usize {
        match self {
            Op::Put => 0,
            Op::Get => 1,
            Op::List => 2,
            Op::Delete => 3,
            Op::Head => 4,
        }
    }
}

/// What one store's client counts. Requests are counted one by one, retries among them.
#[derive(Debug, Default)]
pub struct StoreCounters {
    sent: [Count; Op::ALL.len()],
    done: [Count; Op::ALL.len()],
    faults: [[Count; Fault::KINDS]; Op::ALL.len()],
    /// Bytes of bodies sent, counted when the store has them.
    pub bytes_up: Count,
    /// Bytes of bodies received.
    pub bytes_down: Count,
    /// Requests that were made again after a fault.
    pub retries: Count,
    /// Requests that were not made again because retries have a budget.
    pub retries_saved: Count,
    /// Reads that were asked for a second time because their answer was late.
    pub hedges: Count,
}

impl StoreCounters {
    /// A request goes out.
    pub(super) fn send(&self, op: Op) {
        self.sent[op.index()].add(1);
    }

    /// Requests of this kind that went out, whatever became of them, those among them that nobody waited for any more: what a
    /// bill counts.
    pub fn sent(&self, op: Op) -> u64 {
        self.sent[op.index()].get()
    }

    pub(super) fn count(&self, op: Op, fault: Option<&Fault>) {
        match fault {
            None => self.done[op.index()].add(1),
            Some(fault) => self.faults[op.index()][fault.kind()].add(1),
        }
    }

    /// Requests of this kind that were answered as asked.
    pub fn done(&self, op: Op) -> u64 {
        self.done[op.index()].get()
    }

    /// Requests of this kind that ended with a fault like this one.
    pub fn faults(&self, op: Op, like: &Fault) -> u64 {
        self.faults[op.index()][like.kind()].get()
    }

    /// Every kind of request with every outcome and how often there was one; `ok` is the outcome without a fault.
    pub fn outcomes(&self) -> impl Iterator<Item = (Op, &'static str, u64)> {
        Op::ALL.into_iter().flat_map(move |op| {
            let faults = Fault::LABELS.iter().zip(&self.faults[op.index()]);
            std::iter::once((op, "ok", self.done(op)))
                .chain(faults.map(move |(label, count)| (op, *label, count.get())))
        })
    }
}

/// How fast the store reads, for those who must decide before they ask.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// From a request to the first byte of its answer, on average; the youngest weigh most. `None` before the first.
    pub first_byte: Option<Duration>,
    /// 95 of 100 of the last requests had their first byte within this. `None` before the first.
    pub first_byte_p95: Option<Duration>,
    /// Bytes per second of one body after its first byte, on average. `None` before the first body worth measuring.
    pub bytes_per_second: Option<u64>,
}

/// Requests that the percentile looks back on.
const WINDOW: usize = 256;
/// Requests by which a percentile is told.
const TELLING: usize = 32;
/// Weight of the youngest in a mean: it forgets half of the past in five requests.
const WEIGHT: f64 = 1.0 / 8.0;
/// Smaller bodies measure the latency of a packet.
const BODY_BYTES_MIN: u64 = 256 << 10;

/// Learns from every read.
#[derive(Debug, Default)]
pub(super) struct Estimator {
    /// Guards numbers; held for a few instructions, and no other lock is taken under it.
    inner: Mutex<Learned>,
}

#[derive(Debug, Default)]
struct Learned {
    first_byte_seconds: Option<f64>,
    bytes_per_second: Option<f64>,
    window: Vec<Duration>,
    next: usize,
}

impl Estimator {
    pub(super) fn first_byte(&self, took: Duration) {
        let mut learned = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        learned.first_byte_seconds = Some(mean(learned.first_byte_seconds, took.as_secs_f64()));
        if learned.window.len() < WINDOW {
            learned.window.push(took);
        } else {
            let next = learned.next;
            learned.window[next] = took;
        }
        learned.next = (learned.next + 1) % WINDOW;
    }

    /// What 95 of 100 requests took less than, once there were enough of them to tell.
    pub(super) fn slow(&self) -> Option<Duration> {
        let enough = self.inner.lock().unwrap_or_else(PoisonError::into_inner).window.len() >= TELLING;
        self.speed().first_byte_p95.filter(|_| enough)
    }

    pub(super) fn body(&self, bytes: u64, took: Duration) {
        if bytes < BODY_BYTES_MIN || took.is_zero() {
            return;
        }
        let mut learned = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        learned.bytes_per_second = Some(mean(learned.bytes_per_second, bytes as f64 / took.as_secs_f64()));
    }

    pub(super) fn speed(&self) -> Speed {
        let learned = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut window = learned.window.clone();
        let (means, bandwidth) = (learned.first_byte_seconds, learned.bytes_per_second);
        drop(learned);
        let at = (window.len() * 95).div_ceil(100).saturating_sub(1);
        Speed {
            first_byte: means.map(Duration::from_secs_f64),
            first_byte_p95: (!window.is_empty()).then(|| *window.select_nth_unstable(at).1),
            bytes_per_second: bandwidth.map(|rate| rate as u64),
        }
    }
}

fn mean(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old + WEIGHT * (new - old))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_known_before_the_first_request() {
        assert_eq!(Estimator::default().speed(), Speed::default());
    }

    #[test]
    fn the_percentile_is_that_of_the_last_requests() {
        let estimator = Estimator::default();
        for _ in 0..WINDOW {
            estimator.first_byte(900 * MILLI);
        }
        for n in 0..WINDOW as u32 {
            estimator.first_byte(MILLI * (1 + n % 100));
        }
        let p95 = estimator.speed().first_byte_p95.expect("known");
        assert!((90 * MILLI..=99 * MILLI).contains(&p95), "{p95:?}");
        let one = Estimator::default();
        one.first_byte(7 * MILLI);
        assert_eq!((one.speed().first_byte_p95, one.speed().first_byte), (Some(7 * MILLI), Some(7 * MILLI)));
    }

    #[test]
    fn the_means_follow_the_store() {
        let estimator = Estimator::default();
        estimator.body(100, MILLI);
        assert_eq!(estimator.speed().bytes_per_second, None, "too small to measure");
        for _ in 0..50 {
            estimator.first_byte(10 * MILLI);
            estimator.body(1 << 20, 10 * MILLI);
        }
        for _ in 0..50 {
            estimator.first_byte(100 * MILLI);
            estimator.body(1 << 20, 100 * MILLI);
        }
        let speed = estimator.speed();
        assert!(speed.first_byte.is_some_and(|mean| (95 * MILLI..=100 * MILLI).contains(&mean)), "{speed:?}");
        assert!(speed.bytes_per_second.is_some_and(|rate| (10 << 20..12 << 20).contains(&rate)), "{speed:?}");
    }

    #[test]
    fn every_outcome_is_listed_once() {
        let counters = StoreCounters::default();
        counters.count(Op::Get, None);
        counters.count(Op::Get, Some(&Fault::NotFound));
        counters.count(Op::Get, Some(&Fault::Open));
        let listed: Vec<_> = counters.outcomes().collect();
        assert_eq!(listed.len(), Op::ALL.len() * (Fault::KINDS + 1));
        let some: Vec<_> = listed.into_iter().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(some, [(Op::Get, "ok", 1), (Op::Get, "not_found", 1), (Op::Get, "open", 1)]);
        assert_eq!(counters.faults(Op::Get, &Fault::Open), 1);
    }
}
