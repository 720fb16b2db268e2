//! An engine that is stopped in the middle of a copy, survives its daemon, and goes on under the next one.
//!
//! While it stands still the successor serves others, who push everything out that may fall: every slot of the arena is
//! written anew, except those the stopped engine may still touch. Continued, it goes on copying for a moment, as if nothing
//! had happened: what it reads must still be what it was promised, and what it writes must not lie in a slot that is another's
//! by now. A checksum would refuse either; so that none refuses anything shows that no slot was given away.

use std::time::Duration;

use kvd_tests::{Checked, Daemon, DaemonOptions, Scratch, TestEngine};
use rand::Rng;
use rustix::process::Signal;

use crate::process::{BLOCK, CHAIN, EngineProcess, Held, within};
use crate::{count, generator};

/// Chains that others store: 2 688 blocks, where the arena has room for 1 926.
const PRESSURE: u64 = 42;

#[test]
fn no_slot_that_a_stopped_engine_may_touch_is_given_away() {
    let mut rng = generator("engine_stopped");
    let scratch = Scratch::new("stopped");
    let options = DaemonOptions::sized("128MiB", "192MiB").with("tiers.nvme.enabled", "false");
    let mut daemon = Daemon::start(&scratch, &options);
    let mut engine = EngineProcess::start(&scratch, 1);
    let other = TestEngine::connect(&scratch.socket(), 2, BLOCK, CHAIN as usize);
    let rounds = count(8, 100);
    let (mut fenced_rounds, mut fenced_slots, mut read) = (0, 0, 0);
    for round in 0..rounds {
        engine.order(&format!("churn {}", 1_000_000 + round * 10_000));
        std::thread::sleep(Duration::from_micros(rng.random_range(5_000..60_000)));
        engine.freeze();
        daemon.kill();
        daemon = Daemon::start(&scratch, &options);
        let fenced = Held::of(&scratch).pins;
        fenced_rounds += u64::from(fenced > 0);
        fenced_slots += fenced;
        within(Duration::from_secs(20), "the other engine rejoins", || other.engine().times_joined() == round + 2);
        let first = 2_000_000 + round * PRESSURE;
        let stored: u32 = (first..first + PRESSURE).map(|chain| other.store(chain, 0, CHAIN).granted).sum();
        assert!(stored >= 1_000, "others are served meanwhile: only {stored} blocks in round {round}");
        engine.signal(Signal::CONT);
        within(Duration::from_secs(20), "the continued engine rejoins", || {
            engine.order("report")["joined"] == round + 2
        });
        let all: Vec<Checked> = (first..first + PRESSURE).map(|chain| other.check(chain, CHAIN)).collect();
        assert!(all.iter().all(|one| one.wrong + one.corrupt == 0), "a late byte in round {round}: {all:?}");
        read += all.iter().map(|one| u64::from(one.right)).sum::<u64>();
        let told = engine.order("rest");
        assert_eq!((&told["wrong"], &told["corrupt"]), (&0.into(), &0.into()), "round {round}: {told}");
        within(Duration::from_secs(5), "nothing is held once all is at rest", || Held::of(&scratch).nothing());
    }
    let told = engine.order("report");
    println!(
        "engine_stopped: {rounds} rounds, {fenced_rounds} with fenced slots ({fenced_slots} in all); others read {read}; {told}"
    );
    assert!(told["read"]["right"].as_u64() > Some(0), "the stopped engine read nothing: {told}");
    assert!(fenced_rounds * 2 >= rounds, "the engine was rarely stopped with slots in its hands");
}
