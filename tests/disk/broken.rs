//! A device that answers with errors, and then does not any more.

use std::time::{Duration, Instant};

use kvd_proto::MissReason;
use kvd_tests::{Daemon, Scratch, TestEngine};

use crate::place::{Loop, cut, device, eventually, metric, on_device_only, options};

/// Loads chains while the device is broken: misses that say so, and soon without asking it at all.
fn misses(scratch: &Scratch, daemon: &Daemon, engine: &TestEngine, path: &str) {
    for chain in 0..8 {
        let began = Instant::now();
        let checked = engine.check(chain, 32);
        assert_eq!((checked.right, checked.wrong), (0, 0), "{checked:?}");
        assert!(matches!(checked.reason, Some(MissReason::TierDown)), "chain {chain}: {checked:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "a load hangs: {:?}", began.elapsed());
    }
    let found = device(scratch);
    assert_eq!((found["path"].as_str(), found["state"].as_str()), (Some(path), Some("failed")), "{found}");
    assert!(metric(scratch, "kvd_device_errors_total", "read") > 0);
    assert!(metric(scratch, "kvd_block_misses_total", "tier_down") > 0);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the device fails"));
    assert!(line.is_some_and(|line| line.contains(path)), "the log names the device:\n{log}");
    // DRAM goes on.
    assert_eq!(engine.store(50, 0, 32).granted, 32);
    assert_eq!(engine.check(50, 32).dram, 32);
}

/// Afterwards, by itself: the probe finds it, reads and writes go on.
fn back(scratch: &Scratch, daemon: &Daemon, engine: &TestEngine, path: &str) {
    eventually("the device is found well", || device(scratch)["state"] == "ok");
    let line = |line: &str| line.contains("works again") && line.contains(path);
    assert!(daemon.log().lines().any(line), "{}", daemon.log());
    let written = metric(scratch, "kvd_device_written_bytes_total", "");
    assert_eq!(engine.store(60, 0, 32).granted, 32);
    eventually("spills go on", || metric(scratch, "kvd_device_written_bytes_total", "") > written);
}

#[test]
fn a_device_cut_short_is_left_alone_until_it_is_whole() {
    let scratch = Scratch::new("short");
    let path = scratch.data().join("kvd");
    let (daemon, engine) = on_device_only(&scratch, &options(&path), 8);
    let bytes = std::fs::metadata(&path).expect("the device").len();
    let name = path.display().to_string();
    cut(&path, 4096);
    misses(&scratch, &daemon, &engine, &name);
    cut(&path, bytes);
    back(&scratch, &daemon, &engine, &name);
    // What was cut off is zeros now: no record, and nobody takes it for one. Blocks behind the first are found out one by
    // one, when those before them are there again.
    for chain in 0..8 {
        let checked = engine.check(chain, 32);
        assert_eq!((checked.right, checked.wrong), (0, 0), "chain {chain}: {checked:?}");
        eventually("the chain is whole again", || {
            let stored = engine.store(chain, 0, 32);
            assert_eq!(stored.refused, 0, "chain {chain}: {stored:?}");
            let checked = engine.check(chain, 32);
            assert_eq!(checked.wrong, 0, "chain {chain}: {checked:?}");
            checked.right == 32
        });
    }
}

#[test]
fn a_block_device_that_answers_eio_is_left_alone_until_it_works() {
    let scratch = Scratch::new("eio");
    let Some(disk) = Loop::attach("EIO of a block device", scratch.data(), 192 << 20) else { return };
    let (daemon, engine) = on_device_only(&scratch, &options(&disk.device), 8);
    let name = disk.device.display().to_string();
    disk.break_it();
    misses(&scratch, &daemon, &engine, &name);
    disk.mend();
    back(&scratch, &daemon, &engine, &name);
    assert_eq!(engine.check(60, 32).right, 32);
    // Detached only when nobody has it open.
    drop(engine);
    daemon.kill();
}

#[test]
fn a_device_that_turns_read_only_is_read() {
    let scratch = Scratch::new("ro-device");
    let Some(disk) = Loop::attach("a block device that turns read-only", scratch.data(), 192 << 20) else { return };
    let (daemon, engine) = on_device_only(&scratch, &options(&disk.device), 8);
    let name = disk.device.display().to_string();
    disk.read_only(true);
    (50..60).for_each(|chain| assert_eq!(engine.store(chain, 0, 32).granted, 32));
    eventually("a write fails", || device(&scratch)["state"] == "read_only");
    for chain in 0..8 {
        let checked = engine.check(chain, 32);
        assert_eq!((checked.right, checked.wrong, checked.nvme), (32, 0, 32), "chain {chain}: {checked:?}");
    }
    assert!(metric(&scratch, "kvd_device_errors_total", "write") > 0);
    let log = daemon.log();
    assert!(log.lines().any(|line| line.contains("the device fails") && line.contains(&name)), "{log}");
    disk.read_only(false);
    back(&scratch, &daemon, &engine, &name);
    drop(engine);
    daemon.kill();
}
