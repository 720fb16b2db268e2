//! A second daemon where one is.

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine};

const BLOCK: usize = 64 * 1024;

#[test]
fn a_second_daemon_is_refused_and_the_first_one_goes_on() {
    let options = DaemonOptions::sized("128MiB", "256MiB");
    let scratch = Scratch::new("twice");
    let mut daemon = Daemon::start(&scratch, &options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 16);
    assert_eq!(engine.store(1, 0, 16).granted, 16);
    let elsewhere = Scratch::new("twice-other");
    let path = |path: std::path::PathBuf| path.display().to_string();
    let (socket, dram) = (path(elsewhere.socket()), path(elsewhere.dram().to_owned()));
    let (data, nvme) = (path(elsewhere.data().to_owned()), path(scratch.data().join("nvme.kvd")));
    let cases = [
        // Everything the same; then each thing alone.
        (&scratch, options.clone(), "another kvd uses the data folder"),
        (&scratch, options.clone().with("socket", &socket).with("tiers.dram.path", &dram), "data folder"),
        (&scratch, options.clone().with("data_dir", &data).with("tiers.dram.path", &dram), "socket"),
        (&scratch, options.clone().with("data_dir", &data).with("socket", &socket), "arena"),
        (&elsewhere, options.clone().with("tiers.nvme.paths", &format!("[{nvme:?}]")), "nvme.kvd"),
    ];
    for (scratch, options, what) in cases {
        let before = std::fs::read_to_string(scratch.data().join("kvd.log")).unwrap_or_default().len();
        let (code, log) = Daemon::refused(scratch, &options);
        let said = &log[before..];
        assert_eq!(code, Some(7), "{what}: {said}");
        assert!(said.contains(what) && said.contains("remedy:"), "{what}: {said}");
    }
    assert!(daemon.alive());
    let checked = engine.check(1, 16);
    assert_eq!((checked.right, checked.wrong), (16, 0), "{checked:?}");
    assert_eq!(engine.engine().times_joined(), 1);
}
