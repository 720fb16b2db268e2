//! What an operator does to a running node, and that engines go on behind it.

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine, ask_serving};

const BLOCK: usize = 4096;

#[test]
fn a_purge_is_over_when_it_says_so() {
    let scratch = Scratch::new("purge");
    let _daemon = Daemon::start(&scratch, &DaemonOptions::sized("128MiB", "128MiB"));
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 512);
    for chain in 0..8 {
        assert_eq!(engine.store(chain, 0, 512).granted, 512);
    }
    ask_serving(&scratch, &["purge", "--all", "--yes"]);
    for chain in 0..8 {
        assert_eq!(engine.find(chain, 512).blocks(), 0, "purged");
        let stored = engine.store(chain, 0, 512);
        assert_eq!((stored.granted, stored.refused), (512, 0), "a purge that has ended disturbs nobody: {stored:?}");
    }
    assert_eq!(engine.check(7, 512).right, 512);
}

#[test]
fn a_drain_brings_everything_down_and_then_stores_go_on() {
    let scratch = Scratch::new("drain");
    let _daemon = Daemon::start(&scratch, &DaemonOptions::sized("128MiB", "128MiB"));
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 512);
    assert_eq!(engine.store(1, 0, 512).granted, 512);
    ask_serving(&scratch, &["drain"]);
    let tiers = ask_serving(&scratch, &["tiers"]);
    let nvme = tiers["tiers"].as_array().expect("tiers").iter().find(|tier| tier["tier"] == "nvme").expect("nvme");
    assert_eq!(nvme["records"], 512, "{tiers}");
    let stored = engine.store(2, 0, 512);
    assert_eq!((stored.granted, stored.refused), (512, 0), "{stored:?}");
}
