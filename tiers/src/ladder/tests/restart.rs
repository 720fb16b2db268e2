//! What a ladder finds again after its predecessor was killed.

use super::common::{WAIT, lease, small, store_below, world};
use super::world::chain;

#[test]
fn both_tiers_are_found_again() {
    let (mut world, view) = world(1, &[4]);
    let below = chain(1, 3);
    store_below(&mut world, view, &below, 8);
    let last = world.ladder.counters().committed;
    world.restart();
    let view = world.open(0, &small());
    assert_eq!(world.matched(0, view, &below, false).blocks, 3);
    assert_eq!(world.matched(0, view, &chain(99, 8), false).blocks, 8);
    assert_eq!(world.ladder.counters().restore_dropped, 0);
    assert!(world.ladder.counters().restored > last, "copies in both tiers");
    let lease = lease(&mut world, view, &below);
    world.load(0, lease, 0..3, WAIT, 1);
    world.run();
    assert_eq!(world.ends.values().next().unwrap().blocks, 3);
}

#[test]
fn what_lost_its_parent_is_not_adopted() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 4);
    world.store(0, view, &hashes);
    let key = small().spec.group_key.block(&hashes[1]);
    let slot = *world.ladder.table().entries.iter().find(|(_, entry)| entry.key == key).unwrap().0;
    world.ladder.table_mut().entries.remove(&slot);
    world.restart();
    let view = world.open(0, &small());
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 1);
    assert_eq!((world.ladder.stats().nodes, world.ladder.stats().dram_slots_used), (1, 1));
    assert_eq!(world.ladder.counters().restore_dropped, 2);
}

#[test]
fn of_two_sealings_the_newer_is_adopted() {
    let (mut world, view) = world(1, &[4]);
    let hashes = chain(1, 1);
    world.store(0, view, &hashes);
    world.run();
    let (slot, mut stale) = world.disks[0].table.iter().next().map(|(slot, entry)| (*slot, entry.clone())).unwrap();
    stale.generation = stale.generation.wrapping_sub(1);
    world.disks[0].table.insert(slot, stale);
    world.restart();
    let view = world.open(0, &small());
    let explained = world.ladder.explain(&small().spec.group_key.block(&hashes[0]));
    assert!(explained.records[0].dram.is_some() && explained.records[0].nvme.is_none());
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 1);
    world.run();
    let entries: Vec<_> = world.disks[0].table.values().map(|entry| entry.generation).collect();
    assert_eq!(entries.len(), 1, "the stale entry was vacated, the newer sealing spilled: {entries:?}");
}
