use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvd_client::{
    BlockMemory, ConnectError, Engine, EngineOptions, Loaded, Match, StoreRequest, Stored, View, ViewSpec,
};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::{
    BlockHash, GroupKind, GroupSpec, InstanceId, MissReason, Namespace, Plane, Shard, Sharding, UnitOrder,
};

use crate::{Payload, chain_hash};

/// A namespace with one group of one plane, one head: its unit is the whole block of `block_bytes`.
pub fn plain_namespace(model: &str, block_bytes: u32) -> Namespace {
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
        model: model.into(),
        weights_digest: [7; 32],
        kv_dtype: "bf16".into(),
        scale_scheme: String::new(),
        hash_algorithm: "test".into(),
        hash_seed: Vec::new(),
        lora: None,
        block_tokens: 512,
        groups: vec![GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None }],
    }
}

/// What a check of a chain found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blocks that matched.
    pub matched: u32,
    /// Blocks that were loaded and hold exactly their payload.
    pub right: u32,
    /// Blocks that were loaded and hold anything else. Must be 0, always.
    pub wrong: u32,
    /// Of the loaded ones, those from DRAM.
    pub dram: u32,
    /// Of the loaded ones, those from NVMe.
    pub nvme: u32,
    /// Of the loaded ones, those from the object tier.
    pub object: u32,
    /// Copies that the client found corrupt and did not serve.
    pub corrupt: u32,
    /// Why it ended where it did.
    pub reason: Option<MissReason>,
}

/// An engine whose payloads derive from their place, so that each loaded byte can be checked.
#[derive(Debug)]
pub struct TestEngine {
    engine: Engine,
    view: View,
    memory: MemoryExtent,
    block_bytes: usize,
    blocks: usize,
}

impl TestEngine {
    /// Joins the daemon at `socket` as instance `number`, with room for `blocks` blocks at a time.
    pub fn connect(socket: &Path, number: u8, block_bytes: usize, blocks: usize) -> Self {
        Self::join(Self::options(socket, number), block_bytes, blocks).expect("the daemon accepts us")
    }

    /// What [`TestEngine::connect`] connects with: deadlines that a busy machine keeps.
    pub fn options(socket: &Path, number: u8) -> EngineOptions {
        let mut options = EngineOptions::new(socket, InstanceId::new([number; 16]));
        options.client_name = format!("test-{number}");
        options.match_deadline = Some(Duration::from_millis(500));
        options.load_deadline = Some(Duration::from_secs(2));
        options
    }

    /// Joins with other options than those of [`TestEngine::connect`], or fails where the daemon is not there.
    pub fn join(options: EngineOptions, block_bytes: usize, blocks: usize) -> Result<Self, ConnectError> {
        Ok(Self::on(Engine::connect(options)?, block_bytes, blocks))
    }

    /// Another thread's part of the same process: the same session, a view and memory of its own.
    #[must_use]
    pub fn sibling(&self, block_bytes: usize, blocks: usize) -> Self {
        Self::on(self.engine.clone(), block_bytes, blocks)
    }

    fn on(engine: Engine, block_bytes: usize, blocks: usize) -> Self {
        let namespace = plain_namespace("test", u32::try_from(block_bytes).expect("small blocks"));
        let spec = ViewSpec {
            namespace: &namespace,
            group: 0,
            shard: Shard::whole(1, 1).expect("one layer, one head"),
            hash_bytes: 32,
            prefill_tokens_per_second: 0.0,
            token_ids: false,
        };
        let view = engine.open_view(&spec).expect("the view is valid");
        let region: Arc<dyn Memory> = Arc::new(Region::new(block_bytes * blocks).expect("memory"));
        Self { engine, view, memory: MemoryExtent::whole(region), block_bytes, blocks }
    }

    /// The connection.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The view.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Blocks that fit its memory.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.blocks).expect("small")
    }

    /// The first `count` hashes of a chain.
    pub fn hashes(chain: u64, count: u32) -> Vec<BlockHash> {
        (0..count).map(|position| chain_hash(chain, position)).collect()
    }

    fn block(&self, index: usize) -> MemoryExtent {
        self.memory.part(index * self.block_bytes, self.block_bytes).expect("within our memory")
    }

    /// Stores blocks `from..to` of a chain.
    pub fn store(&self, chain: u64, from: u32, to: u32) -> Stored {
        let count = (to - from) as usize;
        assert!(count <= self.blocks);
        let hashes: Vec<_> = (from..to).map(|position| chain_hash(chain, position)).collect();
        let mut bytes = vec![0; self.block_bytes];
        for (index, position) in (from..to).enumerate() {
            Payload::new(chain, position).fill(&mut bytes);
            self.block(index).write(0, &bytes).expect("within our memory");
        }
        let sources: Vec<_> = (0..count).map(|index| BlockMemory::contiguous(self.block(index))).collect();
        self.view.store(&StoreRequest {
            parent: from.checked_sub(1).map(|position| chain_hash(chain, position)),
            first_position: from,
            hashes: &hashes,
            sources: &sources,
            tokens: &[],
        })
    }

    /// Matches the first `count` blocks of a chain, under a lease.
    pub fn find(&self, chain: u64, count: u32) -> Match {
        self.view.match_prefix(&Self::hashes(chain, count))
    }

    /// Loads what was found and compares every byte.
    pub fn load(&self, chain: u64, found: &Match) -> Checked {
        let matched = found.blocks().min(self.blocks());
        let targets: Vec<_> = (0..matched as usize).map(|index| BlockMemory::contiguous(self.block(index))).collect();
        let loaded: Loaded = self.view.load(found, 0..matched, &targets);
        let mut checked = Checked {
            matched,
            dram: loaded.from_dram,
            nvme: loaded.from_nvme,
            object: loaded.from_object,
            corrupt: loaded.corrupt,
            reason: loaded.reason.or(found.reason()),
            ..Checked::default()
        };
        let mut bytes = vec![0; self.block_bytes];
        for position in 0..loaded.blocks {
            self.block(position as usize).read(0, &mut bytes).expect("within our memory");
            if Payload::new(chain, position).matches(&bytes) {
                checked.right += 1;
            } else {
                checked.wrong += 1;
            }
        }
        checked
    }

    /// Matches, loads and compares the first `count` blocks of a chain.
    pub fn check(&self, chain: u64, count: u32) -> Checked {
        let found = self.find(chain, count);
        self.load(chain, &found)
    }
    /// Asks for the first `count` blocks of a chain to be brought towards DRAM.
    pub fn prefetch(&self, chain: u64, count: u32) {
        self.view.prefetch(&Self::hashes(chain, count));
    }
}
