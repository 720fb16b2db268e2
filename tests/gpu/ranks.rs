//! Ranks of tensor and pipeline parallel engines: each has its shard of every block, in a layout of its own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kvd_client::{
    BlockMemory, Engine, EngineLayout, LayersLoaded, Loaded, Match, PlaneMemory, StoreRequest, Stored, View, ViewSpec,
};
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

/// A group of a model: what each rank has of it.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    kind: GroupKind,
    planes: Vec<Plane>,
}

/// One with everything that can be read by other sizes.
pub(crate) fn kinds() -> Vec<Kind> {
    let plane = |name: &str, heads, unit_bytes: usize, unit_order, (k_dim, v_dim), sharding| Plane {
        name: name.into(),
        layers: LAYERS,
        heads,
        unit_bytes: unit_bytes as u32,
        unit_order,
        k_dim,
        v_dim,
        scales_bytes: 0,
        sharding,
    };
    let (tokens, sharded) = (UnitOrder::TokenKvDim, Sharding::Sharded);
    let kv = |order| plane("kv", HEADS, UNIT_BYTES, order, (64, 64), sharded);
    let half = |name| plane(name, HEADS, UNIT_BYTES / 2, tokens, (64, 0), sharded);
    let scaled = Plane { scales_bytes: 128, unit_bytes: UNIT_BYTES as u32 + 128, ..kv(tokens) };
    let indexer = Plane { layers: 3, ..plane("index", 1, UNIT_BYTES, tokens, (128, 0), Sharding::Replicated) };
    let full = |name, planes| Kind { name, kind: GroupKind::FullAttention, planes };
    vec![
        full("key and value of a token together", vec![kv(tokens)]),
        full("keys before values", vec![kv(UnitOrder::KvTokenDim)]),
        full("keys and values in planes of their own", vec![half("k"), half("v")]),
        full("fp8 with scales", vec![scaled]),
        full("with an indexer that every rank has", vec![kv(tokens), indexer]),
        Kind { name: "a window", kind: GroupKind::SlidingWindow { tokens: 128 }, planes: vec![kv(tokens)] },
    ]
}

/// Latents, which every rank has whole.
pub(crate) fn mla() -> Kind {
    let plane = Plane {
        heads: 1,
        unit_bytes: 16 * 1152,
        k_dim: 576,
        v_dim: 0,
        sharding: Sharding::Replicated,
        ..kinds().remove(0).planes.remove(0)
    };
    Kind { name: "MLA", kind: GroupKind::Mla, planes: vec![plane] }
}

/// What only the engine can read: one size does not read another one's.
pub(crate) fn opaque() -> Kind {
    let plane = Plane { unit_order: UnitOrder::Opaque, ..kinds().remove(0).planes.remove(0) };
    Kind { name: "state", kind: GroupKind::State, planes: vec![plane] }
}

impl Kind {
    fn namespace(&self) -> Namespace {
        let group = GroupSpec { kind: self.kind, planes: self.planes.clone(), geometry: None };
        Namespace { groups: vec![group], block_tokens: TOKENS as u32, ..plain_namespace(self.name, 4096) }
    }

    /// The heads of a plane in a shard.
    fn heads(&self, plane: usize, shard: &Shard) -> Range<u16> {
        match self.planes[plane].sharding {
            Sharding::Sharded => shard.heads(),
            Sharding::Replicated => 0..self.planes[plane].heads,
        }
    }
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

/// One of each kind.
pub(crate) fn homes(device: &Device) -> [Home<'_>; 6] {
    [Home::Hnd(Some(device)), Home::Flat, Home::Nhd(Some(device)), Home::Hnd(None), Home::Fragments, Home::Nhd(None)]
}

/// One layer of one plane: where it begins in the rank's memory, and bytes there from one to the next.
struct Row {
    layer: u16,
    plane: usize,
    heads: Range<u16>,
    start: usize,
    bytes: usize,
    block: usize,
    head: usize,
    token: usize,
    kv: usize,
    /// Where each fragment of a unit lies, and its length, in the order of the record.
    fragments: Vec<(usize, usize)>,
}

pub(crate) struct Rank {
    pub(crate) view: View,
    pub(crate) shard: Shard,
    rows: Vec<Row>,
    units: Vec<usize>,
    /// All rows in one; a layout sees a part for each.
    memory: Place,
    layout: Option<EngineLayout>,
    runs: Vec<Vec<StridedRun>>,
}

enum Place {
    Host(MemoryExtent),
    Device(DeviceMemory),
}

/// The rows of a rank, and the bytes of all of them.
fn rows(kind: &Kind, shard: &Shard, home: Home<'_>) -> (Vec<Row>, usize) {
    let (mut rows, mut start) = (Vec::new(), 0);
    for layer in shard.layers() {
        for (number, plane) in kind.planes.iter().enumerate().filter(|(_, plane)| layer < plane.layers) {
            let (heads, unit) = (kind.heads(number, shard), plane.unit_bytes as usize);
            let (count, parts) = (heads.len(), if plane.k_dim == plane.v_dim { 2 } else { 1 });
            let dim = unit / TOKENS / parts;
            // Units that only lie in one piece.
            let whole = plane.scales_bytes > 0 || plane.unit_order == UnitOrder::Opaque;
            let nhd = matches!(home, Home::Nhd(_)) && !whole;
            let keys_first = plane.unit_order == UnitOrder::KvTokenDim && !nhd;
            let (token, kv) = match (nhd, keys_first) {
                (true, _) => (count * dim, BLOCKS * TOKENS * count * dim),
                (false, true) => (dim, TOKENS * dim),
                (false, false) => (parts * dim, dim),
            };
            let places = |key_or_value: usize, at: usize| (at * token + key_or_value * kv, dim);
            let fragments = match plane.unit_order {
                _ if whole => vec![(0, unit)],
                UnitOrder::KvTokenDim => {
                    (0..parts).flat_map(|part| (0..TOKENS).map(move |at| places(part, at))).collect()
                }
                _ => (0..TOKENS).flat_map(|at| (0..parts).map(move |part| places(part, at))).collect(),
            };
            let bytes = BLOCKS * count * unit;
            let (block, head) = if nhd { (TOKENS * count * dim, dim) } else { (count * unit, unit) };
            rows.push(Row { layer, plane: number, heads, start, bytes, block, head, token, kv, fragments });
            start += bytes;
        }
    }
    if matches!(home, Home::Flat | Home::Fragments) {
        // Block after block, and in each row after row.
        let block = start / BLOCKS;
        let mut place = 0;
        for row in &mut rows {
            (row.start, row.block, place) = (place, block, place + row.bytes / BLOCKS);
        }
    }
    (rows, start)
}

impl Rank {
    pub(crate) fn new(engine: &Engine, shard: Shard, home: Home<'_>, between: Option<Between>) -> Self {
        Self::of(&kinds()[0], engine, shard, home, between)
    }

    pub(crate) fn of(kind: &Kind, engine: &Engine, shard: Shard, home: Home<'_>, between: Option<Between>) -> Self {
        let namespace = kind.namespace();
        let spec = ViewSpec {
            namespace: &namespace,
            group: 0,
            shard: shard.clone(),
            hash_bytes: 32,
            prefill_tokens_per_second: 0.0,
            token_ids: false,
        };
        let view = engine.open_view(&spec).unwrap();
        let (rows, bytes) = rows(kind, &shard, home);
        let (group, tokens) = (&namespace.groups[0], TOKENS as u32);
        let (memory, layout) = match home {
            Home::Flat | Home::Fragments => (Place::Host(region(bytes)), None),
            Home::Hnd(None) | Home::Nhd(None) => {
                let memory = region(bytes);
                let planes = rows.iter().map(|row| row.plane(memory.part(row.start, row.bytes).unwrap()));
                let layout = EngineLayout::new(group, &shard, tokens, planes.collect()).unwrap();
                (Place::Host(memory), Some(layout))
            }
            Home::Hnd(Some(device)) | Home::Nhd(Some(device)) => {
                let memory = device.allocate(bytes).unwrap();
                let planes = rows.iter().map(|row| row.plane(memory.part(row.start, row.bytes).unwrap()));
                // Five of its own records a chunk.
                let chunk_bytes = 5 * bytes / BLOCKS;
                let options = LaneOptions { chunk_bytes, chunks: 3, between, ..LaneOptions::default() };
                let layout = EngineLayout::on_device(device, group, &shard, tokens, planes.collect(), &options);
                (Place::Device(memory), Some(layout.unwrap()))
            }
        };
        // A block in pieces that end where units do, and in their middle.
        let mut runs = Vec::new();
        if matches!(home, Home::Fragments) {
            let halves = |offset: usize, unit: usize| {
                let half = StridedRun { offset, ..StridedRun::contiguous(unit / 2) };
                [half, StridedRun { offset: offset + unit / 2, ..half }]
            };
            for block in 0..BLOCKS {
                let units = rows.iter().flat_map(|row| {
                    let unit = kind.planes[row.plane].unit_bytes as usize;
                    let first = row.start + block * row.block;
                    (0..row.heads.len()).flat_map(move |head| halves(first + head * row.head, unit))
                });
                runs.push(units.collect());
            }
        }
        let units = kind.planes.iter().map(|plane| plane.unit_bytes as usize).collect();
        Self { view, shard, rows, units, memory, layout, runs }
    }

    pub(crate) fn places(&self) -> Vec<BlockMemory<'_>> {
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

    /// Calls `visit` with each fragment of each unit's payload of these layers, and where it lies.
    fn each_fragment(&self, chain: u64, blocks: usize, layers: Range<u16>, mut visit: impl FnMut(&[u8], usize)) {
        for block in 0..blocks {
            for row in self.rows.iter().filter(|row| layers.contains(&row.layer)) {
                let mut unit = vec![0; self.units[row.plane]];
                for (column, head) in row.heads.clone().enumerate() {
                    let place = (chain << 24) + (row.plane as u64 * 64 + u64::from(row.layer)) * 64 + u64::from(head);
                    Payload::new(place, block as u32).fill(&mut unit);
                    let first = row.start + block * row.block + column * row.head;
                    let mut rest = &unit[..];
                    for (at, len) in &row.fragments {
                        let (bytes, behind) = rest.split_at(*len);
                        visit(bytes, first + at);
                        rest = behind;
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
        self.each_fragment(chain, blocks, self.shard.layers(), |part, at| {
            bytes[at..at + part.len()].copy_from_slice(part)
        });
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
        self.expect(chain, loaded.blocks, self.shard.layers());
        loaded
    }

    /// These layers of the first blocks are those of the chain.
    fn expect(&self, chain: u64, blocks: u32, layers: Range<u16>) {
        let bytes = self.content();
        self.each_fragment(chain, blocks as usize, layers, |part, at| {
            assert!(bytes[at..at + part.len()] == *part, "chain {chain}, byte {at} of {:?}: wrong bytes", self.shard);
        });
    }

    /// The same layer after layer, and looks at each when it is said to be there.
    pub(crate) fn load_by_layers(&self, chain: u64, layers_per_step: u16) -> (Loaded, Vec<LayersLoaded>) {
        let (found, mut told) = (self.find(chain), Vec::new());
        self.overwrite(&vec![0xee; self.content().len()]);
        let ready = |ready: LayersLoaded| {
            self.expect(chain, ready.blocks, ready.layers.clone());
            told.push(ready);
        };
        let within = Duration::from_secs(2);
        let places = self.places();
        let loaded = self.view.load_by_layers(&found, 0..BLOCKS as u32, &places, layers_per_step, within, ready);
        self.expect(chain, loaded.blocks, self.shard.layers());
        (loaded, told)
    }
}

impl Row {
    fn plane<M>(&self, memory: M) -> PlaneMemory<M> {
        let (block_stride, head_stride) = (self.block, self.head);
        PlaneMemory { memory, block_stride, head_stride, token_stride: self.token, kv_stride: self.kv }
    }
}

fn region(bytes: usize) -> MemoryExtent {
    let region: Arc<dyn Memory> = Arc::new(Region::new(bytes).unwrap());
    MemoryExtent::whole(region)
}
