//! One thread that copies: its session, its engine memory, and a raw counterpart of the arena.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use kvd_client::{BlockMemory, Engine, EngineLayout, PlaneMemory, StoreRequest, View};
use kvd_nixl::sys::copy::copy;
use kvd_nixl::sys::{Mapping, Memory, MemoryExtent, Region, memfd_sealed};
use kvd_proto::BlockHash;

use crate::cli::bench::engine::{Shape, chain_hash, join};
use crate::cli::exit::{Exit, Failure};

/// Blocks and bytes of a chain at most: those of a long prompt.
const CHAIN_BLOCKS_MAX: usize = 1024;
const CHAIN_BYTES_MAX: usize = 256 << 20;

/// How the engine's memory holds a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One piece.
    Contiguous,
    /// A piece per layer: `[blocks, kv_heads, 128, 2 * head_dim]` each.
    VllmCpu,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Contiguous => "contiguous",
            Kind::VllmCpu => "vllm-cpu",
        }
    }
}

pub(super) struct Hand {
    _engine: Engine,
    view: View,
    layout: EngineLayout,
    /// One per layer, or one.
    memories: Vec<MemoryExtent>,
    /// Bytes of a block in each of them.
    piece_bytes: usize,
    /// Shared memory like the arena's.
    raw: MemoryExtent,
    blocks: usize,
    chain_blocks: usize,
    chains: Vec<u64>,
    next_chain: u64,
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

impl Hand {
    pub(super) fn new(socket: &Path, number: u8, kind: Kind, shape: Shape, bytes: usize) -> Result<Hand, Failure> {
        let (engine, view) = join(socket, number, shape)?;
        let block_bytes = shape.block_bytes();
        let blocks = bytes / block_bytes;
        let pieces = if kind == Kind::Contiguous { 1 } else { usize::from(shape.layers) };
        let piece_bytes = block_bytes / pieces;
        let memories = (0..pieces).map(|piece| region(blocks * piece_bytes, piece as u8 + number));
        let memories = memories.collect::<Result<Vec<_>, Failure>>()?;
        let layout = match kind {
            Kind::Contiguous => EngineLayout::contiguous(memories[0].clone(), block_bytes),
            Kind::VllmCpu => paged(shape, &memories, piece_bytes)?,
        };
        let file = memfd_sealed("kvd-bench-raw", (blocks * block_bytes) as u64)?;
        let mapping = Mapping::new(file.as_fd(), 0, blocks * block_bytes).map_err(failed)?;
        mapping.populate()?;
        // As the arena's segments are. Without huge pages it is measured without.
        let _ = mapping.collapse();
        let chain_blocks = (CHAIN_BYTES_MAX / block_bytes).min(CHAIN_BLOCKS_MAX);
        Ok(Hand {
            _engine: engine,
            view,
            layout,
            memories,
            piece_bytes,
            raw: MemoryExtent::whole(Arc::new(mapping)),
            blocks,
            chain_blocks,
            chains: Vec::new(),
            next_chain: u64::from(number) << 32,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.raw.len()
    }

    /// Blocks of the memory, chain by chain.
    fn parts(&self) -> Vec<Vec<usize>> {
        let all: Vec<usize> = (0..self.blocks).collect();
        all.chunks(self.chain_blocks).map(<[usize]>::to_vec).collect()
    }

    fn places(&self, part: &[usize]) -> Result<Vec<BlockMemory<'_>>, Failure> {
        part.iter().map(|index| self.layout.block(*index)).collect::<Result<_, _>>().map_err(failed)
    }

    pub(super) fn store(&mut self) -> Result<(), Failure> {
        self.chains.clear();
        for part in self.parts() {
            self.next_chain += 1;
            let hashes = hashes(self.next_chain, part.len());
            let sources = self.places(&part)?;
            let store =
                StoreRequest { parent: None, first_position: 0, hashes: &hashes, sources: &sources, tokens: &[] };
            let stored = self.view.store(&store);
            if stored.granted as usize != part.len() {
                return Err(failed(format!("the daemon took {} of {} blocks: {stored:?}", stored.granted, part.len())));
            }
            self.chains.push(self.next_chain);
        }
        Ok(())
    }

    pub(super) fn load(&mut self) -> Result<(), Failure> {
        for (part, chain) in self.parts().iter().zip(&self.chains) {
            let found = self.view.match_prefix(&hashes(*chain, part.len()));
            let loaded = self.view.load(&found, 0..part.len() as u32, &self.places(part)?);
            if loaded.blocks as usize != part.len() || loaded.corrupt > 0 {
                return Err(failed(format!("{} of {} blocks came back: {loaded:?}", loaded.blocks, part.len())));
            }
        }
        Ok(())
    }

    pub(super) fn raw_store(&mut self) -> Result<(), Failure> {
        self.each_piece(copy)
    }

    pub(super) fn raw_load(&mut self) -> Result<(), Failure> {
        self.each_piece(|engine, arena| copy(arena, engine))
    }

    fn each_piece(
        &self,
        one: impl Fn(&MemoryExtent, &MemoryExtent) -> Result<(), kvd_nixl::sys::copy::CopyError>,
    ) -> Result<(), Failure> {
        let bytes = self.piece_bytes;
        for block in 0..self.blocks {
            for (piece, memory) in self.memories.iter().enumerate() {
                let engine = memory.part(block * bytes, bytes).map_err(failed)?;
                let arena = self.raw.part((block * self.memories.len() + piece) * bytes, bytes).map_err(failed)?;
                one(&engine, &arena).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Wipes the head of every piece, so that a load that did nothing shows.
    pub(super) fn spoil(&self) -> Result<(), Failure> {
        self.heads(|memory, at, _| memory.write(at, &[0; 8]).map_err(failed))
    }

    /// Every piece has its head again.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.heads(|memory, at, mark| {
            let mut found = [0; 8];
            memory.read(at, &mut found).map_err(failed)?;
            if found == mark { Ok(()) } else { Err(failed(format!("wrong bytes came back at {at}"))) }
        })
    }

    fn heads(&self, one: impl Fn(&MemoryExtent, usize, [u8; 8]) -> Result<(), Failure>) -> Result<(), Failure> {
        self.memories.iter().try_for_each(|memory| {
            (0..self.blocks).map(|block| block * self.piece_bytes).try_for_each(|at| one(memory, at, mark(at)))
        })
    }
}

/// What stands at the head of a piece.
fn mark(at: usize) -> [u8; 8] {
    (at as u64 | 1 << 63).to_le_bytes()
}

fn hashes(chain: u64, count: usize) -> Vec<BlockHash> {
    (0..count as u32).map(|position| chain_hash(chain, position)).collect()
}

fn region(bytes: usize, filler: u8) -> Result<MemoryExtent, Failure> {
    let memory: Arc<dyn Memory> = Arc::new(Region::new(bytes)?);
    let filler = vec![filler; 4096];
    for at in (0..bytes).step_by(filler.len()) {
        memory.write(at, &filler).map_err(failed)?;
        memory.write(at, &mark(at)).map_err(failed)?;
    }
    Ok(MemoryExtent::whole(memory))
}

fn paged(shape: Shape, memories: &[MemoryExtent], piece_bytes: usize) -> Result<EngineLayout, Failure> {
    let unit = shape.unit_bytes as usize;
    let token_stride = unit / shape.block_tokens as usize;
    let planes = memories.iter().map(|memory| PlaneMemory {
        memory: memory.clone(),
        block_stride: piece_bytes,
        head_stride: unit,
        token_stride,
        kv_stride: token_stride / 2,
    });
    let (namespace, shard) = (shape.namespace(), shape.shard()?);
    EngineLayout::new(&namespace.groups[0], &shard, shape.block_tokens, planes.collect()).map_err(failed)
}

/// Lets all hands do the same at the same time; the seconds from the first one's start to the last one's end.
pub(super) fn together(
    hands: &mut [Hand],
    work: impl Fn(&mut Hand) -> Result<(), Failure> + Copy + Send,
) -> Result<f64, Failure> {
    let barrier = Barrier::new(hands.len());
    let times = std::thread::scope(|scope| {
        let spawned: Vec<_> = hands
            .iter_mut()
            .map(|hand| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let started = Instant::now();
                    work(hand).map(|()| (started, Instant::now()))
                })
            })
            .collect();
        let joined = spawned.into_iter().map(|thread| thread.join().map_err(|_| failed("a thread panicked"))?);
        joined.collect::<Result<Vec<(Instant, Instant)>, Failure>>()
    })?;
    let started = times.iter().map(|(start, _)| *start).min();
    let ended = times.iter().map(|(_, end)| *end).max();
    let taken = started.zip(ended).map(|(start, end)| end - start);
    Ok(taken.map_or(f64::NAN, |taken| taken.as_secs_f64()))
}
