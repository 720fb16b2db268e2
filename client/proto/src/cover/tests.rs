//! Against records whose units are told apart: put together they must be the record that the asking rank would have written.

use proptest::prelude::*;

use super::*;
use crate::{GroupKind, Interleave, Plane, Sharding, UnitOrder};

const LAYERS: u16 = 4;
const HEADS: u16 = 8;

fn plane(layers: u16, heads: u16, sharding: Sharding) -> Plane {
    let (name, unit_order) = (String::new(), UnitOrder::TokenKvDim);
    Plane { name, layers, heads, unit_bytes: 64, unit_order, k_dim: 1, v_dim: 1, scales_bytes: 0, sharding }
}

fn group(planes: Vec<Plane>) -> GroupSpec {
    GroupSpec { kind: GroupKind::FullAttention, planes, geometry: None }
}

fn planes() -> impl Strategy<Value = GroupSpec> {
    let sharding = prop_oneof![Just(Sharding::Sharded), Just(Sharding::Replicated)];
    let other = (1..=LAYERS, 1..=HEADS, sharding).prop_map(|(layers, heads, sharding)| plane(layers, heads, sharding));
    prop::collection::vec(other, 0..3).prop_map(|mut planes| {
        planes.push(plane(LAYERS, HEADS, Sharding::Sharded));
        group(planes)
    })
}

fn shard() -> impl Strategy<Value = Shard> {
    (0..LAYERS, 1..=LAYERS, 0..HEADS, 1..=HEADS).prop_map(|(layer, layers, head, heads)| {
        let (last_layer, last_head) = ((layer + layers).min(LAYERS), (head + heads).min(HEADS));
        Shard::new(layer..last_layer, head..last_head, Interleave::WHOLE).unwrap()
    })
}

/// Shards as tensor and pipeline parallel ranks have them.
fn rank() -> impl Strategy<Value = Shard> {
    (0..3u32, 0..4u32, any::<(u16, u16)>()).prop_map(|(pipeline, tensor, (stage, rank))| {
        let (layers, heads) = (LAYERS >> pipeline, HEADS >> tensor);
        let (layer, head) = (stage % (1 << pipeline) * layers, rank % (1 << tensor) * heads);
        Shard::new(layer..layer + layers, head..head + heads, Interleave::WHOLE).unwrap()
    })
}

/// A record, as a rank would write it: which layer, plane and head each unit is of.
fn record(group: &GroupSpec, shard: &Shard) -> Vec<(u16, usize, u16)> {
    let mut units = Vec::new();
    for layer in shard.layers() {
        for (number, plane) in group.planes.iter().enumerate().filter(|(_, plane)| layer < plane.layers) {
            let held = |head: &u16| plane.sharding == Sharding::Replicated || shard.heads().contains(head);
            units.extend((0..plane.heads).filter(held).map(|head| (layer, number, head)));
        }
    }
    units
}

proptest! {
    #[test]
    fn what_is_put_together_is_what_the_rank_would_have_written(
        group in planes(),
        ask in prop_oneof![shard(), rank()],
        held in prop::collection::vec((prop_oneof![shard(), rank()], 0u32..5), 0..12),
    ) {
        let (sources, prefixes): (Vec<Shard>, Vec<u32>) = held.into_iter().unzip();
        let cover = Cover::new(&group, &ask, &sources).unwrap();
        let wanted = record(&group, &ask);
        let records: Vec<_> = sources.iter().map(|source| record(&group, source)).collect();
        let complete = |blocks: u32| {
            wanted.iter().all(|unit| records.iter().zip(&prefixes).any(|(record, has)| *has >= blocks && record.contains(unit)))
        };
        for (at, record) in records.iter().enumerate() {
            prop_assert_eq!(cover.uses(at), record.iter().any(|unit| wanted.contains(unit)));
        }
        let longest = cover.longest(&prefixes);
        prop_assert_eq!(longest, (1..=5).rev().find(|blocks| complete(*blocks)).unwrap_or(0));

        for blocks in 1..=5 {
            let usable = (0..).zip(&prefixes).fold(0, |all, (at, has)| all | u32::from(*has >= blocks) << at);
            let parts = cover.split(usable);
            prop_assert_eq!(parts.is_some(), blocks <= longest);
            let mut made = vec![None; wanted.len()];
            for (at, runs) in parts.unwrap_or_default() {
                prop_assert!(usable & 1 << at != 0 && !runs.is_empty());
                for UnitRun { from, to, units } in runs {
                    for unit in 0..units {
                        let place = &mut made[(to + unit) as usize];
                        prop_assert!(place.is_none(), "a unit is taken twice");
                        *place = Some(records[at][(from + unit) as usize]);
                    }
                }
            }
            prop_assert!(blocks > longest || made.into_iter().map(Option::unwrap).eq(wanted.iter().copied()));
        }
    }
}

fn ranks(of: u16) -> Vec<Shard> {
    let heads = HEADS / of;
    (0..of).map(|rank| Shard::new(0..LAYERS, rank * heads..(rank + 1) * heads, Interleave::WHOLE).unwrap()).collect()
}

#[test]
fn a_rank_of_two_takes_its_half_of_each_layer_of_a_whole_record() {
    let group = group(vec![plane(LAYERS, HEADS, Sharding::Sharded)]);
    let cover = Cover::new(&group, &ranks(2)[1], &ranks(1)).unwrap();
    let runs = (0..4).map(|layer| UnitRun { from: 8 * layer + 4, to: 4 * layer, units: 4 }).collect();
    assert_eq!(cover.split(1), Some(vec![(0, runs)]));
    assert_eq!((cover.longest(&[7]), cover.longest(&[]), cover.split(0)), (7, 0, None));
}

#[test]
fn few_sources_and_small_ones_are_enough() {
    let group = group(vec![plane(LAYERS, HEADS, Sharding::Sharded)]);
    let sources = [ranks(8), ranks(4), ranks(1), ranks(2)].concat();
    let chosen = |ask: &Shard, usable| {
        let parts = Cover::new(&group, ask, &sources).unwrap().split(usable).unwrap();
        parts.into_iter().map(|(at, _)| (sources[at].heads().start, sources[at].heads().end)).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&ranks(4)[1], u32::MAX), vec![(2, 4)]);
    assert_eq!(chosen(&ranks(4)[1], !(1 << 9)), vec![(0, 4)], "a half rather than the whole");
    assert_eq!(chosen(&ranks(1)[0], 0xff), (0..8).map(|head| (head, head + 1)).collect::<Vec<_>>());
}

#[test]
fn pipeline_stages_are_one_run_each() {
    let group = group(vec![plane(LAYERS, HEADS, Sharding::Sharded)]);
    let stages = [0..1, 1..4].map(|layers| Shard::new(layers, 0..HEADS, Interleave::WHOLE).unwrap());
    let cover = Cover::new(&group, &ranks(1)[0], &stages).unwrap();
    let run = |to, units| vec![UnitRun { from: 0, to, units }];
    assert_eq!(cover.split(3), Some(vec![(0, run(0, 8)), (1, run(8, 24))]));
    assert_eq!(cover.split(1), None);
}

#[test]
fn nothing_is_put_together_where_units_are_not_whole() {
    let whole = &ranks(1)[0];
    let none = |planes, geometry| Cover::new(&GroupSpec { geometry, ..group(planes) }, whole, &ranks(2)).is_none();
    let plain = || plane(LAYERS, HEADS, Sharding::Sharded);
    assert!(!none(vec![plain()], None));
    assert!(none(vec![plain()], Some(vec![1])));
    assert!(none(vec![Plane { unit_order: UnitOrder::Opaque, ..plain() }], None));
    assert!(none(vec![plain(), Plane { unit_bytes: 128, ..plain() }], None));
    // A source that has such a plane as well, where the asking rank has none of its layers.
    let mixed = group(vec![plain(), Plane { unit_bytes: 128, layers: 1, ..plain() }]);
    let last = Shard::new(1..LAYERS, 0..HEADS, Interleave::WHOLE).unwrap();
    let cover = Cover::new(&mixed, &last, &ranks(1)).unwrap();
    assert_eq!((cover.longest(&[3]), cover.split(1)), (0, None));
    // Every other token of a block.
    let every_other = Shard::new(0..LAYERS, 0..HEADS, Interleave::new(0, 2).unwrap()).unwrap();
    let cover = Cover::new(&group(vec![plain()]), whole, &[every_other]).unwrap();
    assert_eq!(cover.longest(&[3]), 0);
}
