//! What a ladder finds again after its predecessor was killed.

use kvd_proto::BlockKey;

use super::common::{WAIT, lease, small, store_below, world};
use super::world::{World, chain};
use crate::ids::{NvmeSlot, SlotId, SlotState, ViewId};

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

fn key(salt: u32, place: usize) -> BlockKey {
    small().spec.group_key.block(&chain(salt, 8)[place])
}

/// A chain of four in the arena and on a device.
fn stored() -> (World, ViewId) {
    let (mut world, view) = world(1, &[4]);
    world.store(0, view, &chain(1, 4));
    world.run();
    (world, view)
}

fn arena_slot(world: &World, place: usize) -> SlotId {
    *world.ladder.table().entries.iter().find(|(_, entry)| entry.key == key(1, place)).unwrap().0
}

fn device_slot(world: &World, place: usize) -> NvmeSlot {
    *world.disks[0].table.iter().find(|(_, entry)| entry.key == key(1, place)).unwrap().0
}

/// (blocks that match, entries that were dropped, copies in the arena, copies on the device) after a restart.
fn found_again(world: &mut World) -> (u32, u64, u64, u64) {
    world.restart();
    let view = world.open(0, &small());
    let blocks = world.matched(0, view, &chain(1, 4), false).blocks;
    let stats = world.ladder.stats();
    (blocks, stats.counters.restore_dropped, stats.dram_slots_used, stats.durable)
}

#[test]
fn a_whole_chain_is_found_whole() {
    let (mut world, _) = stored();
    assert_eq!(found_again(&mut world), (4, 0, 4, 4));
    assert_eq!(world.ladder.counters().restored, 8);
}

#[test]
fn an_entry_that_makes_no_sense_is_dropped_and_the_other_copy_does() {
    for wrong in 0..4 {
        let (mut world, _) = stored();
        let slot = device_slot(&world, 2);
        let entry = world.disks[0].table.get_mut(&slot).unwrap();
        match wrong {
            0 => entry.state = SlotState::Filling,
            1 => entry.parent_key = None,
            2 => (entry.position, entry.parent_key) = (0, Some(key(1, 1))),
            _ => entry.parent_key = Some(key(1, 0)),
        }
        assert_eq!(found_again(&mut world), (4, 1, 4, 3), "case {wrong}");
        world.run();
        assert_eq!(world.disks[0].table.len(), 4, "its slot was vacated, and the good copy spilled again");
        assert_eq!(world.ladder.stats().durable, 4);
    }
}

#[test]
fn a_record_is_adopted_once_in_each_tier() {
    let (mut world, _) = stored();
    let slot = device_slot(&world, 0);
    let twin = world.disks[0].table[&slot].clone();
    let free = NvmeSlot::new(slot.device(), slot.zone(), 7);
    world.disks[0].table.insert(free, twin);
    assert_eq!(found_again(&mut world), (4, 1, 4, 4));
    world.run();
    assert_eq!(world.disks[0].table.len(), 4);
    // Neither is one that the device has no slot for.
    let mut lost = world.disks[0].table[&device_slot(&world, 0)].clone();
    lost.generation += 1;
    world.disks[0].table.insert(NvmeSlot::new(slot.device(), slot.zone(), 8), lost);
    assert_eq!(found_again(&mut world), (4, 1, 4, 4));
}

#[test]
fn a_newer_sealing_below_counts_more_than_an_older_one_in_the_arena() {
    let (mut world, _) = stored();
    let slot = device_slot(&world, 3);
    world.disks[0].table.get_mut(&slot).unwrap().generation += 100;
    assert_eq!(found_again(&mut world), (4, 1, 3, 4));
    world.run();
    let view = world.open(0, &small());
    world.store(0, view, &chain(2, 1));
    let newest = world.ladder.table().entries.values().map(|entry| entry.generation).max().unwrap();
    let restored = world.disks[0].table[&slot].generation;
    assert!(newest > restored, "what is sealed from now on is newer than all that was: {newest} > {restored}");
}

#[test]
fn a_chain_is_whole_as_far_as_places_grow_by_one() {
    for (wrong, blocks) in [(1, 1), (3, 3)] {
        let (mut world, _) = world(1, &[]);
        let view = world.open(0, &small());
        world.store(0, view, &chain(1, 4));
        let slot = arena_slot(&world, wrong);
        world.ladder.table_mut().entries.get_mut(&slot).unwrap().position += 1;
        assert_eq!(found_again(&mut world), (blocks, 4 - u64::from(blocks), u64::from(blocks), 0));
        assert_eq!(world.ladder.stats().nodes, blocks);
    }
}

#[test]
fn blocks_that_name_each_other_as_parents_are_no_chain() {
    let (mut world, _) = world(1, &[]);
    let view = world.open(0, &small());
    world.store(0, view, &chain(1, 4));
    let slot = arena_slot(&world, 2);
    let entry = world.ladder.table_mut().entries.get_mut(&slot).unwrap();
    entry.parent_key = Some(key(1, 3));
    assert_eq!(found_again(&mut world), (2, 2, 2, 0));
    let slot = arena_slot(&world, 1);
    let entry = world.ladder.table_mut().entries.get_mut(&slot).unwrap();
    entry.parent_key = Some(key(1, 1));
    assert_eq!(found_again(&mut world), (1, 1, 1, 0), "nor is one that names itself");
}

#[test]
fn generations_go_on_behind_the_highest_that_any_slot_had() {
    let (mut world, view) = world(1, &[]);
    world.store(0, view, &chain(1, 1));
    for before in [1000, u32::MAX - 1, 7] {
        let segment = arena_slot(&world, 0).segment();
        world.ladder.table_mut().generations.insert(segment, before);
        let slot = arena_slot(&world, 0);
        world.ladder.table_mut().entries.get_mut(&slot).unwrap().generation = before.wrapping_sub(1);
        world.ladder.table_mut().bytes.clear();
        world.restart();
        let view = world.open(0, &small());
        world.store(0, view, &chain(2, 1));
        let found = world.ladder.table().entries.values().find(|entry| entry.key == key(2, 0)).unwrap();
        assert_eq!(found.generation, before + 1);
        world.ladder.evict(&key(2, 0), None, world.now);
        world.settle();
    }
}
