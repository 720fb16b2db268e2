//! Disks to break, and a node on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine, ask_serving, skip, system};

pub(crate) const BLOCK: usize = 64 * 1024;
/// How long to wait for something that happens by itself, before the test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A block device over a file, detached with the value.
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    backing: PathBuf,
    bytes: u64,
}

impl Loop {
    pub(crate) fn attach(test: &str, folder: &Path, bytes: u64) -> Option<Self> {
        let backing = folder.join("backing");
        let file = fs::File::create(&backing).expect("a file for the loop device");
        file.set_len(bytes).expect("a sparse file");
        match system("losetup", &["--find", "--show", &backing.display().to_string()]) {
            Ok(device) => {
                let attached = Self { device: device.into(), backing, bytes };
                // Whoever had this number before may have left it read-only.
                attached.read_only(false);
                Some(attached)
            }
            Err(why) => {
                skip(test, &format!("no loop device can be had: {why}"));
                None
            }
        }
    }

    /// From now on the kernel answers EIO to most reads and writes; what the file held there is lost.
    pub(crate) fn break_it(&self) {
        cut(&self.backing, 4096);
    }

    /// Whether the kernel refuses writes from now on.
    pub(crate) fn read_only(&self, yes: bool) {
        let how = if yes { "--setro" } else { "--setrw" };
        system("blockdev", &[how, &self.device.display().to_string()]).expect("who attaches a device may do this");
    }

    pub(crate) fn mend(&self) {
        cut(&self.backing, self.bytes);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = system("losetup", &["--detach", &self.device.display().to_string()]);
    }
}

/// Gives a file another length.
pub(crate) fn cut(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("ours to cut");
}

/// 128 MiB of DRAM, 192 MiB on the device at `device`.
pub(crate) fn options(device: &Path) -> DaemonOptions {
    DaemonOptions::sized("128MiB", "192MiB").with("tiers.nvme.paths", &format!("[\"{}\"]", device.display()))
}

pub(crate) fn forget_dram(scratch: &Scratch) {
    for entry in fs::read_dir(scratch.dram()).expect("the arena's folder").flatten() {
        fs::remove_file(entry.path()).expect("ours to delete");
    }
}

/// A daemon whose only copies of `chains` (32 blocks each) are on its device, and an engine of it.
pub(crate) fn on_device_only(scratch: &Scratch, options: &DaemonOptions, chains: u64) -> (Daemon, TestEngine) {
    let daemon = Daemon::start(scratch, options);
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, 32);
    (0..chains).for_each(|chain| assert_eq!(engine.store(chain, 0, 32).granted, 32));
    ask_serving(scratch, &["drain"]);
    drop(engine);
    daemon.kill();
    forget_dram(scratch);
    let daemon = Daemon::start(scratch, options);
    (daemon, TestEngine::connect(&scratch.socket(), 1, BLOCK, 32))
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "not after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A counter of the metrics, summed over its labels that contain `label`.
pub(crate) fn metric(scratch: &Scratch, name: &str, label: &str) -> u64 {
    let metrics = ask_serving(scratch, &["status", "--metrics"]);
    let text = metrics["text"].as_str().expect("metrics are text").to_owned();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with(name) && line.contains(label)).collect();
    assert!(!lines.is_empty(), "{name} {label}:\n{text}");
    lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// What `kvd devices` says of the only device.
pub(crate) fn device(scratch: &Scratch) -> serde_json::Value {
    ask_serving(scratch, &["devices"])["devices"][0].clone()
}
