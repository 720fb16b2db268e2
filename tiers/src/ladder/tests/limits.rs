//! What is asked for beyond a bound is refused or cut, and says why.

use std::time::Duration;

use kvd_proto::wire::slab::GrantedStatus;
use kvd_proto::{MissReason, NamespaceDigest};

use super::common::{SLOT, WAIT, config, lease, small, store_below, world};
use super::world::{World, chain, client, kind};
use crate::ids::TenantId;
use crate::ladder::{CommitError, LadderConfig, LoadState, Purge};

#[test]
fn a_load_names_blocks_of_its_lease() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    let lease = lease(&mut world, view, &hashes);
    let (state, landed) = world.load(0, lease, 1..9, WAIT, 1);
    assert_eq!((state, landed.len()), (LoadState::Done { reason: None }, 2), "it is cut to what the lease holds");
    let lost = LoadState::Done { reason: Some(MissReason::LeaseLost) };
    for range in [3..4, 1..1] {
        let (state, landed) = world.load(0, lease, range, WAIT, 2);
        assert_eq!((state, landed.len()), (lost, 1));
    }
    world.open(1, &small());
    assert_eq!(world.load(1, lease, 0..1, WAIT, 3).0, lost, "another instance's");
    // Each block 16 times.
    for _ in 0..15 {
        assert_eq!(world.load(0, lease, 0..3, WAIT, 4).0, LoadState::Done { reason: None });
    }
    assert_eq!(world.load(0, lease, 0..1, WAIT, 5).0, LoadState::Done { reason: None });
    assert_eq!(world.load(0, lease, 0..1, WAIT, 6).0, lost);
    world.release(0, lease);
    assert_eq!(world.ladder.stats().pins, 0);
}

#[test]
fn loads_that_wait_are_bounded_in_time_and_number() {
    let mut world = World::new(LadderConfig { loads_max: 1, ..config(1, &[4]) });
    let view = world.open(0, &small());
    let hashes = chain(1, 3);
    store_below(&mut world, view, &hashes, 8);
    let lease = lease(&mut world, view, &hashes);
    let done = |reason| LoadState::Done { reason: Some(reason) };
    assert_eq!(world.load(0, lease, 0..2, Duration::ZERO, 1).0, done(MissReason::Timeout));
    assert_eq!(world.load(0, lease, 0..2, WAIT, 2).0, LoadState::Pending);
    assert_eq!(world.load(0, lease, 0..2, WAIT, 3).0, done(MissReason::Quota));
    assert_eq!(world.ladder.prefetch(client(0), view, &hashes, world.now), 0);
    world.run();
    assert_eq!(world.ladder.prefetch(client(0), view, &hashes, world.now), 1, "two of three are here");
    assert_eq!(world.ladder.counters().prefetched, 1);
    let until = world.now + world.ladder.config().prefetch_wait;
    assert_eq!(world.ladder.poll_timeout(), Some(until));
    world.run();
    assert_eq!(world.ladder.prefetch(client(0), view, &hashes, world.now), 0, "all are");
    assert_eq!(world.ladder.prefetch(client(0), view, &chain(7, 2), world.now), 0);
}

#[test]
fn a_bad_block_is_told_by_who_holds_it() {
    let (mut world, view) = world(1, &[]);
    let hashes = chain(1, 3);
    world.store(0, view, &hashes);
    let lease = lease(&mut world, view, &hashes);
    world.open(1, &small());
    world.ladder.corrupt(client(1), lease, 0, world.now);
    world.ladder.corrupt(client(0), lease, 3, world.now);
    world.ladder.corrupt(client(0), lease, u32::MAX, world.now);
    assert_eq!(world.ladder.counters().corrupt_dram, 0);
    world.ladder.corrupt(client(0), lease, 2, world.now);
    world.settle();
    assert_eq!(world.ladder.counters().corrupt_dram, 1);
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 2);
    world.release(0, lease);
    world.ladder.corrupt(client(0), lease, 0, world.now);
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 2, "a lease that ended names nothing");
}

#[test]
fn a_slot_is_committed_once_by_who_got_it() {
    let (mut world, view) = world(1, &[]);
    let other = world.open(1, &small());
    let (fill, _) = world.offer(0, view, &chain(1, 2), 0);
    let fill = fill.unwrap();
    let commit = |world: &mut World, number, index| world.ladder.commit(client(number), fill, index, 1, world.now);
    assert_eq!(commit(&mut world, 1, 0), Err(CommitError::NoLease));
    assert_eq!(commit(&mut world, 0, 2), Err(CommitError::NoGrant));
    assert!(world.ladder.filling(client(1), fill, 0).is_none() && world.ladder.filling(client(0), fill, 2).is_none());
    assert!(world.commit(0, fill, 0));
    assert_eq!(commit(&mut world, 0, 0), Err(CommitError::NoGrant));
    world.ladder.abandon(client(1), fill, world.now);
    world.settle();
    assert!(world.ladder.filling(client(0), fill, 1).is_some(), "nobody gives up another's slot");
    world.ladder.abandon(client(0), fill, world.now);
    world.settle();
    assert_eq!(commit(&mut world, 0, 1), Err(CommitError::NoLease));
    let stats = world.ladder.stats();
    assert_eq!((stats.dram_slots_used, stats.pins, stats.lease_bytes, stats.leases), (1, 0, 0, 0));
    let (_, told) = world.offer(1, other, &chain(1, 2), 0);
    assert_eq!(told[1].status, GrantedStatus::Granted);
}

/// All floors together are half of the arena: the more instances, the less each keeps.
#[test]
fn floors_leave_half_of_the_arena() {
    for (others, kept) in [(1, 2), (2, 2), (3, 1)] {
        let mut world = World::new(LadderConfig { floor_bytes: 1 << 40, ..config(1, &[]) });
        let quiet = world.open(0, &small());
        let views: Vec<_> = (1..=others).map(|number| world.open(number, &small())).collect();
        let hashes = chain(1, 4);
        assert_eq!(world.store(0, quiet, &hashes), 4);
        for salt in 2..20 {
            world.store(1, views[0], &chain(salt, 2));
        }
        assert_eq!(world.matched(0, quiet, &hashes, false).blocks, kept, "beside {others} others");
    }
}

#[test]
fn a_namespace_is_purged_and_others_of_the_tenant_are_not() {
    let (mut world, view) = world(1, &[]);
    let mut other_kind = small();
    other_kind.spec.namespace = NamespaceDigest::new([8; 32]);
    let other = world.open(0, &other_kind);
    world.store(0, view, &chain(1, 3));
    world.store(0, other, &chain(1, 3));
    let tenant = small().spec.tenant;
    world.ladder.purge(Purge::Namespace(TenantId(9), other_kind.spec.namespace), world.now);
    world.run();
    assert_eq!(world.ladder.stats().records, 6);
    world.ladder.purge(Purge::Namespace(tenant, other_kind.spec.namespace), world.now);
    world.run();
    assert_eq!(world.matched(0, view, &chain(1, 3), false).blocks, 3);
    assert_eq!(world.matched(0, other, &chain(1, 3), false).blocks, 0);
    assert_eq!(world.ladder.holdings().map(|holding| holding.records).collect::<Vec<_>>(), [3, 0]);
}

#[test]
fn too_many_purges_become_one_of_everything() {
    for (last, left) in [(15, 3), (16, 0)] {
        // So slow that all wait.
        let mut world = World::new(LadderConfig { work_per_call: 1, ..config(2, &[]) });
        let (view, other) = (world.open(0, &small()), world.open(1, &kind(2, 0..8, SLOT)));
        world.store(0, view, &chain(1, 3));
        world.store(1, other, &chain(1, 3));
        for tenant in 100..100 + last {
            world.ladder.purge(Purge::Tenant(TenantId(tenant)), world.now);
        }
        for _ in 0..3 {
            world.ladder.purge(Purge::Tenant(TenantId(1)), world.now);
        }
        assert_eq!(world.ladder.purging(), 16);
        world.run();
        assert_eq!(world.ladder.purging(), 0);
        assert_eq!(world.matched(0, view, &chain(1, 3), false).blocks, 0);
        assert_eq!(world.matched(1, other, &chain(1, 3), false).blocks, left);
    }
}
