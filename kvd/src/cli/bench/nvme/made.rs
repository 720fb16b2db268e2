//! Records in memory like the arena's, as an engine would have stored them.

use std::os::fd::AsFd;
use std::sync::Arc;

use kvd_nixl::sys::{ChecksumAlgorithm, Mapping, Memory, MemoryExtent, memfd_sealed, unit_seed};
use kvd_proto::{BlockKey, InstanceId, NamespaceDigest, Shard, UnitOrder, checksum_seed};
use kvd_tiers::record::{Metadata, SECTOR_BYTES, TokenIds, UnitChecksums, slot_bytes};
use kvd_tiers::{SEGMENT_BYTES, SlotEntry, SlotState, TenantId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::failed;
use crate::cli::bench::engine::chain_hash;
use crate::cli::exit::Failure;

/// More than last-level caches hold: what a daemon moves was stored a while ago, and lies in memory.
const SEGMENTS: u64 = 8;
/// Of one head of one layer of 16 tokens, as in `kvd bench copy`.
const UNIT_BYTES: u32 = 8 << 10;

/// A record: what a table says of it, and where it lies.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) entry: SlotEntry,
    pub(super) memory: MemoryExtent,
}

/// As many records of `block_bytes`, metadata included, as the segments hold.
pub(super) fn made(block_bytes: u32) -> Result<Vec<Made>, Failure> {
    let mut records = Vec::new();
    let mut random = SmallRng::seed_from_u64(u64::from(block_bytes));
    for _ in 0..SEGMENTS {
        let memfd = memfd_sealed("kvd-bench-records", u64::from(SEGMENT_BYTES))?;
        let mapping = Mapping::new(memfd.as_fd(), 0, SEGMENT_BYTES as usize).map_err(failed)?;
        mapping.populate()?;
        // As the arena's segments are. Without huge pages it is measured without.
        let _ = mapping.collapse();
        let segment: Arc<dyn Memory> = Arc::new(mapping);
        for at in (0..SEGMENT_BYTES / block_bytes).map(|index| (index * block_bytes) as usize) {
            let memory = MemoryExtent::new(Arc::clone(&segment), at, block_bytes as usize).map_err(failed)?;
            let (entry, image) = record(records.len() as u64, block_bytes, &mut random)?;
            memory.write(0, &image).map_err(failed)?;
            records.push(Made { entry, memory });
        }
    }
    Ok(records)
}

fn record(number: u64, block_bytes: u32, random: &mut SmallRng) -> Result<(SlotEntry, Vec<u8>), Failure> {
    let payload_bytes = block_bytes - SECTOR_BYTES as u32;
    let mut payload = vec![0; payload_bytes as usize];
    random.fill(&mut payload[..]);
    let hash = chain_hash(number, 0);
    let (mut key, digest) = ([0; 16], NamespaceDigest::new([0xbe; 32]));
    key.copy_from_slice(&hash.padded()[..16]);
    let key = BlockKey::new(key);
    let shard = Shard::whole(1, 1).map_err(failed)?;
    let (seed, algorithm) = (checksum_seed(&key, &shard), ChecksumAlgorithm::Xxh3);
    let units = payload.chunks(UNIT_BYTES as usize).enumerate();
    let checksums =
        units.flat_map(|(unit, bytes)| algorithm.checksum(unit_seed(seed, unit as u32), bytes).to_le_bytes());
    let checksums: Vec<u8> = checksums.collect();
    let metadata = Metadata {
        namespace: digest,
        group: 0,
        key,
        parent_key: None,
        hash,
        parent_hash: None,
        position: 0,
        shard: shard.clone(),
        unit_order: UnitOrder::TokenKvDim,
        writer: InstanceId::new([1; 16]),
        generation: 1,
        payload_bytes,
        algorithm,
        unit_bytes: UNIT_BYTES,
        checksums: UnitChecksums::new(&checksums),
        tokens: TokenIds::new(&[]),
    };
    let meta_bytes = metadata.meta_bytes();
    if slot_bytes(meta_bytes, payload_bytes) != block_bytes as usize {
        return Err(failed("a record of this size has more than one sector of metadata"));
    }
    let mut image = vec![0; block_bytes as usize];
    let meta_checksum = metadata.encode(&mut image).map_err(failed)?;
    image[meta_bytes..].copy_from_slice(&payload);
    let entry = SlotEntry {
        state: SlotState::Resident,
        generation: 1,
        tenant: TenantId(1),
        namespace_prefix: u64::from_le_bytes([0xbe; 8]),
        group: 0,
        shard,
        key,
        parent_key: None,
        position: 0,
        payload_bytes,
        meta_checksum,
    };
    Ok((entry, image))
}
