//! What engines name and write: lanes of tenants, chains that share prefixes, payloads that know themselves.

use std::sync::Arc;

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::sys::MemoryExtent;
use kvd_nixl::sys::copy::{Units, checksum_units};
use kvd_proto::{BlockHash, BlockKey, GroupKey, NamespaceDigest, Shard, TenantKey};
use kvd_tests::{Payload, chain_hash};
use kvd_tiers::TenantId;
use kvd_tiers::ladder::ViewSpec;
use kvd_tiers::record::SECTOR_BYTES;

use crate::config::{MIB, Make};
use crate::random::Random;

/// A block of a lane, by the chain in which it was first named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block {
    pub(crate) lane: usize,
    pub(crate) chain: usize,
    pub(crate) position: u32,
}

/// Records of one tenant and kind.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) tenant: TenantId,
    pub(crate) namespace: NamespaceDigest,
    pub(crate) group_key: GroupKey,
    pub(crate) shard: Shard,
    pub(crate) payload_bytes: u32,
    pub(crate) unit_bytes: u32,
    /// Far more than the metadata needs: so few slots make a segment full without much to move.
    pub(crate) slot_bytes: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// Its first blocks are those of another chain.
    parent: Option<(usize, u32)>,
    pub(crate) blocks: u32,
}

/// Everything that engines can name.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) chains: Vec<Chain>,
}

const UNIT_BYTES: u32 = 2048;

impl Names {
    pub(crate) fn draw(make: &Make, random: &mut Random) -> Self {
        let mut lanes = Vec::new();
        for tenant in 0..make.tenants {
            for kind in 0..make.kinds {
                let key = TenantKey::new([tenant as u8 + 1; 32]);
                let namespace = NamespaceDigest::new([kind as u8 + 0x50; 32]);
                let group = kind as u16;
                lanes.push(Lane {
                    tenant: TenantId(key.tag()),
                    namespace,
                    group_key: GroupKey::derive(&key, &namespace, group),
                    shard: Shard::whole(4, 2).expect("a shard of four layers"),
                    payload_bytes: [4096, 11_008][kind],
                    unit_bytes: UNIT_BYTES,
                    slot_bytes: [4 * MIB, 6 * MIB][kind],
                });
            }
        }
        let mut chains: Vec<Chain> = Vec::new();
        for _ in 0..make.chains {
            let blocks = random.range(2..13) as u32;
            let parent = (!chains.is_empty() && random.percent(70)).then(|| random.index(chains.len()));
            let parent = parent.map(|of| (of, random.range(1..u64::from(chains[of].blocks) + 1) as u32));
            let blocks = blocks + parent.map_or(0, |(_, shared)| shared);
            chains.push(Chain { parent, blocks });
        }
        Self { lanes, chains }
    }

    pub(crate) fn block(&self, lane: usize, chain: usize, position: u32) -> Block {
        match self.chains[chain].parent {
            Some((of, shared)) if position < shared => self.block(lane, of, position),
            _ => Block { lane, chain, position },
        }
    }

    pub(crate) fn hash(&self, block: Block) -> BlockHash {
        chain_hash(block.chain as u64, block.position)
    }

    pub(crate) fn key(&self, block: Block) -> BlockKey {
        self.lanes[block.lane].group_key.block(&self.hash(block))
    }

    /// Every block there is.
    pub(crate) fn all(&self) -> Vec<Block> {
        let mut all = Vec::new();
        for lane in 0..self.lanes.len() {
            for (chain, found) in self.chains.iter().enumerate() {
                let own = found.parent.map_or(0, |(_, shared)| shared)..found.blocks;
                all.extend(own.map(|position| Block { lane, chain, position }));
            }
        }
        all
    }

    /// The block that comes before, in the chain that named it.
    pub(crate) fn parent(&self, block: Block) -> Option<Block> {
        let position = block.position.checked_sub(1)?;
        Some(self.block(block.lane, block.chain, position))
    }

    pub(crate) fn view(&self, lane: usize) -> ViewSpec {
        let found = &self.lanes[lane];
        ViewSpec {
            tenant: found.tenant,
            namespace: found.namespace,
            group: self.group(lane),
            group_key: found.group_key,
            shard: found.shard.clone(),
            payload_bytes: found.payload_bytes,
            meta_bytes: found.slot_bytes - found.payload_bytes.next_multiple_of(SECTOR_BYTES as u32),
            block_tokens: 16,
            prefill_tokens_per_second: 0,
        }
    }

    pub(crate) fn group(&self, lane: usize) -> u16 {
        u16::from(self.lanes[lane].payload_bytes != 4096)
    }

    fn payload(block: Block) -> Payload {
        Payload::new(block.chain as u64 | (block.lane as u64) << 32, block.position)
    }

    /// The bytes that belong to a block.
    pub(crate) fn bytes(&self, block: Block) -> Vec<u8> {
        let mut bytes = vec![0; self.lanes[block.lane].payload_bytes as usize];
        Self::payload(block).fill(&mut bytes);
        bytes
    }

    pub(crate) fn is(&self, block: Block, bytes: &[u8]) -> bool {
        Self::payload(block).matches(bytes)
    }
}

/// The checksums of the units of a payload, as the client library makes them.
pub(crate) fn unit_checksums(payload: &MemoryExtent, unit_bytes: u32, seed: u64) -> Vec<u64> {
    let units = Units { unit_bytes: unit_bytes as usize, algorithm: ChecksumAlgorithm::Xxh3, seed };
    let mut found = vec![0; payload.len().div_ceil(unit_bytes as usize)];
    checksum_units(payload, &units, &mut found).expect("as many checksums as units");
    found
}

/// A slot's bytes from its start: `len` of them.
pub(crate) fn extent(memory: &Arc<dyn kvd_nixl::sys::Memory>, offset: usize, len: usize) -> MemoryExtent {
    MemoryExtent::new(Arc::clone(memory), offset, len).expect("slots lie inside their segment")
}
