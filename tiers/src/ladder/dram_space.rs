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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientSlot, SlotEntry};

    /// Says what was asked of it about segments.
    #[derive(Default)]
    struct Table {
        assigned: Vec<(u32, u64, u32)>,
        scrubbed: Vec<u32>,
        barren: bool,
    }

    impl SlotTable for Table {
        fn write(&mut self, _: SlotId, _: &SlotEntry) {}
        fn vacate(&mut self, _: SlotId, _: u32) {}
        fn pin(&mut self, _: SlotId, _: ClientSlot) {}
        fn unpin(&mut self, _: SlotId, _: ClientSlot) {}
        fn assign_segment(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool {
            self.assigned.push((segment.0, tenant.0, slot_bytes));
            !self.barren
        }
        fn scrub(&mut self, segment: SegmentId) {
            self.scrubbed.push(segment.0);
        }
    }

    const SLOT: u32 = 16 << 20;

    fn take(space: &mut DramSpace, class: u16, table: &mut Table) -> Option<(u32, u32)> {
        let slot = space.take(class, table).map(|vacant| vacant.slot());
        space.check();
        slot.map(|slot| (slot.segment().0, slot.index()))
    }

    fn free(space: &mut DramSpace, segment: u32, index: u32) {
        space.release(Vacant::new(SlotId::new(SegmentId(segment), index)));
        space.check();
    }

    #[test]
    fn a_class_is_a_tenant_and_a_size_and_there_are_so_many() {
        let mut space = DramSpace::new(1, 3);
        let asked = [(1, 8192), (1, 12288), (2, 8192), (1, 8192), (2, 12288)];
        let found = asked.map(|(tenant, bytes)| space.class_for(TenantId(tenant), bytes));
        assert_eq!(found, [Some(0), Some(1), Some(2), Some(0), None]);
        assert_eq!(
            (space.classes().count(), space.class(2).tenant, space.class(1).slot_bytes),
            (3, TenantId(2), 12288)
        );
    }

    #[test]
    fn slots_come_from_few_segments_and_segments_one_by_one() {
        let (mut space, mut table) = (DramSpace::new(2, 4), Table::default());
        let class = space.class_for(TenantId(1), SLOT).unwrap();
        assert_eq!((space.segment_count(), space.unassigned(), space.has_segment(class)), (2, 2, false));
        let given: Vec<_> = (0..5).map(|_| take(&mut space, class, &mut table).unwrap()).collect();
        assert_eq!(given, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]);
        assert_eq!(table.assigned, [(0, 1, SLOT), (1, 1, SLOT)]);
        assert_eq!((space.unassigned(), space.has_segment(class), space.used()), (0, true, (5, 5 * u64::from(SLOT))));
        free(&mut space, 0, 2);
        assert_eq!(take(&mut space, class, &mut table), Some((0, 2)), "before the emptier segment");
        assert!(space.has(SlotId::new(SegmentId(1), 3)) && !space.has(SlotId::new(SegmentId(1), 4)));
        assert!(!space.has(SlotId::new(SegmentId(2), 0)));
        assert_eq!((0..3).filter_map(|_| take(&mut space, class, &mut table)).count(), 3);
        assert_eq!(take(&mut space, class, &mut table), None);
    }

    #[test]
    fn an_empty_segment_goes_to_who_needs_one_and_is_scrubbed_between_tenants() {
        let (mut space, mut table) = (DramSpace::new(2, 4), Table::default());
        let [one, two, other] = [(1, SLOT), (1, 2 * SLOT), (2, SLOT)]
            .map(|(tenant, bytes)| space.class_for(TenantId(tenant), bytes).unwrap());
        assert_eq!(take(&mut space, one, &mut table), Some((0, 0)));
        assert_eq!(take(&mut space, other, &mut table), Some((1, 0)));
        free(&mut space, 0, 0);
        free(&mut space, 1, 0);
        assert_eq!(take(&mut space, two, &mut table), Some((0, 0)), "its tenant's own rather than the other's");
        assert_eq!(take(&mut space, one, &mut table), Some((1, 0)));
        assert_eq!(table.scrubbed, [1]);
        assert_eq!(table.assigned[2..], [(0, 1, 2 * SLOT), (1, 1, SLOT)]);
        assert_eq!((space.class_of(SlotId::new(SegmentId(0), 0)), take(&mut space, other, &mut table)), (two, None));
    }

    #[test]
    fn a_segment_that_is_emptied_gets_nothing_new() {
        let (mut space, mut table) = (DramSpace::new(1, 4), Table::default());
        let [one, two] = [SLOT, 2 * SLOT].map(|bytes| space.class_for(TenantId(1), bytes).unwrap());
        (0..3).for_each(|_| assert!(take(&mut space, one, &mut table).is_some()));
        space.drain(SegmentId(0));
        space.check();
        assert_eq!((space.draining(), take(&mut space, one, &mut table)), (Some(SegmentId(0)), None));
        free(&mut space, 0, 0);
        assert_eq!(take(&mut space, one, &mut table), None);
        space.stop_draining();
        space.check();
        assert_eq!(
            (space.draining(), take(&mut space, one, &mut table)),
            (None, Some((0, 0))),
            "someone holds on to it"
        );
        space.drain(SegmentId(0));
        (0..3).for_each(|index| free(&mut space, 0, index));
        assert_eq!(space.draining(), None, "it is empty");
        assert_eq!(take(&mut space, two, &mut table), Some((0, 0)));
    }

    #[test]
    fn without_memory_what_is_there_must_do_until_somebody_says_otherwise() {
        let (mut space, mut table) = (DramSpace::new(3, 4), Table { barren: true, ..Table::default() });
        let [one, two] = [SLOT, 2 * SLOT].map(|bytes| space.class_for(TenantId(1), bytes).unwrap());
        let foreign = space.class_for(TenantId(2), SLOT).unwrap();
        assert_eq!((take(&mut space, one, &mut table), space.is_barren(), space.unassigned()), (None, true, 3));
        assert_eq!(take(&mut space, one, &mut table), None);
        assert_eq!(table.assigned.len(), 1, "it is not asked for again and again");
        table.barren = false;
        space.try_again();
        assert_eq!((take(&mut space, one, &mut table), space.is_barren()), (Some((0, 0)), false));
        free(&mut space, 0, 0);
        table.barren = true;
        assert_eq!(take(&mut space, foreign, &mut table), None);
        assert_eq!(take(&mut space, foreign, &mut table), None, "a scrub would need new memory");
        table.barren = false;
        assert_eq!(take(&mut space, two, &mut table), Some((0, 0)), "a segment that is empty has some");
    }

    #[test]
    fn a_segment_that_lost_its_bytes_is_made_anew_when_it_is_empty() {
        let (mut space, mut table) = (DramSpace::new(2, 4), Table::default());
        let class = space.class_for(TenantId(1), SLOT).unwrap();
        assert!(!space.lose(SegmentId(0)) && !space.lose(SegmentId(9)), "nothing was there");
        (0..2).for_each(|_| assert!(take(&mut space, class, &mut table).is_some()));
        assert!(space.lose(SegmentId(0)) && space.is_lost(SegmentId(0)));
        assert!(!space.lose(SegmentId(0)), "that is no news");
        space.check();
        assert_eq!(take(&mut space, class, &mut table), Some((1, 0)));
        free(&mut space, 0, 0);
        assert!(space.is_lost(SegmentId(0)));
        free(&mut space, 0, 1);
        assert_eq!((space.is_lost(SegmentId(0)), space.unassigned(), space.slots_of(SegmentId(0))), (false, 1, 0));
        free(&mut space, 1, 0);
        assert!(!space.lose(SegmentId(1)), "an empty one is made anew at once");
        space.check();
        assert_eq!((space.unassigned(), space.used()), (2, (0, 0)));
    }

    #[test]
    fn what_an_earlier_epoch_left_is_adopted_and_the_rest_is_free() {
        let (mut space, mut table) = (DramSpace::new(2, 1), Table::default());
        assert!(space.adopt(SegmentId(1), TenantId(1), SLOT));
        assert!(!space.adopt(SegmentId(1), TenantId(1), SLOT), "twice");
        assert!(!space.adopt(SegmentId(2), TenantId(1), SLOT), "not there");
        assert!(!space.adopt(SegmentId(0), TenantId(2), SLOT), "a class too many");
        let slot = |index| SlotId::new(SegmentId(1), index);
        space.set_node(slot(1), NodeId(5));
        space.set_detached(slot(2));
        space.adopted();
        space.check();
        assert_eq!((space.get(slot(1)), space.get(slot(2))), (Use::Node(NodeId(5)), Use::Detached));
        let given: Vec<_> = (0..3).map(|_| take(&mut space, 0, &mut table).unwrap()).collect();
        assert_eq!(given, [(1, 0), (1, 3), (0, 0)]);
    }
}
