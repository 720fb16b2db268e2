//! Records on the device: changed while the daemon lives, then loaded.

use kvd_tests::chain_hash;

use crate::change::Change;
use crate::node::{META, Node, WRITTEN};
use crate::{chance, full};

const BLOCK: usize = 4096;
/// Records stored, changed and loaded at a time.
const ROUND: usize = 4096;

fn each(node: &mut Node, changes: &[Change], first: u64) {
    let mut chains = first..;
    for round in changes.chunks(ROUND) {
        let damaged: Vec<_> = round.iter().zip(chains.by_ref()).collect();
        let names: Vec<u64> = damaged.iter().map(|(_, chain)| *chain).collect();
        names.iter().for_each(|chain| node.store(*chain));
        node.only_on_device();
        let spots = node.on_device();
        let (misses, (_, copies)) = (node.missed(), node.counted());
        for (change, chain) in &damaged {
            spots[&chain_hash(*chain, 0)].change(change);
            node.expect_corrupt(*chain, change);
        }
        let counted = (node.missed() - misses, node.counted().1 - copies);
        assert_eq!(counted, (damaged.len() as u64, damaged.len() as u64), "misses and corrupt copies counted");
    }
}

#[test]
fn no_change_of_a_record_on_the_device_is_served() {
    let mut random = chance("device");
    let mut node = Node::new("device", true, BLOCK);
    let padding = (WRITTEN * 8..META * 8).step_by(if full() { 1 } else { 251 });
    let header: Vec<_> = (0..WRITTEN * 8).chain(padding).map(Change::bit).collect();
    each(&mut node, &header, 0);
    let count = if full() { 100_000 } else { 2_500 };
    let payload: Vec<_> = (0..count).map(|_| Change::random(&mut random, META, BLOCK)).collect();
    each(&mut node, &payload, header.len() as u64);
}
