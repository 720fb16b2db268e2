//! Space of the arena: segments given to classes of (tenant, slot size), slots within them.

use std::collections::BTreeSet;

use super::extents::{Extent, Use};
use super::guards::Vacant;
use super::nodes::NodeId;
use super::order::Order;
use super::port::SlotTable;
use crate::ids::{SegmentId, SlotId, TenantId};
use crate::policy::Space;

struct Segment {
    extent: Extent,
    /// Class it is cut for; meaningless while the extent has no slots.
    class: u16,
    /// Whose bytes may still stand in it.
    tenant: Option<TenantId>,
}

/// Slots of one size of one tenant.
pub(super) struct DramClass {
    pub(super) tenant: TenantId,
    pub(super) slot_bytes: u32,
    /// Its segments with a free slot.
    open: BTreeSet<u32>,
    /// Its blocks that may fall.
    pub(super) order: Order,
}

pub(super) struct DramSpace {
    segments: Vec<Segment>,
    classes: Vec<DramClass>,
    classes_max: u16,
    /// Segments that no class has.
    unassigned: BTreeSet<u32>,
    /// Segments of a class in which nothing lies.
    empty: BTreeSet<u32>,
    /// The segment that is being emptied for another class: nothing new goes there.
    draining: Option<u32>,
    /// Segments that lost their bytes: nothing new goes there, and when the last slot is free they are made anew.
    lost: BTreeSet<u32>,
    /// No memory could be had for a segment: until somebody says otherwise those that have some must do.
    barren: bool,
}

impl DramSpace {
    pub(super) fn new(segments: u32, classes_max: u16) -> Self {
        let fresh = |_| Segment { extent: Extent::default(), class: 0, tenant: None };
        Self {
            segments: (0..segments).map(fresh).collect(),
            classes: Vec::new(),
            classes_max,
            unassigned: (0..segments).collect(),
            empty: BTreeSet::new(),
            draining: None,
            lost: BTreeSet::new(),
            barren: false,
        }
    }

    /// The class of these slots; `None` when all classes are taken.
    pub(super) fn class_for(&mut self, tenant: TenantId, slot_bytes: u32) -> Option<u16> {
        if let Some(found) = self.classes.iter().position(|c| c.tenant == tenant && c.slot_bytes == slot_bytes) {
            return Some(found as u16);
        }
        if self.classes.len() >= usize::from(self.classes_max) {
            return None;
        }
        self.classes.push(DramClass { tenant, slot_bytes, open: BTreeSet::new(), order: Order::new(Space::Dram) });
        Some(self.classes.len() as u16 - 1)
    }

    pub(super) fn class(&self, class: u16) -> &DramClass {
        &self.classes[usize::from(class)]
    }

    pub(super) fn class_mut(&mut self, class: u16) -> &mut DramClass {
        &mut self.classes[usize::from(class)]
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = &DramClass> {
        self.classes.iter()
    }

    pub(super) fn class_of(&self, slot: SlotId) -> u16 {
        self.segments[slot.segment().0 as usize].class
    }

    pub(super) fn slot_bytes(&self, slot: SlotId) -> u32 {
        self.segments[slot.segment().0 as usize].extent.slot_bytes()
    }

    pub(super) fn get(&self, slot: SlotId) -> Use {
        self.segments[slot.segment().0 as usize].extent.get(slot.index())
    }

    /// Whether the arena has this slot at all.
    pub(super) fn has(&self, slot: SlotId) -> bool {
        self.segments.get(slot.segment().0 as usize).is_some_and(|found| slot.index() < found.extent.slots())
    }

    pub(super) fn set_node(&mut self, slot: SlotId, id: NodeId) {
        self.segments[slot.segment().0 as usize].extent.set_node(slot.index(), id);
    }

    pub(super) fn set_detached(&mut self, slot: SlotId) {
        self.segments[slot.segment().0 as usize].extent.set_detached(slot.index());
    }

    /// A free slot of the class, from a segment it has or one that nobody uses.
    pub(super) fn take<T: SlotTable>(&mut self, class: u16, table: &mut T) -> Option<Vacant> {
        let number = match self.classes[usize::from(class)].open.first() {
            Some(number) => *number,
            None => self.assign(class, table)?,
        };
        let segment = &mut self.segments[number as usize];
        let index = segment.extent.take().expect("an open segment has a free slot");
        self.empty.remove(&number);
        if segment.extent.free_slots() == 0 {
            self.classes[usize::from(class)].open.remove(&number);
        }
        Some(Vacant::new(SlotId::new(SegmentId(number), index)))
    }

    fn assign<T: SlotTable>(&mut self, class: u16, table: &mut T) -> Option<u32> {
        let (tenant, slot_bytes) =
            (self.classes[usize::from(class)].tenant, self.classes[usize::from(class)].slot_bytes);
        let clean = |number: &u32| self.segments[*number as usize].tenant.is_none_or(|before| before == tenant);
        // A segment that needs no scrub first; a scrub makes its file anew.
        let new = |numbers: &BTreeSet<u32>| numbers.iter().copied().find(|_| !self.barren);
        let number = self.unassigned.iter().copied().find(|number| !self.barren && clean(number));
        let number = number.or_else(|| self.empty.iter().copied().find(clean));
        let number = number.or_else(|| new(&self.unassigned)).or_else(|| new(&self.empty))?;
        if self.empty.remove(&number) {
            let before = self.segments[number as usize].class;
            self.classes[usize::from(before)].open.remove(&number);
            self.segments[number as usize].extent.clear();
        }
        self.unassigned.remove(&number);
        if self.draining == Some(number) {
            self.draining = None;
        }
        let segment = &mut self.segments[number as usize];
        if segment.tenant.is_some_and(|before| before != tenant) {
            table.scrub(SegmentId(number));
        }
        (segment.class, segment.tenant) = (class, Some(tenant));
        if !table.assign_segment(SegmentId(number), tenant, slot_bytes) {
            self.barren = true;
            self.unassigned.insert(number);
            return None;
        }
        segment.extent.format(slot_bytes);
        self.classes[usize::from(class)].open.insert(number);
        self.empty.insert(number);
        Some(number)
    }

    /// Gives a slot back. Nobody holds it and no node has it.
    pub(super) fn release(&mut self, vacant: Vacant) {
        let slot = vacant.slot();
        let number = slot.segment().0;
        let segment = &mut self.segments[number as usize];
        segment.extent.free(slot.index());
        let empty = segment.extent.free_slots() == segment.extent.slots();
        if self.lost.contains(&number) {
            if empty {
                self.make_anew(number);
            }
            return;
        }
        if self.draining != Some(number) {
            self.classes[usize::from(segment.class)].open.insert(number);
        }
        if empty {
            if self.draining == Some(number) {
                self.draining = None;
                self.classes[usize::from(segment.class)].open.insert(number);
            }
            self.empty.insert(number);
        }
    }

    /// Whether memory for another segment could not be had.
    pub(super) fn is_barren(&self) -> bool {
        self.barren
    }

    /// There may be memory again.
    pub(super) fn try_again(&mut self) {
        self.barren = false;
    }

    /// The bytes of `segment` are gone. True if slots of it are in use: whoever has them must let go before it can be made
    /// anew.
    pub(super) fn lose(&mut self, segment: SegmentId) -> bool {
        let number = segment.0;
        let Some(found) = self.segments.get(number as usize).filter(|found| found.extent.slots() > 0) else {
            return false;
        };
        let empty = found.extent.free_slots() == found.extent.slots();
        if !self.lost.insert(number) {
            return false;
        }
        self.classes[usize::from(found.class)].open.remove(&number);
        if self.draining == Some(number) {
            self.draining = None;
        }
        if empty {
            self.make_anew(number);
        }
        !empty
    }

    /// Whether the segment lost its bytes and slots of it are still in use.
    pub(super) fn is_lost(&self, segment: SegmentId) -> bool {
        self.lost.contains(&segment.0)
    }

    /// An empty segment that lost its bytes: the table gives it new memory with its next assignment.
    fn make_anew(&mut self, number: u32) {
        self.lost.remove(&number);
        self.empty.remove(&number);
        self.segments[number as usize].extent.clear();
        self.unassigned.insert(number);
    }

    /// The segment that is being emptied.
    pub(super) fn draining(&self) -> Option<SegmentId> {
        self.draining.map(SegmentId)
    }

    /// Stops giving slots of `segment` away, so that it becomes empty; one at a time.
    pub(super) fn drain(&mut self, segment: SegmentId) {
        debug_assert!(self.draining.is_none());
        let class = self.segments[segment.0 as usize].class;
        self.classes[usize::from(class)].open.remove(&segment.0);
        self.draining = Some(segment.0);
    }

    /// Opens the draining segment again: someone holds on to it.
    pub(super) fn stop_draining(&mut self) {
        if let Some(number) = self.draining.take()
            && self.segments[number as usize].extent.free_slots() > 0
        {
            let class = self.segments[number as usize].class;
            self.classes[usize::from(class)].open.insert(number);
        }
    }

    pub(super) fn slots_of(&self, segment: SegmentId) -> u32 {
        self.segments[segment.0 as usize].extent.slots()
    }

    /// A segment of the last epoch. False if the arena does not have it any more, or too many classes.
    pub(super) fn adopt(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool {
        if !self.unassigned.contains(&segment.0) {
            return false;
        }
        let Some(class) = self.class_for(tenant, slot_bytes) else { return false };
        self.unassigned.remove(&segment.0);
        let found = &mut self.segments[segment.0 as usize];
        (found.class, found.tenant) = (class, Some(tenant));
        found.extent.adopt(slot_bytes);
        true
    }

    /// Everything that no record claimed is free.
    pub(super) fn adopted(&mut self) {
        for (number, segment) in self.segments.iter_mut().enumerate() {
            let slots = segment.extent.slots();
            for index in (0..slots).rev() {
                if segment.extent.get(index) == Use::Unseen {
                    segment.extent.free(index);
                }
            }
            if segment.extent.free_slots() > 0 {
                self.classes[usize::from(segment.class)].open.insert(number as u32);
                if segment.extent.free_slots() == slots {
                    self.empty.insert(number as u32);
                }
            }
        }
    }

    /// (slots in use or held, bytes of them).
    pub(super) fn used(&self) -> (u64, u64) {
        self.segments.iter().fold((0, 0), |(slots, bytes), segment| {
            let used = u64::from(segment.extent.slots() - segment.extent.free_slots());
            (slots + used, bytes + used * u64::from(segment.extent.slot_bytes()))
        })
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = (SegmentId, u16, &Extent)> {
        self.segments.iter().enumerate().map(|(number, found)| (SegmentId(number as u32), found.class, &found.extent))
    }

    /// Whether any segment is cut for this class.
    pub(super) fn has_segment(&self, class: u16) -> bool {
        self.segments.iter().any(|segment| segment.class == class && segment.extent.slots() > 0)
    }

    pub(super) fn segment_count(&self) -> u32 {
        self.segments.len() as u32
    }

    pub(super) fn unassigned(&self) -> u32 {
        self.unassigned.len() as u32
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.segments.iter().map(|s| size_of::<Segment>() + s.extent.memory_bytes()).sum::<usize>()
            + self.classes.iter().map(|c| size_of::<DramClass>() + c.order.memory_bytes()).sum::<usize>()
    }

    pub(super) fn check(&self) {
        for (number, segment) in self.segments.iter().enumerate() {
            let number = number as u32;
            segment.extent.check();
            let (slots, free) = (segment.extent.slots(), segment.extent.free_slots());
            assert_eq!(self.unassigned.contains(&number), slots == 0, "segment {number} is cut or unassigned");
            assert_eq!(self.empty.contains(&number), slots > 0 && free == slots, "segment {number} is empty");
            for (class, found) in self.classes.iter().enumerate() {
                let closed = self.draining == Some(number) || self.lost.contains(&number);
                let open = class == usize::from(segment.class) && free > 0 && !closed;
                assert_eq!(found.open.contains(&number), open, "segment {number} is open in class {class}");
            }
        }
    }
}
