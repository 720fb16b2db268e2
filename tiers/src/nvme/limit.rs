//! A bound on bandwidth, from the time that is passed in.

use std::time::Duration;

use kvd_proto::Time;

/// What may be moved at once after a pause.
const BURST: Duration = Duration::from_millis(20);

/// Lets bytes through at a rate. An operation passes whole as soon as nothing is owed, and is owed afterwards.
#[derive(Debug)]
pub(super) struct Limit {
    bytes_per_second: Option<u64>,
    /// When everything let through so far is paid for.
    paid_at: Time,
}

impl Limit {
    /// `None` lets everything through.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), paid_at: Time::ZERO }
    }

    /// When the next operation may start.
    pub(super) fn free_at(&self) -> Time {
        match self.bytes_per_second {
            Some(_) => self.paid_at,
            None => Time::ZERO,
        }
    }

    /// An operation of `bytes` starts.
    pub(super) fn take(&mut self, bytes: u64, now: Time) {
        if let Some(rate) = self.bytes_per_second {
            let burst = u64::try_from(BURST.as_nanos()).expect("a constant far below the limit");
            let earliest = Time::from_nanos(now.as_nanos().saturating_sub(burst));
            let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            self.paid_at = self.paid_at.max(earliest) + Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_rate() {
        let mut limit = Limit::new(Some(1 << 20));
        let (mut now, mut moved) = (Time::from_nanos(1), 0_u64);
        while now < Time::from_nanos(1_000_000_000) {
            if limit.free_at() <= now {
                limit.take(4096, now);
                moved += 4096;
            }
            now = now + Duration::from_micros(100);
        }
        assert!((1 << 20..(1 << 20) * 103 / 100).contains(&moved), "{moved}");
        let mut open = Limit::new(None);
        open.take(u64::MAX, now);
        assert_eq!(open.free_at(), Time::ZERO);
    }

    #[test]
    fn a_pause_is_worth_twenty_milliseconds() {
        let at = |millis: u64| Time::ZERO + Duration::from_millis(millis);
        let mut limit = Limit::new(Some(1 << 20));
        limit.take(1 << 20, at(5000));
        assert_eq!(limit.free_at(), at(5980));
        // What is owed is not forgotten.
        limit.take(1 << 19, at(5100));
        assert_eq!(limit.free_at(), at(6480));
        limit.take(1 << 18, at(6490));
        assert_eq!(limit.free_at(), at(6730));
    }
}
