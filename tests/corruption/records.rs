//! Records in the arena: changed between a store and a load.

use kvd_tests::chain_hash;

use crate::change::Change;
use crate::node::{META, Node, WRITTEN};
use crate::{chance, full};

/// The smallest slot: the most records.
const BLOCK: usize = 4096;
/// Records stored, changed and loaded at a time.
const ROUND: usize = 1024;

/// Payload changes per test: of each four of the long form, one is made here with a copy below.
fn payload_changes() -> usize {
    if full() { 800_000 } else { 15_000 }
}

/// Applies each change to a record of its own, in rounds, and says how each load has to end.
fn each(node: &Node, changes: &[Change], first: u64, good_copy_below: bool) {
    let mut chains = first..;
    for round in changes.chunks(ROUND) {
        let damaged: Vec<_> = round.iter().zip(chains.by_ref()).collect();
        damaged.iter().for_each(|(_, chain)| node.store(*chain));
        if good_copy_below {
            node.drain();
        }
        let spots = node.in_dram();
        let (misses, (copies, _)) = (node.missed(), node.counted());
        for (change, chain) in &damaged {
            let spot = &spots[&chain_hash(*chain, 0)];
            spot.change(change);
            if good_copy_below {
                let checked = node.check(*chain);
                assert_eq!((checked.right, checked.nvme, checked.corrupt), (1, 1, 1), "{change:?}: {checked:?}");
            } else {
                node.expect_corrupt(*chain, change);
            }
        }
        let counted = (node.missed() - misses, node.counted().0 - copies);
        let expected = if good_copy_below { 0 } else { damaged.len() as u64 };
        assert_eq!(counted, (expected, damaged.len() as u64), "misses and corrupt copies counted");
    }
}

#[test]
fn no_bit_of_a_metadata_sector_may_change() {
    let node = Node::new("metadata", false, BLOCK);
    let padding = (WRITTEN * 8..META * 8).step_by(if full() { 1 } else { 251 });
    let changes: Vec<_> = (0..WRITTEN * 8).chain(padding).map(Change::bit).collect();
    each(&node, &changes, 0, false);
}

#[test]
fn a_bit_that_comes_back_makes_the_record_good_again() {
    let node = Node::new("restored", false, BLOCK);
    let bits: Vec<_> = (0..WRITTEN * 8).step_by(17).collect();
    (0..bits.len() as u64).for_each(|chain| node.store(chain));
    let spots = node.in_dram();
    for (chain, bit) in (0..).zip(bits) {
        let spot = &spots[&chain_hash(chain, 0)];
        spot.change(&Change::bit(bit));
        spot.change(&Change::bit(bit));
        assert_eq!(node.check(chain).dram, 1, "nobody looked while bit {bit} was wrong");
        spot.change(&Change::bit(bit));
        node.expect_corrupt(chain, &bit);
        spot.change(&Change::bit(bit));
        assert_eq!(node.check(chain).matched, 0, "what was dropped stays dropped, whatever its bytes are now");
        node.store(chain);
        assert_eq!(node.check(chain).right, 1, "stored again after bit {bit}");
    }
}

#[test]
fn no_random_change_of_a_payload_is_served() {
    let mut random = chance("payload");
    let changes: Vec<_> = (0..payload_changes()).map(|_| Change::random(&mut random, META, BLOCK)).collect();
    each(&Node::new("payload", false, BLOCK), &changes, 0, false);
}

#[test]
fn a_good_copy_on_the_device_takes_a_bad_ones_place() {
    let mut random = chance("below");
    let node = Node::new("below", true, BLOCK);
    let header: Vec<_> = (0..WRITTEN * 8).step_by(if full() { 1 } else { 5 }).map(Change::bit).collect();
    each(&node, &header, 0, true);
    let count = if full() { 100_000 } else { 2_500 };
    let payload: Vec<_> = (0..count).map(|_| Change::random(&mut random, META, BLOCK)).collect();
    each(&node, &payload, header.len() as u64, true);
}

/// The copies of a whole chain are damaged: the load goes on from each one's good copy, and from none twice.
#[test]
fn good_copies_on_the_device_take_the_place_of_a_chain_of_bad_ones() {
    const BLOCKS: u32 = 40;
    let mut random = chance("below-chain");
    let node = Node::new("below-chain", true, BLOCK);
    node.store_many(1, BLOCKS);
    node.drain();
    let spots = node.in_dram();
    for block in 0..BLOCKS {
        spots[&chain_hash(1, block)].change(&Change::random(&mut random, META, BLOCK));
    }
    let checked = node.check_many(1, BLOCKS);
    assert_eq!((checked.right, checked.nvme, checked.corrupt), (BLOCKS, BLOCKS, BLOCKS), "{checked:?}");
    let checked = node.check_many(1, BLOCKS);
    assert_eq!((checked.right, checked.corrupt), (BLOCKS, 0), "{checked:?}");
}
