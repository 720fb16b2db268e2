//! Where everything stands on a device: docs/formats/nvme.md, "Regions".

use crate::ids::{DeviceId, NvmeSlot, SEGMENT_BYTES, SLOT_BYTES_MIN, SLOT_INDEX_BITS, ZoneId};
use crate::record::SECTOR_BYTES;

use super::entry::ENTRY_BYTES;

/// Journal pages in the product: 4 MiB, some 31 000 entries, of which at most as many are kept in memory.
pub const JOURNAL_PAGES: u32 = 1024;

const ZONES_MAX: u32 = 1 << (32 - SLOT_INDEX_BITS);
const ZONE_BYTES_MIN: u32 = 64 << 10;
const REGION_ALIGN: u64 = 1 << 20;
const SECTOR: u64 = SECTOR_BYTES as u64;
pub(super) const JOURNAL_AT: u64 = REGION_ALIGN;
pub(super) const SUPERBLOCK_AT: [u64; 2] = [0, 65536];

/// A slot of this device: zone and index in the zone, as it stands in formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(u32);

impl Slot {
    pub(super) const fn new(number: u32) -> Self {
        Self(number)
    }

    pub(super) const fn of(zone: ZoneId, index: u32) -> Self {
        Self(zone.0 << SLOT_INDEX_BITS | index)
    }

    /// zone << 13 | index
    pub(super) const fn number(self) -> u32 {
        self.0
    }

    pub(super) const fn zone(self) -> ZoneId {
        ZoneId(self.0 >> SLOT_INDEX_BITS)
    }

    pub(super) const fn index(self) -> u32 {
        self.0 & ((1 << SLOT_INDEX_BITS) - 1)
    }

    pub(super) const fn on(self, device: DeviceId) -> NvmeSlot {
        NvmeSlot::from_raw(device, self.0)
    }
}

impl From<NvmeSlot> for Slot {
    fn from(slot: NvmeSlot) -> Self {
        Self(slot.raw())
    }
}

/// A device too small, too large or described by impossible numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not even one zone fits.
    #[error("{capacity} bytes are too few for a device: it needs at least {least}")]
    TooSmall {
        /// Bytes offered.
        capacity: u64,
        /// Bytes of the smallest device.
        least: u64,
    },
    /// Numbers that no device has.
    #[error("no device has {zones} zones of {zone_bytes} bytes and {journal_pages} journal pages")]
    Impossible {
        /// Bytes of a zone.
        zone_bytes: u32,
        /// Number of zones.
        zones: u32,
        /// Pages of the journal.
        journal_pages: u32,
    },
}

/// Sizes of a device, from which all offsets follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    zone_bytes: u32,
    zones: u32,
    journal_pages: u32,
}

impl Geometry {
    /// A device of exactly these sizes.
    pub fn new(zone_bytes: u32, zones: u32, journal_pages: u32) -> Result<Self, GeometryError> {
        let zone = zone_bytes.is_power_of_two() && (ZONE_BYTES_MIN..=SEGMENT_BYTES).contains(&zone_bytes);
        // A power of two, so that sequences that are multiples of 2^32 stand at the start of the ring.
        let journal = journal_pages.is_power_of_two() && (8..=1 << 16).contains(&journal_pages);
        if !zone || !journal || !(1..=ZONES_MAX).contains(&zones) {
            return Err(GeometryError::Impossible { zone_bytes, zones, journal_pages });
        }
        Ok(Self { zone_bytes, zones, journal_pages })
    }

    /// The largest device of the product's sizes within `capacity` bytes.
    pub fn fit(capacity: u64) -> Result<Self, GeometryError> {
        let one = Self::new(SEGMENT_BYTES, 1, JOURNAL_PAGES)?;
        // An upper bound first; rounding of regions may cost one zone of it.
        let most = (capacity / u64::from(SEGMENT_BYTES)).min(u64::from(ZONES_MAX)) as u32;
        let fits = |zones: &u32| Self { zones: *zones, ..one }.end() <= capacity;
        let per_zone = u64::from(SEGMENT_BYTES) + one.table_bytes() + SECTOR;
        let least = (capacity.saturating_sub(one.end()) / per_zone).min(u64::from(most)) as u32;
        let zones = (least.max(1)..=most.min(least + 2)).rev().find(fits);
        zones.map(|zones| Self { zones, ..one }).ok_or(GeometryError::TooSmall { capacity, least: one.end() })
    }

    /// Bytes of a zone.
    pub const fn zone_bytes(&self) -> u32 {
        self.zone_bytes
    }

    /// Number of zones.
    pub const fn zones(&self) -> u32 {
        self.zones
    }

    /// Pages of the journal ring.
    pub const fn journal_pages(&self) -> u32 {
        self.journal_pages
    }

    /// Slots of a zone formatted to `slot_bytes`; 0 if it cannot be.
    pub const fn slots_per_zone(&self, slot_bytes: u32) -> u32 {
        if slot_bytes < SLOT_BYTES_MIN || !slot_bytes.is_multiple_of(SECTOR_BYTES as u32) {
            return 0;
        }
        self.zone_bytes / slot_bytes
    }

    /// Bytes of a whole device: what must be preallocated.
    pub const fn end(&self) -> u64 {
        self.zones_at() + self.zones as u64 * self.zone_bytes as u64
    }

    /// Bytes reserved for the table of one zone.
    pub(super) const fn table_bytes(&self) -> u64 {
        (self.zone_bytes / SLOT_BYTES_MIN) as u64 * ENTRY_BYTES as u64
    }

    pub(super) const fn page_at(&self, sequence: u64) -> u64 {
        JOURNAL_AT + sequence % self.journal_pages as u64 * SECTOR
    }

    pub(super) const fn header_at(&self, zone: ZoneId) -> u64 {
        self.headers_at() + zone.0 as u64 * SECTOR
    }

    pub(super) const fn table_at(&self, zone: ZoneId) -> u64 {
        self.tables_at() + zone.0 as u64 * self.table_bytes()
    }

    /// Where the entry of a slot stands.
    pub(super) const fn entry_at(&self, slot: Slot) -> u64 {
        self.table_at(slot.zone()) + slot.index() as u64 * ENTRY_BYTES as u64
    }

    pub(super) const fn slot_at(&self, slot: Slot, slot_bytes: u32) -> u64 {
        self.zones_at() + slot.zone().0 as u64 * self.zone_bytes as u64 + slot.index() as u64 * slot_bytes as u64
    }

    pub(super) const fn headers_at(&self) -> u64 {
        (JOURNAL_AT + self.journal_pages as u64 * SECTOR).next_multiple_of(REGION_ALIGN)
    }

    const fn tables_at(&self) -> u64 {
        (self.headers_at() + self.zones as u64 * SECTOR).next_multiple_of(REGION_ALIGN)
    }

    const fn zones_at(&self) -> u64 {
        (self.tables_at() + self.zones as u64 * self.table_bytes()).next_multiple_of(REGION_ALIGN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_follow_each_other_and_fill_the_capacity() {
        for capacity in [72 << 20, 1 << 30, 100 << 30, (1 << 40) + 12345_u64] {
            let found = Geometry::fit(capacity).unwrap();
            let (first, last) = (ZoneId(0), ZoneId(found.zones() - 1));
            assert!(found.page_at(u64::from(found.journal_pages()) - 1) + SECTOR <= found.header_at(first));
            assert!(found.header_at(last) + SECTOR <= found.table_at(first));
            let slot = Slot::of(last, found.slots_per_zone(SLOT_BYTES_MIN) - 1);
            assert!(found.table_at(last) + found.table_bytes() <= found.slot_at(Slot::of(first, 0), SLOT_BYTES_MIN));
            assert_eq!(found.slot_at(slot, SLOT_BYTES_MIN) + u64::from(SLOT_BYTES_MIN), found.end());
            assert!(found.end() <= capacity);
            let larger = Geometry::new(SEGMENT_BYTES, found.zones() + 1, JOURNAL_PAGES).unwrap();
            assert!(larger.end() > capacity, "one more zone would fit in {capacity}");
        }
        assert!(matches!(Geometry::fit(64 << 20), Err(GeometryError::TooSmall { .. })));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (zone_bytes, zones, pages) in [(100_000, 1, 8), (1 << 20, 0, 8), (1 << 20, 1, 7), (1 << 20, 1 << 20, 8)] {
            assert!(Geometry::new(zone_bytes, zones, pages).is_err());
        }
        let device = Geometry::new(1 << 20, 4, 8).unwrap();
        assert_eq!(device.slots_per_zone(4096), 0);
        assert_eq!(device.slots_per_zone(10_000), 0);
        assert_eq!(device.slots_per_zone(2 << 20), 0);
        assert_eq!(device.slots_per_zone(12288), 85);
    }
}
