//! Everything that must hold between calls, in one place.

use std::collections::{BTreeMap, BTreeSet};

use super::config::ObjectConfig;
use super::extents::Use;
use super::lanes::Held;
use super::leases::LeaseKind;
use super::nodes::{NO_OWNER, NOWHERE, NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;

use super::state::{Flight, Ladder};
use super::turns::TURNS;
use crate::ids::{NvmeSlot, SegmentId, SlotId, ZoneId};
use crate::policy::{Policy, Space};

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Panics unless every invariant holds. Walks everything: for tests, after every step.
    pub fn self_check(&self) {
        self.dram.check();
        self.nvme.check();
        let ids: Vec<NodeId> = (0..self.nodes.end()).filter_map(|number| self.nodes.live(number)).collect();
        assert_eq!(ids.len(), self.nodes.used() as usize, "live nodes are counted");
        let cut = self.cut_stack();
        let mut holds = self.expected_holds();
        for id in &ids {
            self.check_node(*id, &cut);
            let expected = holds.remove(id).unwrap_or(0);
            assert_eq!(u32::from(self.nodes[*id].holds), expected, "holds of {id:?}");
        }
        assert!(holds.is_empty(), "holds on nodes that are gone: {holds:?}");
        self.check_children(&ids);
        self.check_slots();
        self.check_orders(&ids);
        self.check_bytes(&ids);
        self.check_bounds();
    }

    /// Whether the record in this slot of a device is published, for tests that compare with a device's table.
    #[cfg(test)]
    pub(super) fn publishes(&self, slot: NvmeSlot) -> bool {
        match self.nvme.get(slot) {
            Use::Node(id) => self.nodes[id].has(flag::NVME_READY),
            Use::Free | Use::Detached | Use::Unseen => false,
        }
    }

    /// Whether a device serves reads, for tests.
    #[cfg(test)]
    pub(super) fn device_readable(&self, device: crate::DeviceId) -> bool {
        self.nvme.device(device).breaker.readable()
    }

    /// Whether a view's block is known to lie in the object tier alone, for tests.
    #[cfg(test)]
    pub(super) fn lies_remote(&self, view: crate::ViewId, key: &kvd_proto::BlockKey) -> bool {
        let lane = self.views.get(view).map(|view| view.lane);
        lane.and_then(|lane| self.find(key, lane)).is_some_and(|id| self.nodes[id].remote())
    }

    fn cut_stack(&self) -> BTreeSet<NodeId> {
        let mut stack = BTreeSet::new();
        let mut at = self.cuts;
        while let Some(id) = at.get() {
            assert!(stack.insert(id), "the stack of cuts is a line");
            at = self.nodes[id].next_cut;
        }
        stack
    }

    /// Who should hold which node.
    fn expected_holds(&self) -> BTreeMap<NodeId, u32> {
        let mut holds = BTreeMap::new();
        for lease in self.leases.iter().filter(|lease| !lease.released) {
            if let LeaseKind::Match { deepest, .. } = lease.kind {
                *holds.entry(deepest).or_default() += 1;
            }
        }
        for flight in self.flights.values() {
            match flight {
                Flight::Spill { node, .. }
                | Flight::Fetch { node, .. }
                | Flight::VerifyDram { node, .. }
                | Flight::Get { node, .. }
                | Flight::Put { node, .. }
                | Flight::VerifyNvme { node, .. } => *holds.entry(*node).or_default() += 1,
                Flight::Vacate { .. } | Flight::Format { .. } | Flight::Probe { .. } => {}
            }
        }
        self.check_loads(&mut holds);
        holds
    }

    fn check_node(&self, id: NodeId, cut: &BTreeSet<NodeId>) {
        let node = &self.nodes[id];
        assert_eq!(self.find(&node.key, node.lane), Some(id), "{id:?} is found by its key");
        assert_eq!(node.has(flag::CUT), cut.contains(&id), "{id:?} is on the stack of cuts");
        // Copies and slots.
        let filling = node.any(flag::FILLING | flag::FETCHING);
        assert_eq!(node.dram != NOWHERE, node.has(flag::DRAM_READY) || filling, "{id:?} has a slot of the arena");
        assert!(!(node.has(flag::DRAM_READY) && filling), "{id:?} is filled once");
        let landing = node.has(flag::SPILLING);
        assert_eq!(node.nvme != NOWHERE, node.has(flag::NVME_READY) || landing, "{id:?} has a slot of a device");
        assert!(!(node.has(flag::NVME_READY) && landing), "{id:?} is spilled once");
        let below = node.any(flag::DRAM_READY | flag::NVME_READY | flag::SPILLING | flag::FILLING);
        assert!(!(node.remote() && below), "{id:?} is remote and nowhere else");
        assert_eq!(node.remote(), self.remotes.place(id).is_some(), "{id:?} has a place in the object tier");
        let wanted = node.holds > 0 || !node.leaf() || node.has(flag::FETCHING);
        assert!(!node.remote() || wanted, "{id:?} is remote and somebody wants it");
        if let Some(slot) = self.dram_slot(id) {
            assert_eq!(self.dram.get(slot), Use::Node(id), "{slot:?} knows {id:?}");
            assert_eq!(self.dram.class_of(slot), self.lanes.get(node.lane).dram_class);
        }
        if let Some(slot) = self.nvme_slot(id) {
            assert_eq!(self.nvme.get(slot), Use::Node(id), "{slot:?} knows {id:?}");
            assert_eq!(self.nvme.class_of(slot), self.lanes.get(node.lane).nvme_class);
        }
        // The closure.
        if node.has(flag::ATTACHED) {
            assert!(node.resident(), "{id:?} is attached and resident");
            assert!(!node.has(flag::LOOSE), "{id:?} is attached and not cut loose");
            match node.parent.get() {
                Some(parent) => {
                    let whole = self.nodes[parent].has(flag::ATTACHED) || self.cascade_open();
                    assert!(whole, "the parent of {id:?} is attached");
                    assert_eq!(self.nodes[parent].position + 1, node.position, "{id:?} stands behind its parent");
                }
                None => assert_eq!(node.position, 0, "{id:?} starts a chain"),
            }
        } else if node.resident() && !node.has(flag::LOOSE) && !self.cascade_open() {
            let parent = node.parent.get().is_some_and(|parent| self.nodes[parent].has(flag::ATTACHED));
            assert!(!parent, "{id:?} should be attached");
        }
        if !node.resident() && !node.leaf() && !filling {
            let kept = node.has(flag::CUT) || self.children(id).all(|child| !self.nodes[child].has(flag::ATTACHED));
            assert!(kept, "{id:?} has attached children and is cut");
        }
        let used = node.resident() || filling || landing || !node.leaf() || node.holds > 0 || node.has(flag::CUT);
        assert!(used, "{id:?} is kept for something");
        assert!(!node.has(flag::PINNED) || node.resident(), "{id:?} is pinned and resident");
        assert!(
            !node.has(flag::KEPT) || node.has(flag::DRAM_READY) && node.owner != NO_OWNER,
            "{id:?} is kept for its owner"
        );
    }

    fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        std::iter::successors(self.nodes[id].first_child.get(), |child| self.nodes[*child].next_sibling.get())
    }

    fn check_children(&self, ids: &[NodeId]) {
        let mut parents = 0;
        for id in ids {
            let (mut dram, mut nvme, mut prev) = (0, 0, NodeId::NONE);
            for child in self.children(*id) {
                let node = &self.nodes[child];
                assert!(node.has(flag::LIVE), "a child of {id:?} lives");
                assert_eq!((node.parent, node.prev_sibling), (*id, prev), "links of {child:?}");
                dram += u32::from(node.has(flag::DRAM_READY));
                nvme += u32::from(node.has(flag::NVME_READY));
                prev = child;
                parents += 1;
            }
            let node = &self.nodes[*id];
            assert_eq!((node.dram_children, node.nvme_children), (dram, nvme), "children of {id:?} by tier");
        }
        let linked = ids.iter().filter(|id| !self.nodes[**id].parent.is_none()).count();
        assert_eq!(parents, linked, "every child is in its parent's list");
    }

    /// Slots that no node has are free, or wait for someone to let go.
    fn check_slots(&self) {
        let mut claims: BTreeSet<SlotId> = BTreeSet::new();
        for flight in self.flights.values() {
            if let Flight::Fetch { to, .. } | Flight::Get { to, .. } = flight {
                claims.insert(to.slot());
            }
        }
        for (segment, _, extent) in self.dram.segments() {
            for index in 0..extent.slots() {
                let slot = SlotId::new(SegmentId(segment.0), index);
                match extent.get(index) {
                    Use::Free => assert!(!self.pins.held(slot), "{slot:?} is free and nobody holds it"),
                    Use::Detached => assert!(self.pins.held(slot), "{slot:?} waits for a holder"),
                    Use::Node(id) => assert_eq!(self.nodes[id].dram, slot.raw(), "{id:?} lies in {slot:?}"),
                    Use::Unseen => panic!("{slot:?} was adopted or freed"),
                }
            }
        }
        for device in self.nvme.ids() {
            let vacating =
                self.flights.values().filter(|f| matches!(f, Flight::Vacate { slot } if slot.device() == device));
            let waiting = self.nvme.device(device).queued_vacates() + vacating.count();
            let mut detached = 0;
            for (zone, (_, extent)) in self.nvme.device(device).zones().enumerate() {
                for index in 0..extent.slots() {
                    let slot = NvmeSlot::new(device, ZoneId(zone as u32), index);
                    match extent.get(index) {
                        Use::Free => {}
                        Use::Detached => detached += usize::from(!self.nvme.reading(slot)),
                        Use::Node(id) => assert_eq!(self.nvme_slot(id), Some(slot), "{id:?} lies in {slot:?}"),
                        Use::Unseen => panic!("{slot:?} was adopted or freed"),
                    }
                }
            }
            assert_eq!(detached, waiting, "slots of device {} wait to be vacated", device.0);
        }
    }

    /// What may fall stands in the order of its class, unless someone holds it; nothing else does.
    fn check_orders(&self, ids: &[NodeId]) {
        for id in ids {
            let node = &self.nodes[*id];
            if node.place(Space::Dram) != NOWHERE {
                assert!(self.may_fall_from_dram(*id), "{id:?} may fall from the arena");
            } else if self.may_fall_from_dram(*id) {
                let slot = self.dram_slot(*id).expect("it has a copy");
                assert!(node.holds > 0 || self.pins.held(slot), "{id:?} is missing in the order of the arena");
            }
            if node.place(Space::Nvme) != NOWHERE {
                assert!(self.may_fall_from_nvme(*id), "{id:?} may fall from its device");
            }
        }
        let orders = self.dram.classes().map(|class| &class.order).chain(self.nvme.classes().map(|class| &class.order));
        let mut placed = 0;
        for order in orders {
            order.check(&self.nodes, |id| self.queue_of(id));
            placed += order.len();
        }
        let known = ids.iter().map(|id| {
            let places = [Space::Dram, Space::Nvme].map(|space| usize::from(self.nodes[*id].place(space) != NOWHERE));
            places[0] + places[1]
        });
        assert_eq!(placed, known.sum::<usize>(), "orders hold living nodes only");
    }

    fn check_bytes(&self, ids: &[NodeId]) {
        let mut held = BTreeMap::<u16, Held>::new();
        let mut owned = BTreeMap::<u8, u64>::new();
        for id in ids {
            let node = &self.nodes[*id];
            held.entry(node.lane).or_default().add(node);
            assert!(node.owner == NO_OWNER || node.dram != NOWHERE, "{id:?} is owned while it has a slot");
            if node.owner != NO_OWNER {
                *owned.entry(node.owner).or_default() += u64::from(self.lanes.get(node.lane).slot_bytes);
            }
        }
        for (number, lane) in self.lanes.iter() {
            assert_eq!(lane.held, held.get(&number).copied().unwrap_or_default(), "records of lane {number}");
        }
        for (number, instance) in self.instances.iter().enumerate() {
            let number = number as u8;
            assert_eq!(instance.dram_bytes, owned.get(&number).copied().unwrap_or(0), "bytes of instance {number}");
            let leases = self.leases.iter().filter(|lease| lease.instance == number).map(|lease| lease.charge);
            assert_eq!(instance.lease_bytes, leases.sum::<u64>(), "leased bytes of instance {number}");
            assert!(instance.lease_bytes <= self.config.lease_bytes_max, "instance {number} is within its cap");
        }
        self.check_pins();
    }

    fn check_pins(&self) {
        let mut expected = BTreeMap::<(SlotId, Holder), u32>::new();
        for lease in self.leases.iter() {
            for (slot, client) in &lease.pins {
                *expected.entry((*slot, Holder::Client(*client))).or_default() += 1;
            }
            if let LeaseKind::Fill { grants, open } = &lease.kind {
                let slots = grants.iter().filter_map(|grant| grant.slot.as_ref());
                assert_eq!(slots.clone().count(), *open as usize, "open grants are counted");
                for slot in slots {
                    *expected.entry((slot.slot(), Holder::Client(lease.client))).or_default() += 1;
                }
                assert!(*open > 0, "a fill lease ends with its last grant");
            }
        }
        for flight in self.flights.values() {
            let slot = match flight {
                Flight::Spill { from: slot, .. } | Flight::Put { from: slot, .. } | Flight::VerifyDram { slot, .. } => {
                    *slot
                }
                // The block was brought anew: the slot is only the move's.
                Flight::Fetch { node, to, .. } | Flight::Get { node, to, .. } if !self.fills(*node, to.slot()) => {
                    to.slot()
                }
                _ => continue,
            };
            *expected.entry((slot, Holder::Move)).or_default() += 1;
        }
        let found = self.pins.iter().filter(|(_, holder, _)| !matches!(holder, Holder::Fenced(_)));
        let found: BTreeMap<_, _> = found.map(|(slot, holder, count)| ((slot, holder), count)).collect();
        assert_eq!(found, expected, "pins are those of leases and moves");
    }

    fn check_bounds(&self) {
        assert!(self.spills.len() <= self.config.spill_queue_max as usize);
        assert!(self.orphans.len() <= self.config.orphans_max as usize);
        assert!(self.leases.used() <= self.config.leases_max);
        assert!(self.moves.len() <= self.flights.len());
        let object = self.config.object.unwrap_or(ObjectConfig { remotes_max: 0, ..ObjectConfig::default() });
        assert!(self.remotes.len() <= object.remotes_max as usize);
        assert!(self.remotes.getting <= object.gets_max && self.remotes.putting <= object.puts_max);
        let bounded = self.remotes.getting_bytes <= object.get_bytes_max.max(object.run_bytes_max);
        assert!(bounded || self.remotes.getting == 1, "reads are bounded by their bytes");
        assert!(self.remotes.uploads.len() <= TURNS * object.queue_max as usize);
        for device in &self.nvme.devices {
            assert!(device.spilling <= self.config.spills_max);
            assert!(device.fetching <= self.config.fetches_max);
            assert!(device.vacating <= self.config.vacates_max);
        }
    }
}
