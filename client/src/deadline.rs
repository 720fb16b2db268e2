//! From "so long from now" to an instant.

use std::time::{Duration, Instant};

/// What an engine that means "no limit" gets: a year, which no clock has trouble with.
const WITHIN_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The instant that lies `within` from now, a year at most.
pub(crate) fn deadline_in(within: Duration) -> Instant {
    Instant::now() + within.min(WITHIN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_far_away_and_no_panic() {
        let soon = deadline_in(Duration::from_secs(1));
        assert!(deadline_in(Duration::MAX) > soon + WITHIN_MAX / 2);
    }
}
