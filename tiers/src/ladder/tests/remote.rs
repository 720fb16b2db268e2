//! Records of the object tier, one scenario at a time; random worlds have them as well.

use std::time::Duration;

use kvd_proto::{MissReason, Tier};

use super::world::{World, chain, client, kind};
use crate::ladder::{DeviceConfig, LadderConfig, LoadState, Move, ObjectConfig, Purge};

fn world(gets_max: u32) -> World {
    let object = ObjectConfig { gets_max, ..ObjectConfig::default() };
    World::new(LadderConfig { object: Some(object), ..LadderConfig::new(4, vec![DeviceConfig { zones: 2 }]) })
}

/// Stores blocks, lets them be uploaded, and loses every local copy.
fn lost_but_uploaded(world: &mut World, count: u32) -> (super::world::Kind, crate::ViewId, Vec<kvd_proto::BlockHash>) {
    let kind = kind(1, 0..8, 8 << 20);
    let view = world.open(0, &kind);
    let hashes = chain(1, count);
    assert_eq!(world.store(0, view, &hashes), count);
    world.run();
    assert_eq!(world.ladder.counters().uploaded, u64::from(count));
    world.ladder.purge(Purge::All, world.now);
    world.run();
    assert_eq!(world.ladder.stats().nodes, 0);
    (kind, view, hashes)
}

#[test]
fn what_was_uploaded_is_matched_loaded_and_forgotten_with_the_lease() {
    let mut world = world(8);
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 3);
    let found = world.matched_remote(0, view, &kind, &hashes, true);
    assert_eq!((found.blocks, found.slowest, found.miss), (3, Some(Tier::Object), None));
    let lease = found.lease.unwrap();
    let stats = world.ladder.stats();
    assert_eq!((stats.records, stats.durable, stats.below), (0, 0, 0), "what lies there is not here");
    // Another match sees them while somebody holds them, without asking the catalog.
    assert_eq!(world.matched(0, view, &hashes, false).blocks, 3);
    let (state, landed) = world.load(0, lease, 0..2, Duration::from_secs(1), 7);
    assert_eq!((state, landed.len()), (LoadState::Pending, 0));
    world.run();
    assert_eq!((world.replies.len(), world.ladder.counters().object_hits), (2, 2));
    world.release(0, lease);
    let stats = world.ladder.stats();
    assert_eq!((stats.nodes, stats.object.unwrap().remotes), (2, 0), "the third is forgotten");
    // What came from there is not sent back.
    world.run();
    assert_eq!(world.ladder.counters().uploaded, 3);
    assert_eq!(world.ladder.stats().durable, 2, "but it is spilled");
}

#[test]
fn what_is_gone_from_the_store_is_a_miss() {
    let mut world = world(8);
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 2);
    world.store.records.clear();
    let lease = world.matched_remote(0, view, &kind, &hashes, true).lease.unwrap();
    world.load(0, lease, 0..2, Duration::from_secs(1), 7);
    world.run();
    assert_eq!(world.ends.values().next().unwrap().reason, Some(MissReason::Evicted));
    assert_eq!(world.ladder.counters().object_hits, 0);
    world.release(0, lease);
    assert_eq!(world.ladder.stats().nodes, 0);
}

#[test]
fn a_tier_that_is_down_is_a_miss_and_nothing_is_given_to_it() {
    let mut world = world(8);
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 2);
    let lease = world.matched_remote(0, view, &kind, &hashes, true).lease.unwrap();
    world.ladder.set_object_up(false, false, world.now);
    assert_eq!(world.matched(0, view, &hashes, false).miss, Some(MissReason::TierDown));
    let (state, _) = world.load(0, lease, 0..2, Duration::from_secs(1), 7);
    assert_eq!(state, LoadState::Done { reason: Some(MissReason::TierDown) });
    assert_eq!(world.store(0, view, &chain(2, 2)), 2);
    world.run();
    assert_eq!(world.ladder.stats().object.unwrap().upload_queue, 2);
    world.ladder.set_object_up(true, true, world.now);
    world.run();
    assert_eq!(world.ladder.counters().uploaded, 4);
}

#[test]
fn a_read_that_was_displaced_lands_nowhere_though_its_record_is_remote_again() {
    let mut world = world(8);
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 1);
    let lease = world.matched_remote(0, view, &kind, &hashes, true).lease.unwrap();
    world.load(0, lease, 0..1, Duration::from_secs(1), 7);
    let old = *world.moves.iter().find(|(_, found)| matches!(found, Move::Get { .. })).unwrap().0;
    world.ladder.purge(Purge::All, world.now);
    world.settle();
    world.release(0, lease);
    let (fill, _) = world.offer(0, view, &hashes, 0);
    world.ladder.abandon(client(0), fill.unwrap(), world.now);
    world.settle();
    let found = world.matched_remote(0, view, &kind, &hashes, true);
    assert_eq!(found.blocks, 1, "the catalog still knows it");
    world.finish(old, None);
    assert_eq!(world.ladder.counters().got, 0, "what it brought is nobody's");
    world.load(0, found.lease.unwrap(), 0..1, Duration::from_secs(1), 8);
    world.run();
    assert_eq!(world.ladder.counters().got, 1);
}

fn gets(world: &World) -> Vec<(crate::MoveId, crate::ObjectPlace)> {
    let get = |(id, found): (&crate::MoveId, &Move)| match found {
        Move::Get { from, .. } => Some((*id, *from)),
        _ => None,
    };
    world.moves.iter().filter_map(get).collect()
}

#[test]
fn what_lies_side_by_side_is_fetched_in_whole_runs() {
    // Packs of 4 records of 8 MiB, runs of 2, room for 3 of those.
    let object = ObjectConfig { get_bytes_max: 48 << 20, run_bytes_max: 16 << 20, ..ObjectConfig::default() };
    let devices = vec![DeviceConfig { zones: 2 }];
    let mut world = World::new(LadderConfig { object: Some(object), ..LadderConfig::new(4, devices) });
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 16);
    let lease = world.matched_remote(0, view, &kind, &hashes, true).lease.unwrap();
    world.load(0, lease, 0..16, Duration::from_secs(60), 7);
    assert_eq!(gets(&world).len(), 6);
    let mut started = gets(&world);
    let mut all = vec![started.clone()];
    while let Some((first, _)) = gets(&world).first().copied() {
        world.finish(first, None);
        let new: Vec<_> = gets(&world).into_iter().filter(|get| !started.contains(get)).collect();
        started.extend(&new);
        all.push(new);
    }
    // Each time all of a run, which is half a pack here.
    for new in all.iter().filter(|new| !new.is_empty()) {
        assert!(new.len() % 2 == 0, "{all:?}");
        for two in new.chunks(2) {
            let [(_, first), (_, second)] = two else { unreachable!("they come in twos") };
            assert_eq!((first.pack, first.offset + first.bytes), (second.pack, second.offset));
        }
    }
    assert_eq!(world.ladder.counters().got, 16);
}

#[test]
fn reads_are_bounded_by_their_number_as_well() {
    let mut world = world(4);
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 16);
    let lease = world.matched_remote(0, view, &kind, &hashes, true).lease.unwrap();
    world.load(0, lease, 0..16, Duration::from_secs(60), 7);
    assert_eq!(gets(&world).len(), 4);
    world.run();
    assert_eq!(world.ladder.counters().got, 16);
}

#[test]
fn a_record_longer_than_a_run_is_fetched_alone() {
    let object = ObjectConfig { get_bytes_max: 4 << 20, run_bytes_max: 1 << 20, ..ObjectConfig::default() };
    let devices = vec![DeviceConfig { zones: 2 }];
    let mut world = World::new(LadderConfig { object: Some(object), ..LadderConfig::new(4, devices) });
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 4);
    let lease = world.matched_remote(0, view, &kind, &hashes, true).lease.unwrap();
    world.load(0, lease, 0..4, Duration::from_secs(60), 7);
    assert_eq!(gets(&world).len(), 1);
    world.run();
    assert_eq!(world.ladder.counters().got, 4);
}

#[test]
fn a_record_longer_than_a_run_waits_for_room_for_all_of_it() {
    let object = ObjectConfig { get_bytes_max: 20 << 20, run_bytes_max: 1 << 20, ..ObjectConfig::default() };
    let devices = vec![DeviceConfig { zones: 2 }];
    let mut world = World::new(LadderConfig { object: Some(object), ..LadderConfig::new(4, devices) });
    let (kind, view, hashes) = lost_but_uploaded(&mut world, 4);
    let lease = world.matched_remote(0, view, &kind, &hashes, true).lease.unwrap();
    world.load(0, lease, 0..4, Duration::from_secs(60), 7);
    assert_eq!(gets(&world).len(), 2, "of 8 MiB each");
    world.run();
    assert_eq!(world.ladder.counters().got, 4);
}
