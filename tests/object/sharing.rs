//! What one node stores another serves.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use kvd_tests::{Daemon, skip};

use crate::pool::{BLOCKS, Node, Store, objects, published, served};
use crate::server::Server;

fn one_stores_and_the_other_serves(store: &Store, name: &str) {
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
    match Server::start() {
        Ok(server) => one_stores_and_the_other_serves(&Store::Server(server), "seaweedfs"),
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
fn what_two_nodes_store_at_the_same_time_is_all_there() {
    let store = Store::folder();
    let (a, b) = (Node::start("once-a", &store, &[]), Node::start("once-b", &store, &[]));
    let (first, second) = (a.engine(1), b.engine(2));
    for chain in 0..16 {
        first.store(chain, 0, BLOCKS);
        second.store(chain, 0, BLOCKS);
        // As fast as an engine computes them, not as fast as memory copies them.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    a.uploaded(1);
    b.uploaded(0);
    assert_eq!(blocks(&store).0, 16 * BLOCKS as usize, "each block is there");
}

#[test]
fn what_another_node_has_uploaded_is_not_uploaded_again() {
    let store = Store::folder();
    let (a, b) = (Node::start("known-a", &store, &[]), Node::start("known-b", &store, &[]));
    let (first, second) = (a.engine(1), b.engine(2));
    // They meet in the middle, where both may store the same before either can have learned of it.
    for chain in 0..16 {
        first.store(chain, 0, BLOCKS);
        second.store(15 - chain, 0, BLOCKS);
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    a.uploaded(1);
    b.uploaded(1);
    let (all, twice) = blocks(&store);
    assert_eq!(all, 16 * BLOCKS as usize, "each block is there");
    assert!(2 * twice < all, "{twice} of {all} blocks were uploaded twice");
}

/// Blocks in the published packs of a folder, and those of them that are in two.
fn blocks(store: &Store) -> (usize, usize) {
    let mut copies = BTreeMap::<_, u32>::new();
    for index in published(&store.path()) {
        index.entries.iter().for_each(|entry| *copies.entry(entry.key).or_default() += 1);
    }
    let twice = copies.values().filter(|count| **count > 1).count();
    println!("{{\"blocks\": {}, \"uploaded_twice\": {twice}}}", copies.len());
    (copies.len(), twice)
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
    a.uploaded(1);
    b.uploaded(1);
    served(&first, 100);
    assert!(!published(&store.path()).is_empty());
    let purge = |node: &Node| {
        let mut kvd = Command::new(Daemon::program());
        kvd.args(["purge", "--all", "--yes", "--socket"]).arg(node.scratch.socket());
        let ended = kvd.output().expect("kvd can be started");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    };
    purge(&a);
    assert_eq!(objects(&store.path()), 0, "the packs of both are gone: they are one tenant's");
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
