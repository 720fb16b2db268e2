//! What an operator does to a running node, and that engines go on behind it.

use std::time::{Duration, Instant};

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine, ask_serving, chain_hash};
use rustix::process::Signal;

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

#[test]
fn a_namespace_is_counted_purged_and_asked_after_by_name_though_nobody_opened_it_since_the_start() {
    let scratch = Scratch::new("names");
    let options = DaemonOptions::sized("128MiB", "128MiB");
    let daemon = Daemon::start(&scratch, &options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 8);
    assert_eq!(engine.store(1, 0, 8).granted, 8);
    drop(engine);
    daemon.stop();
    let _daemon = Daemon::start(&scratch, &options);
    let namespaces = ask_serving(&scratch, &["namespaces"]);
    let known = &namespaces["namespaces"][0];
    assert_eq!((&known["records"], &known["views"]), (&8.into(), &0.into()), "{namespaces}");
    let digest = known["digest"].as_str().expect("its name").to_owned();
    let hash = chain_hash(1, 3).to_string();
    let explained = ask_serving(&scratch, &["explain", "--namespace", &digest, &hash]);
    assert_eq!(explained["explanations"][0]["matchable"], true, "{explained}");
    let purged = ask_serving(&scratch, &["purge", "--namespace", &digest, "--yes"]);
    assert_eq!((&purged["done"], &purged["total"]), (&8.into(), &8.into()), "{purged}");
    let namespaces = ask_serving(&scratch, &["namespaces"]);
    assert_eq!(namespaces["namespaces"][0]["records"], 0, "{namespaces}");
}

#[test]
fn blocks_are_evicted_out_of_one_tier_from_the_end_of_their_chain() {
    let scratch = Scratch::new("evict-tier");
    let _daemon = Daemon::start(&scratch, &DaemonOptions::sized("128MiB", "128MiB"));
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 4);
    assert_eq!(engine.store(1, 0, 4).granted, 4);
    ask_serving(&scratch, &["drain"]);
    let hashes: Vec<_> = (0..4).map(|position| chain_hash(1, position).to_string()).collect();
    let evict = |tier: &str, hashes: &[String]| {
        let mut command = vec!["evict", "--yes", "--tier", tier];
        command.extend(hashes.iter().map(String::as_str));
        let evicted = ask_serving(&scratch, &command);
        (evicted["blocks"].as_u64(), evicted["skipped"].as_u64())
    };
    assert_eq!(evict("dram", &hashes[2..]), (Some(2), Some(0)));
    assert_eq!(engine.check(1, 4).right, 4, "they are read from NVMe");
    let ends = [hashes[1].clone(), hashes[3].clone()];
    assert_eq!(evict("nvme", &ends), (Some(1), Some(1)), "a block stays whose child lies there as well");
}

#[test]
fn a_drain_that_writes_nothing_says_so() {
    let scratch = Scratch::new("drain-nowhere");
    let _daemon =
        Daemon::start(&scratch, &DaemonOptions::sized("128MiB", "128MiB").with("tiers.nvme.enabled", "false"));
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 8);
    assert_eq!(engine.store(1, 0, 8).granted, 8);
    let drained = ask_serving(&scratch, &["drain"]);
    assert_eq!((&drained["done"], &drained["skipped"]), (&0.into(), &8.into()), "{drained}");
}

#[test]
fn a_second_signal_ends_a_daemon_that_waits_for_its_disk() {
    let scratch = Scratch::new("stop-now");
    let slow = DaemonOptions::sized("128MiB", "128MiB").with("tiers.nvme.write_bandwidth_max", "64KiB");
    let daemon = Daemon::start(&scratch, &slow);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 512);
    assert_eq!(engine.store(1, 0, 512).granted, 512);
    let asked = Instant::now();
    // The first stops it; one that comes before it waits for its disk says nothing new.
    for _ in 0..10 {
        daemon.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(daemon.stop(), Some(1));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let _again = Daemon::start(&scratch, &DaemonOptions::sized("128MiB", "128MiB"));
    let engine = TestEngine::connect(&scratch.socket(), 2, BLOCK, 512);
    assert_eq!(engine.check(1, 512).right, 512, "the arena waits for the next daemon");
}
