//! What a store is asked for by the day: what its owner is billed for, by class of requests.
//!
//! No prices: those are between the operator and the store. No clock: time comes in.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::store::{Op, StoreCounters};

/// Between two samples.
const EVERY: Duration = Duration::from_secs(900);
/// Samples that are kept: what was counted in the last day.
const KEPT: usize = 96;
const DAY: Duration = Duration::from_secs(86_400);

/// Requests and bytes. Stores bill by these classes: writing and listing cost ten times as much as reading, deleting nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// PUT and LIST.
    pub(crate) put_list: u64,
    /// GET and HEAD.
    pub(crate) get_head: u64,
    /// DELETE.
    pub(crate) delete: u64,
    /// Bytes of bodies sent.
    pub(crate) bytes_up: u64,
    /// Bytes of bodies received.
    pub(crate) bytes_down: u64,
}

impl Spent {
    /// What was counted up to now.
    pub(super) fn of(counters: &StoreCounters) -> Self {
        Self {
            put_list: counters.sent(Op::Put) + counters.sent(Op::List),
            get_head: counters.sent(Op::Get) + counters.sent(Op::Head),
            delete: counters.sent(Op::Delete),
            bytes_up: counters.bytes_up.get(),
            bytes_down: counters.bytes_down.get(),
        }
    }

    fn by(self, other: Self, merge: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            put_list: merge(self.put_list, other.put_list),
            get_head: merge(self.get_head, other.get_head),
            delete: merge(self.delete, other.delete),
            bytes_up: merge(self.bytes_up, other.bytes_up),
            bytes_down: merge(self.bytes_down, other.bytes_down),
        }
    }
}

/// Samples of the last day; one that begins with nothing at the start.
pub(super) struct Spending {
    /// Guards samples; held for a few instructions, and no other lock is taken under it.
    samples: Mutex<VecDeque<(Instant, Spent)>>,
}

impl Spending {
    /// Nothing was spent before `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { samples: Mutex::new(VecDeque::from([(now, Spent::default())])) }
    }

    /// Takes a sample, where it is time to.
    pub(super) fn note(&self, now: Instant, spent: Spent) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= EVERY) {
            samples.push_back((now, spent));
            // The oldest is where the day begins.
            if samples.len() > KEPT + 1 {
                samples.pop_front();
            }
        }
    }

    /// What a day costs if it goes on as in the time that is told, at most the last day.
    pub(super) fn per_day(&self, now: Instant, spent: Spent) -> (Duration, Spent) {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((since, before)) = samples.front().copied() else { return Default::default() };
        drop(samples);
        let window = now.saturating_duration_since(since);
        let days = DAY.as_secs_f64() / window.max(Duration::from_secs(1)).as_secs_f64();
        (window, spent.by(before, |now, before| (now.saturating_sub(before) as f64 * days).round() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn spent(requests: u64) -> Spent {
        Spent {
            put_list: requests,
            get_head: 2 * requests,
            delete: 3 * requests,
            bytes_up: 0,
            bytes_down: 7 * requests,
        }
    }

    #[test]
    fn the_first_hours_are_extrapolated() {
        let start = Instant::now();
        let spending = Spending::new(start);
        assert_eq!(spending.per_day(start, spent(0)), (Duration::ZERO, spent(0)));
        spending.note(start + HOUR, spent(10));
        assert_eq!(spending.per_day(start + 2 * HOUR, spent(20)), (2 * HOUR, spent(240)));
    }

    #[test]
    fn from_the_second_day_on_it_is_what_was_counted_in_the_last_one() {
        let start = Instant::now();
        let spending = Spending::new(start);
        // A day with a thousand requests an hour, then days with ten, looked at far more often than sampled.
        let at = |minutes: u64| spent(1000 * (minutes / 60));
        for minutes in 0..=24 * 60 {
            spending.note(start + Duration::from_secs(60 * minutes), at(minutes));
        }
        let first = at(24 * 60);
        for minutes in 1..=48 * 60 {
            let more = first.by(spent(10 * (minutes / 60)), |a, b| a + b);
            spending.note(start + 24 * HOUR + Duration::from_secs(60 * minutes), more);
        }
        let now = first.by(spent(480), |a, b| a + b);
        let (window, day) = spending.per_day(start + 72 * HOUR, now);
        assert_eq!((window, day), (24 * HOUR, spent(240)));
        assert_eq!(spending.samples.lock().expect("no panic").len(), KEPT + 1);
    }
}
