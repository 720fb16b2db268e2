//! Who holds what, for how long, and what an operator may do about it.

use std::time::Duration;

use kvd_proto::MissReason;
use kvd_proto::wire::slab::GrantedStatus;

use super::common::{SLOT, WAIT, config, lease, small, store_below, world};
use super::world::{World, chain, client, instance, kind};
use crate::ladder::{CommitError, JoinError, LadderConfig, LoadState, Move, Purge};

#[test]
fn a_lease_holds_its_prefix_until_it_is_idle() {
    let (mut world, view) = world(1, &[]);
    let held = chain(1, 4);
    world.store(0, view, &held);
    lease(&mut world, view, &held);
    for salt in 2..6 {
        world.store(0, view, &chain(salt, 4));
    }
    assert_eq!(world.matched(0, view, &held, false).blocks, 4);
    let (_, told) = world.offer(0, view, &chain(9, 9), 0);
    let granted = told.iter().filter(|granted| granted.status == GrantedStatus::Granted).count();
    assert_eq!(granted, 4, "what is held and what is being filled does not fall");
    assert_eq!(told[4].reason, Some(MissReason::Quota));
    world.tick(Duration::from_secs(31));
    assert_eq!(world.ladder.counters().leases_expired, 1);
    let (_, told) = world.offer(0, view, &chain(10, 4), 0);
    assert_eq!(told.iter().filter(|granted| granted.status == GrantedStatus::Granted).count(), 4);
}

#[test]
fn an_instance_holds_no_more_than_its_cap() {
    let cap = u64::from(SLOT) * 3;
    let mut world = World::new(LadderConfig { lease_bytes_max: cap, ..config(1, &[]) });
    let view = world.open(0, &small());
    let hashes = chain(1, 5);
    let (fill, told) = world.offer(0, view, &hashes, 0);
    assert_eq!(told.iter().filter(|granted| granted.status == GrantedStatus::Granted).count(), 3);
    assert_eq!(told[3].reason, Some(MissReason::Quota));
    (0..3).for_each(|index| assert!(world.commit(0, fill.unwrap(), index)));
    world.store(0, view, &hashes);
    let found = world.matched(0, view, &hashes, true);
    assert_eq!((found.blocks, found.miss), (3, Some(MissReason::Quota)), "a lease is cut to the cap");
    assert_eq!(world.matched(0, view, &hashes, true).lease, None);
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 5);
}

#[test]
fn a_dead_client_leaves_nothing_behind() {
    let mut world = World::new(LadderConfig { work_per_call: 2, ..config(1, &[2]) });
    let view = world.open(0, &small());
    let other = world.open(1, &small());
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    let read = lease(&mut world, view, &hashes);
    world.load(0, read, 0..3, WAIT, 1);
    world.offer(0, view, &chain(2, 3), 0);
    world.ladder.client_died(client(0), world.now);
    world.run();
    let stats = world.ladder.stats();
    assert_eq!((stats.pins, stats.leases, stats.lease_bytes, stats.instances), (0, 0, 0, 1));
    assert_eq!(stats.dram_slots_used, 3);
    assert_eq!(world.matched(1, other, &hashes, false).blocks, 3, "what it stored stays");
}

#[test]
fn a_lease_outlives_one_process_of_its_instance_but_not_the_last() {
    let (mut world, view) = world(1, &[]);
    world.ladder.join(client(1), instance(0), small().spec.tenant, world.now).unwrap();
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    let lease = lease(&mut world, view, &hashes);
    let (_, landed) = world.load(1, lease, 0..3, WAIT, 1);
    assert_eq!(landed.len(), 3, "a worker loads under the scheduler's lease");
    world.ladder.client_died(client(0), world.now);
    world.run();
    assert_eq!(world.ladder.stats().leases, 1);
    world.ladder.client_died(client(1), world.now);
    world.run();
    assert_eq!((world.ladder.stats().leases, world.ladder.stats().pins), (0, 0));
}

#[test]
fn slots_of_the_last_epoch_are_fenced_until_their_clients_let_go() {
    let (mut world, view) = world(1, &[]);
    let read = chain(1, 3);
    world.store(0, view, &read);
    let lease = lease(&mut world, view, &read);
    world.load(0, lease, 0..3, WAIT, 1);
    world.offer(0, view, &chain(2, 3), 0);
    world.restart();
    let view = world.open(1, &small());
    assert_eq!(world.matched(1, view, &read, false).blocks, 3, "the arena is adopted");
    let (_, told) = world.offer(1, view, &chain(3, 8), 0);
    let granted = |told: &[kvd_proto::wire::slab::Granted]| {
        told.iter().filter(|granted| granted.status == GrantedStatus::Granted).count()
    };
    assert_eq!(granted(&told), 2, "eight slots, six of them fenced");
    world.ladder.rejoined(client(0), world.now);
    world.run();
    let (_, told) = world.offer(1, view, &chain(4, 8), 0);
    assert_eq!(granted(&told), 6);
}

#[test]
fn a_floor_keeps_an_instance_from_being_flushed() {
    let mut world = World::new(LadderConfig { floor_bytes: u64::from(SLOT) * 3, ..config(2, &[]) });
    let (quiet, loud) = (world.open(0, &small()), world.open(1, &small()));
    let kept = chain(1, 3);
    world.store(0, quiet, &kept);
    for salt in 2..20 {
        world.store(1, loud, &chain(salt, 4));
    }
    assert_eq!(world.matched(0, quiet, &kept, false).blocks, 3);
    world.ladder.client_died(client(0), world.now);
    for salt in 20..30 {
        world.store(1, loud, &chain(salt, 4));
    }
    let view = world.open(2, &small());
    assert_eq!(world.matched(2, view, &kept, false).blocks, 0, "the floor ends with the instance");
}

/// Another slot size gets its first segment in spite of floors, and no more where that took somebody below its floor.
#[test]
fn a_floor_does_not_keep_another_size_out() {
    let mut world = World::new(LadderConfig { floor_bytes: 16 << 20, ..config(3, &[]) });
    let (few, other_kind) = (kind(1, 0..8, SLOT / 4), kind(1, 8..16, SLOT / 2));
    let quiet = world.open(0, &few);
    let kept: Vec<_> = (1..5).map(|salt| chain(salt, 24)).collect();
    kept.iter().for_each(|hashes| assert_eq!(world.store(0, quiet, hashes), 24));
    let other = world.open(1, &other_kind);
    assert_eq!(world.store(1, other, &chain(9, 4)), 0, "a segment is emptied for it first");
    world.run();
    for salt in 10..20 {
        assert!(world.store(1, other, &chain(salt, 4)) > 0, "chain {salt}");
        world.run();
    }
    assert_eq!(world.matched(1, other, &chain(19, 4), false).blocks, 4);
    let left: u32 = kept.iter().map(|hashes| world.matched(0, quiet, hashes, false).blocks).sum();
    assert!(left >= 8, "{left} of 96: its floor is 8");
}

/// What a floor keeps is the coldest there is: it must not stand before what may fall.
#[test]
fn floors_do_not_starve_the_others() {
    let (few, slots) = (SLOT / 16, 16 * 7);
    let quiet_kind = kind(1, 0..8, few);
    let mut world = World::new(LadderConfig { floor_bytes: 8 << 20, ..config(2, &[]) });
    let (quiet, loud) = (world.open(0, &quiet_kind), world.open(1, &quiet_kind));
    let kept = chain(1, 120);
    assert_eq!(world.store(0, quiet, &kept), 120);
    let mut stored = 0;
    for salt in 2..40 {
        stored += world.store(1, loud, &chain(salt, 10));
    }
    assert_eq!(stored, 380, "with {slots} slots and more of its own, none is refused");
    let found = world.matched(0, quiet, &kept, false).blocks;
    let floor_blocks = (8 << 20) / few;
    assert!(found >= floor_blocks.min(120) - 1, "{found} of {floor_blocks}");
    // The quiet one grows: what it kept is its own to replace.
    let more = chain(99, 100);
    assert_eq!(world.store(0, quiet, &more), 100);
    assert_eq!(world.matched(0, quiet, &more, false).blocks, 100);
}

#[test]
fn views_are_refused_with_the_reason() {
    let mut world = World::new(LadderConfig { views_max: 1, lanes_max: 1, instances_max: 1, ..config(1, &[]) });
    world.open(0, &small());
    assert_eq!(world.ladder.open_view(&small().spec), Err(JoinError::Views));
    assert_eq!(world.ladder.open_view(&kind(1, 0..4, SLOT).spec), Err(JoinError::Lanes));
    let mut large = small();
    large.spec.payload_bytes = 64 << 20;
    assert!(matches!(world.ladder.open_view(&large.spec), Err(JoinError::SlotBytes(_))));
    let joined = world.ladder.join(client(1), instance(1), small().spec.tenant, world.now);
    assert_eq!(joined, Err(JoinError::Instances));
}

#[test]
fn a_purge_takes_a_tenant_and_leaves_the_others() {
    let mut world = World::new(LadderConfig { work_per_call: 4, ..config(3, &[4]) });
    let (view, other) = (world.open(0, &small()), world.open(1, &kind(2, 0..8, SLOT)));
    let hashes = chain(1, 5);
    world.store(0, view, &hashes);
    world.store(1, other, &hashes);
    world.run();
    let (fill, _) = world.offer(0, view, &chain(2, 1), 0);
    world.ladder.purge(Purge::Tenant(small().spec.tenant), world.now);
    world.run();
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 0);
    assert_eq!(world.matched(1, other, &hashes, false).blocks, 5);
    assert_eq!(
        world.ladder.commit(client(0), fill.unwrap(), 0, 1, world.now),
        Err(CommitError::Unwanted),
        "what was being filled is purged as well"
    );
    assert_eq!(world.disks[0].table.len(), 5);
}

#[test]
fn what_was_purged_while_it_was_spilled_is_stored_anew() {
    let (mut world, view) = world(1, &[4]);
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    let spilling = |world: &World| world.moves.values().filter(|m| matches!(m, Move::Spill { .. })).count();
    while spilling(&world) < 3 {
        let format = *world.moves.iter().find(|(_, m)| matches!(m, Move::FormatZone { .. })).unwrap().0;
        world.finish(format, None);
    }
    world.ladder.purge(Purge::All, world.now);
    while world.ladder.stats().purges > 0 {
        world.tick(Duration::ZERO);
    }
    assert_eq!(world.store(0, view, &hashes), 3, "the moves that are still under way are in nobody's way");
    assert_eq!(spilling(&world), 3);
    world.run();
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 3);
    assert_eq!(world.disks[0].table.len(), 3, "each is spilled as it is now");
}

/// Nothing will come of a fetch whose block was purged: whoever brings it anew does not wait for it.
#[test]
fn what_was_purged_while_it_was_fetched_is_stored_anew() {
    let (mut world, view) = world(2, &[4]);
    let hashes = chain(1, 3);
    store_below(&mut world, view, &hashes, 16);
    let lease = lease(&mut world, view, &hashes);
    assert_eq!(world.load(0, lease, 0..3, WAIT, 1).0, LoadState::Pending);
    let fetching = world.moves.values().filter(|m| matches!(m, Move::Fetch { .. })).count();
    assert!(fetching > 0);
    world.ladder.purge(Purge::All, world.now);
    while world.ladder.stats().purges > 0 {
        world.tick(Duration::ZERO);
    }
    assert_eq!(world.store(0, view, &hashes), 3);
    assert_eq!(world.moves.values().filter(|m| matches!(m, Move::Fetch { .. })).count(), fetching);
    world.run();
    assert!(world.ends.values().all(|end| end.blocks < 3 && end.reason.is_some()), "who waited was told");
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 3);
    assert_eq!(world.ladder.counters().fetched, 0, "nothing came of the moves");
}

#[test]
fn an_operators_pin_and_evict_do_as_they_say() {
    let (mut world, view) = world(1, &[]);
    let kept = chain(1, 2);
    world.store(0, view, &kept);
    let key = small().spec.group_key.block(&kept[1]);
    assert_eq!(world.ladder.pin(&key, true), 1);
    for salt in 2..9 {
        world.store(0, view, &chain(salt, 3));
    }
    assert_eq!(world.matched(0, view, &kept, false).blocks, 2);
    assert!(world.ladder.explain(&key).records[0].pinned);
    assert_eq!(world.ladder.evict(&key, None, world.now), 1);
    world.settle();
    assert_eq!(world.matched(0, view, &kept, false).blocks, 1);
    assert_eq!(world.ladder.explain(&key).miss, Some(MissReason::Evicted));
}

#[test]
fn a_drain_refuses_newcomers_and_brings_all_down() {
    let mut world = World::new(LadderConfig { spill_queue_max: 2, ..config(2, &[4]) });
    let view = world.open(0, &small());
    world.store(0, view, &chain(1, 12));
    world.ladder.drain(true, world.now);
    let (_, told) = world.offer(0, view, &chain(2, 1), 0);
    assert_eq!(told[0].status, GrantedStatus::Refused);
    assert!(!world.ladder.drained());
    world.run();
    assert!(world.ladder.drained());
    assert_eq!(world.disks[0].table.len(), 12, "also what did not fit in the queue at first");
    world.ladder.drain(false, world.now);
    assert_eq!(world.store(0, view, &chain(2, 1)), 1);
}

#[test]
fn a_scrub_reads_every_copy_and_finds_the_bad_one() {
    let (mut world, view) = world(1, &[4]);
    world.store(0, view, &chain(1, 4));
    world.run();
    *world.disks[0].bytes.values_mut().next().unwrap() = None;
    world.ladder.scrub(true, world.now);
    for _ in 0..100 {
        world.run();
        world.tick(Duration::from_millis(5));
    }
    let counters = *world.ladder.counters();
    assert_eq!((counters.scrubs, counters.verified, counters.corrupt_nvme), (1, 8, 1));
    assert_eq!(world.disks[0].table.len(), 4, "the good copy in the arena was spilled again");
    assert_eq!(world.matched(0, view, &chain(1, 4), false).blocks, 4);
    // The same for a copy in the arena: it alone is dropped.
    *world.ladder.table_mut().bytes.values_mut().next().unwrap() = None;
    world.ladder.scrub(true, world.now);
    for _ in 0..100 {
        world.run();
        world.tick(Duration::from_millis(5));
    }
    let counters = *world.ladder.counters();
    assert_eq!((counters.scrubs, counters.corrupt_dram, counters.corrupt_nvme), (2, 1, 1));
    assert_eq!(world.ladder.stats().below, 1);
    assert_eq!(world.matched(0, view, &chain(1, 4), false).blocks, 4);
}
