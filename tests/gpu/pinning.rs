//! The arena pinned before it is used: all of it, what comes later too, and kept over restarts of the daemon.

use std::time::{Duration, Instant};

use kvd_client::{Engine, Pinned};
use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine};

use crate::blocks::{BLOCKS, Blocks};
use crate::devices;

fn daemon(scratch: &Scratch) -> Daemon {
    Daemon::start(scratch, &DaemonOptions::sized("512MiB", "64MiB").with("tiers.nvme.enabled", "false"))
}

/// Waits until so many segments are pinned, and no more are known.
fn expect(engine: &Engine, what: &str, segments: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    while engine.pinned() != (Pinned { segments, of: segments, failed: false }) {
        assert!(Instant::now() < until, "{what}: {:?}, not {segments}", engine.pinned());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Segments of the arena that somebody has.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("kvd-gpu-pinned")).count()
}

#[test]
fn an_arena_that_is_gone_is_let_go_of_by_everybody() {
    let scratch = Scratch::new("gpu-pinning-gone");
    let mut running = daemon(&scratch);
    let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
    let blocks = Blocks::on(&engine, None, None);
    let all: Vec<usize> = (0..BLOCKS).collect();
    assert_eq!(blocks.store(1, &all).granted as usize, BLOCKS);
    let of_this = |line: &&str| line.contains("kvd-gpu-pinning-gone") && line.contains("deleted");
    let deleted = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(of_this).count();
    running.kill();
    scratch.delete_dram();
    assert!(deleted() > 0);
    running = daemon(&scratch);
    let until = Instant::now() + Duration::from_secs(20);
    // Joined again, and nothing is asked of the new arena.
    while engine.times_joined() < 2 || deleted() > 0 {
        assert!(Instant::now() < until, "{} are mapped", deleted());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn segments_are_pinned_ahead_and_stay_so() {
    for (name, device) in devices("pinning ahead") {
        let scratch = Scratch::new("gpu-pinned");
        let mut running = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        assert_eq!(engine.pinned(), Pinned::default(), "{name}");
        engine.pin_ahead(&device).unwrap();
        let blocks = Blocks::on(&engine, Some(&device), None);
        let all: Vec<usize> = (0..BLOCKS).collect();
        // Chains of 6 MiB: ten are a segment.
        for chain in 1..=22 {
            assert_eq!(blocks.store(chain, &all).granted as usize, BLOCKS, "{name}");
        }
        let used = std::fs::read_dir(scratch.dram()).unwrap().count();
        expect(&engine, name, 3);
        assert!(used >= 3 && mapped() >= 3, "{name}: {used} files, {} mapped", mapped());

        // Another engine, which has used nothing yet.
        let newcomer = Engine::connect(TestEngine::options(&scratch.socket(), 2)).unwrap();
        newcomer.pin_ahead(&device).unwrap();
        expect(&newcomer, name, 3);
        drop(newcomer);

        // What was mapped serves on when the daemon is another one.
        let before = mapped();
        running.kill();
        running = daemon(&scratch);
        let until = Instant::now() + Duration::from_secs(20);
        while engine.epoch().is_none() || blocks.load(1, &all).blocks as usize != BLOCKS {
            assert!(Instant::now() < until, "{name}: joined again");
            std::thread::sleep(Duration::from_millis(20));
        }
        expect(&engine, name, 3);
        assert_eq!(mapped(), before, "{name}");
        for chain in 2..=22 {
            assert_eq!(blocks.load(chain, &all).blocks as usize, BLOCKS, "{name}");
        }

        // An arena that is made anew is another one.
        running.kill();
        scratch.delete_dram();
        running = daemon(&scratch);
        let until = Instant::now() + Duration::from_secs(20);
        while blocks.store(30, &all).granted as usize != BLOCKS {
            assert!(Instant::now() < until, "{name}: joined again");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(blocks.load(30, &all).blocks as usize, BLOCKS, "{name}");
        expect(&engine, name, 1);
        assert_eq!(mapped(), 1, "{name}: what was deleted is let go of");
        assert_eq!(running.stop(), Some(0));
    }
}
