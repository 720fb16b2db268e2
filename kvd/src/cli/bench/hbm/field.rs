//! An engine's blocks on a device: a session of their own, chains that are stored from them and loaded into others.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kvd_client::{BlockMemory, Engine, EngineLayout, Loaded, PlaneMemory, StoreRequest, View};
use kvd_nixl::device::{Device, DeviceMemory, LaneOptions, Way};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use serde::Serialize;

use super::failed;
use crate::cli::bench::engine::{Shape, at_once, chain_hashes, join};
use crate::cli::bench::stats::{median, rounded};
use crate::cli::exit::{Exit, Failure};
use crate::cli::replay::payload::Words;

/// Blocks of a chain: those of a prompt of 2 000 tokens.
const CHAIN_BLOCKS: usize = 128;
/// What peers copy fragment by fragment: less than all, for some take long.
const PEER_BLOCKS: usize = 64;

/// Blocks of 2 MiB whose bytes lie side by side for so long.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli::bench) enum Fragments {
    /// The bytes of one head of one layer.
    Unit(Shape),
    /// Those of one layer.
    Layer(Shape),
    /// All of a block.
    Block(Shape),
}

impl Fragments {
    /// All of a block of 2 MiB.
    pub(in crate::cli::bench) const BLOCK_FIRST: Fragments =
        Fragments::Block(Shape { layers: 32, heads: 8, unit_bytes: 8 << 10, block_tokens: 16 });

    pub(super) fn of(bytes: u64) -> Result<Fragments, Failure> {
        let shape =
            |layers, heads, unit_kib: u32| Shape { layers, heads, unit_bytes: unit_kib << 10, block_tokens: 16 };
        let kib = bytes >> 10;
        match kib {
            8 => Ok(Fragments::Unit(shape(32, 8, 8))),
            16 => Ok(Fragments::Unit(shape(32, 4, 16))),
            64 => Ok(Fragments::Layer(shape(32, 8, 8))),
            256 => Ok(Fragments::Layer(shape(8, 8, 32))),
            2048 => Ok(Fragments::BLOCK_FIRST),
            _ => {
                let message = format!("--fragment-bytes {bytes}: none of 8KiB, 16KiB, 64KiB, 256KiB, 2MiB");
                Err(Failure::new(Exit::Usage, message))
            }
        }
    }

    pub(super) fn shape(self) -> Shape {
        let (Fragments::Unit(shape) | Fragments::Layer(shape) | Fragments::Block(shape)) = self;
        shape
    }

    pub(super) fn bytes(self) -> u64 {
        let shape = self.shape();
        match self {
            Fragments::Unit(_) => shape.unit_bytes.into(),
            Fragments::Layer(_) => u64::from(shape.unit_bytes) * u64::from(shape.heads),
            Fragments::Block(_) => shape.block_bytes() as u64,
        }
    }

    /// Where block 0 has the layer, in all memory, and from there one block to the next and one head to the next.
    fn layer(self, layer: usize, blocks: usize) -> (usize, usize, usize) {
        let (shape, unit) = (self.shape(), self.shape().unit_bytes as usize);
        let layer_bytes = usize::from(shape.heads) * unit;
        match self {
            Fragments::Unit(_) => (layer * layer_bytes * blocks, unit, unit * blocks),
            Fragments::Layer(_) => (layer * layer_bytes * blocks, layer_bytes, unit),
            Fragments::Block(_) => (layer * layer_bytes, shape.block_bytes(), unit),
        }
    }
}

/// One chain's load, until its first layer and until its last one can be computed with.
#[derive(Debug, Serialize)]
pub(super) struct ByLayers {
    pub(super) blocks: usize,
    pub(super) layers: u16,
    /// All layers together.
    pub(super) at_once_ms: f64,
    pub(super) first_layer_ms: f64,
    pub(super) last_layer_ms: f64,
}

pub(in crate::cli::bench) struct Field {
    engine: Engine,
    view: View,
    layout: EngineLayout,
    memory: DeviceMemory,
    fragments: Fragments,
    blocks: usize,
    number: u8,
    /// Of the chains that were stored last.
    round: AtomicU32,
}

impl Field {
    pub(in crate::cli::bench) fn new(
        socket: &Path,
        number: u8,
        device: &Device,
        fragments: Fragments,
        bytes: u64,
        options: &LaneOptions,
    ) -> Result<Field, Failure> {
        let shape = fragments.shape();
        let (engine, view) = join(socket, number, shape)?;
        let blocks = bytes as usize / shape.block_bytes();
        let memory = device.allocate(blocks * shape.block_bytes()).map_err(failed)?;
        let token_stride = (shape.unit_bytes / shape.block_tokens) as usize;
        let plane = |layer| {
            let (offset, block_stride, head_stride) = fragments.layer(layer, blocks);
            let memory = memory.part(offset, memory.len() - offset).map_err(failed)?;
            Ok(PlaneMemory { memory, block_stride, head_stride, token_stride, kv_stride: token_stride / 2 })
        };
        let planes = (0..usize::from(shape.layers)).map(plane).collect::<Result<Vec<_>, Failure>>()?;
        let (namespace, shard) = (shape.namespace(), shape.shard()?);
        let layout = EngineLayout::on_device(device, &namespace.groups[0], &shard, shape.block_tokens, planes, options);
        let layout = layout.map_err(failed)?;
        let field = Field { engine, view, layout, memory, fragments, blocks, number, round: AtomicU32::new(0) };
        field.fill()?;
        Ok(field)
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }

    pub(in crate::cli::bench) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Loads the first block that engine `number` of a bench has stored in a round, counted from 1.
    pub(in crate::cli::bench) fn load_first_of(&self, number: u8, round: u32) -> Result<(), Failure> {
        let chain = chain_number(number, round);
        let found = self.view.match_prefix(&chain_hashes(chain, 1));
        let loaded = self.view.load(&found, 0..1, &self.places(&[0])?);
        if loaded.blocks == 1 { Ok(()) } else { Err(failed(format!("the first block did not come: {loaded:?}"))) }
    }

    fn fill(&self) -> Result<(), Failure> {
        let mut bytes = vec![0; self.fragments.shape().block_bytes()];
        (0..self.blocks).try_for_each(|at| {
            self.words(at).fill(&mut bytes);
            self.memory.write(at * bytes.len(), &bytes).map_err(failed)
        })
    }

    /// What lies in a stretch of memory as long as a block, wherever the blocks are.
    fn words(&self, at: usize) -> Words {
        Words::of(u64::from(self.number) << 32 | at as u64)
    }

    fn chains(&self) -> Vec<(u64, Vec<usize>)> {
        let all: Vec<usize> = (0..self.blocks).collect();
        let first = chain_number(self.number, self.round.load(Ordering::Relaxed));
        all.chunks(CHAIN_BLOCKS).enumerate().map(|(at, blocks)| (first | at as u64, blocks.to_vec())).collect()
    }

    fn places(&self, blocks: &[usize]) -> Result<Vec<BlockMemory<'_>>, Failure> {
        blocks.iter().map(|block| self.layout.block(*block)).collect::<Result<_, _>>().map_err(failed)
    }

    /// Stores every block, in chains that were never stored; seconds.
    pub(in crate::cli::bench) fn store(&self, requests: usize) -> Result<f64, Failure> {
        // Relaxed: whoever loads them has waited for the store.
        self.round.fetch_add(1, Ordering::Relaxed);
        self.each_chain(requests, |chain, blocks| {
            let (hashes, sources) = (chain_hashes(chain, blocks.len()), self.places(blocks)?);
            let store =
                StoreRequest { parent: None, first_position: 0, hashes: &hashes, sources: &sources, tokens: &[] };
            let stored = self.view.store(&store);
            if stored.granted as usize == blocks.len() {
                return Ok(());
            }
            Err(failed(format!("the daemon took {} of {} blocks: {stored:?}", stored.granted, blocks.len())))
        })
    }

    /// Loads all of them back to where they came from; seconds.
    pub(super) fn load(&self, requests: usize) -> Result<f64, Failure> {
        self.each_chain(requests, |chain, blocks| {
            let found = self.view.match_prefix(&chain_hashes(chain, blocks.len()));
            let loaded = self.view.load(&found, 0..blocks.len() as u32, &self.places(blocks)?);
            if loaded.blocks as usize == blocks.len() && loaded.corrupt == 0 {
                return Ok(());
            }
            Err(failed(format!("{} of {} blocks came back: {loaded:?}", loaded.blocks, blocks.len())))
        })
    }

    /// Loads one chain at once, and again layer after layer; each as often as there are rounds.
    pub(super) fn by_layers(&self, rounds: u32) -> Result<ByLayers, Failure> {
        let (chain, blocks) = self.chains().swap_remove(0);
        let (hashes, places) = (chain_hashes(chain, blocks.len()), self.places(&blocks)?);
        let (mut whole, mut first, mut last) = (Vec::new(), Vec::new(), Vec::new());
        let all = |loaded: Loaded| {
            let right = loaded.blocks as usize == blocks.len() && loaded.corrupt == 0;
            right.then_some(()).ok_or_else(|| failed(format!("{} of {} blocks came back", loaded.blocks, blocks.len())))
        };
        // The first one makes what the device must know of the layers.
        for round in 0..=rounds {
            let found = self.view.match_prefix(&hashes);
            let started = Instant::now();
            all(self.view.load(&found, 0..blocks.len() as u32, &places))?;
            let loaded_at_once = started.elapsed();
            let (started, mut ready) = (Instant::now(), Vec::new());
            let note = |_| ready.push(started.elapsed());
            all(self.view.load_by_layers(&found, 0..blocks.len() as u32, &places, 1, Duration::from_secs(30), note))?;
            if let (1.., Some(one), Some(end)) = (round, ready.first(), ready.last()) {
                whole.push(loaded_at_once.as_secs_f64() * 1e3);
                first.push(one.as_secs_f64() * 1e3);
                last.push(end.as_secs_f64() * 1e3);
            }
        }
        Ok(ByLayers {
            blocks: blocks.len(),
            layers: self.fragments.shape().layers,
            at_once_ms: rounded(median(whole)),
            first_layer_ms: rounded(median(first)),
            last_layer_ms: rounded(median(last)),
        })
    }

    /// Works on all chains, so many at a time; seconds.
    fn each_chain(
        &self,
        requests: usize,
        work: impl Fn(u64, &[usize]) -> Result<(), Failure> + Sync,
    ) -> Result<f64, Failure> {
        let (chains, started) = (self.chains(), Instant::now());
        at_once(requests, &chains, |(chain, blocks)| work(*chain, blocks))?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Wipes every block, so that a load that did nothing shows.
    pub(super) fn spoil(&self) -> Result<(), Failure> {
        let bytes = vec![0xee; self.fragments.shape().block_bytes()];
        (0..self.blocks).try_for_each(|at| self.memory.write(at * bytes.len(), &bytes).map_err(failed))
    }

    /// Every byte is what it was at first.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let mut bytes = vec![0; self.fragments.shape().block_bytes()];
        (0..self.blocks).try_for_each(|at| {
            self.memory.read(at * bytes.len(), &mut bytes).map_err(failed)?;
            if self.words(at).are(&bytes) {
                return Ok(());
            }
            Err(Failure::new(Exit::CheckFailed, format!("wrong bytes came back in stretch {at}")))
        })
    }

    /// What peers do without kernels: each fragment by itself between the device and pinned memory; GB/s.
    pub(super) fn copies(&self, device: &Device, way: Way, batched: bool) -> Result<f64, Failure> {
        let (shape, fragment) = (self.fragments.shape(), self.fragments.bytes() as usize);
        let blocks = PEER_BLOCKS.min(self.blocks);
        let host: Arc<dyn Memory> = Arc::new(Region::new(blocks * shape.block_bytes())?);
        host.zero(0, host.len()).map_err(failed)?;
        let _pinned = device.pin(&host).map_err(failed)?;
        let host = MemoryExtent::whole(host);
        let mut pairs = Vec::new();
        for at in 0..blocks * shape.block_bytes() / fragment {
            // Every other one, so that no two of them touch.
            let from = (at * 2 * fragment) % (self.memory.len() - fragment);
            let from = from - from % fragment;
            let memory = self.memory.part(from, fragment).map_err(failed)?;
            pairs.push((memory, host.part(at * fragment, fragment).map_err(failed)?));
        }
        let once = || {
            let started = Instant::now();
            device.copy_each(way, &pairs, batched).map_err(failed)?;
            Ok::<_, Failure>(host.len() as f64 / 1e9 / started.elapsed().as_secs_f64())
        };
        once()?;
        once()
    }
}

/// The first of an engine's chains of a round.
fn chain_number(engine: u8, round: u32) -> u64 {
    u64::from(engine) << 48 | u64::from(round) << 16
}
