//! Folders deleted under the daemon: open files go on.

use std::fs;

use kvd_tests::{Daemon, Scratch, TestEngine, ask_serving};

use crate::place::{BLOCK, forget_dram, metric, on_device_only, options};

#[test]
fn the_devices_folder_may_be_deleted_under_the_daemon() {
    let scratch = Scratch::new("gone");
    let folder = scratch.data().join("disk");
    fs::create_dir(&folder).expect("a folder for the device");
    let options = options(&folder.join("kvd"));
    let (daemon, engine) = on_device_only(&scratch, &options, 8);
    fs::remove_dir_all(&folder).expect("ours to delete");
    for chain in 0..8 {
        let checked = engine.check(chain, 32);
        assert_eq!((checked.right, checked.wrong, checked.nvme), (32, 0, 32), "read on: {checked:?}");
    }
    assert_eq!(engine.store(100, 0, 32).granted, 32);
    ask_serving(&scratch, &["drain"]);
    assert_eq!(metric(&scratch, "kvd_device_errors_total", ""), 0, "written on");
    drop(engine);
    assert_eq!(daemon.stop(), Some(0));
    // The next one begins with an empty device, and DRAM is adopted.
    fs::create_dir(&folder).expect("the operator's");
    let _daemon = Daemon::start(&scratch, &options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 32);
    let checked = engine.check(100, 32);
    assert_eq!((checked.right, checked.wrong, checked.dram), (32, 0, 32), "{checked:?}");
}

#[test]
fn a_whole_data_folder_may_be_deleted_under_the_daemon() {
    let scratch = Scratch::new("all-gone");
    let options = options(&scratch.data().join("kvd"));
    let (daemon, engine) = on_device_only(&scratch, &options, 8);
    for entry in fs::read_dir(scratch.data()).expect("the data folder").flatten() {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("ours to delete");
    }
    forget_dram(&scratch);
    for chain in 0..8 {
        let checked = engine.check(chain, 32);
        assert_eq!((checked.right, checked.wrong), (32, 0), "who has joined goes on: {checked:?}");
    }
    let stored = engine.store(100, 0, 32);
    assert_eq!((engine.check(100, 32).right, engine.check(100, 32).wrong), (stored.granted, 0), "{stored:?}");
    assert!(TestEngine::join(TestEngine::options(&scratch.socket(), 2), BLOCK, 32).is_err(), "its socket is gone");
    drop(engine);
    assert_eq!(daemon.stop(), Some(0));
    let _daemon = Daemon::start(&scratch, &options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 32);
    assert_eq!(engine.check(1, 32).matched, 0, "nothing is left, and nothing is made up");
    assert_eq!(engine.store(1, 0, 32).granted, 32);
    assert_eq!(engine.check(1, 32).right, 32);
}
