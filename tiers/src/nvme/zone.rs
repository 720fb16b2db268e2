//! How a zone is cut into slots: docs/formats/nvme.md, "Zone header".

use kvd_nixl::sys::ChecksumAlgorithm;

use crate::ids::ZoneId;
use crate::record::SECTOR_BYTES;
use crate::record::bytes::{all_zero, array, checked, put, seal, u16_at, u32_at, u64_at};

use super::superblock::{Uuid, VERSION};

const MAGIC: [u8; 8] = *b"KVDZONE\n";

mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const RESERVED: usize = 10;
    pub(super) const ZONE: usize = 12;
    pub(super) const GENERATION: usize = 24;
    pub(super) const SLOT_BYTES: usize = 32;
    pub(super) const END: usize = 36;
}

/// A formatted zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZoneHeader {
    pub(super) zone: ZoneId,
    /// A journal sequence taken when it was formatted.
    pub(super) generation: u64,
    pub(super) slot_bytes: u32,
}

impl ZoneHeader {
    pub(super) fn encode(&self, uuid: &Uuid, sector: &mut [u8]) {
        sector.fill(0);
        put(sector, at::MAGIC, &MAGIC);
        put(sector, at::VERSION, &VERSION.to_le_bytes());
        put(sector, at::ZONE, &self.zone.0.to_le_bytes());
        put(sector, at::GENERATION, &self.generation.to_le_bytes());
        put(sector, at::SLOT_BYTES, &self.slot_bytes.to_le_bytes());
        seal(uuid.seed(b"KVDZONE1"), sector);
    }

    /// The header of `zone` in its sector; `None` means that the zone is not formatted.
    pub(super) fn read(uuid: &Uuid, zone: ZoneId, sector: &[u8]) -> Option<Self> {
        if sector.len() != SECTOR_BYTES || array::<8>(sector, at::MAGIC) != MAGIC {
            return None;
        }
        checked(uuid.seed(b"KVDZONE1"), sector)?;
        let zero = all_zero(&sector[at::RESERVED..at::ZONE]) && all_zero(&sector[at::END..]);
        let ours = u16_at(sector, at::VERSION) == VERSION && u32_at(sector, at::ZONE) == zone.0;
        (zero && ours).then(|| Self {
            zone,
            generation: u64_at(sector, at::GENERATION),
            slot_bytes: u32_at(sector, at::SLOT_BYTES),
        })
    }

    /// What seeds the checksums of this zone's entries, as formatted now.
    pub(super) fn entry_seed(&self, uuid: &Uuid) -> u64 {
        ChecksumAlgorithm::Crc64Nvme.checksum(uuid.seed(b"KVDSLOT1"), &self.generation.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_unformats_the_zone() {
        let uuid = Uuid::new([9; 16]);
        let header = ZoneHeader { zone: ZoneId(4), generation: 1 << 33, slot_bytes: 12288 };
        let mut sector = [0; SECTOR_BYTES];
        header.encode(&uuid, &mut sector);
        assert_eq!(ZoneHeader::read(&uuid, ZoneId(4), &sector), Some(header));
        assert_eq!(ZoneHeader::read(&uuid, ZoneId(5), &sector), None);
        assert_eq!(ZoneHeader::read(&Uuid::new([8; 16]), ZoneId(4), &sector), None);
        for bit in 0..SECTOR_BYTES * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ZoneHeader::read(&uuid, ZoneId(4), &sector), None, "bit {bit}");
            sector[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
