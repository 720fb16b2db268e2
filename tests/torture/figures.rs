//! What is measured, and its bounds.

use serde::Serialize;

/// Percentiles of a measured time, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Millis {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Millis {
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (samples.len() as f64 * share).ceil() as usize;
            samples.get(rank.saturating_sub(1).min(samples.len().saturating_sub(1))).copied().unwrap_or(0.0)
        };
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// Counts before and after starts, added up.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Kept {
    pub(crate) before: u64,
    pub(crate) after: u64,
    /// The worst single start.
    pub(crate) ratio_min: f64,
}

impl Kept {
    pub(crate) fn add(&mut self, before: u64, after: u64) {
        if before == 0 {
            return;
        }
        let ratio = after as f64 / before as f64;
        self.ratio_min = if self.before == 0 { ratio } else { self.ratio_min.min(ratio) };
        self.before += before;
        self.after += after;
    }

    pub(crate) fn ratio(&self) -> f64 {
        if self.before == 0 { 1.0 } else { self.after as f64 / self.before as f64 }
    }
}

/// The test's result, printed as JSON.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) seed: u64,
    pub(crate) cycles: u64,
    /// Kills before the daemon was ready again.
    pub(crate) kills_in_recovery: u64,
    /// Records in the pool before the first kill and after the last.
    pub(crate) records_first: u64,
    pub(crate) records_last: u64,
    pub(crate) evicted: u64,
    pub(crate) reads_verified: u64,
    pub(crate) wrong_blocks: u64,
    /// Copies that a client's checksum refused.
    pub(crate) refused_copies: u64,
    pub(crate) from_dram: u64,
    pub(crate) from_nvme: u64,
    pub(crate) stored: u64,
    /// NVMe records restored, of those committed when the engines were held still: the worst start.
    pub(crate) recovered_ratio: f64,
    pub(crate) nvme_still: Kept,
    /// The same with the engines at work, when the count before is some moves old.
    pub(crate) nvme_under_load: Kept,
    pub(crate) dram_still: Kept,
    /// Blocks of sampled chains that matched before and after, engines held still.
    pub(crate) matched_still: Kept,
    /// From the start of the process to the first hit of a client.
    pub(crate) restart_ms: Millis,
    /// From the start of the process until all engines had rejoined by themselves.
    pub(crate) rejoin_ms: Millis,
    /// Starts after which DRAM records had been adopted and were read from DRAM.
    pub(crate) dram_adopted_cycles: u64,
    /// Cycles in which the sample taken before the kill was hit in the adopted arena.
    pub(crate) dram_hit_cycles: u64,
    /// The longest single call of an engine.
    pub(crate) call_ms_max: f64,
}

impl Figures {
    pub(crate) fn check(&self) {
        assert_eq!(self.wrong_blocks, 0, "a wrong block was told to an engine");
        assert_eq!(self.refused_copies, 0, "no copy is bad after a SIGKILL: what was published was whole");
        assert!(self.reads_verified > 0, "nothing was read");
        assert!(self.evicted > 0, "the pool was not full");
        assert!(self.recovered_ratio >= 0.999, "committed NVMe records are gone: {:?}", self.nvme_still);
        assert!(self.nvme_under_load.ratio() >= 0.995, "records are gone under load: {:?}", self.nvme_under_load);
        // Over all such cycles: a block whose prefix lay on no tier any more is not taken over.
        assert!(self.dram_still.ratio() >= 0.999, "DRAM was not adopted whole: {:?}", self.dram_still);
        assert!(self.matched_still.ratio_min >= 0.999, "chains got shorter: {:?}", self.matched_still);
        assert_eq!(self.dram_adopted_cycles, self.cycles, "each start adopts DRAM");
        assert!(self.dram_hit_cycles > 0 && self.from_dram > 0, "what is adopted is hit");
        assert!(self.restart_ms.p99 <= 1000.0, "ready too late: {:?}", self.restart_ms);
    }
}
