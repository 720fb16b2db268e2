//! Hit ratios of the policies on a recorded and on generated traces, beside LRU and what was possible. JSON on stdout.
//!
//! `hit_ratio [TRACE [CAPACITY...]]`

use std::path::PathBuf;

use kvd_benches::{cache_sim, traces};
use kvd_tiers::policy::{Adaptive, Lru};
use serde::Serialize;

const CONVERSATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/traces/conversation.jsonl");
const CAPACITIES: [usize; 6] = [500, 2_000, 5_000, 10_000, 20_000, 40_000];
const SEED: u64 = 20_261_123;

#[derive(Serialize)]
struct OfTrace {
    trace: String,
    requests: usize,
    blocks_asked: u64,
    blocks_hit_infinite: u64,
    percent_infinite: f64,
    capacities: Vec<OfCapacity>,
}

#[derive(Serialize)]
struct OfCapacity {
    blocks: usize,
    percent_lru: f64,
    percent_adaptive: f64,
    percent_optimal: f64,
    /// Of the way from LRU to the optimum, where there is a way of a tenth of a point at least.
    gap_closed_percent: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().unwrap_or_else(|| CONVERSATION.into()));
    let mut capacities = arguments.map(|n| n.parse()).collect::<Result<Vec<usize>, _>>()?;
    if capacities.is_empty() {
        capacities = CAPACITIES.to_vec();
    }
    let recorded = (path.display().to_string(), traces::read(&path)?);
    let generated = [
        ("agents", traces::agents as fn(u64) -> traces::Trace),
        ("loops", traces::loops),
        ("recency", traces::recency),
        ("phases", traces::phases),
    ];
    let generated = generated.map(|(name, make)| (format!("{name}, seed {SEED}"), make(SEED)));
    let results: Vec<_> =
        std::iter::once(recorded).chain(generated).map(|(name, trace)| measure(name, &trace, &capacities)).collect();
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

fn measure(trace_name: String, trace: &traces::Trace, capacities: &[usize]) -> OfTrace {
    let asked: u64 = trace.iter().map(|chain| chain.len() as u64).sum();
    let percent = |hits: u64| (hits as f64 / asked as f64 * 1e4).round() / 1e2;
    let infinite = cache_sim::hits(trace, usize::MAX, &mut Lru::default());
    let capacities = capacities.iter().map(|blocks| {
        let lru = percent(cache_sim::hits(trace, *blocks, &mut Lru::default()));
        let adaptive = percent(cache_sim::hits(trace, *blocks, &mut Adaptive::new(*blocks as u64)));
        let optimal = percent(cache_sim::optimal_hits(trace, *blocks));
        let closed = || ((adaptive - lru) / (optimal - lru) * 1e3).round() / 1e1;
        OfCapacity {
            blocks: *blocks,
            percent_lru: lru,
            percent_adaptive: adaptive,
            percent_optimal: optimal,
            gap_closed_percent: (optimal - lru > 0.1).then(closed),
        }
    });
    OfTrace {
        trace: trace_name,
        requests: trace.len(),
        blocks_asked: asked,
        blocks_hit_infinite: infinite,
        percent_infinite: percent(infinite),
        capacities: capacities.collect(),
    }
}
