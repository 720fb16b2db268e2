//! A live engine that takes holds and never gives one back.

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine, ask};

use crate::process::{BLOCK, CHAIN, EngineProcess, SLOT};

/// 32 slots and a bit.
const CAP: u64 = 32 * SLOT + 1000;

#[test]
fn an_engine_that_never_releases_pins_no_more_than_its_cap() {
    let scratch = Scratch::new("hoard");
    let options = DaemonOptions::sized("128MiB", "192MiB").with("lease.bytes_max", &CAP.to_string());
    let _daemon = Daemon::start(&scratch, &options);
    let other = TestEngine::connect(&scratch.socket(), 2, BLOCK, CHAIN as usize);
    assert_eq!(other.engine().lease_bytes_max(), Some(CAP));
    let hoarded: Vec<u64> = (0..12).collect();
    for &chain in &hoarded {
        other.store(chain, 0, 8);
    }
    let mut hoarder = EngineProcess::start(&scratch, 1);
    let mut held = 0;
    let mut refused = 0;
    for chain in &hoarded {
        let found = hoarder.order(&format!("hold {chain} 8"));
        held += found["blocks"].as_u64().expect("a number");
        if found["reason"] == "quota" {
            refused += 1;
        }
    }
    println!("hoard: {held} blocks held, {refused} matches refused for the quota");
    assert!(held <= 32, "{held} blocks are more than the cap has room for");
    assert!(held >= 24, "the cap itself may be used: {held}");
    assert!(refused >= 8, "the others are told why: {refused}");
    let leases = ask(&scratch, &["leases"]).expect("the daemon answers");
    let bytes: u64 =
        leases["leases"].as_array().expect("a list").iter().map(|lease| lease["bytes"].as_u64().expect("bytes")).sum();
    assert!(bytes <= CAP, "{leases}");
    // The others go on as if nothing were: everything but the hoard may fall.
    for chain in 100..140 {
        let mut granted = 0;
        for from in (0..CHAIN).step_by(16) {
            granted += other.store(chain, from, from + 16).granted;
        }
        assert_eq!(granted, CHAIN, "another engine cannot store chain {chain}");
        let checked = other.check(chain, 16);
        assert_eq!((checked.right, checked.wrong), (16, 0), "{checked:?}");
    }
    // What is held is still there, and its own quota opens again with a release.
    assert_eq!(hoarder.order("check 0 8")["right"], 0, "its cap is used up");
    hoarder.order("release");
    let again = hoarder.order("check 0 8");
    assert_eq!(again["right"], 8, "what was held has not fallen: {again}");
}
