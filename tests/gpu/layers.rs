//! Loads layer after layer: what is said of a layer is so at that moment, and the end is the truth.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvd_client::{BlockMemory, Engine, LayersLoaded};
use kvd_nixl::device::{Between, Way};
use kvd_nixl::sys::copy::{Axis, StridedRun};
use kvd_nixl::sys::{MemoryExtent, Region};
use kvd_proto::{Interleave, MissReason, Shard};
use kvd_tests::{Scratch, TestEngine};
use rustix::process::{Signal, kill_process};

use crate::blocks::daemon;
use crate::devices;
use crate::ranks::{BLOCKS, HEADS, Home, LAYERS, Rank, homes, kinds, opaque, tensor};

const ALL: u32 = BLOCKS as u32;

fn engine(scratch: &Scratch, number: u8) -> Engine {
    Engine::connect(TestEngine::options(&scratch.socket(), number)).unwrap()
}

/// All layers of all blocks, in steps of so many.
fn in_steps(layers: Range<u16>, layers_per_step: u16) -> Vec<LayersLoaded> {
    let starts = layers.clone().step_by(layers_per_step.into());
    starts.map(|at| LayersLoaded { layers: at..(at + layers_per_step).min(layers.end), blocks: ALL }).collect()
}

#[test]
fn layers_come_one_after_the_other_from_whatever_shards_hold_them() {
    for (name, device) in devices("loads by layers") {
        let scratch = Scratch::new("layers");
        let running = daemon(&scratch);
        let writers = engine(&scratch, 1);
        for (rank, home) in (0..4).zip(homes(&device)) {
            assert_eq!(Rank::new(&writers, tensor(4, rank), home, None).store(1, BLOCKS).granted, ALL, "{name}");
        }
        let late = Shard::new(2..LAYERS, 1..HEADS, Interleave::WHOLE).unwrap();
        for home in homes(&device) {
            for shard in [tensor(4, 1), tensor(1, 0), tensor(2, 1), tensor(8, 5), late.clone()] {
                let rank = Rank::new(&writers, shard, home, None);
                for layers_per_step in [1, 3, LAYERS, 100] {
                    let (loaded, told) = rank.load_by_layers(1, layers_per_step);
                    let what = format!("{name}, {home:?}, {:?} by {layers_per_step}: {loaded:?}", rank.shard);
                    assert_eq!((loaded.blocks, loaded.from_dram, loaded.reason), (ALL, ALL, None), "{what}");
                    assert_eq!(told, in_steps(rank.shard.layers(), layers_per_step), "{what}");
                }
            }
        }
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn of_a_chain_that_is_partly_in_its_own_shard() {
    for (name, device) in devices("layers of a mixed chain") {
        let scratch = Scratch::new("layers-mixed");
        let running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        let rank = |of, rank| Rank::new(&engine, tensor(of, rank), Home::Nhd(Some(&device)), None);
        assert_eq!(rank(1, 0).store(1, 5).granted, 5, "{name}");
        assert_eq!((rank(2, 0).store(1, BLOCKS).granted, rank(2, 1).store(1, 9).granted), (ALL, 9), "{name}");
        let reader = rank(1, 0);
        assert_eq!((reader.find(1).blocks(), reader.find(1).own_blocks()), (9, 5), "{name}");
        let (loaded, told) = reader.load_by_layers(1, 1);
        assert_eq!(loaded.blocks, 9, "{name}: {loaded:?}");
        assert!(loaded.reason.is_some() && told.iter().all(|step| step.blocks == 9), "{name}: {loaded:?} {told:?}");
        assert_eq!(told.len(), usize::from(LAYERS), "{name}");
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn where_layers_cannot_be_told_apart_it_is_one_step_and_with_planes_of_fewer_layers_they_can() {
    for (name, device) in devices("layers of every kind of group") {
        let scratch = Scratch::new("layers-kinds");
        let running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        let kind = opaque();
        let rank = Rank::of(&kind, &engine, tensor(1, 0), Home::Flat, None);
        assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        let (loaded, told) = rank.load_by_layers(1, 1);
        assert_eq!((loaded.blocks, told), (ALL, in_steps(0..LAYERS, LAYERS)), "{name}: {loaded:?}");
        let indexed = kinds().into_iter().find(|kind| kind.name.contains("indexer")).unwrap();
        let rank = Rank::of(&indexed, &engine, tensor(2, 1), Home::Hnd(Some(&device)), None);
        assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        let (loaded, told) = rank.load_by_layers(1, 1);
        assert_eq!((loaded.blocks, told), (ALL, in_steps(0..LAYERS, 1)), "{name}: {loaded:?}");
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn a_bit_that_flips_in_a_late_layer_takes_its_block_away() {
    for (name, device) in devices("flips in layers") {
        let scratch = Scratch::new("layers-flips");
        let running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        let moved = Arc::new(AtomicUsize::new(0));
        let count = moved.clone();
        // One bit of the eighth block's third layer, which comes in a chunk of its own.
        let between = Between::new(move |way, staging| {
            if way == Way::ToDevice && count.fetch_add(1, Ordering::Relaxed) == 2 {
                let (at, mut byte) = (7 * usize::from(HEADS) * 4096 + 100, [0]);
                staging.read(at, &mut byte).unwrap();
                staging.write(at, &[byte[0] ^ 32]).unwrap();
            }
        });
        let rank = Rank::new(&engine, tensor(1, 0), Home::Hnd(Some(&device)), Some(between));
        assert_eq!(rank.store(1, BLOCKS).granted, ALL, "{name}");
        let (loaded, told) = rank.load_by_layers(1, 1);
        assert_eq!((loaded.blocks, loaded.corrupt), (7, 1), "{name}: {loaded:?} {told:?}");
        assert!(told.windows(2).all(|two| two[0].blocks >= two[1].blocks), "{name}: {told:?}");
        assert_eq!(told.last().map(|step| step.blocks), Some(7), "{name}: {told:?}");
        // That copy was put aside.
        assert_eq!(rank.load_by_layers(1, 2).0.blocks, 7, "{name}");
        assert_eq!(running.stop(), Some(0));
    }
}

#[test]
fn a_destination_that_does_not_fit_ends_the_load_there_and_harms_no_copy() {
    let scratch = Scratch::new("layers-misfit");
    let running = daemon(&scratch);
    let engine = engine(&scratch, 1);
    let rank = Rank::new(&engine, tensor(2, 0), Home::Flat, None);
    assert_eq!(rank.store(1, BLOCKS).granted, ALL);
    let (found, mut told) = (rank.find(1), Vec::new());
    let mut places = rank.places();
    // Half of a block; and fragments across the border of two layers, of which one comes alone.
    let half = MemoryExtent::whole(Arc::new(Region::new(16 * 1024 * usize::from(LAYERS) / 2).unwrap()));
    places[7] = BlockMemory::contiguous(half);
    let within = Duration::from_secs(2);
    let loaded = rank.view.load_by_layers(&found, 0..ALL, &places, 1, within, |ready| told.push(ready.blocks));
    assert_eq!((loaded.blocks, loaded.reason, loaded.corrupt), (7, Some(MissReason::Cold), 0), "{loaded:?}");
    assert_eq!(told, [7; LAYERS as usize]);
    let memory = MemoryExtent::whole(Arc::new(Region::new(16 * 1024 * usize::from(LAYERS)).unwrap()));
    let runs =
        [StridedRun::contiguous(24 * 1024), StridedRun { offset: 24 * 1024, ..StridedRun::contiguous(40 * 1024) }];
    let strided = StridedRun { axes: [Axis::ONE, Axis::ONE, Axis { count: 2, stride: 24 * 1024 }], ..runs[0] };
    let last = StridedRun { offset: 48 * 1024, ..StridedRun::contiguous(16 * 1024) };
    let across = [strided, last];
    places[7] = BlockMemory::runs(memory, &across);
    let loaded = rank.view.load_by_layers(&found, 0..ALL, &places, 1, within, |_| ());
    assert_eq!((loaded.blocks, loaded.reason, loaded.corrupt), (7, Some(MissReason::Cold), 0), "{loaded:?}");
    // At once it can be had.
    assert_eq!(rank.view.load(&found, 0..ALL, &places).blocks, ALL);
    assert_eq!(rank.load_by_layers(1, 1).0.blocks, ALL);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_daemon_that_is_killed_between_layers_costs_no_wrong_byte() {
    for (name, device) in devices("daemons killed between layers") {
        let scratch = Scratch::new("layers-killed");
        let mut running = daemon(&scratch);
        let engine = engine(&scratch, 1);
        for chain in 1..4 {
            let (pid, moved) = (running.pid(), Arc::new(AtomicUsize::new(0)));
            let count = moved.clone();
            let between = Between::new(move |way, _| {
                if way == Way::ToDevice && count.fetch_add(1, Ordering::Relaxed) == chain as usize {
                    kill_process(pid, Signal::KILL).unwrap();
                }
            });
            let rank = Rank::new(&engine, tensor(1, 0), Home::Hnd(Some(&device)), Some(between));
            assert_eq!(rank.store(chain, BLOCKS).granted, ALL, "{name}");
            // What is told is right, which is looked at.
            rank.load_by_layers(chain, 1);
            assert!(moved.load(Ordering::Relaxed) > chain as usize, "{name}: the load took fewer chunks");
            running.kill();
            running = daemon(&scratch);
            let until = Instant::now() + Duration::from_secs(20);
            while rank.load_by_layers(chain, 1).0.blocks < ALL {
                assert!(Instant::now() < until, "{name}: the arena is adopted");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert_eq!(running.stop(), Some(0));
    }
}
