//! Space of the devices: zones given to slot sizes, slots within them, and what stands in the way of their reuse.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::breaker::Breaker;
use super::extents::{Extent, Use};
use super::gate::Edge;
use super::nodes::NodeId;
use super::order::Order;
use crate::ids::{DeviceId, NvmeSlot, ZoneId};
use crate::policy::Space;

struct Zone {
    extent: Extent,
    class: u16,
}

pub(super) struct Device {
    zones: Vec<Zone>,
    /// Per class: its zones with a free slot.
    open: BTreeMap<u16, BTreeSet<u32>>,
    unformatted: BTreeSet<u32>,
    empty: BTreeSet<u32>,
    /// The zone that gets a new slot size, and which class it is for.
    pub(super) formatting: Option<(ZoneId, u16)>,
    /// The zone that is being emptied for another class.
    pub(super) draining: Option<u32>,
    /// Slots whose entry must go from the device's table before they are free.
    to_vacate: VecDeque<u32>,
    pub(super) vacating: u32,
    pub(super) spilling: u32,
    pub(super) fetching: u32,
    pub(super) breaker: Breaker,
    pub(super) reads: Edge,
    pub(super) writes: Edge,
    pub(super) corrupt: u64,
    pub(super) failed: u64,
}

/// Slots of one size on all devices.
pub(super) struct NvmeClass {
    pub(super) slot_bytes: u32,
    pub(super) order: Order,
}

pub(super) struct NvmeSpace {
    pub(super) devices: Vec<Device>,
    classes: Vec<NvmeClass>,
    classes_max: u16,
    /// Moves that read a slot.
    readers: BTreeMap<NvmeSlot, u32>,
}

impl Device {
    fn new(zones: u32) -> Self {
        Self {
            zones: (0..zones).map(|_| Zone { extent: Extent::default(), class: 0 }).collect(),
            open: BTreeMap::new(),
            unformatted: (0..zones).collect(),
            empty: BTreeSet::new(),
            formatting: None,
            draining: None,
            to_vacate: VecDeque::new(),
            vacating: 0,
            spilling: 0,
            fetching: 0,
            breaker: Breaker::default(),
            reads: Edge::default(),
            writes: Edge::default(),
            corrupt: 0,
            failed: 0,
        }
    }

    fn take(&mut self, class: u16) -> Option<(u32, u32)> {
        let number = *self.open.get(&class)?.first()?;
        let zone = &mut self.zones[number as usize];
        let index = zone.extent.take().expect("an open zone has a free slot");
        self.empty.remove(&number);
        if zone.extent.free_slots() == 0 {
            self.open.get_mut(&class).expect("just found").remove(&number);
        }
        Some((number, index))
    }

    pub(super) fn has_open(&self, class: u16) -> bool {
        self.open.get(&class).is_some_and(|zones| !zones.is_empty())
    }

    /// Takes a zone that no class uses, for formatting.
    fn take_zone(&mut self) -> Option<u32> {
        if let Some(number) = self.unformatted.pop_first() {
            return Some(number);
        }
        let number = self.empty.pop_first()?;
        let class = self.zones[number as usize].class;
        if let Some(open) = self.open.get_mut(&class) {
            open.remove(&number);
        }
        if self.draining == Some(number) {
            self.draining = None;
        }
        self.zones[number as usize].extent.clear();
        Some(number)
    }

    pub(super) fn has_zone(&self) -> bool {
        !self.unformatted.is_empty() || !self.empty.is_empty()
    }

    fn free_bytes(&self) -> u64 {
        let zones = self.unformatted.len() as u64 * u64::from(crate::SEGMENT_BYTES);
        let slots = self.zones.iter().map(|z| u64::from(z.extent.free_slots()) * u64::from(z.extent.slot_bytes()));
        zones + slots.sum::<u64>()
    }

    pub(super) fn queued_vacates(&self) -> usize {
        self.to_vacate.len()
    }

    /// The next slot whose entry shall go.
    pub(super) fn next_vacate(&mut self) -> Option<u32> {
        self.to_vacate.pop_front()
    }

    /// The entry could not be removed: later again.
    pub(super) fn vacate_again(&mut self, slot: u32) {
        self.to_vacate.push_back(slot);
    }

    pub(super) fn slots_of(&self, zone: u32) -> u32 {
        self.zones[zone as usize].extent.slots()
    }

    pub(super) fn zones(&self) -> impl Iterator<Item = (u16, &Extent)> {
        self.zones.iter().map(|zone| (zone.class, &zone.extent))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.zones.iter().map(|z| size_of::<Zone>() + z.extent.memory_bytes()).sum::<usize>()
            + self.to_vacate.capacity() * 4
    }
}

impl NvmeSpace {
    pub(super) fn new(zones: impl Iterator<Item = u32>, classes_max: u16) -> Self {
        Self {
            devices: zones.take(255).map(Device::new).collect(),
            classes: Vec::new(),
            classes_max,
            readers: BTreeMap::new(),
        }
    }

    pub(super) fn class_for(&mut self, slot_bytes: u32) -> Option<u16> {
        if let Some(found) = self.classes.iter().position(|class| class.slot_bytes == slot_bytes) {
            return Some(found as u16);
        }
        if self.classes.len() >= usize::from(self.classes_max) {
            return None;
        }
        self.classes.push(NvmeClass { slot_bytes, order: Order::new(Space::Nvme) });
        Some(self.classes.len() as u16 - 1)
    }

    pub(super) fn class(&self, class: u16) -> &NvmeClass {
        &self.classes[usize::from(class)]
    }

    pub(super) fn class_mut(&mut self, class: u16) -> &mut NvmeClass {
        &mut self.classes[usize::from(class)]
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = &NvmeClass> {
        self.classes.iter()
    }

    pub(super) fn device(&self, device: DeviceId) -> &Device {
        &self.devices[usize::from(device.0)]
    }

    pub(super) fn device_mut(&mut self, device: DeviceId) -> &mut Device {
        &mut self.devices[usize::from(device.0)]
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = DeviceId> + use<> {
        (0..self.devices.len() as u8).map(DeviceId)
    }

    fn extent(&self, slot: NvmeSlot) -> &Extent {
        &self.device(slot.device()).zones[slot.zone().0 as usize].extent
    }

    fn extent_mut(&mut self, slot: NvmeSlot) -> &mut Extent {
        &mut self.device_mut(slot.device()).zones[slot.zone().0 as usize].extent
    }

    pub(super) fn get(&self, slot: NvmeSlot) -> Use {
        self.extent(slot).get(slot.index())
    }

    pub(super) fn class_of(&self, slot: NvmeSlot) -> u16 {
        self.device(slot.device()).zones[slot.zone().0 as usize].class
    }

    pub(super) fn has(&self, slot: NvmeSlot) -> bool {
        let device = self.devices.get(usize::from(slot.device().0));
        device.and_then(|d| d.zones.get(slot.zone().0 as usize)).is_some_and(|z| slot.index() < z.extent.slots())
    }

    pub(super) fn set_node(&mut self, slot: NvmeSlot, id: NodeId) {
        self.extent_mut(slot).set_node(slot.index(), id);
    }

    /// A free slot of the class on a device that takes writes: the one with the fewest spills in flight, then the most space.
    pub(super) fn take(&mut self, class: u16, spills_max: u32) -> Option<NvmeSlot> {
        let ready =
            |device: &Device| device.breaker.writable() && device.spilling < spills_max && device.has_open(class);
        let device = self.pick(ready)?;
        let (zone, index) = self.device_mut(device).take(class)?;
        Some(NvmeSlot::new(device, ZoneId(zone), index))
    }

    fn pick(&self, ready: impl Fn(&Device) -> bool) -> Option<DeviceId> {
        let ready = self.ids().filter(|id| ready(self.device(*id)));
        ready.min_by_key(|id| (self.device(*id).spilling, u64::MAX - self.device(*id).free_bytes()))
    }

    /// Takes a zone for the class, which must be formatted before it has slots.
    pub(super) fn take_zone(&mut self, class: u16) -> Option<(DeviceId, ZoneId)> {
        let ready = |device: &Device| device.breaker.writable() && device.formatting.is_none() && device.has_zone();
        let device = self.pick(ready)?;
        let zone = ZoneId(self.device_mut(device).take_zone()?);
        self.device_mut(device).formatting = Some((zone, class));
        Some((device, zone))
    }

    /// The zone is formatted, or could not be.
    pub(super) fn formatted(&mut self, device: DeviceId, done: bool) {
        let Some((zone, class)) = self.device_mut(device).formatting.take() else { return };
        let slot_bytes = self.class(class).slot_bytes;
        let found = self.device_mut(device);
        if !done {
            found.unformatted.insert(zone.0);
            return;
        }
        found.zones[zone.0 as usize].class = class;
        found.zones[zone.0 as usize].extent.format(slot_bytes);
        found.open.entry(class).or_default().insert(zone.0);
        found.empty.insert(zone.0);
    }

    /// A move reads the slot from now on.
    pub(super) fn add_reader(&mut self, slot: NvmeSlot) {
        *self.readers.entry(slot).or_insert(0) += 1;
    }

    /// A move has read. A slot that lost its record meanwhile can be vacated now.
    pub(super) fn remove_reader(&mut self, slot: NvmeSlot) {
        let count = self.readers.get_mut(&slot).expect("a reader was added before");
        *count -= 1;
        if *count == 0 {
            self.readers.remove(&slot);
            if self.get(slot) == Use::Detached {
                self.device_mut(slot.device()).to_vacate.push_back(slot.raw());
            }
        }
    }

    pub(super) fn reading(&self, slot: NvmeSlot) -> bool {
        self.readers.contains_key(&slot)
    }

    /// The slot lost its record: its entry must go from the table, once nobody reads it.
    pub(super) fn detach(&mut self, slot: NvmeSlot) {
        self.extent_mut(slot).set_detached(slot.index());
        if !self.reading(slot) {
            self.device_mut(slot.device()).to_vacate.push_back(slot.raw());
        }
    }

    /// The entry is gone from the table: the slot is free.
    pub(super) fn release(&mut self, slot: NvmeSlot) {
        let number = slot.zone().0;
        let device = self.device_mut(slot.device());
        let zone = &mut device.zones[number as usize];
        zone.extent.free(slot.index());
        let (class, empty) = (zone.class, zone.extent.free_slots() == zone.extent.slots());
        if device.draining == Some(number) && empty {
            device.draining = None;
        }
        if device.draining != Some(number) {
            device.open.entry(class).or_default().insert(number);
        }
        if empty {
            device.empty.insert(number);
        }
    }

    /// Stops giving slots of the zone away.
    pub(super) fn drain(&mut self, slot: NvmeSlot) {
        let class = self.class_of(slot);
        let device = self.device_mut(slot.device());
        debug_assert!(device.draining.is_none());
        device.draining = Some(slot.zone().0);
        if let Some(open) = device.open.get_mut(&class) {
            open.remove(&slot.zone().0);
        }
    }

    pub(super) fn stop_draining(&mut self, device: DeviceId) {
        let found = self.device_mut(device);
        let Some(number) = found.draining.take() else { return };
        let zone = &found.zones[number as usize];
        if zone.extent.free_slots() > 0 {
            found.open.entry(zone.class).or_default().insert(number);
        }
    }

    /// A zone of the last epoch. False if the device does not have it any more, or too many classes.
    pub(super) fn adopt(&mut self, device: DeviceId, zone: ZoneId, slot_bytes: u32) -> bool {
        let known = self.devices.get(usize::from(device.0)).is_some_and(|found| found.unformatted.contains(&zone.0));
        let Some(class) = self.class_for(slot_bytes).filter(|_| known) else { return false };
        let found = self.device_mut(device);
        found.unformatted.remove(&zone.0);
        found.zones[zone.0 as usize].class = class;
        found.zones[zone.0 as usize].extent.adopt(slot_bytes);
        true
    }

    /// Everything that no record claimed is free.
    pub(super) fn adopted(&mut self) {
        for device in &mut self.devices {
            for (number, zone) in device.zones.iter_mut().enumerate() {
                let slots = zone.extent.slots();
                for index in (0..slots).rev() {
                    if zone.extent.get(index) == Use::Unseen {
                        zone.extent.free(index);
                    }
                }
                if zone.extent.free_slots() > 0 {
                    device.open.entry(zone.class).or_default().insert(number as u32);
                    if zone.extent.free_slots() == slots {
                        device.empty.insert(number as u32);
                    }
                }
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.devices.iter().map(Device::memory_bytes).sum::<usize>()
            + self.classes.iter().map(|class| class.order.memory_bytes()).sum::<usize>()
    }

    pub(super) fn check(&self) {
        for device in &self.devices {
            for (number, zone) in device.zones.iter().enumerate() {
                let number = number as u32;
                zone.extent.check();
                let (slots, free) = (zone.extent.slots(), zone.extent.free_slots());
                let formatting = device.formatting.is_some_and(|(zone, _)| zone.0 == number);
                assert_eq!(device.unformatted.contains(&number), slots == 0 && !formatting, "zone {number}");
                assert_eq!(device.empty.contains(&number), slots > 0 && free == slots, "zone {number} is empty");
                let open = free > 0 && device.draining != Some(number);
                for (class, zones) in &device.open {
                    assert_eq!(zones.contains(&number), open && *class == zone.class, "zone {number} is open");
                }
            }
            for slot in &device.to_vacate {
                let slot = NvmeSlot::from_raw(DeviceId(0), *slot);
                let extent = &device.zones[slot.zone().0 as usize].extent;
                assert_eq!(extent.get(slot.index()), Use::Detached, "{slot:?} waits to be vacated");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: u32 = 16 << 20;

    /// Devices of 2 and 3 zones, all formatted for one class.
    fn space() -> (NvmeSpace, u16) {
        let mut space = NvmeSpace::new([2, 3].into_iter(), 2);
        let class = space.class_for(SLOT).unwrap();
        // Each device formats one at a time.
        for zones in [2, 2, 1] {
            let taken: Vec<_> = (0..zones).map(|_| space.take_zone(class).unwrap()).collect();
            taken.into_iter().for_each(|(device, _)| space.formatted(device, true));
        }
        space.check();
        (space, class)
    }

    /// What a spill does to a slot, without the spill.
    fn fill(space: &mut NvmeSpace, class: u16) -> NvmeSlot {
        let slot = space.take(class, 1).unwrap();
        space.set_node(slot, NodeId(0));
        slot
    }

    #[test]
    fn sizes_are_classes_and_there_are_so_many() {
        let mut space = NvmeSpace::new([1].into_iter(), 2);
        assert_eq!([8192, 12288, 8192, 12288].map(|bytes| space.class_for(bytes)), [0, 1, 0, 1].map(Some));
        assert_eq!((space.class_for(16384), space.class(1).slot_bytes, space.classes().count()), (None, 12288, 2));
    }

    #[test]
    fn zones_are_formatted_one_at_a_time_where_most_is_free() {
        let mut space = NvmeSpace::new([2, 3].into_iter(), 2);
        let class = space.class_for(SLOT).unwrap();
        assert_eq!(space.take(class, 9), None, "no zone is cut for it");
        let [few, more] = [DeviceId(0), DeviceId(1)];
        assert_eq!(space.take_zone(class), Some((more, ZoneId(0))));
        assert_eq!(space.take_zone(class), Some((few, ZoneId(0))));
        assert_eq!(space.take_zone(class), None, "each formats one");
        space.check();
        space.formatted(few, false);
        space.formatted(more, true);
        space.check();
        assert_eq!((space.device(few).slots_of(0), space.device(more).slots_of(0)), (0, 4));
        assert_eq!(
            space.take_zone(class).map(|(_, zone)| zone),
            Some(ZoneId(1)),
            "a zone that failed is tried again later"
        );
        assert!(!space.device(few).has_open(class) && space.device(more).has_open(class));
        assert_eq!(space.take(class, 9).map(|slot| (slot.device(), slot.index())), Some((more, 0)));
    }

    #[test]
    fn a_slot_comes_from_the_device_with_the_least_to_do() {
        let (mut space, class) = space();
        assert_eq!(space.take(class, 2).unwrap().device(), DeviceId(1), "it has more space");
        space.device_mut(DeviceId(1)).spilling = 1;
        assert_eq!(space.take(class, 2).unwrap().device(), DeviceId(0));
        space.device_mut(DeviceId(0)).spilling = 2;
        assert_eq!(space.take(class, 2).unwrap().device(), DeviceId(1));
        space.device_mut(DeviceId(1)).spilling = 2;
        assert_eq!(space.take(class, 2), None, "both have enough to do");
    }

    #[test]
    fn a_slot_is_given_away_again_when_nobody_reads_it_and_its_entry_is_gone() {
        let (mut space, class) = space();
        let all: Vec<_> = (0..20).map(|_| fill(&mut space, class)).collect();
        assert_eq!((space.take(class, 1), space.device(DeviceId(0)).has_open(class)), (None, false));
        let slot = all[3];
        let queued = |space: &NvmeSpace| space.device(slot.device()).queued_vacates();
        space.add_reader(slot);
        space.add_reader(slot);
        space.detach(slot);
        space.remove_reader(slot);
        assert_eq!((queued(&space), space.reading(slot)), (0, true), "one reads it still");
        space.remove_reader(slot);
        assert_eq!((queued(&space), space.reading(slot)), (1, false));
        assert_eq!(space.device_mut(slot.device()).next_vacate(), Some(slot.raw()));
        space.device_mut(slot.device()).vacate_again(slot.raw());
        assert_eq!((queued(&space), space.take(class, 1)), (1, None));
        assert_eq!(space.device_mut(slot.device()).next_vacate(), Some(slot.raw()));
        space.release(slot);
        space.check();
        assert_eq!(space.take(class, 1), Some(slot));
        // One that is read and stays is not vacated.
        space.add_reader(all[4]);
        space.remove_reader(all[4]);
        assert!(space.ids().all(|device| space.device(device).queued_vacates() == 0));
    }

    #[test]
    fn a_zone_that_is_emptied_gets_nothing_new_and_goes_to_another_size() {
        let (mut space, class) = space();
        let other = space.class_for(32 << 20).unwrap();
        let all: Vec<_> = (0..20).map(|_| fill(&mut space, class)).collect();
        assert_eq!(space.take_zone(other), None, "all are in use");
        let zone: Vec<_> = all.iter().copied().filter(|slot| slot.device().0 == 0 && slot.zone().0 == 1).collect();
        let free = |space: &mut NvmeSpace, slot: NvmeSlot| {
            space.detach(slot);
            space.device_mut(slot.device()).next_vacate().unwrap();
            space.release(slot);
            space.check();
        };
        space.drain(zone[0]);
        free(&mut space, zone[0]);
        assert_eq!((space.take(class, 1), space.device(DeviceId(0)).draining), (None, Some(1)));
        space.stop_draining(DeviceId(0));
        space.check();
        assert_eq!(space.take(class, 1), Some(zone[0]), "someone holds on to it");
        space.set_node(zone[0], NodeId(0));
        space.drain(zone[0]);
        zone.iter().for_each(|slot| free(&mut space, *slot));
        assert_eq!(space.device(DeviceId(0)).draining, None, "it is empty");
        assert!(space.device(DeviceId(0)).has_zone());
        assert_eq!(space.take_zone(other), Some((DeviceId(0), ZoneId(1))));
        space.formatted(DeviceId(0), true);
        space.check();
        assert_eq!((space.take(class, 1), space.device(DeviceId(0)).slots_of(1)), (None, 2));
        assert_eq!(space.take(other, 1).map(|slot| (slot.zone(), space.class_of(slot))), Some((ZoneId(1), other)));
    }

    #[test]
    fn what_an_earlier_epoch_left_is_adopted_and_the_rest_is_free() {
        let mut space = NvmeSpace::new([2].into_iter(), 1);
        let slot = |zone, index| NvmeSlot::new(DeviceId(0), ZoneId(zone), index);
        assert!(space.adopt(DeviceId(0), ZoneId(1), SLOT));
        assert!(!space.adopt(DeviceId(0), ZoneId(1), SLOT), "twice");
        assert!(!space.adopt(DeviceId(0), ZoneId(2), SLOT) && !space.adopt(DeviceId(1), ZoneId(0), SLOT), "not there");
        assert!(!space.adopt(DeviceId(0), ZoneId(0), 2 * SLOT), "a class too many");
        assert!(space.has(slot(1, 3)) && !space.has(slot(1, 4)) && !space.has(slot(0, 0)) && !space.has(slot(9, 0)));
        assert_eq!(space.get(slot(1, 1)), Use::Unseen);
        space.set_node(slot(1, 1), NodeId(5));
        space.adopted();
        space.check();
        let given: Vec<_> = std::iter::from_fn(|| space.take(0, 1)).collect();
        assert_eq!(given, [slot(1, 0), slot(1, 2), slot(1, 3)]);
        assert_eq!(space.get(slot(1, 1)), Use::Node(NodeId(5)));
    }
}
