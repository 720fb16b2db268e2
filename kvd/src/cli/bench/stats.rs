//! Medians and percentiles.

use std::time::Duration;

use serde::Serialize;

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    pub(super) samples: usize,
}

impl Latency {
    pub(super) fn of(mut samples: Vec<Duration>) -> Latency {
        samples.sort_unstable();
        let at = |fraction: f64| {
            let index = (samples.len() as f64 * fraction) as usize;
            samples.get(index.min(samples.len().saturating_sub(1))).map_or(0.0, |taken| taken.as_secs_f64() * 1e6)
        };
        let round = |micros: f64| (micros * 100.0).round() / 100.0;
        Latency { p50: round(at(0.5)), p99: round(at(0.99)), max: round(at(1.0)), samples: samples.len() }
    }

    /// `p50 / p99` for a table.
    pub(super) fn text(&self) -> String {
        format!("{:.1} us p50, {:.1} us p99", self.p50, self.p99)
    }
}

/// The one in the middle.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value below which that part of them lies.
pub(super) fn percentile(mut values: Vec<f64>, fraction: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * fraction) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Three digits behind the point are more than any of these figures is worth.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_medians_are_those_of_the_samples() {
        let latency = Latency::of((0..1000).map(Duration::from_micros).collect());
        assert_eq!((latency.p50, latency.p99, latency.max), (500.0, 990.0, 999.0));
        assert_eq!(Latency::of(Vec::new()).p50, 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert!(median([]).is_nan());
        assert_eq!(percentile((0..200).map(f64::from).collect(), 0.99), 198.0);
        assert!(percentile(Vec::new(), 0.5).is_nan());
    }
}
