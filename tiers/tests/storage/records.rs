//! Records whose bytes follow from a number and a generation, so that any byte read back can be judged.

use std::sync::Arc;

use kvd_nixl::sys::{ChecksumAlgorithm, Memory, MemoryExtent, Region, unit_seed};
use kvd_proto::{BlockHash, BlockKey, InstanceId, NamespaceDigest, Shard, UnitOrder, checksum_seed};
use kvd_tiers::record::{Metadata, TokenIds, UnitChecksums, slot_bytes, units};
use kvd_tiers::{SlotEntry, SlotState, TenantId};

/// What to make a record of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Recipe {
    pub(crate) number: u64,
    pub(crate) generation: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) unit_bytes: u32,
    pub(crate) tokens: u32,
    pub(crate) algorithm: ChecksumAlgorithm,
}

impl Recipe {
    pub(crate) fn new(number: u64, generation: u32, payload_bytes: u32) -> Self {
        let algorithm = ChecksumAlgorithm::Xxh3;
        Self { number, generation, payload_bytes, unit_bytes: 1024, tokens: 16, algorithm }
    }

    pub(crate) fn key(&self) -> BlockKey {
        BlockKey::new(spread(self.number))
    }

    fn payload(&self) -> Vec<u8> {
        let seed = self.number << 32 | u64::from(self.generation);
        let words = (0..u64::from(self.payload_bytes).div_ceil(8)).map(|at| unit_seed(seed, at as u32).to_le_bytes());
        let mut bytes: Vec<u8> = words.flatten().collect();
        bytes.truncate(self.payload_bytes as usize);
        bytes
    }

    pub(crate) fn make(&self) -> Made {
        let payload = self.payload();
        let key = self.key();
        let shard = Shard::new(4..36, 2..6, kvd_proto::Interleave::new(1, 2).unwrap()).unwrap();
        let seed = checksum_seed(&key, &shard);
        assert_eq!(payload.chunks(self.unit_bytes as usize).len(), units(self.payload_bytes, self.unit_bytes));
        let checksums: Vec<u8> = payload
            .chunks(self.unit_bytes as usize)
            .enumerate()
            .flat_map(|(unit, bytes)| self.algorithm.checksum(unit_seed(seed, unit as u32), bytes).to_le_bytes())
            .collect();
        let tokens: Vec<u8> = (0..self.tokens).flat_map(|token| (token * 7 + 1).to_le_bytes()).collect();
        let first = self.number == 0;
        let metadata = Metadata {
            namespace: NamespaceDigest::new([0xab; 32]),
            group: 1,
            key,
            parent_key: (!first).then(|| BlockKey::new(spread(self.number - 1))),
            hash: BlockHash::new(&self.number.to_le_bytes()).unwrap(),
            parent_hash: (!first).then(|| BlockHash::new(&(self.number - 1).to_le_bytes()).unwrap()),
            position: self.number as u32,
            shard: shard.clone(),
            unit_order: UnitOrder::TokenKvDim,
            writer: InstanceId::new([0x11; 16]),
            generation: self.generation,
            payload_bytes: self.payload_bytes,
            algorithm: self.algorithm,
            unit_bytes: self.unit_bytes,
            checksums: UnitChecksums::new(&checksums),
            tokens: TokenIds::new(&tokens),
        };
        let meta_bytes = metadata.meta_bytes();
        let mut image = vec![0; slot_bytes(meta_bytes, self.payload_bytes)];
        let meta_checksum = metadata.encode(&mut image).unwrap();
        image[meta_bytes..meta_bytes + payload.len()].copy_from_slice(&payload);
        let entry = SlotEntry {
            state: SlotState::Resident,
            generation: self.generation,
            tenant: TenantId(5),
            namespace_prefix: u64::from_le_bytes([0xab; 8]),
            group: 1,
            shard,
            key,
            parent_key: metadata.parent_key,
            position: metadata.position,
            payload_bytes: self.payload_bytes,
            meta_checksum,
        };
        Made { entry, image, meta_bytes }
    }
}

fn spread(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&unit_seed(1, number as u32).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// A record: what a table says of it, and its bytes as they lie in a slot.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) entry: SlotEntry,
    pub(crate) image: Vec<u8>,
    pub(crate) meta_bytes: usize,
}

impl Made {
    pub(crate) fn memory(&self) -> MemoryExtent {
        let memory = memory(self.image.len());
        memory.write(0, &self.image).unwrap();
        memory
    }

    /// Whether `memory` holds this record: what a reader would see of it.
    pub(crate) fn is_in(&self, memory: &MemoryExtent) -> bool {
        let end = self.meta_bytes + self.entry.payload_bytes as usize;
        let mut bytes = vec![0; end];
        memory.read(0, &mut bytes).unwrap();
        bytes == self.image[..end]
    }
}

pub(crate) fn memory(len: usize) -> MemoryExtent {
    let memory: Arc<dyn Memory> = Arc::new(Region::new(len).unwrap());
    MemoryExtent::whole(memory)
}
