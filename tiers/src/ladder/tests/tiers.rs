//! Between the arena and the devices, and what a failing device costs.

use std::time::Duration;

use kvd_proto::{MissReason, Tier};

use super::common::{WAIT, config, lease, small, store_below, world};
use super::world::{World, chain, client, hash, kind};
use crate::ladder::{DeviceFault, LoadEnd, LoadState, Move};

#[test]
fn what_lies_below_is_fetched_in_chain_order_and_says_so() {
    let (mut world, view) = world(1, &[4]);
    let hashes = chain(1, 3);
    store_below(&mut world, view, &hashes, 8);
    let lease = lease(&mut world, view, &hashes);
    let (state, landed) = world.load(0, lease, 0..3, WAIT, 1);
    assert_eq!((state, landed.len()), (LoadState::Pending, 0));
    world.run();
    assert_eq!(world.ends.values().next(), Some(&LoadEnd { blocks: 3, reason: None }));
    assert!(world.replies.iter().all(|(_, landed)| landed.tier == Some(Tier::Nvme)));
    assert_eq!(world.ladder.counters().fetched, 3);
}

#[test]
fn loads_of_one_block_share_one_fetch() {
    let (mut world, view) = world(2, &[4]);
    let hashes = chain(1, 2);
    store_below(&mut world, view, &hashes, 16);
    let first = lease(&mut world, view, &hashes);
    let second = lease(&mut world, view, &hashes);
    world.load(0, first, 0..2, WAIT, 1);
    world.load(0, second, 0..2, WAIT, 2);
    world.run();
    assert_eq!(world.ladder.counters().fetched, 2);
    assert_eq!(world.ends.len(), 2);
    assert!(world.ends.values().all(|end| end.blocks == 2));
}

#[test]
fn a_deadline_detaches_the_waiter_and_never_the_move() {
    let (mut world, view) = world(1, &[4]);
    let hashes = chain(1, 2);
    store_below(&mut world, view, &hashes, 8);
    let lease = lease(&mut world, view, &hashes);
    assert_eq!(world.load(0, lease, 0..2, WAIT, 1).0, LoadState::Pending);
    assert_eq!(world.ladder.poll_timeout(), Some(world.now + WAIT));
    world.tick(WAIT);
    assert_eq!(world.ends.values().next(), Some(&LoadEnd { blocks: 0, reason: Some(MissReason::Timeout) }));
    world.run();
    let (state, landed) = world.load(0, lease, 0..2, WAIT, 2);
    assert_eq!((state, landed.len()), (LoadState::Done { reason: None }, 2), "the moves went on");
}

#[test]
fn a_bad_copy_gives_way_to_a_good_one_below() {
    let (mut world, view) = world(1, &[4]);
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    world.run();
    let lease = lease(&mut world, view, &hashes);
    world.load(0, lease, 0..3, WAIT, 1);
    world.ladder.corrupt(client(0), lease, 1, world.now);
    world.settle();
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 3, "a device has it still");
    assert_eq!(world.load(0, lease, 0..3, WAIT, 2).0, LoadState::Pending);
    world.run();
    assert_eq!(world.ends.values().next(), Some(&LoadEnd { blocks: 3, reason: None }));
    world.release(0, lease);
    assert_eq!(world.ladder.stats().pins, 0, "the bad copy's slot is free as well");
}

#[test]
fn a_rotten_device_copy_is_never_published() {
    let (mut world, view) = world(1, &[4]);
    let hashes = chain(1, 2);
    store_below(&mut world, view, &hashes, 8);
    world.disks[0].bytes.values_mut().for_each(|bytes| *bytes = None);
    let lease = lease(&mut world, view, &hashes);
    world.load(0, lease, 0..2, WAIT, 1);
    world.run();
    assert_eq!(world.ends.values().next(), Some(&LoadEnd { blocks: 0, reason: Some(MissReason::Corrupt) }));
    let found = world.matched(0, view, &hashes, false);
    assert_eq!((found.blocks, found.miss), (0, Some(MissReason::Corrupt)));
    assert!(world.ladder.stats().devices[0].corrupt >= 1);
}

#[test]
fn a_device_slot_is_reused_only_when_its_entry_is_gone() {
    let (mut world, view) = world(4, &[1]);
    world.store(0, view, &chain(1, 8));
    world.run();
    assert_eq!(world.ladder.stats().devices[0].slots_used, 8);
    world.store(0, view, &chain(2, 2));
    world.settle();
    let vacates: Vec<_> =
        world.moves.values().filter(|next| matches!(next, Move::Vacate { .. })).map(Move::id).collect();
    assert!(!vacates.is_empty(), "victims fell for the newcomers");
    assert!(!world.moves.values().any(|next| matches!(next, Move::Spill { .. })), "none of their slots is taken yet");
    world.finish(vacates[0], Some(DeviceFault::Io));
    assert!(!world.moves.values().any(|next| matches!(next, Move::Spill { .. })), "nor after a vacate that failed");
    world.run();
    assert!(world.ladder.counters().spilled >= 10);
}

#[test]
fn a_load_that_would_lose_is_not_taken_and_says_so() {
    let (mut world, view) = world(2, &[8]);
    let hashes = chain(1, 2);
    store_below(&mut world, view, &hashes, 16);
    // Measure the edge: 8 MiB in 100 ms.
    let slow = lease(&mut world, view, &hashes);
    world.load(0, slow, 0..1, Duration::from_secs(9), 1);
    while let Some(id) = world.moves.keys().next().copied() {
        world.now = world.now + Duration::from_millis(100);
        world.finish(id, None);
    }
    world.release(0, slow);
    // 16 tokens in 1 ms: recomputing wins.
    world.ladder.set_prefill_rate(view, 16_000);
    let lease_fast = lease(&mut world, view, &hashes);
    let (state, landed) = world.load(0, lease_fast, 0..2, WAIT, 2);
    assert_eq!(state, LoadState::Done { reason: Some(MissReason::SlowerThanRecompute) });
    assert_eq!(landed.len(), 2, "what lies in the arena pays: one landed, one missed");
    // 16 tokens in a second: loading wins.
    world.ladder.set_prefill_rate(view, 16);
    let lease_slow = lease(&mut world, view, &hashes);
    assert_eq!(world.load(0, lease_slow, 0..2, WAIT, 3).0, LoadState::Pending);
}

#[test]
fn a_device_that_is_out_costs_misses_and_comes_back() {
    let (mut world, view) = world(1, &[4]);
    let (below, here) = (chain(1, 2), chain(99, 8));
    store_below(&mut world, view, &below, 8);
    let lease_below = lease(&mut world, view, &below);
    world.load(0, lease_below, 0..2, WAIT, 1);
    let fetch = *world.moves.keys().next().unwrap();
    world.finish(fetch, Some(DeviceFault::Gone));
    assert_eq!(world.ends.values().next().unwrap().reason, Some(MissReason::TierDown));
    let found = world.matched(0, view, &below, false);
    assert_eq!((found.blocks, found.miss), (0, Some(MissReason::TierDown)));
    assert!(world.matched(0, view, &here, false).blocks >= 6, "what lies in the arena is served");
    assert!(!world.ladder.stats().devices[0].readable);
    while let Some(id) = world.moves.keys().next().copied() {
        world.finish(id, Some(DeviceFault::Gone));
    }
    let retry = world.ladder.stats().devices[0].retry_at.unwrap();
    let pause = retry.since(world.now);
    world.tick(pause);
    assert!(world.moves.values().any(|next| matches!(next, Move::Probe { .. })));
    world.run();
    assert_eq!(world.matched(0, view, &below, false).blocks, 2);
}

#[test]
fn a_full_disk_stops_spills_and_nothing_else() {
    let (mut world, view) = world(1, &[4]);
    let below = chain(1, 2);
    store_below(&mut world, view, &below, 8);
    world.store(0, view, &chain(2, 1));
    world.settle();
    let spill = world.moves.values().find(|next| matches!(next, Move::Spill { .. })).unwrap().id();
    world.finish(spill, Some(DeviceFault::NoSpace));
    let stats = &world.ladder.stats().devices[0];
    assert!(stats.readable && !stats.writable);
    world.store(0, view, &chain(3, 1));
    world.settle();
    assert!(!world.moves.values().any(|next| matches!(next, Move::Spill { .. })));
    let lease = lease(&mut world, view, &below);
    world.load(0, lease, 0..2, WAIT, 1);
    world.run();
    assert_eq!(world.ends.values().next().unwrap().blocks, 2, "reads are served");
    world.tick(Duration::from_secs(1));
    world.run();
    assert!(world.ladder.stats().devices[0].writable);
    let explained = world.ladder.explain(&small().spec.group_key.block(&hash(3 << 16)));
    assert!(explained.records[0].nvme.is_some(), "what was not spilled then is spilled later");
}

#[test]
fn a_starving_size_gets_another_ones_segment_scrubbed_between_tenants() {
    let mut world = World::new(config(2, &[]));
    let view = world.open(0, &small());
    let hashes = chain(1, 16);
    world.store(0, view, &hashes);
    let other = world.open(1, &kind(2, 0..8, 16 << 20));
    let wanted = chain(2, 4);
    for _ in 0..100 {
        world.store(1, other, &wanted);
        world.run();
    }
    assert_eq!(world.matched(1, other, &wanted, false).blocks, 4);
    assert!(world.matched(0, view, &hashes, false).blocks < 16);
    assert!(world.ladder.counters().segments_drained >= 1);
}

#[test]
fn a_starving_size_gets_a_zone() {
    let (mut world, view) = world(4, &[1]);
    world.store(0, view, &chain(1, 8));
    world.run();
    let other = world.open(1, &kind(1, 0..4, 16 << 20));
    for salt in 2..6 {
        world.store(1, other, &chain(salt, 2));
        world.run();
    }
    assert!(world.ladder.counters().zones_drained >= 1);
    let stats = &world.ladder.stats().devices[0];
    assert!(stats.slots_used <= 4 && stats.slots_used > 0, "{} slots of the new size", stats.slots_used);
}

#[test]
fn a_prefetch_brings_up_what_a_load_then_finds() {
    let (mut world, view) = world(1, &[4]);
    let hashes = chain(1, 3);
    store_below(&mut world, view, &hashes, 8);
    assert_eq!(world.ladder.prefetch(client(0), view, &hashes, world.now), 3);
    world.run();
    let lease = lease(&mut world, view, &hashes);
    let (state, landed) = world.load(0, lease, 0..3, WAIT, 1);
    assert_eq!((state, landed.len()), (LoadState::Done { reason: None }, 3));
}

#[test]
fn spills_go_to_every_device() {
    let (mut world, view) = world(2, &[2, 2]);
    world.store(0, view, &chain(1, 12));
    world.run();
    let counts: Vec<_> = world.disks.iter().map(|disk| disk.table.len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 12);
    assert!(counts.iter().all(|count| *count >= 4), "{counts:?}");
}

#[test]
fn without_memory_for_another_segment_older_blocks_make_room_and_later_it_is_asked_for_again() {
    let (mut world, view) = world(2, &[]);
    let first = chain(1, 8);
    assert_eq!(world.store(0, view, &first), 8);
    world.ladder.table_mut().barren = true;
    assert_eq!(world.store(0, view, &chain(2, 3)), 3, "blocks of the segment that there is fell");
    assert_eq!(world.matched(0, view, &first, false).blocks, 5);
    world.ladder.table_mut().barren = false;
    let retry = world.ladder.poll_timeout();
    world.tick(Duration::from_millis(1));
    world.tick(Duration::from_secs(2));
    assert_eq!(world.store(0, view, &chain(3, 8)), 8);
    assert_eq!(world.matched(0, view, &first, false).blocks, 5, "the second segment took them: {retry:?}");
}
