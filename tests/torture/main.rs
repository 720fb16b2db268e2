//! A daemon that is killed again and again in the middle of its work, and what must be true after each start.
//!
//! Goal: no wrong byte, nothing lost that was committed, warm at once. Method: a pool that is full, several threads of two
//! engine processes' worth of sessions that store, match, load and prefetch without a pause, and a SIGKILL at a random
//! instant of it: under load, in the middle of a recovery, or (every fourth time) with the engines held still, because then
//! the counts before and after must agree exactly. Engines rejoin by themselves and check every byte they load.
//!
//! `KVD_TORTURE_CYCLES` says how often (30), `KVD_TORTURE_SEED` which sequence of instants and acts.

#![forbid(unsafe_code)]

mod cycle;
mod figures;
mod load;

use cycle::Torture;

/// Cycles from which on the pool is as large as the acceptance has it.
const FULL_CYCLES: u64 = 1000;

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
struct Plan {
    cycles: u64,
    seed: u64,
    dram: &'static str,
    nvme: &'static str,
    /// Chains of small blocks stored before the first kill: more than fit.
    small_chains: u64,
    /// The same of large blocks.
    large_chains: u64,
    /// Records that must be there before the first kill.
    records_min: u64,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn plan() -> Plan {
    let cycles = number("KVD_TORTURE_CYCLES").unwrap_or(30);
    let seed = number("KVD_TORTURE_SEED").unwrap_or_else(kvd_tests::fresh_seed);
    if cycles >= FULL_CYCLES {
        let (dram, nvme) = ("320MiB", "1792MiB");
        Plan { cycles, seed, dram, nvme, small_chains: 7_000, large_chains: 300, records_min: 100_000 }
    } else {
        let (dram, nvme) = ("192MiB", "320MiB");
        Plan { cycles, seed, dram, nvme, small_chains: 700, large_chains: 40, records_min: 12_000 }
    }
}

#[test]
fn sigkill_at_random_instants() {
    let plan = plan();
    println!("torture: {plan:?}; again with KVD_TORTURE_SEED={} KVD_TORTURE_CYCLES={}", plan.seed, plan.cycles);
    let mut torture = Torture::prepare(plan);
    for cycle in 0..plan.cycles {
        torture.cycle(cycle);
    }
    let figures = torture.end();
    println!("{}", serde_json::to_string_pretty(&figures).expect("figures are plain"));
    figures.check();
}
