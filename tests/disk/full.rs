//! A file system without room.

use std::fs;
use std::io::Write as _;

use kvd_tests::{Daemon, DaemonOptions, Scratch, SmallDisk, TestEngine, ask_serving};

use crate::place::{BLOCK, cut, forget_dram, on_device_only, options};

fn sized(nvme: &str) -> DaemonOptions {
    DaemonOptions::sized("128MiB", nvme)
}

#[test]
fn a_device_that_does_not_fit_is_refused_with_the_key_and_a_remedy() {
    let scratch = Scratch::new("small");
    let Some(_disk) = SmallDisk::mount("full disk at start", scratch.data(), "160MiB") else { return };
    let (code, log) = Daemon::refused(&scratch, &sized("256MiB"));
    assert_eq!(code, Some(2), "{log}");
    for part in ["tiers.nvme.capacity", &scratch.data().display().to_string(), "128MiB"] {
        assert!(log.contains(part), "the message lacks {part}: {log}");
    }
    // What the message advises works.
    let _daemon = Daemon::start(&scratch, &sized("128MiB"));
}

/// The check adds up what is missing to the capacity; an older file that is longer and sparse needs more than that.
#[test]
fn no_space_while_the_file_is_reserved_names_the_file() {
    let scratch = Scratch::new("sparse");
    let Some(_disk) = SmallDisk::mount("full disk while reserving", scratch.data(), "200MiB") else { return };
    let path = scratch.data().join("nvme.kvd");
    fs::write(&path, []).expect("an empty file");
    cut(&path, 1 << 30);
    let (code, log) = Daemon::refused(&scratch, &sized("128MiB"));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("nvme.kvd") && log.contains("No space left"), "{log}");
}

#[test]
fn a_disk_that_fills_up_later_takes_nothing_from_what_was_reserved() {
    let scratch = Scratch::new("filled");
    let Some(_disk) = SmallDisk::mount("disk filled by others", scratch.data(), "220MiB") else { return };
    let options = sized("192MiB");
    let daemon = Daemon::start(&scratch, &options);
    let mut junk = fs::File::create(scratch.data().join("junk")).expect("a file of somebody else");
    while junk.write_all(&[7; 1 << 16]).is_ok() {}
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 32);
    (0..16).for_each(|chain| assert_eq!(engine.store(chain, 0, 32).granted, 32));
    ask_serving(&scratch, &["drain"]);
    drop(engine);
    daemon.kill();
    forget_dram(&scratch);
    // The epoch cannot be written down on a full disk, and the log is on it as well: a start may be refused, in words.
    drop(junk);
    fs::remove_file(scratch.data().join("junk")).expect("room again");
    let _daemon = Daemon::start(&scratch, &options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 32);
    for chain in 0..16 {
        let checked = engine.check(chain, 32);
        assert_eq!((checked.right, checked.wrong, checked.nvme), (32, 0, 32), "{checked:?}");
    }
}

#[test]
fn a_read_only_file_system_is_refused_at_start_in_words() {
    let scratch = Scratch::new("read-only");
    let folder = scratch.data().join("disk");
    fs::create_dir(&folder).expect("a folder for the device");
    let Some(disk) = SmallDisk::mount("read-only file system", &folder, "220MiB") else { return };
    let options = options(&folder.join("kvd"));
    let (daemon, engine) = on_device_only(&scratch, &options, 1);
    // With a file open for writing it stays writable, so that this can only happen between two daemons.
    assert!(disk.remount("ro").is_err(), "the daemon keeps its file open");
    assert_eq!(engine.check(0, 32).nvme, 32);
    drop(engine);
    assert_eq!(daemon.stop(), Some(0));
    disk.remount("ro").expect("nobody writes");
    let (code, log) = Daemon::refused(&scratch, &options);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("tiers.nvme.paths") && log.contains(&folder.display().to_string()), "{log}");
    disk.remount("rw").expect("the operator's remedy");
    forget_dram(&scratch);
    let _daemon = Daemon::start(&scratch, &options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 32);
    let checked = engine.check(0, 32);
    assert_eq!((checked.right, checked.wrong, checked.nvme), (32, 0, 32), "{checked:?}");
}
