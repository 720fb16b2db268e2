//! Ranks of tensor and pipeline parallel engines: each has its shard of every block, in a layout of its own.

use std::sync::Arc;

use kvd_client::{BlockMemory, Engine, EngineLayout, Loaded, Match, PlaneMemory, StoreRequest, Stored, View, ViewSpec};
use kvd_nixl::device::{Between, Device, DeviceMemory, LaneOptions};
use kvd_nixl::sys::copy::StridedRun;
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::{GroupKind, GroupSpec, Interleave, Namespace, Plane, Shard, Sharding, UnitOrder};
use kvd_tests::{Payload, plain_namespace};

use crate::blocks::hashes;

pub(crate) const LAYERS: u16 = 4;
pub(crate) const HEADS: u16 = 8;
pub(crate) const BLOCKS: usize = 12;
const TOKENS: usize = 16;
/// Bytes of a key or a value of one token and head.
const DIM: usize = 128;
const UNIT_BYTES: usize = TOKENS * 2 * DIM;

fn namespace() -> Namespace {
    let plane = Plane {
        name: "kv".into(),
        layers: LAYERS,
        heads: HEADS,
        unit_bytes: UNIT_BYTES as u32,
        unit_order: UnitOrder::TokenKvDim,
        k_dim: 64,
        v_dim: 64,
        scales_bytes: 0,
        sharding: Sharding::Sharded,
    };
    let group = GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None };
    Namespace { groups: vec![group], block_tokens: TOKENS as u32, ..plain_namespace("ranks", 4096) }
}

/// Shard `rank` of so many that split the heads.
pub(crate) fn tensor(of: u16, rank: u16) -> Shard {
    let heads = HEADS / of;
    Shard::new(0..LAYERS, rank * heads..(rank + 1) * heads, Interleave::WHOLE).unwrap()
}

/// Where a rank has its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Home<'a> {
    /// A record's bytes in one piece, one block after the other.
    Flat,
    /// The same in fragments that each block names anew.
    Fragments,
    /// A memory for each layer, `[block][head][token][k|v]`; on a device, or in host memory.
    Hnd(Option<&'a Device>),
    /// A memory for each layer, `[k|v][block][token][head]`.
    Nhd(Option<&'a Device>),
}

/// Bytes from one to the next.
#[derive(Clone, Copy)]
struct Strides {
    layer: usize,
    block: usize,
    head: usize,
    token: usize,
    kv: usize,
}

pub(crate) struct Rank {
    pub(crate) view: View,
    pub(crate) shard: Shard,
    strides: Strides,
    /// All layers in one; a layout sees a part for each.
    memory: Place,
    layout: Option<EngineLayout>,
    runs: Vec<Vec<StridedRun>>,
}

enum Place {
    Host(MemoryExtent),
    Device(DeviceMemory),
}

impl Rank {
    pub(crate) fn new(engine: &Engine, shard: Shard, home: Home<'_>, between: Option<Between>) -> Self {
        let namespace = namespace();
        let (hash_bytes, prefill_tokens_per_second, token_ids) = (32, 0.0, false);
        let spec = ViewSpec {
            namespace: &namespace,
            group: 0,
            shard: shard.clone(),
            hash_bytes,
            prefill_tokens_per_second,
            token_ids,
        };
        let view = engine.open_view(&spec).unwrap();
        let (layers, heads) = (shard.layers().len(), shard.heads().len());
        let layer_bytes = BLOCKS * heads * UNIT_BYTES;
        let strides = match home {
            Home::Flat | Home::Fragments => Strides {
                layer: heads * UNIT_BYTES,
                block: layers * heads * UNIT_BYTES,
                head: UNIT_BYTES,
                token: 2 * DIM,
                kv: DIM,
            },
            Home::Hnd(_) => {
                Strides { layer: layer_bytes, block: heads * UNIT_BYTES, head: UNIT_BYTES, token: 2 * DIM, kv: DIM }
            }
            Home::Nhd(_) => Strides {
                layer: layer_bytes,
                block: TOKENS * heads * DIM,
                head: DIM,
                token: heads * DIM,
                kv: BLOCKS * TOKENS * heads * DIM,
            },
        };
        let Strides { block: block_stride, head: head_stride, token: token_stride, kv: kv_stride, .. } = strides;
        let group = &namespace.groups[0];
        let tokens = TOKENS as u32;
        let (memory, layout) = match home {
            Home::Flat | Home::Fragments => (Place::Host(region(layers * layer_bytes)), None),
            Home::Hnd(None) | Home::Nhd(None) => {
                let memory = region(layers * layer_bytes);
                let planes = (0..layers).map(|layer| PlaneMemory {
                    memory: memory.part(layer * layer_bytes, layer_bytes).unwrap(),
                    block_stride,
                    head_stride,
                    token_stride,
                    kv_stride,
                });
                let layout = EngineLayout::new(group, &shard, tokens, planes.collect()).unwrap();
                (Place::Host(memory), Some(layout))
            }
            Home::Hnd(Some(device)) | Home::Nhd(Some(device)) => {
                let memory = device.allocate(layers * layer_bytes).unwrap();
                let planes = (0..layers).map(|layer| PlaneMemory {
                    memory: memory.part(layer * layer_bytes, layer_bytes).unwrap(),
                    block_stride,
                    head_stride,
                    token_stride,
                    kv_stride,
                });
                // Five of its own records a chunk.
                let chunk_bytes = 5 * layers * heads * UNIT_BYTES;
                let options = LaneOptions { chunk_bytes, chunks: 3, between, ..LaneOptions::default() };
                let layout = EngineLayout::on_device(device, group, &shard, tokens, planes.collect(), &options);
                (Place::Device(memory), Some(layout.unwrap()))
            }
        };
        // Each unit in two halves.
        let half = |at: usize| StridedRun { offset: at * UNIT_BYTES / 2, ..StridedRun::contiguous(UNIT_BYTES / 2) };
        let units = 2 * layers * heads;
        let runs = (0..BLOCKS).map(|block| (block * units..(block + 1) * units).map(half).collect());
        let runs = if matches!(home, Home::Fragments) { runs.collect() } else { Vec::new() };
        Self { view, shard, strides, memory, layout, runs }
    }

    fn places(&self) -> Vec<BlockMemory<'_>> {
        match (&self.layout, &self.memory) {
            (Some(layout), _) => (0..BLOCKS).map(|block| layout.block(block).unwrap()).collect(),
            (None, Place::Host(memory)) if !self.runs.is_empty() => {
                self.runs.iter().map(|runs| BlockMemory::runs(memory.clone(), runs)).collect()
            }
            (None, Place::Host(memory)) => {
                let bytes = memory.len() / BLOCKS;
                (0..BLOCKS).map(|block| BlockMemory::contiguous(memory.part(block * bytes, bytes).unwrap())).collect()
            }
            (None, Place::Device(_)) => panic!("a device's memory has a layout"),
        }
    }

    /// Calls `visit` with each unit's payload, and where its keys and values lie.
    fn each_unit(&self, chain: u64, blocks: usize, mut visit: impl FnMut(&[u8], usize)) {
        let mut unit = vec![0; UNIT_BYTES];
        for block in 0..blocks {
            for (row, layer) in self.shard.layers().enumerate() {
                for (column, head) in self.shard.heads().enumerate() {
                    let place = (chain << 16) + u64::from(layer * HEADS + head);
                    Payload::new(place, block as u32).fill(&mut unit);
                    let at = row * self.strides.layer + block * self.strides.block + column * self.strides.head;
                    for (part, bytes) in unit.chunks(DIM).enumerate() {
                        visit(bytes, at + part / 2 * self.strides.token + part % 2 * self.strides.kv);
                    }
                }
            }
        }
    }

    fn content(&self) -> Vec<u8> {
        match &self.memory {
            Place::Host(memory) => {
                let mut bytes = vec![0; memory.len()];
                memory.read(0, &mut bytes).unwrap();
                bytes
            }
            Place::Device(memory) => {
                let mut bytes = vec![0; memory.len()];
                memory.read(0, &mut bytes).unwrap();
                bytes
            }
        }
    }

    fn overwrite(&self, bytes: &[u8]) {
        match &self.memory {
            Place::Host(memory) => memory.write(0, bytes).unwrap(),
            Place::Device(memory) => memory.write(0, bytes).unwrap(),
        }
    }

    /// Stores the first blocks of a chain, as they come out of a model whose ranks agree.
    pub(crate) fn store(&self, chain: u64, blocks: usize) -> Stored {
        let mut bytes = vec![0; self.content().len()];
        self.each_unit(chain, blocks, |unit, at| bytes[at..at + DIM].copy_from_slice(unit));
        self.overwrite(&bytes);
        let (hashes, places) = (hashes(chain, blocks), self.places());
        let sources = &places[..blocks];
        self.view.store(&StoreRequest { parent: None, first_position: 0, hashes: &hashes, sources, tokens: &[] })
    }

    pub(crate) fn find(&self, chain: u64) -> Match {
        self.view.match_prefix(&hashes(chain, BLOCKS))
    }

    /// Loads what is there of a chain, and looks at every byte of what is said to be there.
    pub(crate) fn load(&self, chain: u64) -> Loaded {
        self.load_found(chain, &self.find(chain))
    }

    pub(crate) fn load_found(&self, chain: u64, found: &Match) -> Loaded {
        self.overwrite(&vec![0xee; self.content().len()]);
        let loaded = self.view.load(found, 0..BLOCKS as u32, &self.places());
        let bytes = self.content();
        self.each_unit(chain, loaded.blocks as usize, |unit, at| {
            assert!(bytes[at..at + DIM] == *unit, "chain {chain}, byte {at} of {:?}: wrong bytes", self.shard);
        });
        loaded
    }
}

fn region(bytes: usize) -> MemoryExtent {
    let region: Arc<dyn Memory> = Arc::new(Region::new(bytes).unwrap());
    MemoryExtent::whole(region)
}
