//! What a replay counts, and how it is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Hits by the tier they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct ByTier {
    /// From the arena.
    pub dram: u64,
    /// From a device.
    pub nvme: u64,
    /// From the object tier.
    #[serde(default)]
    pub object: u64,
}

/// Latency in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// What `kvd replay --json` prints.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::cli) struct Report {
    /// Requests played.
    pub requests: u64,
    /// Blocks that they asked for.
    pub blocks_asked: u64,
    /// Blocks that were matched, loaded and right.
    pub blocks_hit: u64,
    /// Their share.
    pub hit_rate: f64,
    /// Where they came from.
    pub hit_by_tier: ByTier,
    /// Blocks given to the daemon and taken.
    pub blocks_stored: u64,
    /// Payload bytes loaded.
    pub bytes_loaded: u64,
    /// Payload bytes stored.
    pub bytes_stored: u64,
    /// Blocks that came back with other bytes. Anything but 0 is a bug.
    pub wrong_blocks: u64,
    /// Copies that failed their checksum in the client and were not served.
    pub corrupt_copies: u64,
    /// A match, lease included.
    pub match_us: Percentiles,
    /// While loading.
    pub load_gbps: f64,
    /// While storing.
    pub store_gbps: f64,
    /// Daemon epochs seen: 1, and one more for each restart.
    pub epochs_seen: u64,
    /// Blocks that were no hit, by reason.
    pub misses: BTreeMap<String, u64>,
    /// Seconds that an engine would have computed for the missed tokens, by `--prefill-tokens-per-second`.
    pub charged_prefill_s: f64,
    /// Of these, seconds that the replay waited for, by `--compute`.
    pub computed_s: f64,
    /// Seconds of the replay, and those charged and not waited for.
    pub total_s: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) match_us_all: Option<Vec<u32>>,
    #[serde(default)]
    pub(super) load_s: f64,
    #[serde(default)]
    pub(super) store_s: f64,
    #[serde(default)]
    pub(super) epochs: BTreeSet<u64>,
}

impl Report {
    /// Adds another engine's report.
    pub(super) fn add(&mut self, part: Report) {
        self.requests += part.requests;
        self.blocks_asked += part.blocks_asked;
        self.blocks_hit += part.blocks_hit;
        self.hit_by_tier.dram += part.hit_by_tier.dram;
        self.hit_by_tier.nvme += part.hit_by_tier.nvme;
        self.hit_by_tier.object += part.hit_by_tier.object;
        self.blocks_stored += part.blocks_stored;
        self.bytes_loaded += part.bytes_loaded;
        self.bytes_stored += part.bytes_stored;
        self.wrong_blocks += part.wrong_blocks;
        self.corrupt_copies += part.corrupt_copies;
        self.charged_prefill_s += part.charged_prefill_s;
        self.computed_s += part.computed_s;
        self.load_s += part.load_s;
        self.store_s += part.store_s;
        self.epochs.extend(part.epochs);
        self.match_us_all.get_or_insert_default().extend(part.match_us_all.unwrap_or_default());
        for (reason, count) in part.misses {
            *self.misses.entry(reason).or_default() += count;
        }
    }

    /// Works out what follows from the sums, after the last addition.
    pub(super) fn finish(&mut self, wall: Duration) {
        let mut samples = self.match_us_all.take().unwrap_or_default();
        samples.sort_unstable();
        let at = |share: f64| samples.get((samples.len() as f64 * share) as usize).copied().unwrap_or(0).into();
        self.match_us = Percentiles { p50: at(0.5), p99: at(0.99) };
        self.rates();
        self.total_s = wall.as_secs_f64() + self.charged_prefill_s - self.computed_s;
    }

    fn rates(&mut self) {
        let per_second = |bytes: u64, seconds: f64| if seconds > 0.0 { bytes as f64 / seconds / 1e9 } else { 0.0 };
        self.hit_rate = if self.blocks_asked > 0 { self.blocks_hit as f64 / self.blocks_asked as f64 } else { 0.0 };
        self.load_gbps = per_second(self.bytes_loaded, self.load_s);
        self.store_gbps = per_second(self.bytes_stored, self.store_s);
        self.epochs_seen = self.epochs.len() as u64;
    }
}

/// Counts while a replay runs.
#[derive(Debug)]
pub(in crate::cli) struct Tally {
    /// The sums.
    pub report: Report,
    /// Tokens of blocks that were no hit.
    pub tokens_missed: u64,
    matches: Histogram<u64>,
    samples: Vec<u32>,
}

impl Default for Tally {
    fn default() -> Self {
        let matches = Histogram::new_with_max(60_000_000, 3).expect("constant bounds are valid");
        Self { report: Report::default(), tokens_missed: 0, matches, samples: Vec::new() }
    }
}

impl Tally {
    /// One match took so long.
    pub(in crate::cli) fn matched(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.matches.saturating_record(us);
        self.samples.push(u32::try_from(us).unwrap_or(u32::MAX));
    }

    /// So many blocks were no hit for this reason.
    pub(in crate::cli) fn missed(&mut self, reason: &str, blocks: u64) {
        if blocks > 0 {
            *self.report.misses.entry(reason.to_owned()).or_default() += blocks;
        }
    }

    pub(super) fn match_samples(&self) -> Vec<u32> {
        self.samples.clone()
    }

    /// The report so far.
    pub(in crate::cli) fn report(&self, wall: Duration, prefill_tokens_per_second: f64) -> Report {
        let mut report = self.report.clone();
        report.match_us =
            Percentiles { p50: self.matches.value_at_quantile(0.5), p99: self.matches.value_at_quantile(0.99) };
        if prefill_tokens_per_second > 0.0 {
            report.charged_prefill_s = self.tokens_missed as f64 / prefill_tokens_per_second;
        }
        report.rates();
        report.total_s = wall.as_secs_f64() + report.charged_prefill_s - report.computed_s;
        report
    }
}
