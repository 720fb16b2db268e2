//! What a running device knows of its zones: how each is cut, and which slots hold records.

use crate::ids::ZoneId;

use super::geometry::{Geometry, Slot};
use super::superblock::Uuid;
use super::zone::ZoneHeader;

/// A formatted zone.
#[derive(Clone, Debug)]
struct Formatted {
    header: ZoneHeader,
    entry_seed: u64,
    /// One bit per slot.
    occupied: Box<[u64]>,
    count: u32,
}

/// All zones of a device: a bit per slot, a few words per zone.
#[derive(Clone, Debug)]
pub(super) struct Zones {
    uuid: Uuid,
    geometry: Geometry,
    zones: Box<[Option<Formatted>]>,
}

impl Zones {
    pub(super) fn new(uuid: Uuid, geometry: Geometry) -> Self {
        Self { uuid, geometry, zones: vec![None; geometry.zones() as usize].into_boxed_slice() }
    }

    /// The zone is cut as its header says and holds nothing. `false`: no such zone can be.
    pub(super) fn format(&mut self, header: ZoneHeader) -> bool {
        let slots = self.geometry.slots_per_zone(header.slot_bytes);
        let Some(zone) = self.zones.get_mut(header.zone.0 as usize).filter(|_| slots > 0) else { return false };
        let occupied = vec![0; slots.div_ceil(64) as usize].into_boxed_slice();
        *zone = Some(Formatted { header, entry_seed: header.entry_seed(&self.uuid), occupied, count: 0 });
        true
    }

    /// The zone is not formatted any more.
    pub(super) fn unformat(&mut self, zone: ZoneId) {
        if let Some(zone) = self.zones.get_mut(zone.0 as usize) {
            *zone = None;
        }
    }

    pub(super) fn uuid(&self) -> &Uuid {
        &self.uuid
    }

    fn get(&self, zone: ZoneId) -> Option<&Formatted> {
        self.zones.get(zone.0 as usize)?.as_ref()
    }

    /// The headers of the formatted zones.
    pub(super) fn headers(&self) -> impl Iterator<Item = ZoneHeader> {
        self.zones.iter().flatten().map(|zone| zone.header)
    }

    /// Bytes of a slot, if there is such a slot.
    pub(super) fn slot_bytes(&self, slot: Slot) -> Option<u32> {
        let slot_bytes = self.get(slot.zone())?.header.slot_bytes;
        (slot.index() < self.geometry.slots_per_zone(slot_bytes)).then_some(slot_bytes)
    }

    /// What seeds the entry of a slot, if there is such a slot.
    pub(super) fn entry_seed(&self, slot: Slot) -> Option<u64> {
        self.slot_bytes(slot)?;
        self.get(slot.zone()).map(|zone| zone.entry_seed)
    }

    /// Whether the zone holds, or is about to hold, no record.
    pub(super) fn is_empty(&self, zone: ZoneId) -> bool {
        self.get(zone).is_none_or(|zone| zone.count == 0)
    }

    /// Whether there is such a zone on the device.
    pub(super) fn contains(&self, zone: ZoneId) -> bool {
        (zone.0 as usize) < self.zones.len()
    }

    /// Marks a slot; `false` if it was marked, or there is none.
    pub(super) fn occupy(&mut self, slot: Slot) -> bool {
        self.mark(slot, true)
    }

    /// Takes the mark back; `false` if there was none.
    pub(super) fn vacate(&mut self, slot: Slot) -> bool {
        self.mark(slot, false)
    }

    fn mark(&mut self, slot: Slot, occupied: bool) -> bool {
        if self.slot_bytes(slot).is_none() {
            return false;
        }
        let Some(zone) = self.zones[slot.zone().0 as usize].as_mut() else { return false };
        let (word, bit) = (slot.index() as usize / 64, 1 << (slot.index() % 64));
        if (zone.occupied[word] & bit != 0) == occupied {
            return false;
        }
        zone.occupied[word] ^= bit;
        zone.count = if occupied { zone.count + 1 } else { zone.count - 1 };
        true
    }

    /// Panics where counts and bits disagree.
    #[cfg(test)]
    pub(super) fn self_check(&self) {
        for zone in self.zones.iter().flatten() {
            let bits: u32 = zone.occupied.iter().map(|word| word.count_ones()).sum();
            assert_eq!(bits, zone.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_marked_once() {
        let mut zones = Zones::new(Uuid::new([1; 16]), Geometry::new(1 << 20, 2, 8).unwrap());
        let slot = Slot::of(ZoneId(1), 84);
        assert!(!zones.occupy(slot), "not formatted");
        assert!(zones.format(ZoneHeader { zone: ZoneId(1), generation: 5, slot_bytes: 12288 }));
        assert!(!zones.format(ZoneHeader { zone: ZoneId(2), generation: 5, slot_bytes: 12288 }));
        assert!(!zones.format(ZoneHeader { zone: ZoneId(0), generation: 5, slot_bytes: 5000 }));
        assert!(zones.occupy(slot) && !zones.occupy(slot) && !zones.is_empty(ZoneId(1)));
        assert!(!zones.occupy(Slot::of(ZoneId(1), 85)), "one more than fit");
        zones.self_check();
        assert!(zones.vacate(slot) && !zones.vacate(slot) && zones.is_empty(ZoneId(1)));
        zones.self_check();
    }
}
