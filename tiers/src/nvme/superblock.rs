//! Who a device is: docs/formats/nvme.md, "Superblock".

use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::Epoch;

use crate::record::SECTOR_BYTES;
use crate::record::bytes::{all_zero, array, checked, put, seal, u16_at, u32_at, u64_at};

use super::geometry::Geometry;

/// Version written and read here.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"KVDNVME\n";
const SEED: u64 = u64::from_le_bytes(*b"KVDSUPER");

mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const RESERVED: usize = 10;
    pub(super) const SECTOR: usize = 12;
    pub(super) const UUID: usize = 24;
    pub(super) const SERIAL: usize = 40;
    pub(super) const EPOCH: usize = 48;
    pub(super) const FLOOR: usize = 56;
    pub(super) const ZONE_BYTES: usize = 64;
    pub(super) const ZONES: usize = 72;
    pub(super) const JOURNAL_PAGES: usize = 76;
    pub(super) const END: usize = 80;
}

/// The name of one formatting of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// The uuid with these bytes; they must come from a random source when a device is formatted.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The seed of one kind of structure on this device.
    pub(super) fn seed(&self, kind: &[u8; 8]) -> u64 {
        ChecksumAlgorithm::Crc64Nvme.checksum(u64::from_le_bytes(*kind), &self.0)
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) uuid: Uuid,
    pub(super) serial: u64,
    pub(super) epoch: Epoch,
    pub(super) sequence_floor: u64,
    pub(super) geometry: Geometry,
}

/// What one copy's sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// Only zeros.
    Zero,
    /// Nothing of ours.
    Foreign,
    /// Our magic, but damaged.
    Damaged,
    /// Intact, of another version.
    Other { version: u16, serial: u64 },
    /// Intact, of our version.
    Good(Superblock),
}

impl Superblock {
    pub(super) fn encode(&self, sector: &mut [u8; SECTOR_BYTES]) {
        sector.fill(0);
        put(sector, at::MAGIC, &MAGIC);
        put(sector, at::VERSION, &VERSION.to_le_bytes());
        put(sector, at::SECTOR, &(SECTOR_BYTES as u32).to_le_bytes());
        put(sector, at::UUID, self.uuid.as_bytes());
        put(sector, at::SERIAL, &self.serial.to_le_bytes());
        put(sector, at::EPOCH, &self.epoch.get().to_le_bytes());
        put(sector, at::FLOOR, &self.sequence_floor.to_le_bytes());
        put(sector, at::ZONE_BYTES, &u64::from(self.geometry.zone_bytes()).to_le_bytes());
        put(sector, at::ZONES, &self.geometry.zones().to_le_bytes());
        put(sector, at::JOURNAL_PAGES, &self.geometry.journal_pages().to_le_bytes());
        seal(SEED, sector);
    }

    pub(super) fn read(sector: &[u8; SECTOR_BYTES]) -> Copy {
        if all_zero(sector) {
            return Copy::Zero;
        }
        if array::<8>(sector, at::MAGIC) != MAGIC {
            return Copy::Foreign;
        }
        if checked(SEED, sector).is_none() {
            return Copy::Damaged;
        }
        let (version, serial) = (u16_at(sector, at::VERSION), u64_at(sector, at::SERIAL));
        if version != VERSION {
            return Copy::Other { version, serial };
        }
        Self::fields(sector, serial).map_or(Copy::Damaged, Copy::Good)
    }

    fn fields(sector: &[u8; SECTOR_BYTES], serial: u64) -> Option<Self> {
        let zero = all_zero(&sector[at::RESERVED..at::SECTOR]) && all_zero(&sector[at::END..]);
        let whole = u32_at(sector, at::SECTOR) as usize == SECTOR_BYTES;
        let zone_bytes = u32::try_from(u64_at(sector, at::ZONE_BYTES)).ok()?;
        let geometry = Geometry::new(zone_bytes, u32_at(sector, at::ZONES), u32_at(sector, at::JOURNAL_PAGES)).ok()?;
        (zero && whole).then(|| Self {
            uuid: Uuid::new(array(sector, at::UUID)),
            serial,
            epoch: Epoch::new(u64_at(sector, at::EPOCH)),
            sequence_floor: u64_at(sector, at::FLOOR),
            geometry,
        })
    }
}

/// What both copies together mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Go on with this one.
    Known(Superblock),
    /// Never used.
    Empty,
    /// To be formatted afresh, because of this.
    Lost(&'static str),
    /// Not to be touched: of this newer version.
    Newer(u16),
    /// Not to be touched: not ours.
    Foreign,
}

/// Decides from both copies; `first_zero` says that nothing but zeros stands in the first MiB.
pub(super) fn identify(copies: [Copy; 2], first_zero: bool) -> Identity {
    let serial = |copy: &Copy| match copy {
        Copy::Good(found) => Some(found.serial),
        Copy::Other { serial, .. } => Some(*serial),
        Copy::Zero | Copy::Foreign | Copy::Damaged => None,
    };
    let newest = copies.into_iter().filter(|copy| serial(copy).is_some()).max_by_key(serial);
    match newest {
        Some(Copy::Good(found)) => Identity::Known(found),
        Some(Copy::Other { version, .. }) if version > VERSION => Identity::Newer(version),
        Some(Copy::Other { .. }) => Identity::Lost("its format is older than this program reads"),
        _ if copies.contains(&Copy::Damaged) => Identity::Lost("both copies of its superblock are damaged"),
        _ if first_zero => Identity::Empty,
        _ => Identity::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(serial: u64) -> Superblock {
        Superblock {
            uuid: Uuid::new([7; 16]),
            serial,
            epoch: Epoch::new(3),
            sequence_floor: 1 << 32,
            geometry: Geometry::new(1 << 20, 5, 8).unwrap(),
        }
    }

    fn sector(found: &Superblock) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        found.encode(&mut bytes);
        bytes
    }

    /// A sector of another version with the checksum that such a version would write.
    fn other(version: u16, serial: u64) -> Copy {
        let mut bytes = sector(&superblock(serial));
        put(&mut bytes, at::VERSION, &version.to_le_bytes());
        seal(SEED, &mut bytes);
        Superblock::read(&bytes)
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_the_other_copy_counts() {
        let (older, newer) = (superblock(4), superblock(5));
        let good = sector(&newer);
        assert_eq!(Superblock::read(&good), Copy::Good(newer));
        for bit in 0..SECTOR_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = Superblock::read(&bytes);
            assert!(matches!(found, Copy::Damaged | Copy::Foreign), "bit {bit}");
            assert_eq!(identify([found, Copy::Good(older)], false), Identity::Known(older), "bit {bit}");
        }
    }

    #[test]
    fn the_newest_copy_decides() {
        let good = |serial| Copy::Good(superblock(serial));
        assert_eq!(identify([good(4), good(5)], false), Identity::Known(superblock(5)));
        assert_eq!(identify([good(6), good(5)], false), Identity::Known(superblock(6)));
        assert_eq!(identify([good(6), other(2, 5)], false), Identity::Known(superblock(6)));
        assert_eq!(identify([good(4), other(2, 5)], false), Identity::Newer(2));
        assert!(matches!(identify([other(0, 5), good(4)], false), Identity::Lost(_)));
        assert!(matches!(identify([Copy::Damaged, Copy::Foreign], false), Identity::Lost(_)));
        assert_eq!(identify([Copy::Zero, Copy::Zero], true), Identity::Empty);
        assert_eq!(identify([Copy::Zero, Copy::Zero], false), Identity::Foreign);
        assert_eq!(identify([Copy::Foreign, Copy::Zero], false), Identity::Foreign);
    }
}
