//! An engine's blocks on a device or in host memory, whose payloads derive from their places.

use std::sync::Arc;

use kvd_client::{BlockMemory, Engine, EngineLayout, Loaded, PlaneMemory, StoreRequest, Stored, View, ViewSpec};
use kvd_nixl::device::{Between, Device, DeviceMemory, LaneOptions};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::{BlockHash, GroupKind, GroupSpec, Namespace, Plane, Shard, Sharding, UnitOrder};
use kvd_tests::{Daemon, DaemonOptions, Payload, Scratch, TestEngine, plain_namespace};

const LAYERS: u16 = 4;
const HEADS: u16 = 2;
const UNIT_BYTES: usize = 16 << 10;
const LAYER_BYTES: usize = UNIT_BYTES * HEADS as usize;
pub(crate) const BLOCK_BYTES: usize = LAYER_BYTES * LAYERS as usize;
pub(crate) const BLOCKS: usize = 48;

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
pub(crate) struct Blocks {
    pub(crate) view: View,
    layout: EngineLayout,
    memories: Memories,
}

enum Memories {
    Device(Vec<DeviceMemory>),
    Host(Vec<MemoryExtent>),
}

impl Blocks {
    pub(crate) fn on(engine: &Engine, device: Option<&Device>, between: Option<Between>) -> Blocks {
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

    pub(crate) fn read(&self, block: usize) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_BYTES];
        for (layer, bytes) in bytes.chunks_mut(LAYER_BYTES).enumerate() {
            match &self.memories {
                Memories::Device(memories) => memories[layer].read(block * LAYER_BYTES, bytes).unwrap(),
                Memories::Host(memories) => memories[layer].read(block * LAYER_BYTES, bytes).unwrap(),
            }
        }
        bytes
    }

    pub(crate) fn places(&self, blocks: &[usize]) -> Vec<BlockMemory<'_>> {
        blocks.iter().map(|block| self.layout.block(*block).unwrap()).collect()
    }

    /// Stores a chain out of blocks in that order.
    pub(crate) fn store(&self, chain: u64, blocks: &[usize]) -> Stored {
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
    pub(crate) fn load(&self, chain: u64, blocks: &[usize]) -> Loaded {
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

pub(crate) fn hashes(chain: u64, count: usize) -> Vec<BlockHash> {
    TestEngine::hashes(chain, count as u32)
}

/// A daemon with room in DRAM for all that these tests store.
pub(crate) fn daemon(scratch: &Scratch) -> Daemon {
    Daemon::start(scratch, &DaemonOptions::sized("256MiB", "64MiB").with("tiers.nvme.enabled", "false"))
}
