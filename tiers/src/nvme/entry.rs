//! What the table says about a slot: docs/formats/nvme.md, "Slot entry".

use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::{BlockKey, SHARD_BYTES, Shard};

use crate::ids::{SlotEntry, SlotState, TenantId};
use crate::record::PAYLOAD_BYTES_MAX;
use crate::record::bytes::{all_zero, array, put, u16_at, u32_at, u64_at};

use super::geometry::Slot;

/// Bytes of a slot entry.
pub const ENTRY_BYTES: usize = 128;

mod at {
    pub(super) const CHECKSUM: usize = 0;
    pub(super) const SEQUENCE: usize = 8;
    pub(super) const KEY: usize = 16;
    pub(super) const PARENT_KEY: usize = 32;
    pub(super) const META_CHECKSUM: usize = 48;
    pub(super) const GENERATION: usize = 56;
    pub(super) const POSITION: usize = 60;
    pub(super) const PAYLOAD_BYTES: usize = 64;
    pub(super) const SLOT: usize = 68;
    pub(super) const SHARD: usize = 72;
    pub(super) const GROUP: usize = 84;
    pub(super) const STATE: usize = 86;
    pub(super) const FLAGS: usize = 87;
    pub(super) const NAMESPACE: usize = 88;
    pub(super) const TENANT: usize = 96;
    pub(super) const RESERVED: usize = 104;
}

const _: () = assert!(at::SHARD + SHARD_BYTES == at::GROUP);
const _: () = assert!(at::TENANT + 8 == at::RESERVED && at::RESERVED + 24 == ENTRY_BYTES);

const VACANT: u8 = 1;
const RESIDENT: u8 = 2;
const HAS_PARENT: u8 = 1;

/// A change of one slot: written to the journal, later to the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of the journal page that carries it.
    pub(super) sequence: u64,
    pub(super) slot: Slot,
    /// `None`: vacant. Its state is `Resident`: a device knows no other.
    pub(super) resident: Option<SlotEntry>,
}

impl Entry {
    /// The entry's bytes in a zone whose entries are seeded with `seed`.
    pub(super) fn encode(&self, seed: u64) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        put(&mut out, at::SEQUENCE, &self.sequence.to_le_bytes());
        put(&mut out, at::SLOT, &self.slot.number().to_le_bytes());
        out[at::STATE] = VACANT;
        if let Some(resident) = &self.resident {
            out[at::STATE] = RESIDENT;
            put(&mut out, at::KEY, resident.key.as_bytes());
            if let Some(parent) = &resident.parent_key {
                put(&mut out, at::PARENT_KEY, parent.as_bytes());
                out[at::FLAGS] = HAS_PARENT;
            }
            put(&mut out, at::META_CHECKSUM, &resident.meta_checksum.to_le_bytes());
            put(&mut out, at::GENERATION, &resident.generation.to_le_bytes());
            put(&mut out, at::POSITION, &resident.position.to_le_bytes());
            put(&mut out, at::PAYLOAD_BYTES, &resident.payload_bytes.to_le_bytes());
            put(&mut out, at::SHARD, &resident.shard.to_bytes());
            put(&mut out, at::TENANT, &resident.tenant.0.to_le_bytes());
            put(&mut out, at::GROUP, &resident.group.to_le_bytes());
            put(&mut out, at::NAMESPACE, &resident.namespace_prefix.to_le_bytes());
        }
        let checksum = ChecksumAlgorithm::Crc64Nvme.checksum(seed, &out[at::SEQUENCE..]);
        put(&mut out, at::CHECKSUM, &checksum.to_le_bytes());
        out
    }

    /// The entry in `bytes`, if it is one of a zone whose entries are seeded with `seed`; the caller compares the slot.
    pub(super) fn decode(seed: u64, bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ENTRY_BYTES] = bytes.try_into().ok()?;
        let checksum = ChecksumAlgorithm::Crc64Nvme.checksum(seed, &bytes[at::SEQUENCE..]);
        if u64_at(bytes, at::CHECKSUM) != checksum || !all_zero(&bytes[at::RESERVED..]) {
            return None;
        }
        let resident = match bytes[at::STATE] {
            VACANT => None,
            RESIDENT => Some(resident(bytes)?),
            _ => return None,
        };
        Some(Self { sequence: sequence_of(bytes), slot: slot_of(bytes), resident })
    }
}

fn resident(bytes: &[u8; ENTRY_BYTES]) -> Option<SlotEntry> {
    let parent = BlockKey::new(array(bytes, at::PARENT_KEY));
    let parent_key = match bytes[at::FLAGS] {
        0 => None,
        HAS_PARENT => Some(parent),
        _ => return None,
    };
    let payload_bytes = u32_at(bytes, at::PAYLOAD_BYTES);
    Some(SlotEntry {
        state: SlotState::Resident,
        key: BlockKey::new(array(bytes, at::KEY)),
        parent_key,
        position: u32_at(bytes, at::POSITION),
        shard: Shard::from_bytes(&array(bytes, at::SHARD)).ok()?,
        namespace_prefix: u64_at(bytes, at::NAMESPACE),
        group: u16_at(bytes, at::GROUP),
        tenant: TenantId(u64_at(bytes, at::TENANT)),
        payload_bytes: (1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes).then_some(payload_bytes)?,
        generation: u32_at(bytes, at::GENERATION),
        meta_checksum: u64_at(bytes, at::META_CHECKSUM),
    })
}

/// The sequence that stands in an entry's bytes; proven only by `decode`.
pub(super) fn sequence_of(bytes: &[u8; ENTRY_BYTES]) -> u64 {
    u64_at(bytes, at::SEQUENCE)
}

/// The slot that stands in an entry's bytes; proven only by `decode`.
pub(super) fn slot_of(bytes: &[u8; ENTRY_BYTES]) -> Slot {
    Slot::new(u32_at(bytes, at::SLOT))
}

#[cfg(test)]
pub(super) fn sample(slot: Slot) -> SlotEntry {
    SlotEntry {
        state: SlotState::Resident,
        key: BlockKey::new([slot.number() as u8; 16]),
        parent_key: Some(BlockKey::new([2; 16])),
        position: 3,
        shard: Shard::whole(32, 8).unwrap(),
        namespace_prefix: 4,
        group: 1,
        tenant: TenantId(6),
        payload_bytes: 65536,
        generation: 7,
        meta_checksum: 0x0102_0304_0506_0708,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ZoneId;

    #[test]
    fn every_flipped_bit_makes_the_entry_absent() {
        let slot = Slot::of(ZoneId(3), 17);
        for resident in [Some(sample(slot)), None] {
            let entry = Entry { sequence: 1 << 40, slot, resident };
            let mut bytes = entry.encode(11);
            assert_eq!(Entry::decode(11, &bytes), Some(entry));
            assert_eq!(Entry::decode(12, &bytes), None, "another zone, format or device");
            for bit in 0..ENTRY_BYTES * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Entry::decode(11, &bytes), None, "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        assert_eq!(Entry::decode(11, &[0; ENTRY_BYTES]), None);
    }
}
