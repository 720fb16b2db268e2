//! Whole records in the wrong place or time: swapped, stale, and torn between two of them.

use std::collections::HashMap;

use kvd_proto::BlockHash;
use kvd_tests::chain_hash;

use crate::change::Spot;
use crate::node::Node;
use crate::{chance, full};

/// Sixteen sectors of payload behind one of metadata: many ways to tear a record.
const BLOCK: usize = 64 * 1024;
const SECTOR: usize = 4096;

fn records() -> u64 {
    if full() { 800 } else { 120 }
}

#[derive(Clone, Copy, PartialEq)]
enum Home {
    Arena,
    Device,
}

/// A node that holds `chains`, each in one place only.
fn prepared(test: &str, home: Home, chains: std::ops::Range<u64>) -> Node {
    let mut node = Node::new(test, home == Home::Device, BLOCK);
    chains.for_each(|chain| node.store(chain));
    if home == Home::Device {
        node.only_on_device();
    }
    node
}

fn spots(node: &Node, home: Home) -> HashMap<BlockHash, Spot> {
    match home {
        Home::Arena => node.in_dram(),
        Home::Device => node.on_device(),
    }
}

fn swapped(test: &str, home: Home) {
    let node = prepared(test, home, 0..records());
    let found = spots(&node, home);
    let at = |chain| &found[&chain_hash(chain, 0)];
    for one in (0..records()).step_by(4) {
        let (a, b) = (at(one).read(node.slot_bytes()), at(one + 1).read(node.slot_bytes()));
        at(one).write(&b);
        at(one + 1).write(&a);
        node.expect_corrupt(one, &"holds its neighbour");
        node.expect_corrupt(one + 1, &"holds its neighbour");
        assert_eq!((node.check(one + 2).right, node.check(one + 3).right), (1, 1), "nobody touched them");
    }
}

/// Stores the same and other records over old ones and puts the old bytes back: all of them, or the first or last sectors.
fn stale(test: &str, home: Home) {
    let mut random = chance(test);
    let mut node = prepared(test, home, 0..records());
    let old: HashMap<_, _> = spots(&node, home).values().map(|spot| (spot.at, spot.read(node.slot_bytes()))).collect();
    node.purge();
    // The first half comes again, with the same bytes and another generation.
    let second = records() / 2..records() / 2 + records();
    second.clone().for_each(|chain| node.store(chain));
    if home == Home::Device {
        node.only_on_device();
    }
    let found = spots(&node, home);
    let mut reused = 0;
    for chain in second {
        let spot = &found[&chain_hash(chain, 0)];
        let Some(image) = old.get(&spot.at) else { continue };
        reused += 1;
        let new = spot.read(node.slot_bytes());
        let cut = SECTOR * (1 + random.below(16) as usize);
        let bytes = match reused % 3 {
            0 => image.clone(),
            1 => [&image[..cut], &new[cut..]].concat(),
            _ => [&new[..cut], &image[cut..]].concat(),
        };
        spot.write(&bytes);
        // Where the old record had the same payload, a tear behind the metadata changes nothing.
        if bytes == new {
            assert_eq!(node.check(chain).right, 1);
        } else {
            node.expect_corrupt(chain, &(reused % 3, cut));
        }
    }
    assert!(reused >= records() / 2, "only {reused} slots were used again: this shows too little");
}

#[test]
fn swapped_records_in_the_arena_are_misses() {
    swapped("swapped-arena", Home::Arena);
}

#[test]
fn swapped_records_on_the_device_are_misses() {
    swapped("swapped-device", Home::Device);
}

#[test]
fn stale_and_torn_records_in_the_arena_are_misses() {
    stale("stale-arena", Home::Arena);
}

#[test]
fn stale_and_torn_records_on_the_device_are_misses() {
    stale("stale-device", Home::Device);
}
