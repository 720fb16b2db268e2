//! An engine whose KV cache lies in a device's memory, and a daemon: stores and loads of chains, in many chunks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvd_client::{BlockMemory, Engine, EngineLayout, Loaded, PlaneMemory, StoreRequest, Stored, View, ViewSpec};
use kvd_nixl::device::{Between, Device, DeviceMemory, LaneOptions, Way};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::{BlockHash, GroupKind, GroupSpec, Namespace, Plane, Shard, Sharding, UnitOrder};
use kvd_tests::{Daemon, DaemonOptions, Payload, Scratch, TestEngine, plain_namespace};

use crate::devices;

const LAYERS: u16 = 4;
const HEADS: u16 = 2;
const UNIT_BYTES: usize = 16 << 10;
const LAYER_BYTES: usize = UNIT_BYTES * HEADS as usize;
const BLOCK_BYTES: usize = LAYER_BYTES * LAYERS as usize;
const BLOCKS: usize = 48;

fn namespace() -> Namespace {
    let plane = Plane {
        name: "kv".into(),
        layers: LAYERS,
        heads: HEADS,
        unit_bytes: UNIT_BYTES as u32,
        unit_order: UnitOrder::TokenKvDim,
        k_dim: 256,
        v_dim: 256,
        scales_bytes: 0,
        sharding: Sharding::Sharded,
    };
    let group = GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None };
    Namespace { groups: vec![group], block_tokens: 16, ..plain_namespace("gpu", 4096) }
}

/// One engine's view and its blocks: a memory for each layer, on a device or in host memory.
struct Blocks {
    view: View,
    layout: EngineLayout,
    memories: Memories,
}

enum Memories {
    Device(Vec<DeviceMemory>),
    Host(Vec<MemoryExtent>),
}

impl Blocks {
    fn on(engine: &Engine, device: Option<&Device>, between: Option<Between>) -> Blocks {
        let (namespace, shard) = (namespace(), Shard::whole(LAYERS, HEADS).unwrap());
        let spec = ViewSpec {
            namespace: &namespace,
            group: 0,
            shard: shard.clone(),
            hash_bytes: 32,
            prefill_tokens_per_second: 0.0,
            token_ids: false,
        };
        let view = engine.open_view(&spec).unwrap();
        let group = &namespace.groups[0];
        // Five records a chunk: a chain takes many.
        let options = LaneOptions { chunk_bytes: 5 * BLOCK_BYTES, chunks: 3, between, ..LaneOptions::default() };
        let (layout, memories) = match device {
            Some(device) => {
                let memories: Vec<_> = (0..LAYERS).map(|_| device.allocate(BLOCKS * LAYER_BYTES).unwrap()).collect();
                let planes = memories.iter().cloned().map(plane).collect();
                let layout = EngineLayout::on_device(device, group, &shard, 16, planes, &options).unwrap();
                (layout, Memories::Device(memories))
            }
            None => {
                let memories: Vec<_> = (0..LAYERS).map(|_| region(BLOCKS * LAYER_BYTES)).collect();
                let planes = memories.iter().cloned().map(plane).collect();
                (EngineLayout::new(group, &shard, 16, planes).unwrap(), Memories::Host(memories))
            }
        };
        Blocks { view, layout, memories }
    }

    fn write(&self, block: usize, bytes: &[u8]) {
        for (layer, bytes) in bytes.chunks(LAYER_BYTES).enumerate() {
            match &self.memories {
                Memories::Device(memories) => memories[layer].write(block * LAYER_BYTES, bytes).unwrap(),
                Memories::Host(memories) => memories[layer].write(block * LAYER_BYTES, bytes).unwrap(),
            }
        }
    }

    fn read(&self, block: usize) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_BYTES];
        for (layer, bytes) in bytes.chunks_mut(LAYER_BYTES).enumerate() {
            match &self.memories {
                Memories::Device(memories) => memories[layer].read(block * LAYER_BYTES, bytes).unwrap(),
                Memories::Host(memories) => memories[layer].read(block * LAYER_BYTES, bytes).unwrap(),
            }
        }
        bytes
    }

    fn places(&self, blocks: &[usize]) -> Vec<BlockMemory<'_>> {
        blocks.iter().map(|block| self.layout.block(*block).unwrap()).collect()
    }

    /// Stores a chain out of blocks in that order.
    fn store(&self, chain: u64, blocks: &[usize]) -> Stored {
        let mut bytes = vec![0; BLOCK_BYTES];
        for (position, block) in blocks.iter().enumerate() {
            Payload::new(chain, position as u32).fill(&mut bytes);
            self.write(*block, &bytes);
        }
        let (hashes, sources) = (hashes(chain, blocks.len()), self.places(blocks));
        let store = StoreRequest { parent: None, first_position: 0, hashes: &hashes, sources: &sources, tokens: &[] };
        self.view.store(&store)
    }

    /// Loads a chain into blocks, and looks at every byte of what is said to be there.
    fn load(&self, chain: u64, blocks: &[usize]) -> Loaded {
        for block in blocks {
            self.write(*block, &[0xee; BLOCK_BYTES]);
        }
        let found = self.view.match_prefix(&hashes(chain, blocks.len()));
        let loaded = self.view.load(&found, 0..blocks.len() as u32, &self.places(blocks));
        for (position, block) in blocks.iter().enumerate().take(loaded.blocks as usize) {
            let right = Payload::new(chain, position as u32).matches(&self.read(*block));
            assert!(right, "chain {chain}, position {position}: wrong bytes");
        }
        loaded
    }
}

fn plane<M>(memory: M) -> PlaneMemory<M> {
    PlaneMemory { memory, block_stride: LAYER_BYTES, head_stride: UNIT_BYTES, token_stride: 1024, kv_stride: 512 }
}

fn region(bytes: usize) -> MemoryExtent {
    let region: Arc<dyn Memory> = Arc::new(Region::new(bytes).unwrap());
    MemoryExtent::whole(region)
}

fn hashes(chain: u64, count: usize) -> Vec<BlockHash> {
    TestEngine::hashes(chain, count as u32)
}

fn daemon(scratch: &Scratch) -> Daemon {
    Daemon::start(scratch, &DaemonOptions::sized("256MiB", "64MiB").with("tiers.nvme.enabled", "false"))
}

#[test]
fn chains_go_from_a_device_to_kvd_and_back_and_to_engines_of_the_other_kind() {
    for (name, device) in devices("chains") {
        let scratch = Scratch::new("gpu-chains");
        let daemon = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let (gpu, cpu) = (Blocks::on(&engine, Some(&device), None), Blocks::on(&engine, None, None));
        let forward: Vec<usize> = (0..BLOCKS).collect();
        let mixed: Vec<usize> = (0..BLOCKS).map(|at| (at * 29 + 7) % BLOCKS).collect();
        for (chain, from) in [(1, &gpu), (2, &cpu)] {
            let stored = from.store(chain, &forward);
            assert_eq!((stored.granted, stored.reason), (BLOCKS as u32, None), "{name}, chain {chain}");
            assert_eq!(from.store(chain, &forward).present, BLOCKS as u32, "{name}, chain {chain} again");
            for to in [&gpu, &cpu] {
                let loaded = to.load(chain, &mixed);
                assert_eq!((loaded.blocks, loaded.from_dram), (BLOCKS as u32, BLOCKS as u32), "{name}: {loaded:?}");
            }
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn a_bit_that_flips_on_its_way_to_the_device_is_never_told() {
    for (name, device) in devices("flips on the way") {
        let scratch = Scratch::new("gpu-flips");
        let daemon = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let chunks = Arc::new(AtomicUsize::new(0));
        let count = chunks.clone();
        // The third chunk of each load: one bit of its second record.
        let between = Between::new(move |way, staging| {
            if way == Way::ToDevice && count.fetch_add(1, Ordering::Relaxed) == 2 {
                let (at, mut byte) = (BLOCK_BYTES + 4321, [0]);
                staging.read(at, &mut byte).unwrap();
                staging.write(at, &[byte[0] ^ 4]).unwrap();
            }
        });
        let blocks = Blocks::on(&engine, Some(&device), Some(between));
        let all: Vec<usize> = (0..20).collect();
        assert_eq!(blocks.store(1, &all).granted, 20, "{name}");
        let loaded = blocks.load(1, &all);
        // Two chunks of five and one record; the copy in DRAM counts as bad, and there is no other.
        assert_eq!((loaded.blocks, loaded.corrupt), (11, 1), "{name}: {loaded:?}");
        let again = blocks.load(1, &all);
        assert_eq!((again.blocks, again.corrupt), (11, 0), "{name}: {again:?}");
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn a_bit_that_flips_on_its_way_to_kvd_is_a_miss_later() {
    for (name, device) in devices("flips on the way out") {
        let scratch = Scratch::new("gpu-flips-out");
        let daemon = daemon(&scratch);
        let engine = Engine::connect(TestEngine::options(&scratch.socket(), 1)).unwrap();
        let between = Between::new(|way, staging| {
            if way == Way::ToHost {
                let mut byte = [0];
                staging.read(99, &mut byte).unwrap();
                staging.write(99, &[byte[0] ^ 4]).unwrap();
            }
        });
        let bad = Blocks::on(&engine, Some(&device), Some(between));
        let good = Blocks::on(&engine, Some(&device), None);
        let all: Vec<usize> = (0..8).collect();
        assert_eq!(bad.store(1, &all).granted, 8, "{name}");
        let loaded = good.load(1, &all);
        assert_eq!((loaded.blocks, loaded.corrupt), (0, 1), "{name}: {loaded:?}");
        assert_eq!(daemon.stop(), Some(0));
    }
}
