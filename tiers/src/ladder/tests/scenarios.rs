//! One test per rule, on a world of few large slots: 8 to a segment or zone.

use std::cell::Cell;
use std::time::Duration;

use kvd_proto::wire::slab::{GrantedStatus, LandedStatus};
use kvd_proto::{BlockHash, MissReason, Tier};

use super::world::{Kind, World, chain, client, hash, instance, kind};
use crate::ids::{LeaseId, ViewId};
use crate::ladder::{
    CommitError, DeviceConfig, DeviceFault, HashSource, JoinError, LadderConfig, LoadEnd, LoadState, Move, Purge,
};

const SLOT: u32 = 8 << 20;
const WAIT: Duration = Duration::from_millis(100);

fn small() -> Kind {
    kind(1, 0..8, SLOT)
}

fn config(segments: u32, zones: &[u32]) -> LadderConfig {
    let devices = zones.iter().map(|zones| DeviceConfig { zones: *zones }).collect();
    LadderConfig { lease_bytes_max: 1 << 40, ..LadderConfig::new(segments, devices) }
}

/// A world with one client and its view.
fn world(segments: u32, zones: &[u32]) -> (World, ViewId) {
    let mut world = World::new(config(segments, zones));
    let view = world.open(0, &small());
    (world, view)
}

fn lease(world: &mut World, view: ViewId, hashes: &[BlockHash]) -> LeaseId {
    world.matched(0, view, hashes, true).lease.expect("something matched")
}

/// Stores a chain whose blocks then lie on a device only: others push it out of the arena.
fn store_below(world: &mut World, view: ViewId, hashes: &[BlockHash], slots: u32) {
    world.store(0, view, hashes);
    world.run();
    world.store(0, view, &chain(99, slots));
    world.run();
    let tiers = world.matched(0, view, hashes, false);
    assert_eq!((tiers.blocks, tiers.slowest), (hashes.len() as u32, Some(Tier::Nvme)));
    assert_eq!(world.ladder.stats().below, hashes.len() as u64);
}

#[test]
fn what_is_stored_is_matched_loaded_and_let_go() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 5);
    assert_eq!(world.matched(0, view, &hashes, true).miss, Some(MissReason::Cold));
    assert_eq!(world.store(0, view, &hashes[..3]), 3);
    let found = world.matched(0, view, &hashes, true);
    assert_eq!((found.blocks, found.miss, found.slowest), (3, Some(MissReason::Cold), Some(Tier::Dram)));
    let lease = found.lease.unwrap();
    let (state, landed) = world.load(0, lease, 0..3, WAIT, 1);
    assert_eq!(state, LoadState::Done { reason: None });
    assert!(landed.iter().all(|landed| landed.status == LandedStatus::Landed && landed.tier == Some(Tier::Dram)));
    assert_eq!(world.ladder.stats().pins, 3);
    world.release(0, lease);
    let stats = world.ladder.stats();
    assert_eq!((stats.pins, stats.leases, stats.lease_bytes), (0, 0, 0));
    assert!(world.ladder.table().pins.values().all(|pins| *pins == 0));
    let (state, _) = world.load(0, lease, 0..3, WAIT, 2);
    assert_eq!(state, LoadState::Done { reason: Some(MissReason::LeaseLost) });
}

#[test]
fn a_match_of_a_long_chain_looks_at_few_blocks() {
    struct Counted(Vec<BlockHash>, Cell<u32>);
    impl HashSource for Counted {
        fn len(&self) -> u32 {
            self.0.len() as u32
        }
        fn get(&self, index: u32) -> BlockHash {
            self.1.set(self.1.get() + 1);
            self.0[index as usize]
        }
    }
    let mut world = World::new(config(1, &[]));
    let view = world.open(0, &kind(1, 0..8, 8192));
    let hashes = chain(1, 1000);
    world.store(0, view, &hashes[..900]);
    let full = Counted(hashes[..900].to_vec(), Cell::new(0));
    assert_eq!(world.ladder.match_prefix(client(0), view, &full, false, world.now).blocks, 900);
    assert_eq!(full.1.get(), 1, "the last block settles a full hit");
    let part = Counted(hashes, Cell::new(0));
    assert_eq!(world.ladder.match_prefix(client(0), view, &part, false, world.now).blocks, 900);
    assert!(part.1.get() < 25, "{} looks for a partial hit", part.1.get());
}

#[test]
fn leaves_fall_first_and_a_prefix_is_as_young_as_what_stands_on_it() {
    let (mut world, view) = world(1, &[]);
    let (old, young) = (chain(1, 4), chain(2, 4));
    world.store(0, view, &old);
    world.store(0, view, &young);
    world.matched(0, view, &old, false);
    world.store(0, view, &chain(3, 2));
    assert_eq!(world.matched(0, view, &young, false).blocks, 2, "the deepest of the coldest chain fell");
    assert_eq!(world.matched(0, view, &young, false).miss, Some(MissReason::Evicted));
    assert_eq!(world.matched(0, view, &old, false).blocks, 4);
}

#[test]
fn one_writer_per_block_and_the_rest_is_told() {
    let (mut world, view) = world(1, &[]);
    let other = world.open(1, &small());
    let hashes = chain(1, 3);
    let (first, granted) = world.offer(0, view, &hashes, 0);
    assert!(granted.iter().all(|granted| granted.status == GrantedStatus::Granted));
    let (second, told) = world.offer(1, other, &hashes, 0);
    assert_eq!(second, None);
    assert!(told.iter().all(|granted| granted.status == GrantedStatus::InFlight));
    assert!(world.commit(0, first.unwrap(), 0));
    let (_, told) = world.offer(1, other, &hashes, 0);
    assert_eq!(told[0].status, GrantedStatus::Present);
    assert!(!world.commit(1, first.unwrap(), 1), "nobody commits another's slot");
    assert!(!world.commit(0, first.unwrap(), 0), "nor twice");
}

#[test]
fn a_block_offered_elsewhere_in_a_chain_is_refused() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    let forged = vec![hashes[0], hashes[2]];
    let (_, told) = world.offer(0, view, &forged, 0);
    let statuses: Vec<_> = told.iter().map(|granted| (granted.status, granted.reason)).collect();
    assert_eq!(statuses[1], (GrantedStatus::Refused, Some(MissReason::Corrupt)));
    assert_eq!(world.matched(0, view, &forged, false).blocks, 1, "nor is it matched there");
}

#[test]
fn children_sealed_before_parents_wait_for_them() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 4);
    let (lease, _) = world.offer(0, view, &hashes, 0);
    for index in [3, 1, 2] {
        assert!(world.commit(0, lease.unwrap(), index));
        assert_eq!(world.matched(0, view, &hashes, false).blocks, 0);
    }
    assert!(world.commit(0, lease.unwrap(), 0));
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 4);
}

#[test]
fn orphans_are_few_and_expire() {
    let mut world = World::new(LadderConfig { orphans_max: 2, ..config(1, &[]) });
    let view = world.open(0, &small());
    let hashes = chain(1, 5);
    let (lease, _) = world.offer(0, view, &hashes, 0);
    for index in [4, 3, 2] {
        assert!(world.commit(0, lease.unwrap(), index));
    }
    assert_eq!(world.ladder.counters().orphans_expired, 1, "the oldest gave way to the third");
    world.tick(Duration::from_secs(11));
    assert_eq!(world.ladder.counters().orphans_expired, 3);
    assert_eq!(world.ladder.stats().dram_slots_used, 2, "those still being filled");
    // One whose parent nobody knows waits as well, but not for ever.
    let far = chain(2, 9);
    let (lease, told) = world.offer(0, view, &far, 8);
    assert_eq!(told[0].status, GrantedStatus::Granted);
    assert!(world.commit(0, lease.unwrap(), 0));
    world.tick(Duration::from_secs(11));
    assert_eq!(world.ladder.counters().orphans_expired, 4);
}

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
fn a_bad_last_copy_takes_what_hangs_on_it_along() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 5);
    world.store(0, view, &hashes);
    let lease = lease(&mut world, view, &hashes);
    world.ladder.corrupt(client(0), lease, 2, world.now);
    let found = world.ladder.match_prefix(client(0), view, &hashes, false, world.now);
    assert_eq!((found.blocks, found.miss), (2, Some(MissReason::Corrupt)));
    world.run();
    world.release(0, lease);
    assert_eq!(world.ladder.stats().nodes, 2);
    assert_eq!(world.ladder.stats().dram_slots_used, 2);
    assert_eq!(world.store(0, view, &hashes), 3, "it can be stored again");
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 5);
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
fn a_floor_keeps_an_instance_from_being_flushed() {
    let mut world = World::new(LadderConfig { floor_bytes: u64::from(SLOT) * 3, ..config(1, &[]) });
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
    assert_eq!(world.ladder.evict(&key, world.now), 1);
    world.settle();
    assert_eq!(world.matched(0, view, &kept, false).blocks, 1);
    assert_eq!(world.ladder.explain(&key).miss, Some(MissReason::Evicted));
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
