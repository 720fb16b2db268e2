//! Store, match, load; other engines; restarts of either kind.

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine};

const BLOCK: usize = 64 * 1024;

fn options() -> DaemonOptions {
    DaemonOptions::sized("256MiB", "512MiB")
}

#[test]
fn what_one_engine_stores_another_loads() {
    let scratch = Scratch::new("share");
    let _daemon = Daemon::start(&scratch, &options());
    let writer = TestEngine::connect(&scratch.socket(), 1, BLOCK, 64);
    let stored = writer.store(1, 0, 40);
    assert_eq!((stored.granted, stored.refused), (40, 0), "{stored:?}");
    let reader = TestEngine::connect(&scratch.socket(), 2, BLOCK, 64);
    let checked = reader.check(1, 50);
    assert_eq!((checked.matched, checked.right, checked.wrong, checked.dram), (40, 40, 0, 40), "{checked:?}");
    assert_eq!(reader.check(2, 5).matched, 0);
    let again = reader.store(1, 0, 40);
    assert_eq!((again.granted, again.present), (0, 40), "{again:?}");
}

#[test]
fn dram_is_adopted_after_sigkill_and_after_sigterm() {
    let scratch = Scratch::new("adopt");
    let daemon = Daemon::start(&scratch, &options());
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 64);
    assert_eq!(engine.store(1, 0, 64).granted, 64);
    daemon.kill();
    let daemon = Daemon::start(&scratch, &options());
    let second = TestEngine::connect(&scratch.socket(), 2, BLOCK, 64);
    let checked = second.check(1, 64);
    assert_eq!((checked.right, checked.wrong, checked.dram), (64, 0, 64), "{checked:?}\n{}", daemon.log());
    drop(second);
    assert_eq!(daemon.stop(), Some(0));
    let daemon = Daemon::start(&scratch, &options());
    let third = TestEngine::connect(&scratch.socket(), 3, BLOCK, 64);
    let checked = third.check(1, 64);
    assert_eq!((checked.right, checked.wrong, checked.dram), (64, 0, 64), "{checked:?}\n{}", daemon.log());
}

#[test]
fn nvme_serves_what_dram_lost() {
    let scratch = Scratch::new("nvme");
    let daemon = Daemon::start(&scratch, &options());
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 64);
    assert_eq!(engine.store(1, 0, 64).granted, 64);
    drop(engine);
    assert_eq!(daemon.stop(), Some(0), "a graceful stop spills what is queued");
    scratch.delete_dram();
    let daemon = Daemon::start(&scratch, &options());
    let engine = TestEngine::connect(&scratch.socket(), 2, BLOCK, 64);
    let checked = engine.check(1, 64);
    assert_eq!((checked.right, checked.wrong, checked.nvme), (64, 0, 64), "{checked:?}\n{}", daemon.log());
    let again = engine.check(1, 64);
    assert_eq!((again.right, again.dram), (64, 64), "a load promotes: {again:?}");
}

#[test]
fn matches_that_are_dropped_all_at_once_leave_the_session_usable() {
    let scratch = Scratch::new("dropped");
    let _daemon = Daemon::start(&scratch, &options());
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 64);
    assert_eq!(engine.store(1, 0, 1).granted, 1);
    // More than both rings hold, and nobody takes an answer meanwhile.
    for _ in 0..3 {
        let held: Vec<_> = (0..900).map(|_| engine.find(1, 1)).collect();
        assert!(held.iter().all(|found| found.blocks() == 1));
        drop(held);
    }
    let epoch = engine.engine().epoch();
    assert_eq!(engine.check(1, 1).right, 1);
    assert_eq!(engine.engine().epoch(), epoch, "the session ended");
    assert!(epoch.is_some());
}

#[test]
fn no_limit_as_a_deadline_is_no_panic() {
    let scratch = Scratch::new("unlimited");
    let _daemon = Daemon::start(&scratch, &options());
    let mut options = TestEngine::options(&scratch.socket(), 1);
    options.match_deadline = Some(std::time::Duration::MAX);
    options.load_deadline = Some(std::time::Duration::MAX);
    options.store_deadline = std::time::Duration::MAX;
    let engine = TestEngine::join(options, BLOCK, 64).expect("the daemon accepts us");
    assert_eq!(engine.store(1, 0, 4).granted, 4);
    assert_eq!(engine.check(1, 4).right, 4);
}
