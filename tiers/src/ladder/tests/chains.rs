//! Chains: what is matched, what falls, and what waits.

use std::cell::Cell;
use std::time::Duration;

use kvd_proto::wire::slab::{GrantedStatus, LandedStatus};
use kvd_proto::{BlockHash, MissReason, Tier};

use super::common::{WAIT, config, lease, small, world};
use super::world::{World, chain, client, kind};
use crate::ladder::{HashSource, LadderConfig, LoadState};

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
