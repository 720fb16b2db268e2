//! What a case is made of: sizes, and how many requests are made at a time.

use std::sync::Arc;

use bytesize::ByteSize;
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_tiers::ladder::ObjectConfig;
use kvd_tiers::record::{meta_bytes, slot_bytes};

use super::ObjectArgs;
use super::bucket::failed;
use crate::cli::bench::engine::Shape;
use crate::cli::exit::{Exit, Failure};
use crate::object::{RUN_BYTES_MAX, packs_in_memory, uploads_at_once};

/// Bytes of the bucket that the writer may use. The store is nobody else's: its bound is not what is measured.
pub(super) const SHARE: ByteSize = ByteSize::tib(1);

/// What a case is made of. A pack holds whole records and is full with the last one; a chain is as long as a pack.
pub(super) struct Plan {
    pub(super) shape: Shape,
    pub(super) pack_records: usize,
    pub(super) pack_bytes: u64,
    pub(super) packs: usize,
    pub(super) put_requests: usize,
    /// Packs that the daemon has in memory at most.
    pub(super) packs_in_memory: u64,
    pub(super) get_requests: usize,
}

impl Plan {
    pub(super) fn new(args: &ObjectArgs, record_bytes: ByteSize, requests_max: usize) -> Result<Plan, Failure> {
        let wrong = || {
            let message = format!("--record-bytes {record_bytes}: no multiple of 64KiB that a record may have");
            Failure::new(Exit::Usage, message)
        };
        let shape = Shape::layered(record_bytes).ok_or_else(wrong)?;
        let units = usize::from(shape.layers) * usize::from(shape.heads);
        let slot = slot_bytes(meta_bytes(units, 0), record_bytes.0 as u32) as u64;
        let pack_records = (args.pack_bytes.0 / slot) as usize;
        if pack_records == 0 {
            let message = format!("--pack-bytes {}: a record of {record_bytes} does not go in", args.pack_bytes);
            return Err(Failure::new(Exit::Usage, message));
        }
        let payload_bytes = pack_records as u64 * record_bytes.0;
        let pack_bytes = pack_records as u64 * slot;
        let put_requests = uploads_at_once(SHARE.0, pack_bytes);
        Ok(Plan {
            shape,
            pack_records,
            pack_bytes,
            // Fewer would measure how uploads begin and end.
            packs: ((args.bytes.0 / payload_bytes) as usize).max(2 * put_requests),
            put_requests,
            packs_in_memory: packs_in_memory(put_requests),
            // As many as the ladder lets the daemon have under way.
            get_requests: requests_max.min((ObjectConfig::default().get_bytes_max / RUN_BYTES_MAX) as usize),
        })
    }

    pub(super) fn payload_bytes(&self) -> u64 {
        (self.packs * self.pack_records * self.shape.block_bytes()) as u64
    }

    /// Bytes that either side moves in a round: whole records, with their metadata.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.packs as u64 * self.pack_bytes
    }

    /// Memory for what either side moves in a round; every page of it there.
    pub(super) fn memory(&self) -> Result<MemoryExtent, Failure> {
        let memory: Arc<dyn Memory> = Arc::new(Region::new(self.packs * self.pack_bytes as usize)?);
        let memory = MemoryExtent::whole(memory);
        memory.zero(0, memory.len()).map_err(failed)?;
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_full_and_chains_end_with_them() {
        let args = ObjectArgs {
            url: "s3://bucket".parse().expect("an address"),
            endpoint: None,
            credentials_file: None,
            ca_file: None,
            bytes: ByteSize::gib(1),
            record_bytes: Vec::new(),
            rounds: 1,
            pack_bytes: ByteSize::mib(64),
            plain_threads: None,
        };
        let plan = Plan::new(&args, ByteSize::kib(256), 32).expect("a plan");
        assert_eq!((plan.pack_records, plan.pack_bytes, plan.packs), (252, 252 * (260 << 10), 16));
        assert_eq!(plan.get_requests, 8);
        let two_sectors = Plan::new(&args, ByteSize::mib(4), 4).expect("a plan");
        assert_eq!((two_sectors.pack_bytes, two_sectors.get_requests), (15 * ((4 << 20) + (8 << 10)), 4));
        for wrong in [ByteSize::kib(100), ByteSize(0), ByteSize::gib(8)] {
            assert!(Plan::new(&args, wrong, 32).is_err(), "{wrong}");
        }
        let too_large = ObjectArgs { pack_bytes: ByteSize::mib(1), ..args };
        assert!(Plan::new(&too_large, ByteSize::mib(1), 32).is_err());
    }
}
