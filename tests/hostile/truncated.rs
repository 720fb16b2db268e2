//! A segment of the arena is cut short while sessions read and write it.

use std::fs::File;
use std::path::Path;

use kvd_tests::{Checked, DaemonOptions, TestEngine, ask_serving};

use crate::node::{BLOCK, CHAIN, Node, within};

/// More than one segment has room for, so that some survive.
const CHAINS: u64 = 80;

fn read(engine: &TestEngine) -> Vec<Checked> {
    (0..CHAINS).map(|chain| engine.check(OWN + chain, CHAIN)).collect()
}

fn right(found: &[Checked]) -> u32 {
    assert!(found.iter().all(|checked| checked.wrong == 0), "{found:?}");
    found.iter().map(|checked| checked.right).sum()
}

/// Where the chains of this file begin.
const OWN: u64 = 7 << 40;

fn cut(segment: &Path, to: u64) {
    let file = File::options().write(true).open(segment).expect("a segment of the arena");
    file.set_len(to).expect("the folder is ours, so is the file");
}

fn truncated_to(bytes: u64, grown_again: bool) {
    // Without NVMe there is no copy below: what is lost is a miss. Room for all, so that nothing else is a miss.
    let options = DaemonOptions::sized("1GiB", "512MiB").with("tiers.nvme.enabled", "false");
    let (mut node, engine) = Node::with("truncated", &options, 100, |scratch| {
        let engine = TestEngine::connect(&scratch.socket(), 2, BLOCK, CHAIN as usize);
        for chain in 0..CHAINS {
            assert_eq!(engine.store(OWN + chain, 0, CHAIN).granted, CHAIN);
        }
        engine
    });
    assert_eq!(right(&read(&engine)), CHAINS as u32 * CHAIN);
    let segment = node.scratch.dram().join("seg-00000");
    cut(&segment, bytes);
    if grown_again {
        cut(&segment, 64 << 20);
    }
    let found = read(&engine);
    assert!(node.daemon.alive(), "{}", node.daemon.log());
    let left = right(&found);
    assert!(left > 0, "other segments are not touched");
    assert!(left < CHAINS as u32 * CHAIN, "what was in the segment is a miss");
    // A second reader finds the same: nothing was only in the first one's mappings.
    let second = TestEngine::connect(&node.scratch.socket(), 3, BLOCK, CHAIN as usize);
    assert!(right(&read(&second)) <= left);
    drop(node.alive());
}

#[test]
fn a_segment_that_vanishes_is_misses_and_nothing_else() {
    truncated_to(0, false);
}

#[test]
fn a_segment_that_is_cut_in_half_or_emptied_is_misses_and_nothing_else() {
    truncated_to(20 << 20, false);
    truncated_to(4096, true);
}

#[test]
fn after_a_lost_segment_stores_go_on_elsewhere() {
    let options = DaemonOptions::sized("1GiB", "512MiB").with("tiers.nvme.enabled", "false");
    let (mut node, ()) = Node::with("lost", &options, 100, |_| {});
    cut(&node.scratch.dram().join("seg-00000"), 0);
    let engine = TestEngine::connect(&node.scratch.socket(), 2, BLOCK, CHAIN as usize);
    // More than what the other segments still had room for: the lost one has been made anew.
    for chain in OWN..OWN + CHAINS {
        within("a chain is stored whole", || {
            engine.store(chain, 0, CHAIN);
            engine.check(chain, CHAIN).right == CHAIN
        });
    }
    drop(node.alive());
}

#[test]
fn a_lost_segment_costs_neither_the_copies_below_nor_their_device() {
    let options = DaemonOptions::sized("1GiB", "2GiB");
    let (mut node, engine) = Node::with("below", &options, 100, |scratch| {
        let engine = TestEngine::connect(&scratch.socket(), 2, BLOCK, CHAIN as usize);
        for chain in 0..CHAINS {
            assert_eq!(engine.store(OWN + chain, 0, CHAIN).granted, CHAIN);
        }
        ask_serving(scratch, &["drain"]);
        engine
    });
    cut(&node.scratch.dram().join("seg-00000"), 0);
    // Fetches go into the lost segment as long as nobody knows: none of them may be blamed on the device.
    within("all come back from below", || right(&read(&engine)) == CHAINS as u32 * CHAIN);
    let device = &ask_serving(&node.scratch, &["devices"])["devices"][0];
    assert_eq!((device["errors"].as_u64(), device["state"].as_str()), (Some(0), Some("ok")), "{device}");
    drop(node.alive());
}
