//! The object tier's store as its operator meets it: listed, verified and cleaned up.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine};
use serde_json::Value;

const BLOCK: usize = 4096;
const BLOCKS: u32 = 64;

fn settings(scratch: &Scratch) -> [(&'static str, String); 3] {
    let url = format!("file://{}", scratch.data().join("objects").display());
    [("tiers.object.enabled", "true".into()), ("tiers.object.url", url), ("tiers.object.share", "1GiB".into())]
}

fn options(scratch: &Scratch, pack_age: &str) -> DaemonOptions {
    let sized = DaemonOptions::sized("128MiB", "128MiB").with("tiers.object.pack_age", pack_age);
    settings(scratch).into_iter().fold(sized, |options, (key, value)| options.with(key, &value))
}

/// `kvd object`, which asks the store and no daemon.
fn object(scratch: &Scratch, arguments: &[&str]) -> Output {
    let mut kvd = Command::new(Daemon::program());
    kvd.arg("object").args(arguments).arg("--set").arg(format!("data_dir={}", scratch.data().display()));
    for (key, value) in settings(scratch) {
        kvd.arg("--set").arg(format!("{key}={value}"));
    }
    kvd.output().expect("kvd can be started")
}

fn told(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn records(scratch: &Scratch) -> u64 {
    let listed = told(&object(scratch, &["ls", "--json"]));
    listed["packs"].as_array().expect("packs").iter().map(|pack| pack["records"].as_u64().expect("a number")).sum()
}

fn wait_for_records(scratch: &Scratch, wanted: u64) {
    let until = Instant::now() + Duration::from_secs(60);
    while records(scratch) != wanted {
        assert!(Instant::now() < until, "{} records are in the store", records(scratch));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("listed").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn packs_are_listed_and_verified_and_damage_is_told() {
    let scratch = Scratch::new("object-verify");
    let _daemon = Daemon::start(&scratch, &options(&scratch, "200ms"));
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, BLOCKS as usize);
    assert_eq!(engine.store(1, 0, BLOCKS).granted, BLOCKS);
    wait_for_records(&scratch, u64::from(BLOCKS));
    let verified = object(&scratch, &["verify", "--json"]);
    let report = told(&verified);
    assert_eq!((verified.status.code(), &report["records"]), (Some(0), &BLOCKS.into()), "{report}");

    let packs = files(&scratch.data().join("objects/packs"));
    let pack = packs.first().expect("a pack");
    let file = File::options().read(true).write(true).open(pack).expect("opened");
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    };
    let size = file.metadata().expect("a size").len();
    // Metadata and payload of the first record, and the trailer.
    for (at, word) in [(100, "record "), (4096 + 100, "checksum of unit 0"), (size - 1, "the index in it")] {
        flip(at);
        let damaged = object(&scratch, &["verify"]);
        assert_eq!(damaged.status.code(), Some(6), "{at}: {damaged:?}");
        let text = String::from_utf8_lossy(&damaged.stdout).into_owned();
        assert!(text.starts_with("DAMAGED") && text.contains(word), "{at}: {text}");
        flip(at);
    }
    file.set_len(size - 1).expect("cut");
    assert_eq!(object(&scratch, &["verify"]).status.code(), Some(6));
    fs::remove_file(pack).expect("deleted");
    let gone = object(&scratch, &["verify", "--json"]);
    let damages = &told(&gone)["damaged"][0]["damages"][0];
    assert_eq!(gone.status.code(), Some(6));
    assert!(damages.as_str().is_some_and(|text| text.contains("it is gone")), "{damages}");
}

#[test]
fn a_turn_of_the_collector_can_be_asked_for() {
    let scratch = Scratch::new("object-gc");
    let daemon = Daemon::start(&scratch, &options(&scratch, "200ms"));
    let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, BLOCKS as usize);
    assert_eq!(engine.store(1, 0, BLOCKS).granted, BLOCKS);
    wait_for_records(&scratch, u64::from(BLOCKS));
    drop(engine);
    daemon.stop();
    let objects = scratch.data().join("objects");
    let orphan = objects.join("packs/ab").join("ab".repeat(16));
    fs::create_dir_all(orphan.parent().expect("a folder")).expect("made");
    fs::write(&orphan, "half a pack").expect("written");
    let file = File::options().write(true).open(&orphan).expect("opened");
    let written = file.metadata().and_then(|found| found.modified()).expect("when it was written");
    file.set_modified(written - Duration::from_secs(7200)).expect("aged");
    let would = told(&object(&scratch, &["gc", "--dry-run", "--json"]));
    assert_eq!((&would["orphans"], &would["orphan_bytes"], &would["expired"]), (&1.into(), &11.into(), &0.into()));
    assert!(orphan.exists());
    let done = told(&object(&scratch, &["gc", "--json"]));
    assert_eq!((&done["orphans"], &done["packs"][0]), (&1.into(), &"ab".repeat(16).into()), "{done}");
    assert!(!orphan.exists());
    assert_eq!(records(&scratch), u64::from(BLOCKS), "what can be found stays");
    let old = ["gc", "--json", "--set", "tiers.object.pack_age=10ms", "--set", "tiers.object.expire_after=1s"];
    let until = Instant::now() + Duration::from_secs(60);
    while records(&scratch) > 0 {
        assert!(Instant::now() < until, "packs of a second ago stay");
        object(&scratch, &old);
    }
    assert!(files(&objects.join("packs")).is_empty());
}
