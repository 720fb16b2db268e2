//! Loads: what lies in the arena is granted at once, what lies below is fetched in chain order until the deadline.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvd_proto::wire::slab::{Landed, LandedStatus};
use kvd_proto::{MissReason, Tier, Time, checksum_seed};

use super::evict::Ask;
use super::gate::Gate;
use super::lanes::{HashSource, Speed};
use super::leases::LeaseKind;
use super::moves::{LoadEnd, LoadState, Move, Reply};
use super::nodes::{NO_OWNER, NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use crate::ids::{ClientSlot, LeaseId, RequestId, SlotState, ViewId};
use crate::policy::Policy;

/// Waiting loads that are looked at when a fetch makes room for the next.
const FED_PER_CALL: usize = 16;
/// How often each block of a lease may be granted before the lease is released: once by each of some workers, and again.
const PINS_PER_BLOCK_MAX: usize = 16;
/// Blocks that one load plans ahead of the one it waits for.
const AHEAD_MAX: u32 = 64;

/// Who waits for a load. A prefetch has nobody.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) client: ClientSlot,
    pub(super) lease: LeaseId,
    request: RequestId,
}

pub(super) struct Load {
    pub(super) waiter: Option<Waiter>,
    owner: u8,
    /// The blocks, each held until it landed.
    pub(super) path: Vec<NodeId>,
    /// Which of them lay below when the load began.
    below: Vec<bool>,
    /// The first that has not landed.
    pub(super) cursor: u32,
    /// The first that was not looked at for a fetch.
    planned: u32,
    deadline: Time,
    /// Landed but not yet polled.
    landed: Vec<Landed>,
    sent: u32,
    /// Why it ends when the path does.
    tail: Option<MissReason>,
    end: Option<LoadEnd>,
}

/// Loads that wait, by serial: the oldest first everywhere.
pub(super) struct Loads {
    pub(super) loads: BTreeMap<u64, Load>,
    /// Which load waits for which block.
    waiting: BTreeSet<(NodeId, u64)>,
    deadlines: BTreeSet<(Time, u64)>,
    /// Loads with something to poll.
    ready: VecDeque<u64>,
    serial: u64,
    max: u32,
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
    /// Loads blocks `first .. first + count` of a matched prefix. `out` gets what lies in the arena already, in chain order,
    /// each slot pinned for `client` until it releases the lease; the rest follows as replies, until the deadline.
    #[expect(clippy::too_many_arguments, reason = "one request of the ring, field by field")]
    pub fn load(
        &mut self,
        client: ClientSlot,
        lease: LeaseId,
        first: u32,
        count: u32,
        deadline: Time,
        request: RequestId,
        now: Time,
        out: &mut Vec<Landed>,
    ) -> LoadState {
        self.counters.loads += 1;
        let Some((path, speed)) = self.path(client, lease, first, count) else {
            return self.done_at_once(out, MissReason::LeaseLost);
        };
        let instance = self.instances.of(client).expect("a lease was found for it");
        self.leases.get_mut(lease).expect("found above").touched = now;
        let (pays, tail) = self.paying(&path, speed);
        let mut landed = 0;
        while landed < pays && self.nodes[path[landed]].has(flag::DRAM_READY) {
            out.push(self.land(path[landed], client, lease, Tier::Dram));
            landed += 1;
        }
        if landed == pays {
            return match tail {
                Some(reason) => self.done_at_once(out, reason),
                None => LoadState::Done { reason: None },
            };
        }
        let head = path[landed];
        if !self.nodes[head].has(flag::FETCHING) && !self.readable(head) {
            let reason = self.miss_reason(Some(head), None);
            return self.done_at_once(out, reason);
        }
        if deadline <= now {
            return self.done_at_once(out, MissReason::Timeout);
        }
        if self.loads.loads.len() >= self.loads.max as usize {
            return self.done_at_once(out, MissReason::Quota);
        }
        self.leases.get_mut(lease).expect("found above").loads += 1;
        let waiter = Waiter { client, lease, request };
        let sent = out.len() as u32;
        let load = Load {
            waiter: Some(waiter),
            owner: instance,
            path: path[landed..pays].to_vec(),
            below: Vec::new(),
            cursor: 0,
            planned: 0,
            deadline,
            landed: Vec::new(),
            sent,
            tail,
            end: None,
        };
        self.add_load(load, now);
        self.work_some(now);
        LoadState::Pending
    }

    fn done_at_once(&mut self, out: &mut Vec<Landed>, reason: MissReason) -> LoadState {
        self.counters.missed(reason);
        out.push(Landed::missed(reason));
        LoadState::Done { reason: Some(reason) }
    }

    /// The blocks that a load names, first to last; `None` when the lease does not hold them.
    fn path(&self, client: ClientSlot, lease: LeaseId, first: u32, count: u32) -> Option<(Vec<NodeId>, Speed)> {
        let instance = self.instances.of(client)?;
        let lease = self.leases.get(lease).filter(|lease| lease.instance == instance && !lease.released)?;
        let LeaseKind::Match { deepest, blocks } = lease.kind else { return None };
        if lease.pins.len() + count as usize > blocks as usize * PINS_PER_BLOCK_MAX {
            return None;
        }
        let end = first.checked_add(count)?.min(blocks);
        if first >= end {
            return None;
        }
        let mut at = deepest;
        for _ in end..blocks {
            at = self.nodes[at].parent.get()?;
        }
        let mut path = vec![NodeId::NONE; (end - first) as usize];
        for place in (0..path.len()).rev() {
            path[place] = at;
            if place > 0 {
                at = self.nodes[at].parent.get()?;
            }
        }
        Some((path, lease.speed))
    }

    /// How many blocks of the path are worth loading, and why not all.
    fn paying(&self, path: &[NodeId], speed: Speed) -> (usize, Option<MissReason>) {
        let Some(mut gate) = Gate::new(speed).filter(|_| self.config.gate) else { return (path.len(), None) };
        for id in path {
            let node = &self.nodes[*id];
            if node.has(flag::DRAM_READY) {
                gate.dram();
            } else {
                let device = self.nvme.devices.get(usize::from(node.device));
                device.into_iter().for_each(|found| {
                    gate.fetch(&found.reads, u64::from(self.lanes.get(node.lane).slot_bytes));
                });
            }
        }
        let pays = (gate.paying() as usize).min(path.len());
        (pays, (pays < path.len()).then_some(MissReason::SlowerThanRecompute))
    }

    /// Grants a block that lies in the arena and came from `tier`.
    fn land(&mut self, id: NodeId, client: ClientSlot, lease: LeaseId, tier: Tier) -> Landed {
        let slot = self.dram_slot(id).expect("a published copy has a slot");
        if !cfg!(kvd_bug = "landed_unpinned") {
            self.pin_slot(slot, Holder::Client(client));
            self.leases.get_mut(lease).expect("a load has its lease").pins.push((slot, client));
        }
        match tier {
            Tier::Nvme => self.counters.nvme_hits += 1,
            Tier::Hbm | Tier::Dram | Tier::Object | Tier::Peer => self.counters.dram_hits += 1,
        }
        let node = &self.nodes[id];
        let lane = self.lanes.get(node.lane);
        Landed {
            status: LandedStatus::Landed,
            reason: None,
            tier: Some(tier),
            segment: slot.segment().0,
            offset: u64::from(slot.index()) * u64::from(lane.slot_bytes),
            slot_bytes: lane.slot_bytes,
            generation: node.generation,
            meta_checksum: node.meta_checksum,
            seed: checksum_seed(&node.key, &lane.shard),
        }
    }

    /// Brings the blocks of a chain that lie below into the arena, without telling anyone. Returns how many.
    pub fn prefetch(
        &mut self,
        client: ClientSlot,
        view: ViewId,
        hashes: &(impl HashSource + ?Sized),
        now: Time,
    ) -> u32 {
        let Some(instance) = self.instances.of(client) else { return 0 };
        let Some((lane, group_key)) = self.views.get(view).map(|view| (view.lane, view.group_key)) else { return 0 };
        let (blocks, deepest) = self.longest_prefix(lane, &group_key, hashes);
        if blocks == 0 || self.loads.loads.len() >= self.loads.max as usize {
            return 0;
        }
        let mut path = Vec::new();
        let mut at = deepest;
        for _ in 0..blocks {
            if !self.nodes[at].has(flag::DRAM_READY) {
                path.push(at);
            }
            let Some(parent) = self.nodes[at].parent.get() else { break };
            at = parent;
        }
        path.reverse();
        let count = path.len() as u32;
        if count == 0 {
            return 0;
        }
        self.counters.prefetched += u64::from(count);
        let load = Load {
            waiter: None,
            owner: instance,
            path,
            below: Vec::new(),
            cursor: 0,
            planned: 0,
            deadline: now + self.config.prefetch_wait,
            landed: Vec::new(),
            sent: 0,
            tail: None,
            end: None,
        };
        self.add_load(load, now);
        self.work_some(now);
        count
    }

    fn add_load(&mut self, mut load: Load, now: Time) {
        for id in &load.path {
            let node = &mut self.nodes[*id];
            node.holds += 1;
            load.below.push(!node.has(flag::DRAM_READY));
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
            let Some(id) = load.path.get(planned as usize).copied().filter(|_| planned < cursor + AHEAD_MAX) else {
                return;
            };
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
        let from = self.nvme_slot(id).expect("a readable copy has a slot");
        if self.nvme.device(from.device()).fetching >= self.config.fetches_max {
            return Fetch::Busy;
        }
        let (class, slot_bytes) = {
            let lane = self.lanes.get(self.nodes[id].lane);
            (lane.dram_class, lane.slot_bytes)
        };
        let Ok(vacant) = self.take_dram(class, &Ask { owner, admission: None }) else { return Fetch::NoSlot };
        let filling = self.fill_slot(id, vacant, flag::FETCHING, owner);
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
            let tier = if load.below[cursor as usize] { Tier::Nvme } else { Tier::Dram };
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

    /// The block at a position of a leased prefix.
    pub(super) fn leased_block(&self, client: ClientSlot, lease: LeaseId, position: u32) -> Option<NodeId> {
        let instance = self.instances.of(client)?;
        let lease = self.leases.get(lease).filter(|lease| lease.instance == instance && !lease.released)?;
        let LeaseKind::Match { deepest, blocks } = lease.kind else { return None };
        let mut at = deepest;
        for _ in position.checked_add(1).filter(|end| *end <= blocks)?..blocks {
            at = self.nodes[at].parent.get()?;
        }
        Some(at)
    }

    /// Blocks that a load of this prefix would have to fetch: (bytes, slowest tier).
    pub(super) fn below(&self, deepest: NodeId, blocks: u32) -> (u64, Tier) {
        let lane = self.lanes.get(self.nodes[deepest].lane);
        if lane.below == 0 {
            return (0, Tier::Dram);
        }
        let (mut at, mut count) = (deepest, 0);
        for _ in 0..blocks {
            count += u64::from(self.nodes[at].below());
            let Some(parent) = self.nodes[at].parent.get() else { break };
            at = parent;
        }
        let tier = if count > 0 { Tier::Nvme } else { Tier::Dram };
        (count * u64::from(lane.slot_bytes), tier)
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
