//! An engine for benches: namespaces, chains of hashes, joining.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use kvd_client::{Engine, EngineOptions, View, ViewSpec};
use kvd_proto::{BlockHash, GroupKind, GroupSpec, InstanceId, Namespace, Plane, Shard, Sharding, UnitOrder};

use crate::cli::exit::{Exit, Failure};

/// What a block looks like: `layers` of `heads` units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) layers: u16,
    pub(super) heads: u16,
    pub(super) unit_bytes: u32,
    pub(super) block_tokens: u32,
}

impl Shape {
    /// A block of one unit.
    pub(super) const fn plain(block_bytes: u32) -> Shape {
        Shape { layers: 1, heads: 1, unit_bytes: block_bytes, block_tokens: 16 }
    }

    /// A block of so many bytes: layers of eight heads of 16 tokens with 128 elements of bf16 for key and value, 8 KiB each.
    pub(super) fn layered(block_bytes: ByteSize) -> Option<Shape> {
        const HEADS: u16 = 8;
        const UNIT_BYTES: u32 = 8 << 10;
        let layer_bytes = u64::from(UNIT_BYTES) * u64::from(HEADS);
        let layers = u16::try_from(block_bytes.0 / layer_bytes).ok().filter(|layers| *layers > 0)?;
        let shape = Shape { layers, heads: HEADS, unit_bytes: UNIT_BYTES, block_tokens: 16 };
        (block_bytes.0.is_multiple_of(layer_bytes) && shape.shard().is_ok()).then_some(shape)
    }

    pub(super) const fn block_bytes(self) -> usize {
        self.layers as usize * self.heads as usize * self.unit_bytes as usize
    }

    pub(super) fn shard(self) -> Result<Shard, Failure> {
        Shard::whole(self.layers, self.heads).map_err(|error| Failure::new(Exit::Failure, error.to_string()))
    }

    pub(super) fn namespace(self) -> Namespace {
        let plane = Plane {
            name: "kv".into(),
            layers: self.layers,
            heads: self.heads,
            unit_bytes: self.unit_bytes,
            unit_order: UnitOrder::TokenKvDim,
            k_dim: 128,
            v_dim: 128,
            scales_bytes: 0,
            sharding: Sharding::Sharded,
        };
        Namespace {
            model: format!("bench-{}", self.block_bytes()),
            weights_digest: [0xbe; 32],
            kv_dtype: "bf16".into(),
            scale_scheme: String::new(),
            hash_algorithm: "bench".into(),
            hash_seed: Vec::new(),
            lora: None,
            block_tokens: self.block_tokens,
            groups: vec![GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None }],
        }
    }
}

/// Joins the daemon as instance `number`, with deadlines that no healthy call comes near to.
pub(super) fn join(socket: &Path, number: u8, shape: Shape) -> Result<(Engine, View), Failure> {
    join_shard(socket, number, shape, shape.shard()?)
}

/// The same for a rank that has a part of each block.
pub(super) fn join_shard(socket: &Path, number: u8, shape: Shape, shard: Shard) -> Result<(Engine, View), Failure> {
    let mut options = EngineOptions::new(socket, InstanceId::new([number; 16]));
    options.client_name = format!("kvd-bench-{number}");
    options.match_deadline = Some(Duration::from_secs(2));
    options.load_deadline = Some(Duration::from_secs(30));
    options.store_deadline = Duration::from_secs(30);
    let failed = |error: String| Failure::new(Exit::Unavailable, format!("{}: {error}", socket.display()));
    let engine = Engine::connect(options).map_err(|error| failed(error.to_string()))?;
    let spec = ViewSpec {
        namespace: &shape.namespace(),
        group: 0,
        shard,
        hash_bytes: 32,
        prefill_tokens_per_second: 0.0,
        token_ids: false,
    };
    let view = engine.open_view(&spec).map_err(|error| failed(error.to_string()))?;
    Ok((engine, view))
}

/// Works on all of them, so many at a time.
pub(super) fn at_once<T: Sync>(
    requests: usize,
    all: &[T],
    work: impl Fn(&T) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let next = AtomicUsize::new(0);
    let take = || -> Result<(), Failure> {
        // Relaxed: a number is handed out, nothing with it.
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(one)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..requests).map(|_| scope.spawn(take)).collect();
        let panicked = |_| Failure::new(Exit::Failure, "a thread panicked");
        threads.into_iter().try_for_each(|thread| thread.join().map_err(panicked)?)
    })
}

/// The hashes of a chain's first blocks.
pub(super) fn chain_hashes(chain: u64, count: usize) -> Vec<BlockHash> {
    (0..count as u32).map(|position| chain_hash(chain, position)).collect()
}

/// The hash of block `position` of chain `chain`.
pub(super) fn chain_hash(chain: u64, position: u32) -> BlockHash {
    let mut state = step(chain) ^ u64::from(position);
    let mut bytes = [0; 32];
    for word in bytes.chunks_exact_mut(8) {
        state = step(state);
        word.copy_from_slice(&state.to_le_bytes());
    }
    BlockHash::new(&bytes).expect("32 bytes are a hash")
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014).
fn step(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
