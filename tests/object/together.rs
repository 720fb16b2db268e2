//! Nodes that store the same at the same time upload it once: they take turns.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use kvd_tests::{Daemon, skip};
use serde_json::Value;

use crate::pool::{BLOCKS, Node, Store, published, within};

const OWN: &str = "kvd_object_own_records";
const KNOWN: &str = "kvd_object_records_not_uploaded_total{outcome=\"known\"}";
const FALLEN: &str = "kvd_object_records_not_uploaded_total{outcome=\"fallen\"}";

/// Two nodes that know of each other.
fn pair(name: &str, store: &Store, more: &[(&str, &str)]) -> [Node; 2] {
    let nodes = ["a", "b"].map(|node| Node::start(&format!("{name}-{node}"), store, more));
    within("the nodes know of each other", || nodes.iter().all(|node| node.metric("kvd_object_nodes") == 2));
    nodes
}

/// Waits until so many records of each node were uploaded, or found to be there.
fn offered(nodes: &[Node; 2], records: u64) {
    within("all is uploaded or known", || nodes.iter().all(|node| node.metric(OWN) + node.metric(KNOWN) >= records));
}

#[test]
fn what_two_nodes_store_at_the_same_time_is_uploaded_once() {
    let store = Store::folder();
    let nodes = pair("once", &store, &[]);
    let engines = [nodes[0].engine(1), nodes[1].engine(2)];
    let chains = 16;
    for chain in 0..chains {
        for engine in &engines {
            assert_eq!(engine.store(chain, 0, BLOCKS).granted, BLOCKS);
        }
    }
    offered(&nodes, chains * u64::from(BLOCKS));
    let (all, twice) = blocks(&store);
    assert_eq!(all as u64, chains * u64::from(BLOCKS), "each block is there");
    assert!(20 * twice < all, "{twice} of {all} blocks were uploaded twice");
    let by_both = nodes.iter().all(|node| node.metric(OWN) > 0);
    assert!(by_both, "both had their turns");
}

#[test]
fn what_another_node_has_uploaded_is_not_uploaded_again() {
    let store = Store::folder();
    let nodes = pair("known", &store, &[]);
    let (first, second) = (nodes[0].engine(1), nodes[1].engine(2));
    for chain in 0..8 {
        assert_eq!(first.store(chain, 0, BLOCKS).granted, BLOCKS);
    }
    let records = 8 * u64::from(BLOCKS);
    within("the first has uploaded all", || nodes[0].metric(OWN) == records);
    within("the second has learned of it", || {
        nodes[1].metric("kvd_object_known_packs") == nodes[0].metric("kvd_object_own_packs")
    });
    for chain in 0..8 {
        assert_eq!(second.store(chain, 0, BLOCKS).granted, BLOCKS);
    }
    offered(&nodes, records);
    assert_eq!((nodes[1].metric(OWN), nodes[1].metric(KNOWN)), (0, records));
}

#[test]
fn what_the_other_node_does_not_store_is_uploaded_in_a_later_turn() {
    let store = Store::folder();
    let nodes = pair("later", &store, &[]);
    let engine = nodes[0].engine(1);
    for chain in 0..16 {
        assert_eq!(engine.store(chain, 0, BLOCKS).granted, BLOCKS);
    }
    within("all is uploaded", || nodes[0].metric(OWN) == 16 * u64::from(BLOCKS));
    assert_eq!(nodes[0].metric(FALLEN), 0);
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

/// Distinct blocks of the built-in trace: what of it is stored by one engine that nothing is evicted from.
const TRACE_BLOCKS: u64 = 288_500 - 105_710;

fn replay(node: &Node) -> Child {
    let mut kvd = Command::new(Daemon::program());
    kvd.args(["replay", "--block-bytes", "8192", "--json", "--socket"]).arg(node.scratch.socket());
    kvd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("kvd can be started")
}

fn wrong_blocks(replay: Child) -> u64 {
    let ended = replay.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "the replay failed");
    let report: Value = serde_json::from_slice(&ended.stdout).expect("one JSON object");
    report["wrong_blocks"].as_u64().expect("a number")
}

/// The whole trace on both nodes at the same time, through a server.
#[test]
fn a_trace_played_on_two_nodes_at_once_is_uploaded_once() {
    let name = "the whole trace on two nodes at once";
    if std::env::var_os("KVD_OBJECT").is_none() {
        return skip(name, "set KVD_OBJECT=1 to run it");
    }
    let store = match Store::server("trace") {
        Ok(store) => store,
        Err(reason) => return skip(name, &reason),
    };
    let sizes = [
        ("tiers.dram.capacity", "3GiB"),
        ("tiers.nvme.capacity", "4GiB"),
        ("tiers.object.share", "16GiB"),
        ("tiers.object.pack_bytes", "64MiB"),
        ("tiers.object.pack_age", "2s"),
        ("tiers.object.sync_every", "1s"),
        ("tiers.object.request_timeout", "10s"),
    ];
    let nodes = pair("trace", &store, &sizes);
    let replays = [replay(&nodes[0]), replay(&nodes[1])];
    let wrong: u64 = replays.map(wrong_blocks).into_iter().sum();
    let mut before = u64::MAX;
    within("nothing new is uploaded", || {
        std::thread::sleep(std::time::Duration::from_secs(5));
        let own = nodes.iter().map(|node| node.metric(OWN)).sum();
        let waiting =
            |node: &Node| node.metric("kvd_object_waiting_records") + node.metric("kvd_object_buffered_bytes");
        std::mem::replace(&mut before, own) == own && nodes.iter().all(|node| waiting(node) == 0)
    });
    let fallen: u64 = nodes.iter().map(|node| node.metric(FALLEN)).sum();
    let known: u64 = nodes.iter().map(|node| node.metric(KNOWN)).sum();
    let twice = before.saturating_sub(TRACE_BLOCKS);
    println!(
        "{{\"blocks\": {TRACE_BLOCKS}, \"uploaded\": {before}, \"known\": {known}, \"fallen\": {fallen}, \
         \"uploaded_twice\": {:.4}, \"wrong_blocks\": {wrong}}}",
        twice as f64 / TRACE_BLOCKS as f64
    );
    assert_eq!(wrong, 0);
    assert!(20 * twice < TRACE_BLOCKS, "{twice} blocks were uploaded twice");
}
