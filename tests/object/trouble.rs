//! Writers that die, packs that rot and vanish, a store that is gone for a while.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use kvd_tests::{Daemon, TestEngine};
use kvd_tiers::object::{pack_path, parse_pack_path};

use crate::pool::{BLOCKS, Node, Store, published, served, within};

/// How often a writer is killed.
fn kills() -> u64 {
    if std::env::var_os("KVD_OBJECT").is_some() { 100 } else { 8 }
}

fn never_wrong(engine: &TestEngine, chain: u64) {
    let checked = engine.check(chain, BLOCKS);
    assert_eq!(checked.wrong, 0, "a wrong byte: {checked:?}");
}

#[test]
fn a_writer_that_is_killed_leaves_whole_packs_or_none() {
    let store = Store::folder();
    let mut a = Node::start("killed-a", &store, &[]);
    let b = Node::start("killed-b", &store, &[]);
    let reader = b.engine(9);
    for round in 0..kills() {
        let writer = a.engine(1);
        for chain in 0..4 {
            writer.store(round * 10 + chain, 0, BLOCKS);
        }
        std::thread::sleep(Duration::from_millis(40 * (round % 8)));
        a.kill();
        drop(writer);
        published(&store.path());
        (0..4).for_each(|chain| never_wrong(&reader, round * 10 + chain));
        a.restart();
    }
    // What it stores after all that is shared as ever.
    a.engine(1).store(777_777, 0, BLOCKS);
    served(&reader, 777_777);
    within("all is uploaded", || a.metric("kvd_object_buffered_bytes") + a.metric("kvd_object_waiting_records") == 0);
    let left = orphans(&store);
    for path in &left {
        let file = File::options().write(true).open(store.path().join(path)).expect("an orphan");
        let written = file.metadata().and_then(|found| found.modified()).expect("when it was written");
        file.set_modified(written - Duration::from_secs(2 * 3600)).expect("aged");
    }
    let mut kvd = Command::new(Daemon::program());
    let ended = kvd.args(["object", "gc"]).args(a.settings()).output().expect("kvd can be started");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    println!("{{\"kills\": {}, \"orphans_collected\": {}}}", kills(), left.len());
    assert_eq!(orphans(&store), [""; 0], "an hour later they are collected");
    served(&b.engine(8), 777_777);
}

/// Packs that no index object speaks of.
fn orphans(store: &Store) -> Vec<String> {
    let visible: BTreeSet<_> = published(&store.path()).iter().map(|index| pack_path(index.pack)).collect();
    let packs = store.objects().into_iter().map(|(name, _)| name);
    packs.filter(|name| parse_pack_path(name).is_some() && !visible.contains(name)).collect()
}

#[test]
fn a_pack_that_rots_or_vanishes_is_a_miss() {
    let store = Store::folder();
    let (a, b) = (Node::start("rot-a", &store, &[]), Node::start("rot-b", &store, &[]));
    let (writer, reader) = (a.engine(1), b.engine(2));
    for chain in 0..8 {
        writer.store(chain, 0, BLOCKS);
    }
    a.uploaded(1);
    within("the other node knows the packs", || {
        b.metric("kvd_object_known_packs") == published(&store.path()).len() as u64
    });
    for (number, index) in published(&store.path()).into_iter().enumerate() {
        let path = store.path().join(kvd_tiers::object::pack_path(index.pack));
        if number % 2 == 0 {
            let mut bytes = fs::read(&path).expect("a pack");
            // Each record loses a bit of its payload.
            index.entries.iter().for_each(|entry| bytes[(entry.offset + entry.record_bytes) as usize - 100] ^= 4);
            fs::write(&path, bytes).expect("written");
        } else {
            fs::remove_file(&path).expect("gone");
        }
    }
    for chain in 0..8 {
        let checked = reader.check(chain, BLOCKS);
        assert_eq!((checked.right, checked.wrong), (0, 0), "{checked:?}");
    }
    assert!(b.metric("kvd_blocks_corrupt_total{tier=\"object\"}") > 0);
    // The engine computes them again, and they are kept.
    assert_eq!(reader.store(0, 0, BLOCKS).granted, BLOCKS);
    assert_eq!(reader.check(0, BLOCKS).right, BLOCKS);
}

#[test]
fn a_store_that_is_gone_costs_misses_and_nothing_else() {
    let store = Store::folder();
    let (a, b) = (Node::start("gone-a", &store, &[]), Node::start("gone-b", &store, &[]));
    let (writer, reader) = (a.engine(1), b.engine(2));
    writer.store(1, 0, BLOCKS);
    a.uploaded(1);
    served(&reader, 1);
    let aside = store.path().with_extension("aside");
    fs::rename(store.path(), &aside).expect("renamed");
    for chain in 10..20 {
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS, "an engine never waits for the store");
        assert_eq!(writer.check(chain, BLOCKS).right, BLOCKS);
        never_wrong(&reader, chain);
    }
    assert_eq!(reader.check(1, BLOCKS).right, BLOCKS, "what is here is served");
    within("it is said", || a.metric("kvd_object_up") == 0);
    fs::rename(&aside, store.path()).expect("renamed back");
    within("it is over by itself", || a.metric("kvd_object_up") == 1);
    writer.store(30, 0, BLOCKS);
    served(&reader, 30);
}
