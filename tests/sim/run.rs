//! Seeds, one after the other, and the report.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::world::{Tally, World};

/// Seeds without `KVD_SIM_SEEDS`: what `make test` affords.
const SEEDS: u64 = 500;
/// Every so many seeds one is run twice: it must do the same.
const TWICE_EVERY: u64 = 50;
/// A line of progress after so many seeds.
const PROGRESS_EVERY: u64 = 1000;
/// Failing seeds that are looked for, without `KVD_SIM_VIOLATIONS`.
const VIOLATIONS_MAX: u64 = 5;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

/// Events, their hash, and what happened.
pub(crate) fn run(seed: u64) -> (u64, u64, Tally) {
    let mut world = World::new(seed);
    for _ in 0..world.make.events {
        world.step();
    }
    world.wind_down();
    (world.events, world.hash(), world.tally)
}

#[test]
fn worlds_hold_to_the_rules() {
    if let Some(seed) = number("KVD_SIM_SEED") {
        let (events, hash, tally) = run(seed);
        println!("seed {seed}: {events} events, hash {hash:016x}, {tally:?}");
        return;
    }
    let (first, seeds) = (number("KVD_SIM_FIRST").unwrap_or(0), number("KVD_SIM_SEEDS").unwrap_or(SEEDS));
    let violations_max = number("KVD_SIM_VIOLATIONS").unwrap_or(VIOLATIONS_MAX);
    let started = Instant::now();
    let (mut events, mut violations, mut done) = (0, 0, 0);
    let mut happened = Tally::new();
    for seed in first..first + seeds {
        done += 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let ran = run(seed);
            if seed % TWICE_EVERY == 0 {
                assert_eq!(run(seed), ran, "a seed replays exactly");
            }
            ran
        }));
        match outcome {
            Ok((more, _, tally)) => {
                events += more;
                tally.into_iter().for_each(|(what, count)| *happened.entry(what).or_default() += count);
            }
            Err(_) => {
                violations += 1;
                println!("violation: rerun with KVD_SIM_SEED={seed}");
                if violations >= violations_max {
                    break;
                }
            }
        }
        if done % PROGRESS_EVERY == 0 {
            println!("{done} of {seeds} seeds, {events} events, {violations} violations, {:.0?}", started.elapsed());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let report = serde_json::json!({ "seeds": done, "events": events, "violations": violations, "seconds": seconds });
    println!("happened: {}", serde_json::json!(happened));
    println!("{report}");
    assert_eq!(violations, 0, "rerun the seeds named above");
}
