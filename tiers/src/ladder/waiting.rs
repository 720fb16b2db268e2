//! Loads that wait: which fetches they need next, what lands for them, and how they end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvd_proto::wire::slab::{Landed, LandedStatus};
use kvd_proto::{MissReason, Tier, Time};

use super::evict::Ask;
use super::moves::{LoadEnd, Move, Reply};
use super::nodes::{NO_OWNER, NodeId, flag};
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use crate::ids::{ClientSlot, LeaseId, RequestId, SlotState};
use crate::policy::Policy;

/// Waiting loads that are looked at when a fetch makes room for the next.
const FED_PER_CALL: usize = 16;
/// Blocks that one load plans ahead of the one it waits for.
const AHEAD_MAX: u32 = 256;

/// Who waits for a load. A prefetch has nobody.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) client: ClientSlot,
    pub(super) lease: LeaseId,
    pub(super) request: RequestId,
}

pub(super) struct Load {
    pub(super) waiter: Option<Waiter>,
    pub(super) owner: u8,
    /// The blocks, each held until it landed.
    pub(super) path: Vec<NodeId>,
    /// Where each of them lay when the load began.
    pub(super) tiers: Vec<Tier>,
    /// The first that has not landed.
    pub(super) cursor: u32,
    /// The first that was not looked at for a fetch.
    pub(super) planned: u32,
    pub(super) deadline: Time,
    /// Landed but not yet polled.
    pub(super) landed: Vec<Landed>,
    pub(super) sent: u32,
    /// Why it ends when the path does.
    pub(super) tail: Option<MissReason>,
    pub(super) end: Option<LoadEnd>,
}

/// Loads that wait, by serial: the oldest first everywhere.
pub(super) struct Loads {
    pub(super) loads: BTreeMap<u64, Load>,
    /// Which load waits for which block.
    pub(super) waiting: BTreeSet<(NodeId, u64)>,
    pub(super) deadlines: BTreeSet<(Time, u64)>,
    /// Loads with something to poll.
    pub(super) ready: VecDeque<u64>,
    pub(super) serial: u64,
    pub(super) max: u32,
}

impl Loads {
    pub(super) fn new(max: u32) -> Self {
        Self {
            loads: BTreeMap::new(),
            waiting: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            ready: VecDeque::new(),
            serial: 0,
            max,
        }
    }

    /// Open loads under this lease, of one client or of all.
    pub(super) fn of(&self, lease: LeaseId, client: Option<ClientSlot>) -> Vec<u64> {
        let asked = |waiter: Waiter| waiter.lease == lease && client.is_none_or(|client| client == waiter.client);
        let found = self.loads.iter().filter(|(_, load)| load.end.is_none() && load.waiter.is_some_and(asked));
        found.map(|(serial, _)| *serial).collect()
    }

    /// Nobody wants the answer of a load that ended.
    pub(super) fn forget(&mut self, serial: u64) {
        self.loads.remove(&serial);
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

enum Fetch {
    Started,
    /// The device has enough to do.
    Busy,
    /// No slot of the arena can be had now.
    NoSlot,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    pub(super) fn add_load(&mut self, mut load: Load, now: Time) {
        for id in &load.path {
            let node = &mut self.nodes[*id];
            node.holds += 1;
            let here = node.has(flag::DRAM_READY);
            load.tiers.push(if here { Tier::Dram } else { self.tier_below(*id) });
        }
        self.loads.serial += 1;
        let serial = self.loads.serial;
        self.loads.deadlines.insert((load.deadline, serial));
        self.loads.waiting.insert((load.path[0], serial));
        self.loads.loads.insert(serial, load);
        self.plan(serial, now);
    }

    /// Starts the fetches that a load needs next. It stays hungry while some could not be started.
    pub(super) fn plan(&mut self, serial: u64, now: Time) {
        self.hungry.remove(&serial);
        loop {
            let Some(load) = self.loads.loads.get(&serial).filter(|load| load.end.is_none()) else { return };
            let (planned, cursor, owner) = (load.planned, load.cursor, load.owner);
            let Some(id) = load.path.get(planned as usize).copied() else { return };
            if planned >= cursor + AHEAD_MAX && !self.goes_on(id) {
                return;
            }
            let node = &self.nodes[id];
            if node.any(flag::DRAM_READY | flag::FETCHING) {
                // On its way or there.
            } else if !self.readable(id) {
                if planned == cursor {
                    let reason = self.miss_reason(Some(id), None);
                    self.end_load(serial, Some(reason));
                    return;
                }
            } else {
                match self.fetch(id, owner, now) {
                    Fetch::Started => {}
                    Fetch::Busy => break,
                    Fetch::NoSlot => {
                        // Nothing moves that could make room: waiting would not help.
                        if planned == cursor && self.flights.is_empty() {
                            self.end_load(serial, Some(MissReason::Quota));
                            return;
                        }
                        break;
                    }
                }
            }
            self.loads.loads.get_mut(&serial).expect("it was there").planned += 1;
        }
        self.hungry.insert(serial);
    }

    /// Lets the oldest hungry loads go on, as something became free.
    pub(super) fn feed(&mut self, now: Time) {
        let mut next = 0;
        for _ in 0..FED_PER_CALL {
            let Some(serial) = self.hungry.range(next..).next().copied() else { return };
            self.plan(serial, now);
            next = serial + 1;
        }
    }

    fn fetch(&mut self, id: NodeId, owner: u8, now: Time) -> Fetch {
        let remote = self.nodes[id].remote();
        let from = self.nvme_slot(id).filter(|_| !remote);
        let busy = match from {
            Some(from) => self.nvme.device(from.device()).fetching >= self.config.fetches_max,
            None => !self.may_get(id),
        };
        if busy {
            return Fetch::Busy;
        }
        let (class, slot_bytes) = {
            let lane = self.lanes.get(self.nodes[id].lane);
            (lane.dram_class, lane.slot_bytes)
        };
        let Ok(vacant) = self.take_dram(class, &Ask { owner, admission: None }) else { return Fetch::NoSlot };
        let filling = self.fill_slot(id, vacant, flag::FETCHING, owner);
        let Some(from) = from else {
            self.get(id, filling, now);
            return Fetch::Started;
        };
        self.hold(id);
        self.nvme.add_reader(from);
        let device = self.nvme.device_mut(from.device());
        device.fetching += 1;
        device.reads.started(u64::from(slot_bytes), now);
        let to = filling.slot();
        let expect = self.entry(id, SlotState::Resident);
        let move_id = self.start(Flight::Fetch { node: id, from, to: filling });
        self.moves.push_back(Move::Fetch { id: move_id, from, to, expect });
        Fetch::Started
    }

    /// The block landed, or will not: the loads whose turn it is go on.
    pub(super) fn wake(&mut self, id: NodeId, failed: Option<MissReason>, now: Time) {
        let waiting = self.loads.waiting.range((id, 0)..=(id, u64::MAX));
        let serials: Vec<u64> = waiting.map(|(_, serial)| *serial).collect();
        for serial in serials {
            self.loads.waiting.remove(&(id, serial));
            match failed {
                Some(reason) => self.end_load(serial, Some(reason)),
                None => self.advance(serial, now),
            }
        }
    }

    /// Lands what a load waited for and what follows it in the arena.
    fn advance(&mut self, serial: u64, now: Time) {
        loop {
            let Some(load) = self.loads.loads.get(&serial).filter(|load| load.end.is_none()) else { return };
            let (waiter, tail, cursor) = (load.waiter, load.tail, load.cursor);
            let Some(id) = load.path.get(cursor as usize).copied() else {
                self.end_load(serial, tail);
                return;
            };
            let node = &self.nodes[id];
            if !node.has(flag::DRAM_READY) {
                if !node.has(flag::FETCHING) && !self.readable(id) {
                    let reason = self.miss_reason(Some(id), None);
                    self.end_load(serial, Some(reason));
                    return;
                }
                self.loads.waiting.insert((id, serial));
                let load = self.loads.loads.get_mut(&serial).expect("it was there");
                if !self.nodes[id].has(flag::FETCHING) {
                    load.planned = cursor;
                }
                self.plan(serial, now);
                return;
            }
            let tier = load.tiers[cursor as usize];
            let landed = waiter.map(|waiter| self.land(id, waiter.client, waiter.lease, tier));
            let load = self.loads.loads.get_mut(&serial).expect("it was there");
            load.cursor += 1;
            if let Some(landed) = landed {
                if load.landed.is_empty() {
                    self.loads.ready.push_back(serial);
                }
                load.landed.push(landed);
            }
            self.unhold(id);
        }
    }

    /// Ends a load: nothing more will land. The moves it asked for go on.
    pub(super) fn end_load(&mut self, serial: u64, reason: Option<MissReason>) {
        let Some(load) = self.loads.loads.get_mut(&serial).filter(|load| load.end.is_none()) else { return };
        self.work.segment_stuck = false;
        let rest = load.path.split_off(load.cursor as usize);
        load.end = Some(LoadEnd { blocks: load.sent + load.landed.len() as u32, reason });
        self.loads.deadlines.remove(&(load.deadline, serial));
        let waiter = load.waiter;
        if waiter.is_some() && load.landed.is_empty() {
            self.loads.ready.push_back(serial);
        }
        if let (Some(_), Some(reason)) = (waiter, reason) {
            load.landed.push(Landed::missed(reason));
            self.counters.missed(reason);
        }
        self.hungry.remove(&serial);
        if let Some(head) = rest.first() {
            self.loads.waiting.remove(&(*head, serial));
        }
        for id in rest {
            self.unhold(id);
        }
        match waiter {
            Some(waiter) => {
                self.leases.get_mut(waiter.lease).expect("a load has its lease").loads -= 1;
                self.end_lease_if_done(waiter.lease);
            }
            None => {
                self.loads.loads.remove(&serial);
            }
        }
    }

    /// Ends loads whose deadline has come, at most `steps`.
    pub(super) fn expire_loads(&mut self, now: Time, steps: u32) {
        let steps = if cfg!(kvd_bug = "deadline_ignored") { 0 } else { steps };
        for _ in 0..steps {
            match self.loads.deadlines.first() {
                Some((deadline, serial)) if *deadline <= now => self.end_load(*serial, Some(MissReason::Timeout)),
                Some(_) | None => return,
            }
        }
    }

    /// The next part of an answer to a load that was pending.
    pub fn poll_reply(&mut self) -> Option<Reply> {
        loop {
            let serial = self.loads.ready.pop_front()?;
            let Some(load) = self.loads.loads.get_mut(&serial) else { continue };
            let Some(waiter) = load.waiter else { continue };
            let landed = std::mem::take(&mut load.landed);
            let (first, end) = (load.sent, load.end);
            load.sent += landed.iter().filter(|landed| landed.status == LandedStatus::Landed).count() as u32;
            if end.is_some() {
                self.loads.loads.remove(&serial);
            }
            return Some(Reply { client: waiter.client, request: waiter.request, first, landed, end });
        }
    }

    /// Holds of loads on nodes, waits and deadlines agree.
    pub(super) fn check_loads(&self, holds: &mut BTreeMap<NodeId, u32>) {
        for (serial, load) in &self.loads.loads {
            let rest = load.path.get(load.cursor as usize..).unwrap_or(&[]);
            assert!(load.end.is_none() || rest.is_empty(), "a load that ended holds nothing");
            assert_eq!(self.loads.deadlines.contains(&(load.deadline, *serial)), load.end.is_none());
            if let Some(head) = rest.first() {
                assert!(self.loads.waiting.contains(&(*head, *serial)), "load {serial} waits for {head:?}");
            }
            rest.iter().for_each(|id| *holds.entry(*id).or_default() += 1);
            assert!(load.owner == NO_OWNER || load.end.is_some() || self.loads.loads.len() <= self.loads.max as usize);
        }
        let open = self.loads.loads.values().filter(|load| load.end.is_none()).count();
        assert_eq!(self.loads.waiting.len(), open, "each open load waits for one block");
    }
}
