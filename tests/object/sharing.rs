//! What one node stores another serves.

use std::process::Command;
use std::time::Instant;

use kvd_tests::{Daemon, skip};

use crate::pool::{BLOCKS, Node, Store, published, served, within};

pub(crate) fn one_stores_and_the_other_serves(store: &Store, name: &str) {
    // Room for all of it: a server that has just been started may take seconds for its first objects, and records that
    // wait for room longer than that are given up.
    let room = ("tiers.object.pack_bytes", "8MiB");
    let start = |node: &str| Node::start(&format!("{name}-{node}"), store, &[room]);
    let (a, b) = (start("a"), start("b"));
    let (writer, reader) = (a.engine(1), b.engine(2));
    let chains = 8;
    for chain in 0..chains {
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS);
    }
    a.uploaded(1);
    let started = Instant::now();
    let mut from_store = 0;
    for chain in 0..chains {
        from_store += served(&reader, chain).object;
    }
    println!("{{\"store\": \"{name}\", \"seconds_until_served\": {:.3}}}", started.elapsed().as_secs_f64());
    assert_eq!(u64::from(from_store), chains * u64::from(BLOCKS), "all of it came from the store");
    assert!(a.metric("kvd_object_requests_total{op=\"put\",outcome=\"ok\"}") > 0);
    assert_eq!(b.metric("kvd_blocks_corrupt_total{tier=\"object\"}"), 0);
}

#[test]
fn through_a_folder() {
    one_stores_and_the_other_serves(&Store::folder(), "folder");
}

#[test]
fn through_seaweedfs() {
    match Store::server("sharing") {
        Ok(store) => one_stores_and_the_other_serves(&store, "seaweedfs"),
        Err(reason) => skip("object tier on SeaweedFS", &reason),
    }
}

#[test]
fn a_node_that_lost_everything_is_warm_again() {
    let store = Store::folder();
    let mut node = Node::start("loss", &store, &[]);
    let engine = node.engine(1);
    assert_eq!(engine.store(1, 0, BLOCKS).granted, BLOCKS);
    node.uploaded(1);
    drop(engine);
    node.kill();
    node.lose();
    node.restart();
    let checked = served(&node.engine(1), 1);
    assert_eq!((checked.object, checked.dram, checked.nvme), (BLOCKS, 0, 0));
}

#[test]
fn a_purge_leaves_nothing_in_the_store() {
    let store = Store::folder();
    let (a, b) = (Node::start("purge-a", &store, &[]), Node::start("purge-b", &store, &[]));
    let (first, second) = (a.engine(1), b.engine(2));
    for chain in 0..8 {
        first.store(chain, 0, BLOCKS);
        second.store(100 + chain, 0, BLOCKS);
    }
    // The other node puts nothing there after the purge: all that it has is there before.
    within("all is uploaded", || {
        let own = |node: &Node| node.metric("kvd_object_own_records");
        (own(&a), own(&b)) == (8 * u64::from(BLOCKS), 8 * u64::from(BLOCKS))
    });
    served(&first, 100);
    let visible = published(&store.path());
    assert!(visible.len() > 1);
    // As a crash between two writes leaves a pack.
    let (index, _) = store.objects().into_iter().find(|(name, _)| name.starts_with("index/")).expect("one");
    std::fs::remove_file(store.path().join(index)).expect("deleted");
    let purge = |node: &Node| {
        let mut kvd = Command::new(Daemon::program());
        kvd.args(["purge", "--all", "--yes", "--socket"]).arg(node.scratch.socket());
        let ended = kvd.output().expect("kvd can be started");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    };
    purge(&a);
    assert_eq!(store.objects(), [], "the packs of both are gone: they are one tenant's");
    assert_eq!(first.check(100, BLOCKS).matched, 0);
    assert_eq!(first.check(0, BLOCKS).matched, 0);
    // The other node has its own copies, and does not put them back.
    assert_eq!(second.check(100, BLOCKS).right, BLOCKS);
}

#[test]
fn the_bound_is_kept() {
    let store = Store::folder();
    let share = ("tiers.object.share", "8MiB");
    let (a, b) = (Node::start("bound-a", &store, &[share]), Node::start("bound-b", &store, &[share]));
    let (first, second) = (a.engine(1), b.engine(2));
    let bound = (2 * (8 + 1)) << 20;
    for chain in 0..24 {
        first.store(chain, 0, BLOCKS);
        second.store(1000 + chain, 0, BLOCKS);
        if chain % 4 == 3 {
            a.uploaded(1);
            b.uploaded(1);
            let bytes: u64 = published(&store.path()).iter().map(|index| index.pack_bytes()).sum();
            assert!(bytes <= bound, "{bytes} bytes where {bound} may be");
        }
    }
    assert!(a.metric("kvd_object_packs_total{outcome=\"evicted\"}") > 0, "more was stored than the share holds");
}
