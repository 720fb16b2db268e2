//! One engine that plays requests: match the chain, load the hits, store the rest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_client::{BlockMemory, Engine, EngineOptions, Match, StoreRequest, View, ViewSpec};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::{
    BlockHash, GroupKind, GroupSpec, InstanceId, MissReason, Namespace, Plane, Shard, Sharding, UnitOrder,
};

use super::payload::{Words, block_hash};
use super::tally::Tally;
use super::trace::Request;
use crate::cli::exit::{Exit, Failure};

/// Tokens of a block in Mooncake's traces.
const BLOCK_TOKENS: u32 = 512;
/// Engine memory, in blocks: a piece of a request is loaded or stored at a time.
const BUFFER_BYTES: usize = 32 << 20;
/// How long the player waits for a daemon that went away before it goes on without.
const AWAY_MAX: Duration = Duration::from_secs(10);

/// What a player is made with.
#[derive(Clone, Debug)]
pub(in crate::cli) struct PlayerOptions {
    /// The engine socket.
    pub socket: PathBuf,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Which engine this is.
    pub number: u8,
    /// How fast it computes; 0 for unknown.
    pub prefill_tokens_per_second: f64,
    /// Whether the daemon may weigh loads against recomputing.
    pub gate: bool,
    /// Whether blocks are announced one request ahead.
    pub prefetch: bool,
    /// Whether to wait as long as the engine would compute what it missed.
    pub compute: bool,
}

/// An engine without a GPU: its payloads derive from the block's id.
#[derive(Debug)]
pub(in crate::cli) struct Player {
    engine: Engine,
    view: View,
    memory: MemoryExtent,
    block_bytes: usize,
    buffers: usize,
    prefetch: bool,
    /// How fast it computes, if it takes that time.
    computes: Option<f64>,
    bytes: Vec<u8>,
}

impl Player {
    /// Joins the daemon.
    ///
    /// # Errors
    /// No daemon is there, or it refuses.
    pub(in crate::cli) fn connect(options: &PlayerOptions) -> Result<Self, Failure> {
        let mut connect = EngineOptions::new(&options.socket, InstanceId::new([options.number + 1; 16]));
        connect.client_name = format!("replay-{}", options.number);
        // A replay measures hit rates: a hiccup of a loaded machine must not pass for a cold block.
        connect.match_deadline = Some(Duration::from_secs(1));
        connect.load_deadline = Some(Duration::from_secs(10));
        let engine = Engine::connect(connect).map_err(|error| {
            let message = format!("no engine session on {}: {error}", options.socket.display());
            Failure::new(Exit::Unavailable, message).remedy("is kvd running? start it with `kvd serve`")
        })?;
        let namespace = namespace(options.block_bytes);
        let spec = ViewSpec {
            namespace: &namespace,
            group: 0,
            shard: Shard::whole(1, 1).expect("one layer and one head are a shard"),
            hash_bytes: 32,
            prefill_tokens_per_second: if options.gate { options.prefill_tokens_per_second } else { 0.0 },
            token_ids: false,
        };
        let view = engine.open_view(&spec).map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
        let block_bytes = options.block_bytes as usize;
        let buffers = (BUFFER_BYTES / block_bytes).max(1);
        let region: Arc<dyn Memory> = Arc::new(Region::new(buffers * block_bytes)?);
        let memory = MemoryExtent::whole(region);
        let computes = Some(options.prefill_tokens_per_second).filter(|speed| options.compute && *speed > 0.0);
        let (prefetch, bytes) = (options.prefetch, vec![0; block_bytes]);
        Ok(Self { engine, view, memory, block_bytes, buffers, prefetch, computes, bytes })
    }

    /// Plays one request; `next` is announced meanwhile if prefetching was asked for.
    pub(in crate::cli) fn play(&mut self, request: &Request, next: Option<&Request>, tally: &mut Tally) {
        let hashes: Vec<BlockHash> = request.hash_ids.iter().map(|id| block_hash(*id)).collect();
        let started = Instant::now();
        let found = self.view.match_prefix(&hashes);
        tally.matched(started.elapsed());
        if let (true, Some(next)) = (self.prefetch, next) {
            let ahead: Vec<BlockHash> = next.hash_ids.iter().map(|id| block_hash(*id)).collect();
            self.view.prefetch(&ahead);
        }
        let (loaded, reason) = self.load(&found, &request.hash_ids, tally);
        drop(found);
        tally.report.epochs.extend(self.engine.epoch().map(|epoch| epoch.get()));
        let asked = hashes.len() as u64;
        tally.report.requests += 1;
        tally.report.blocks_asked += asked;
        tally.report.blocks_hit += u64::from(loaded);
        tally.missed(reason.map_or("cold", MissReason::as_str), asked - u64::from(loaded));
        let tokens_hit = u64::from(loaded) * u64::from(BLOCK_TOKENS);
        let tokens_missed = request.input_length.saturating_sub(tokens_hit);
        tally.tokens_missed += tokens_missed;
        if let Some(speed) = self.computes {
            let computing = Duration::from_secs_f64(tokens_missed as f64 / speed);
            std::thread::sleep(computing);
            tally.report.computed_s += computing.as_secs_f64();
        }
        self.store(&hashes, &request.hash_ids, loaded, tally);
        if self.engine.epoch().is_none() {
            self.await_daemon();
        }
    }

    /// Whether the daemon is there.
    pub(in crate::cli) fn epoch(&self) -> Option<u64> {
        self.engine.epoch().map(|epoch| epoch.get())
    }

    fn await_daemon(&self) {
        let until = Instant::now() + AWAY_MAX;
        while self.engine.epoch().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn buffer(&self, index: usize) -> MemoryExtent {
        self.memory.part(index * self.block_bytes, self.block_bytes).expect("the index is below `buffers`")
    }

    /// Loads what was found, a piece at a time, and compares it; how many blocks came, and why no more.
    fn load(&mut self, found: &Match, ids: &[u64], tally: &mut Tally) -> (u32, Option<MissReason>) {
        let mut done = 0;
        while done < found.blocks() {
            let count = (found.blocks() - done).min(self.buffers as u32);
            let targets: Vec<_> = (0..count as usize).map(|at| BlockMemory::contiguous(self.buffer(at))).collect();
            let started = Instant::now();
            let loaded = self.view.load(found, done..done + count, &targets);
            tally.report.load_s += started.elapsed().as_secs_f64();
            tally.report.bytes_loaded += u64::from(loaded.blocks) * self.block_bytes as u64;
            tally.report.hit_by_tier.dram += u64::from(loaded.from_dram);
            tally.report.hit_by_tier.nvme += u64::from(loaded.from_nvme);
            tally.report.hit_by_tier.object += u64::from(loaded.from_object);
            tally.report.corrupt_copies += u64::from(loaded.corrupt);
            for at in 0..loaded.blocks {
                let extent = self.buffer(at as usize);
                extent.read(0, &mut self.bytes).expect("the buffer has a block's bytes");
                if !Words::of(ids[(done + at) as usize]).are(&self.bytes) {
                    tally.report.wrong_blocks += 1;
                }
            }
            done += loaded.blocks;
            if loaded.blocks < count {
                return (done, loaded.reason);
            }
        }
        (done, found.reason())
    }

    /// Stores the blocks from `from` on, a piece at a time.
    fn store(&mut self, hashes: &[BlockHash], ids: &[u64], from: u32, tally: &mut Tally) {
        let mut first = from as usize;
        while first < hashes.len() && self.engine.epoch().is_some() {
            let count = (hashes.len() - first).min(self.buffers);
            for at in 0..count {
                Words::of(ids[first + at]).fill(&mut self.bytes);
                self.buffer(at).write(0, &self.bytes).expect("the buffer has a block's bytes");
            }
            let sources: Vec<_> = (0..count).map(|at| BlockMemory::contiguous(self.buffer(at))).collect();
            let started = Instant::now();
            let stored = self.view.store(&StoreRequest {
                parent: first.checked_sub(1).map(|before| hashes[before]),
                first_position: first as u32,
                hashes: &hashes[first..first + count],
                sources: &sources,
                tokens: &[],
            });
            tally.report.store_s += started.elapsed().as_secs_f64();
            tally.report.blocks_stored += u64::from(stored.granted);
            tally.report.bytes_stored += u64::from(stored.granted) * self.block_bytes as u64;
            first += count;
        }
    }
}

/// One layer, one head: a block is one unit.
fn namespace(block_bytes: u32) -> Namespace {
    let plane = Plane {
        name: "kv".into(),
        layers: 1,
        heads: 1,
        unit_bytes: block_bytes,
        unit_order: UnitOrder::Opaque,
        k_dim: 0,
        v_dim: 0,
        scales_bytes: 0,
        sharding: Sharding::Sharded,
    };
    Namespace {
        model: "replay".into(),
        weights_digest: [0; 32],
        kv_dtype: "bytes".into(),
        scale_scheme: String::new(),
        hash_algorithm: "blake3-id".into(),
        hash_seed: Vec::new(),
        lora: None,
        block_tokens: BLOCK_TOKENS,
        groups: vec![GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None }],
    }
}
