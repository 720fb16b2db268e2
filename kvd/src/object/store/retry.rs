//! How often and how soon a request is made again.
//!
//! A store in trouble must not be asked more than before: retries are a share of the requests, whatever each of them
//! would like.

use std::time::Duration;

use super::Fault;

/// Requests for one call at most, the first included.
pub(super) const ATTEMPTS_MAX: u32 = 4;
const DELAY_MIN: Duration = Duration::from_millis(50);
/// Who was told to slow down begins here.
const DELAY_THROTTLED_MIN: Duration = Duration::from_millis(200);
const DELAY_MAX: Duration = Duration::from_secs(2);
/// Retries that need no requests before them, so that a quiet node's lost packet is made good.
const BURST: u32 = 10;
/// One retry for so many requests: 10 %.
const REQUESTS_PER_RETRY: u32 = 10;

/// How long to wait before attempt `attempt + 1`, with full jitter: anything between nothing and the bound. `jitter` is from 0 to 1.
pub(super) fn delay(fault: &Fault, attempt: u32, jitter: f64) -> Duration {
    let least = if matches!(fault, Fault::Throttled(_)) { DELAY_THROTTLED_MIN } else { DELAY_MIN };
    let most = least.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(DELAY_MAX);
    most.mul_f64(jitter.clamp(0.0, 1.0))
}

/// What retries may still be made: every request adds a tenth of one, up to a burst.
#[derive(Debug)]
pub(super) struct Budget {
    tenths: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { tenths: BURST * REQUESTS_PER_RETRY }
    }
}

impl Budget {
    /// A first attempt.
    pub(super) fn request(&mut self) {
        self.tenths = (self.tenths + 1).min(BURST * REQUESTS_PER_RETRY);
    }

    /// Takes one retry, if there is one.
    pub(super) fn retry(&mut self) -> bool {
        let left = self.tenths.checked_sub(REQUESTS_PER_RETRY);
        self.tenths = left.unwrap_or(self.tenths);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_tenth_of_the_requests_after_the_burst() {
        let mut budget = Budget::default();
        let mut made = 0;
        for _ in 0..1000 {
            budget.request();
            made += u32::from(budget.retry()) + u32::from(budget.retry());
        }
        assert_eq!(made, BURST + 100 - 1, "the first request found the burst full");
        for _ in 0..10_000 {
            budget.request();
        }
        assert_eq!((0..100).filter(|_| budget.retry()).count(), BURST as usize, "what was not used does not pile up");
    }

    #[test]
    fn the_wait_doubles_to_its_bound_and_jitter_is_full() {
        let fault = Fault::Server(String::new());
        assert_eq!(delay(&fault, 1, 1.0), DELAY_MIN);
        assert_eq!(delay(&fault, 3, 1.0), DELAY_MIN * 4);
        assert_eq!(delay(&fault, 100, 1.0), DELAY_MAX);
        assert_eq!(delay(&fault, 3, 0.0), Duration::ZERO);
        assert_eq!(delay(&Fault::Throttled(String::new()), 1, 0.5), DELAY_THROTTLED_MIN / 2);
    }
}
