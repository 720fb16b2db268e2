//! What the scenarios start from: a world of few large slots, 8 to a segment or zone.

use std::time::Duration;

use kvd_proto::{BlockHash, Tier};

use super::world::{Kind, World, chain, kind};
use crate::ids::{LeaseId, ViewId};
use crate::ladder::{DeviceConfig, LadderConfig};

pub(super) const SLOT: u32 = 8 << 20;
pub(super) const WAIT: Duration = Duration::from_millis(100);

pub(super) fn small() -> Kind {
    kind(1, 0..8, SLOT)
}

pub(super) fn config(segments: u32, zones: &[u32]) -> LadderConfig {
    let devices = zones.iter().map(|zones| DeviceConfig { zones: *zones }).collect();
    LadderConfig { lease_bytes_max: 1 << 40, ..LadderConfig::new(segments, devices) }
}

/// A world with one client and its view.
pub(super) fn world(segments: u32, zones: &[u32]) -> (World, ViewId) {
    let mut world = World::new(config(segments, zones));
    let view = world.open(0, &small());
    (world, view)
}

pub(super) fn lease(world: &mut World, view: ViewId, hashes: &[BlockHash]) -> LeaseId {
    world.matched(0, view, hashes, true).lease.expect("something matched")
}

/// Stores a chain whose blocks then lie on a device only: others push it out of the arena.
pub(super) fn store_below(world: &mut World, view: ViewId, hashes: &[BlockHash], slots: u32) {
    world.store(0, view, hashes);
    world.run();
    world.store(0, view, &chain(99, slots));
    world.run();
    let tiers = world.matched(0, view, hashes, false);
    assert_eq!((tiers.blocks, tiers.slowest), (hashes.len() as u32, Some(Tier::Nvme)));
    assert_eq!(world.ladder.stats().below, hashes.len() as u64);
}
