//! An engine whose KV cache lies in a device's memory, and a daemon: stores and loads of chains, in many chunks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvd_client::Engine;
use kvd_nixl::device::{Between, Way};
use kvd_tests::{Daemon, DaemonOptions, Payload, Scratch, TestEngine};

use crate::blocks::{BLOCK_BYTES, BLOCKS, Blocks, daemon, hashes};
use crate::devices;

#[test]
fn chains_go_from_a_device_to_kvd_and_back_and_to_engines_of_the_other_kind() {
    for (name, device) in devices("chains") {
        let scratch = Scratch::new("gpu-chains");
        let daemon = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let (gpu, cpu) = (Blocks::on(&engine, Some(&device), None), Blocks::on(&engine, None, None));
        let forward: Vec<usize> = (0..BLOCKS).collect();
        let mixed: Vec<usize> = (0..BLOCKS).map(|at| (at * 29 + 7) % BLOCKS).collect();
        for (chain, from) in [(1, &gpu), (2, &cpu)] {
            let stored = from.store(chain, &forward);
            assert_eq!((stored.granted, stored.reason), (BLOCKS as u32, None), "{name}, chain {chain}");
            assert_eq!(from.store(chain, &forward).present, BLOCKS as u32, "{name}, chain {chain} again");
            for to in [&gpu, &cpu] {
                let loaded = to.load(chain, &mixed);
                assert_eq!((loaded.blocks, loaded.from_dram), (BLOCKS as u32, BLOCKS as u32), "{name}: {loaded:?}");
            }
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn a_bit_that_flips_on_its_way_to_the_device_is_never_told() {
    for (name, device) in devices("flips on the way") {
        let scratch = Scratch::new("gpu-flips");
        let daemon = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let chunks = Arc::new(AtomicUsize::new(0));
        let count = chunks.clone();
        // The third chunk of the first load: one bit of its second record.
        let between = Between::new(move |way, staging| {
            if way == Way::ToDevice && count.fetch_add(1, Ordering::Relaxed) == 2 {
                let (at, mut byte) = (BLOCK_BYTES + 4321, [0]);
                staging.read(at, &mut byte).unwrap();
                staging.write(at, &[byte[0] ^ 4]).unwrap();
            }
        });
        let blocks = Blocks::on(&engine, Some(&device), Some(between));
        let all: Vec<usize> = (0..20).collect();
        assert_eq!(blocks.store(1, &all).granted, 20, "{name}");
        let loaded = blocks.load(1, &all);
        // Two chunks of five and one record; the copy in DRAM counts as bad, and there is no other.
        assert_eq!((loaded.blocks, loaded.corrupt), (11, 1), "{name}: {loaded:?}");
        let again = blocks.load(1, &all);
        assert_eq!((again.blocks, again.corrupt), (11, 0), "{name}: {again:?}");
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn a_bit_that_flips_on_its_way_to_kvd_is_a_miss_later() {
    for (name, device) in devices("flips on the way out") {
        let scratch = Scratch::new("gpu-flips-out");
        let daemon = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let between = Between::new(|way, staging| {
            if way == Way::ToHost {
                let mut byte = [0];
                staging.read(99, &mut byte).unwrap();
                staging.write(99, &[byte[0] ^ 4]).unwrap();
            }
        });
        let bad = Blocks::on(&engine, Some(&device), Some(between));
        let good = Blocks::on(&engine, Some(&device), None);
        let all: Vec<usize> = (0..8).collect();
        assert_eq!(bad.store(1, &all).granted, 8, "{name}");
        let loaded = good.load(1, &all);
        assert_eq!((loaded.blocks, loaded.corrupt), (0, 1), "{name}: {loaded:?}");
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn behind_a_block_that_came_wrong_none_is_told_wherever_it_goes() {
    for (name, device) in devices("mixed destinations") {
        let scratch = Scratch::new("gpu-mixed");
        let daemon = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let once = AtomicUsize::new(0);
        // One bit of the first record.
        let between = Between::new(move |way, staging| {
            if way == Way::ToDevice && once.fetch_add(1, Ordering::Relaxed) == 0 {
                let mut byte = [0];
                staging.read(77, &mut byte).unwrap();
                staging.write(77, &[byte[0] ^ 4]).unwrap();
            }
        });
        let (gpu, cpu) = (Blocks::on(&engine, Some(&device), Some(between)), Blocks::on(&engine, None, None));
        assert_eq!(cpu.store(1, &[0, 1, 2, 3]).granted, 4, "{name}");
        let found = gpu.view.match_prefix(&hashes(1, 4));
        // Two to the device, and the next ones to host memory, for which those are waited for.
        let targets = [gpu.places(&[0, 1]), cpu.places(&[8, 9])].concat();
        let loaded = gpu.view.load(&found, 0..4, &targets);
        assert_eq!((loaded.blocks, loaded.corrupt), (0, 1), "{name}: {loaded:?}");
        // It was the first that was put aside.
        assert_eq!(gpu.view.match_prefix(&hashes(1, 4)).blocks(), 0, "{name}");
        assert_eq!(cpu.store(1, &[0, 1, 2, 3]).refused, 0, "{name}");
        let found = gpu.view.match_prefix(&hashes(1, 4));
        assert_eq!(gpu.view.load(&found, 0..4, &targets).blocks, 4, "{name}");
        let all = [gpu.read(0), gpu.read(1), cpu.read(8), cpu.read(9)];
        for (position, bytes) in all.iter().enumerate() {
            assert!(Payload::new(1, position as u32).matches(bytes), "{name}, position {position}");
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn a_small_lease_limit_makes_stores_slower_and_none_is_refused() {
    for (name, device) in devices("a small lease") {
        let scratch = Scratch::new("gpu-lease");
        // Twenty blocks.
        let options = DaemonOptions::sized("256MiB", "64MiB").with("tiers.nvme.enabled", "false");
        let daemon = Daemon::start(&scratch, &options.with("lease.bytes_max", "3MiB"));
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let blocks = Blocks::on(&engine, Some(&device), None);
        let all: Vec<usize> = (0..BLOCKS).collect();
        let stored = blocks.store(1, &all);
        assert_eq!((stored.granted, stored.reason), (BLOCKS as u32, None), "{name}: {stored:?}");
        assert_eq!(daemon.stop(), Some(0));
    }
}
