//! An engine that stores chains whose bytes follow from their hashes, and judges what it reads.

use std::path::Path;
use std::sync::Arc;

use kvd_client::{BlockMemory, Engine, StoreRequest, View};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::{BlockHash, Tier};
use kvd_tiers::record::SECTOR_BYTES;

use crate::cli::bench::engine::{Shape, chain_hash, join};
use crate::cli::exit::{Exit, Failure};

pub(super) const CHAIN_BLOCKS: u32 = 1000;
/// Chains that are looked at for a block in a certain tier.
const TRIES: usize = 64;

/// Bytes of a record with its sector of metadata.
pub(super) fn slot_bytes(block_bytes: u32) -> u64 {
    (SECTOR_BYTES as u64) + u64::from(block_bytes).next_multiple_of(SECTOR_BYTES as u64)
}

pub(super) struct Filler {
    _engine: Engine,
    view: View,
    /// The blocks of a chain, side by side.
    memory: MemoryExtent,
    block_bytes: usize,
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

impl Filler {
    pub(super) fn join(socket: &Path, block_bytes: u32) -> Result<Filler, Failure> {
        let (engine, view) = join(socket, 1, Shape::plain(block_bytes))?;
        let memory: Arc<dyn Memory> = Arc::new(Region::new(CHAIN_BLOCKS as usize * block_bytes as usize)?);
        Ok(Filler { _engine: engine, view, memory: MemoryExtent::whole(memory), block_bytes: block_bytes as usize })
    }

    fn place(&self, index: usize) -> Result<MemoryExtent, Failure> {
        self.memory.part(index * self.block_bytes, self.block_bytes).map_err(failed)
    }

    /// Stores a whole chain; how many blocks the daemon refused for now.
    pub(super) fn store(&self, chain: u64) -> Result<u32, Failure> {
        let hashes: Vec<BlockHash> = (0..CHAIN_BLOCKS).map(|position| chain_hash(chain, position)).collect();
        let mut sources = Vec::with_capacity(hashes.len());
        for (index, hash) in hashes.iter().enumerate() {
            let place = self.place(index)?;
            place.write(0, &hash.padded()).map_err(failed)?;
            sources.push(BlockMemory::contiguous(place));
        }
        let store = StoreRequest { parent: None, first_position: 0, hashes: &hashes, sources: &sources, tokens: &[] };
        Ok(self.view.store(&store).refused)
    }

    /// Matches whole chains, and loads and judges a block of them, until one came from where it should: the first block of
    /// the newest chains from DRAM, the last one of the oldest, for leaves fall first, from NVMe.
    pub(super) fn hit(&self, chains: impl IntoIterator<Item = u64>, tier: Tier) -> Result<(), Failure> {
        let at = if tier == Tier::Nvme { CHAIN_BLOCKS - 1 } else { 0 };
        for chain in chains.into_iter().take(TRIES) {
            if self.load(chain, at)? == tier {
                return Ok(());
            }
        }
        Err(Failure::new(Exit::CheckFailed, format!("{TRIES} chains, and none of their blocks {at} lay in {tier:?}")))
    }

    /// Loads block `at`; where it lay.
    fn load(&self, chain: u64, at: u32) -> Result<Tier, Failure> {
        let hashes: Vec<BlockHash> = (0..CHAIN_BLOCKS).map(|position| chain_hash(chain, position)).collect();
        let place = self.place(0)?;
        place.zero(0, self.block_bytes).map_err(failed)?;
        let found = self.view.match_prefix(&hashes);
        let loaded = self.view.load(&found, at..at + 1, &[BlockMemory::contiguous(place.clone())]);
        let mut head = [0; 32];
        place.read(0, &mut head).map_err(failed)?;
        if found.blocks() < CHAIN_BLOCKS || loaded.blocks < 1 || head != hashes[at as usize].padded() {
            let message = format!("of chain {chain} {} blocks are back; block {at}: {loaded:?}", found.blocks());
            return Err(Failure::new(Exit::CheckFailed, message));
        }
        Ok(if loaded.from_nvme > 0 { Tier::Nvme } else { Tier::Dram })
    }
}
