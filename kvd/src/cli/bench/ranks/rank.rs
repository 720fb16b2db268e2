//! One rank: its heads of every block, a memory for each layer.

use std::io::Write as _;
use std::path::Path;

use kvd_client::{BlockMemory, Engine, EngineLayout, PlaneMemory, StoreRequest, View};
use kvd_nixl::device::{Device, DeviceMemory, LaneOptions};
use kvd_proto::{Interleave, Shard};
use serde::{Deserialize, Serialize};

use super::failed;
use crate::cli::bench::engine::{Shape, at_once, chain_hashes, join_shard};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::replay::payload::Words;

/// Blocks of 2 MiB, as 16 tokens of a model of 8 B parameters have them.
const SHAPE: Shape = Shape { layers: 32, heads: 8, unit_bytes: 8 << 10, block_tokens: 16 };
const UNIT: usize = SHAPE.unit_bytes as usize;
/// Blocks of a chain: those of a prompt of 2 000 tokens.
const CHAIN_BLOCKS: usize = 128;
/// Chains at a time.
const REQUESTS: usize = 2;

/// What a rank says of an order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is done; a count, where one was asked for.
    Done(u64),
    Failed(String),
}

struct Rank {
    _engine: Engine,
    view: View,
    layout: EngineLayout,
    memory: DeviceMemory,
    shard: Shard,
    blocks: usize,
}

/// Does what it is told until its input ends.
pub(super) fn serve(socket: &Path, instance: u8, place: (u16, u16), gpu: Option<u32>, bytes: u64) -> Outcome {
    let mut made = Rank::new(socket, instance, place, gpu, bytes);
    let mut output = std::io::stdout();
    for order in std::io::stdin().lines() {
        let order = order?;
        let done = match &mut made {
            Ok(rank) => rank.obey(&order),
            Err(why) => Err(failed(&*why)),
        };
        let answer = match done {
            Ok(count) => Answer::Done(count),
            Err(why) => Answer::Failed(why.to_string()),
        };
        serde_json::to_writer(&output, &answer).map_err(failed)?;
        writeln!(output)?;
        output.flush()?;
    }
    Ok(Exit::Ok)
}

impl Rank {
    fn new(socket: &Path, instance: u8, (rank, of): (u16, u16), gpu: Option<u32>, bytes: u64) -> Result<Self, Failure> {
        let device = match gpu {
            Some(gpu) => Device::cuda(gpu).map_err(failed)?,
            None => Device::twin(),
        };
        let heads = SHAPE.heads / of;
        let shard = Shard::new(0..SHAPE.layers, rank * heads..(rank + 1) * heads, Interleave::WHOLE).map_err(failed)?;
        let (engine, view) = join_shard(socket, instance, SHAPE, shard.clone())?;
        let blocks = bytes as usize / SHAPE.block_bytes();
        let layer_bytes = blocks * usize::from(heads) * UNIT;
        let memory = device.allocate(usize::from(SHAPE.layers) * layer_bytes).map_err(failed)?;
        let token_stride = UNIT / SHAPE.block_tokens as usize;
        let plane = |layer: u16| {
            Ok(PlaneMemory {
                memory: memory.part(usize::from(layer) * layer_bytes, layer_bytes).map_err(failed)?,
                block_stride: usize::from(heads) * UNIT,
                head_stride: UNIT,
                token_stride,
                kv_stride: token_stride / 2,
            })
        };
        let planes = (0..SHAPE.layers).map(plane).collect::<Result<Vec<_>, Failure>>()?;
        let (group, options) = (&SHAPE.namespace().groups[0], LaneOptions::default());
        let layout = EngineLayout::on_device(&device, group, &shard, SHAPE.block_tokens, planes, &options);
        let layout = layout.map_err(failed)?;
        Ok(Self { _engine: engine, view, layout, memory, shard, blocks })
    }

    /// `fill CONTENT`, `store CHAINS`, `spoil`, `load CHAINS`, `check CONTENT`: numbers say which.
    fn obey(&mut self, order: &str) -> Result<u64, Failure> {
        let (what, number) = order.split_once(' ').unwrap_or((order, "0"));
        let number = number.parse::<u64>().map_err(failed)?;
        match what {
            "fill" => self.fill(number).map(|()| 0),
            "spoil" => self.spoil().map(|()| 0),
            "check" => self.check(number),
            "store" => self.store(number).map(|()| 0),
            "load" => self.load(number).map(|()| 0),
            _ => Err(failed(format!("an unknown order {order}"))),
        }
    }

    /// Calls `visit` with each unit's content and its bytes in `all` of the memory.
    fn each_unit(&self, content: u64, all: &mut [u8], mut visit: impl FnMut(Words, &mut [u8])) {
        let mut units = all.chunks_exact_mut(UNIT);
        for layer in self.shard.layers() {
            for block in 0..self.blocks as u64 {
                for (head, unit) in self.shard.heads().zip(&mut units) {
                    let place = block << 16 | u64::from(layer) << 8 | u64::from(head);
                    visit(Words::of(content << 40 | place), unit);
                }
            }
        }
    }

    fn fill(&self, content: u64) -> Result<(), Failure> {
        let mut all = vec![0; self.memory.len()];
        self.each_unit(content, &mut all, |words, unit| words.fill(unit));
        self.memory.write(0, &all).map_err(failed)
    }

    fn spoil(&self) -> Result<(), Failure> {
        self.memory.write(0, &vec![0xee; self.memory.len()]).map_err(failed)
    }

    /// How many units are not this content.
    fn check(&self, content: u64) -> Result<u64, Failure> {
        let mut all = vec![0; self.memory.len()];
        self.memory.read(0, &mut all).map_err(failed)?;
        let mut wrong = 0;
        self.each_unit(content, &mut all, |words, unit| wrong += u64::from(!words.are(unit)));
        Ok(wrong)
    }

    /// Chains of this number, each with its blocks.
    fn chains(&self, number: u64) -> Vec<(u64, Vec<usize>)> {
        let all: Vec<usize> = (0..self.blocks).collect();
        all.chunks(CHAIN_BLOCKS).enumerate().map(|(at, blocks)| (number << 32 | at as u64, blocks.to_vec())).collect()
    }

    fn places(&self, blocks: &[usize]) -> Result<Vec<BlockMemory<'_>>, Failure> {
        blocks.iter().map(|block| self.layout.block(*block)).collect::<Result<_, _>>().map_err(failed)
    }

    fn store(&self, number: u64) -> Result<(), Failure> {
        at_once(REQUESTS, &self.chains(number), |(chain, blocks)| {
            let (hashes, sources) = (chain_hashes(*chain, blocks.len()), self.places(blocks)?);
            let store =
                StoreRequest { parent: None, first_position: 0, hashes: &hashes, sources: &sources, tokens: &[] };
            let stored = self.view.store(&store);
            if stored.granted as usize == blocks.len() {
                return Ok(());
            }
            Err(failed(format!("the daemon took {} of {} blocks: {stored:?}", stored.granted, blocks.len())))
        })
    }

    fn load(&self, number: u64) -> Result<(), Failure> {
        at_once(REQUESTS, &self.chains(number), |(chain, blocks)| {
            let found = self.view.match_prefix(&chain_hashes(*chain, blocks.len()));
            let loaded = self.view.load(&found, 0..blocks.len() as u32, &self.places(blocks)?);
            if loaded.blocks as usize == blocks.len() && loaded.corrupt == 0 {
                return Ok(());
            }
            Err(failed(format!("{} of {} blocks came back: {loaded:?}", loaded.blocks, blocks.len())))
        })
    }
}
