//! What the ladder says about itself is what lies there.

use std::time::Duration;

use kvd_proto::{MissReason, Tier};

use super::common::{SLOT, WAIT, config, lease, small, store_below, world};
use super::world::{chain, client, instance, kind};
use crate::ladder::{LeaseView, LoadState, Move, Purge};

#[test]
fn a_device_says_what_it_holds_and_what_it_is_doing() {
    let (mut world, view) = world(1, &[4]);
    world.store(0, view, &chain(1, 3));
    world.run();
    let bytes = 3 * u64::from(SLOT);
    let device = world.ladder.stats().devices[0];
    assert_eq!((device.zones, device.zones_formatted), (4, 1));
    assert_eq!((device.slots_used, device.bytes_used, device.bytes_written, device.bytes_read), (3, bytes, bytes, 0));
    assert!(device.readable && device.writable && device.retry_at.is_none());
    assert_eq!((device.spilling, device.fetching, device.vacating, device.failed, device.corrupt), (0, 0, 0, 0, 0));
    let stats = world.ladder.stats();
    assert_eq!((stats.records, stats.durable, stats.below, stats.nodes), (3, 3, 0, 3));
    assert_eq!((stats.segments, stats.segments_unassigned), (1, 0));
    assert_eq!((stats.dram_slots_used, stats.dram_bytes_used, stats.instances, stats.views), (3, bytes, 1, 1));
    world.ladder.purge(Purge::All, world.now);
    while world.ladder.stats().purges > 0 {
        world.tick(Duration::ZERO);
    }
    let device = world.ladder.stats().devices[0];
    assert_eq!((device.slots_used, device.bytes_used, device.vacating), (0, bytes, 3), "the entries have yet to go");
    world.run();
    let device = world.ladder.stats().devices[0];
    assert_eq!((device.slots_used, device.bytes_used, device.vacating), (0, 0, 0));
    let stats = world.ladder.stats();
    assert_eq!((stats.records, stats.durable, stats.nodes, stats.dram_bytes_used), (0, 0, 0, 0));
    assert_eq!(stats.counters.purges, 1);
}

#[test]
fn a_match_says_how_long_a_load_of_it_takes() {
    let (mut world, view) = world(2, &[4]);
    let hashes = chain(1, 4);
    store_below(&mut world, view, &hashes, 16);
    let found = world.matched(0, view, &hashes, false);
    assert_eq!((found.slowest, found.estimate), (Some(Tier::Nvme), Duration::ZERO), "nothing was measured yet");
    let lease = lease(&mut world, view, &hashes);
    assert_eq!(world.load(0, lease, 0..1, WAIT, 1).0, LoadState::Pending);
    world.now = world.now + Duration::from_millis(50);
    world.run();
    let rate = world.ladder.stats().devices[0].read_bytes_per_second;
    assert_eq!(rate, u64::from(SLOT) * 20);
    let found = world.matched(0, view, &hashes, false);
    assert_eq!((found.slowest, found.estimate), (Some(Tier::Nvme), 3 * Duration::from_millis(50)));
    let found = world.matched(0, view, &hashes[..2], false);
    assert_eq!(found.estimate, Duration::from_millis(50), "the first is here already");
    let found = world.matched(0, view, &hashes[..1], false);
    assert_eq!((found.slowest, found.estimate), (Some(Tier::Dram), Duration::ZERO));
}

#[test]
fn every_request_is_counted() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 5);
    world.store(0, view, &hashes[..3]);
    let lease = lease(&mut world, view, &hashes);
    world.load(0, lease, 0..3, WAIT, 1);
    world.load(0, lease, 1..2, WAIT, 1);
    world.release(0, lease);
    world.load(0, lease, 0..3, WAIT, 2);
    assert_eq!(world.store(0, view, &hashes[..4]), 1);
    let counters = *world.ladder.counters();
    assert_eq!((counters.matches, counters.blocks_asked, counters.blocks_matched), (1, 5, 3));
    assert_eq!((counters.loads, counters.dram_hits, counters.nvme_hits, counters.object_hits), (3, 4, 0, 0));
    assert_eq!((counters.offers, counters.granted, counters.present), (2, 4, 3));
    assert_eq!((counters.committed, counters.refused, counters.in_flight), (4, 0, 0));
    let missed = |reason| counters.missed[MissReason::ALL.iter().position(|known| *known == reason).unwrap()];
    assert_eq!((missed(MissReason::Cold), missed(MissReason::LeaseLost)), (1, 1));
    assert_eq!(counters.missed.iter().sum::<u64>(), 2);
}

#[test]
fn leases_are_listed_with_who_holds_what() {
    let (mut world, view) = world(1, &[]);
    let other = world.open(1, &small());
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    assert!(!world.ladder.holds(client(0)) && !world.ladder.holds(client(1)));
    let read = lease(&mut world, view, &hashes);
    let (fill, _) = world.offer(1, other, &chain(2, 2), 0);
    let slots = |count: u64| count * u64::from(SLOT);
    let touched = world.now;
    let expected = [
        LeaseView {
            id: read,
            instance: instance(0),
            client: client(0),
            fill: false,
            blocks: 3,
            bytes: slots(3),
            touched,
        },
        LeaseView {
            id: fill.unwrap(),
            instance: instance(1),
            client: client(1),
            fill: true,
            blocks: 2,
            bytes: slots(2),
            touched,
        },
    ];
    assert_eq!(world.ladder.leases().collect::<Vec<_>>(), expected);
    assert_eq!((world.ladder.stats().leases, world.ladder.stats().lease_bytes), (2, slots(5)));
    assert!(world.commit(1, fill.unwrap(), 0));
    assert_eq!(world.ladder.leases().map(|lease| (lease.blocks, lease.bytes)).last(), Some((1, slots(1))));
    assert!(world.ladder.holds(client(0)) && world.ladder.holds(client(1)) && !world.ladder.holds(client(2)));
    world.load(0, read, 0..1, WAIT, 1);
    world.restart();
    assert_eq!(world.ladder.leases().count(), 0);
    assert!(world.ladder.holds(client(0)) && world.ladder.holds(client(1)), "what they may touch is fenced");
    world.ladder.rejoined(client(0), world.now);
    world.run();
    assert!(!world.ladder.holds(client(0)) && world.ladder.holds(client(1)));
}

#[test]
fn a_block_is_explained_shard_by_shard() {
    let (mut world, view) = world(2, &[4]);
    let half = world.open(0, &kind(1, 0..4, SLOT));
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    world.store(0, half, &hashes[..2]);
    world.run();
    let key = |index: usize| small().spec.group_key.block(&hashes[index]);
    let explained = world.ladder.explain(&key(1));
    assert_eq!((explained.records.len(), explained.miss), (2, None));
    let found: Vec<_> = explained.records.iter().map(|record| (record.position, record.children)).collect();
    assert_eq!(found, [(1, 1), (1, 0)]);
    assert!(explained.records.iter().all(|found| found.reachable && found.readable && !found.filling && !found.pinned));
    assert!(explained.records.iter().all(|found| found.dram.is_some() && found.nvme.is_some() && found.leases == 0));
    lease(&mut world, view, &hashes[..2]);
    lease(&mut world, view, &hashes[..2]);
    assert_eq!(world.ladder.explain(&key(1)).records[0].leases, 2);
    assert_eq!((world.ladder.pin(&key(1), true), world.ladder.pin(&key(2), true)), (2, 1));
    assert_eq!(world.ladder.explain(&key(7 % 3)).records[0].children, 1);
    let unknown = small().spec.group_key.block(&chain(5, 1)[0]);
    let explained = world.ladder.explain(&unknown);
    assert_eq!((explained.records.len(), explained.miss), (0, Some(MissReason::Cold)));
    assert_eq!((world.ladder.pin(&unknown, true), world.ladder.evict(&unknown, None, world.now)), (0, 0));
    // One that is being filled is there and cannot be read.
    world.offer(0, view, &chain(5, 1), 0);
    let explained = world.ladder.explain(&unknown);
    assert!(explained.records[0].filling && !explained.records[0].readable && explained.miss.is_some());
    assert_eq!((world.ladder.pin(&unknown, true), world.ladder.evict(&unknown, None, world.now)), (0, 0));
}

#[test]
fn a_copy_is_evicted_from_one_tier_where_nothing_hangs_on_it_there() {
    let (mut world, view) = world(2, &[4]);
    let hashes = chain(1, 2);
    world.store(0, view, &hashes);
    world.run();
    let key = |index: usize| small().spec.group_key.block(&hashes[index]);
    let evict = |world: &mut super::world::World, index: usize, tier| {
        let count = world.ladder.evict(&key(index), Some(tier), world.now);
        world.run();
        count
    };
    assert_eq!(evict(&mut world, 0, Tier::Dram), 0, "its child stands on it");
    assert_eq!(evict(&mut world, 0, Tier::Nvme), 0);
    assert_eq!(evict(&mut world, 1, Tier::Object), 0);
    assert_eq!(evict(&mut world, 1, Tier::Dram), 1);
    assert_eq!(evict(&mut world, 1, Tier::Dram), 0, "it is not there any more");
    assert_eq!((world.ladder.stats().below, world.ladder.stats().durable), (1, 2));
    assert_eq!(evict(&mut world, 0, Tier::Dram), 1, "its child stands on the copy below");
    assert_eq!(evict(&mut world, 1, Tier::Nvme), 1);
    assert_eq!(world.ladder.stats().records, 1);
    assert_eq!(world.ladder.explain(&key(1)).miss, Some(MissReason::Evicted));
    assert_eq!((world.ladder.counters().dram_evictions, world.ladder.counters().nvme_evictions), (2, 1));
    assert_eq!(world.ladder.evict(&key(0), None, world.now), 1);
    assert_eq!(world.ladder.stats().records, 0);
}

#[test]
fn only_paces_and_caps_change_while_it_runs() {
    let (mut world, view) = world(1, &[]);
    world.ladder.adjust(|config| {
        config.lease_bytes_max = u64::from(SLOT) * 2;
        config.lease_idle = Duration::from_secs(1);
        config.dram_segments = 99;
        config.leases_max = 1;
    });
    let expected = crate::ladder::LadderConfig {
        lease_bytes_max: u64::from(SLOT) * 2,
        lease_idle: Duration::from_secs(1),
        ..config(1, &[])
    };
    assert_eq!(*world.ladder.config(), expected);
    world.store(0, view, &chain(1, 2));
    world.store(0, view, &chain(2, 2));
    lease(&mut world, view, &chain(1, 2));
    assert_eq!(world.matched(0, view, &chain(2, 2), true).miss, Some(MissReason::Quota));
    world.tick(Duration::from_secs(1));
    assert_eq!(world.ladder.stats().leases, 0);
}

fn verifying(world: &super::world::World) -> usize {
    world.moves.values().filter(|found| matches!(found, Move::Verify { .. })).count()
}

#[test]
fn a_scrub_reads_at_its_pace_and_ends_when_it_is_told_to() {
    let (mut world, view) = world(1, &[4]);
    world.store(0, view, &chain(1, 4));
    world.run();
    let pause = world.ladder.config().scrub_pause;
    world.ladder.scrub(true, world.now);
    world.settle();
    assert!(world.ladder.stats().scrubbing);
    assert_eq!((verifying(&world), world.ladder.stats().scrub_left), (1, 8));
    assert_eq!(world.ladder.poll_timeout(), Some(world.now + pause));
    world.tick(pause - Duration::from_nanos(1));
    assert_eq!(verifying(&world), 1);
    world.tick(Duration::from_nanos(1));
    assert_eq!(verifying(&world), 2);
    world.tick(pause);
    assert_eq!(verifying(&world), 2, "no more at a time");
    assert_eq!(world.ladder.poll_timeout(), None, "it waits for one to end");
    world.run();
    world.tick(pause);
    assert_eq!(verifying(&world), 1);
    world.ladder.scrub(false, world.now);
    world.run();
    world.tick(pause);
    assert_eq!((verifying(&world), world.ladder.stats().scrub_left), (0, 0));
    let counters = *world.ladder.counters();
    assert_eq!((counters.verified, counters.scrubs), (3, 0));
    world.ladder.scrub(true, world.now);
    for _ in 0..20 {
        world.run();
        world.tick(pause);
    }
    assert_eq!((world.ladder.counters().verified, world.ladder.counters().scrubs), (3 + 8, 1), "from the start again");
    assert!(!world.ladder.stats().scrubbing);
}

#[test]
fn a_drain_is_over_where_no_device_takes_anything() {
    let (mut world, view) = world(1, &[4]);
    world.store(0, view, &chain(1, 2));
    assert!(!world.ladder.drained(), "nobody asked for it");
    world.ladder.drain(true, world.now);
    world.settle();
    assert!(!world.ladder.drained());
    while let Some(id) = world.moves.keys().next().copied() {
        world.finish(id, Some(crate::ladder::DeviceFault::NoSpace));
    }
    assert!(world.ladder.drained());
    world.tick(world.ladder.config().breaker_pause);
    assert!(!world.ladder.drained(), "it takes writes again");
    world.run();
    assert!(world.ladder.drained());
    assert_eq!(world.disks[0].table.len(), 2);
}
