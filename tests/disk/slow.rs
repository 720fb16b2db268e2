//! A device so slow that its loads do not make their deadline.

use std::time::{Duration, Instant};

use kvd_proto::MissReason;
use kvd_tests::{Daemon, Scratch, TestEngine, ask_serving};

use crate::place::{BLOCK, on_device_only, options};

#[test]
fn loads_from_a_slow_device_end_at_their_deadline() {
    let scratch = Scratch::new("slow");
    let fast = options(&scratch.data().join("kvd"));
    let (daemon, engine) = on_device_only(&scratch, &fast, 4);
    drop(engine);
    daemon.kill();
    crate::place::forget_dram(&scratch);

    // A chain of 2 MiB would take a minute.
    let slow = fast.clone().with("tiers.nvme.read_bandwidth_max", "32KiB/s").with("gate.enabled", "false");
    let daemon = Daemon::start(&scratch, &slow);
    let mut options = TestEngine::options(&scratch.socket(), 1);
    let deadline = Duration::from_millis(300);
    options.load_deadline = Some(deadline);
    let engine = TestEngine::join(options, BLOCK, 32).expect("the daemon accepts us");
    for chain in 0..4 {
        let began = Instant::now();
        let checked = engine.check(chain, 32);
        assert_eq!(checked.wrong, 0, "{checked:?}");
        assert!(checked.right < 32 && checked.reason == Some(MissReason::Timeout), "{checked:?}");
        assert!(began.elapsed() < deadline + Duration::from_secs(3), "a load hangs: {:?}", began.elapsed());
    }
    // Others are not held up.
    assert_eq!(engine.store(50, 0, 32).granted, 32);
    let checked = engine.check(50, 32);
    assert_eq!((checked.right, checked.dram), (32, 32), "{checked:?}");
    ask_serving(&scratch, &["status"]);
    drop(engine);
    daemon.kill();

    let _daemon = Daemon::start(&scratch, &fast);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 32);
    for chain in 0..4 {
        let checked = engine.check(chain, 32);
        assert_eq!((checked.right, checked.wrong), (32, 0), "well again: {checked:?}");
    }
}
