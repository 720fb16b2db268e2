//! The ladder's moves, carried to the threads that make them, and their outcomes carried back.

use crossbeam::channel::TrySendError;
use kvd_proto::wire::ring::{Completion, Status};
use kvd_proto::wire::slab::{Landed, LandedStatus};
use kvd_proto::{Tier, Time};
use kvd_tiers::ladder::{DeviceFault, Move, Outcome, Reply, VerifyPlace};
use kvd_tiers::nvme::Command;
use kvd_tiers::{DeviceId, MoveId, SegmentId, SlotId};

use crate::core::clock;
use crate::core::device::Order as DeviceOrder;
use crate::core::state::Core;
use crate::core::verify::VerifyOrder;
use crate::metrics::counters::Edge;
use crate::object::tier::{Order, Wanted};

/// Work of one turn, so that requests are not kept waiting: a fetch from the object tier is one of a list, any other move an
/// order of its own.
const STEPS_PER_TURN: usize = 1024;
const STEPS_PER_MOVE: usize = 16;
/// Outcomes taken in one turn.
const OUTCOMES_PER_TURN: usize = 256;

/// What a move does, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Spill,
    Fetch,
    VerifyDram,
    VerifyNvme,
    Put,
    Get,
    Housekeeping,
}

/// A move that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnderWay {
    kind: Kind,
    /// Whose memory it reads or writes.
    segment: Option<SegmentId>,
}

/// An order that could not be given, and what that comes to.
struct NotGiven(MoveId, Outcome);

/// A device that is gone, or a daemon that stops: the ladder bounds what a device has to do, so its queue is not full.
const GONE: Outcome = Outcome::Failed(DeviceFault::Gone);

impl Core {
    /// Hands out what the ladder wants moved; whether there was anything.
    pub(super) fn hand_out_moves(&mut self, now: Time) -> bool {
        let mut any = false;
        let mut steps = STEPS_PER_TURN;
        let mut drained = false;
        while steps > 0 {
            let Some(next) = self.ladder.poll_move() else {
                drained = true;
                break;
            };
            any = true;
            steps = steps.saturating_sub(if matches!(next, Move::Get { .. }) { 1 } else { STEPS_PER_MOVE });
            if let Err(NotGiven(id, outcome)) = self.hand_out(next) {
                self.in_flight.remove(&id);
                self.ladder.finished(id, outcome, now);
            }
        }
        if drained && !self.wanted.is_empty() {
            any = true;
            // All at once: those that lie side by side are one request.
            let wanted = std::mem::take(&mut self.wanted);
            let ids: Vec<MoveId> = wanted.iter().map(|record| record.id).collect();
            if !self.order_object(Order::Get(wanted)) {
                for id in ids {
                    self.in_flight.remove(&id);
                    self.ladder.finished(id, GONE, now);
                }
            }
        }
        if drained {
            self.purge_store();
        }
        for device in &mut self.devices {
            if std::mem::take(&mut device.dirty) {
                device.waker.wake();
            }
        }
        any
    }

    fn hand_out(&mut self, next: Move) -> Result<(), NotGiven> {
        let id = next.id();
        let slot_of = |core: &Self, slot: SlotId, lost| core.ladder.table().extent(slot).ok_or(NotGiven(id, lost));
        let (device, command, segment, kind) = match next {
            Move::Spill { id, from, to, entry } => {
                // A source without memory lost its bytes.
                let memory = slot_of(self, from, Outcome::Corrupt)?;
                let command = Command::Write { id, slot: to, entry, memory };
                (to.device(), command, Some(from.segment()), Kind::Spill)
            }
            Move::Fetch { id, from, to, expect } => {
                let memory = slot_of(self, to, Outcome::Failed(DeviceFault::Io))?;
                let command = Command::Read { id, slot: from, expect, memory };
                (from.device(), command, Some(to.segment()), Kind::Fetch)
            }
            Move::Put { id, from, entry } => {
                let memory = slot_of(self, from, Outcome::Corrupt)?;
                self.in_flight.insert(id, UnderWay { kind: Kind::Put, segment: Some(from.segment()) });
                let given = self.order_object(Order::Put { id, entry, memory });
                return if given { Ok(()) } else { Err(NotGiven(id, GONE)) };
            }
            Move::Get { id, from, to, expect } => {
                let memory = slot_of(self, to, Outcome::Failed(DeviceFault::Io))?;
                self.in_flight.insert(id, UnderWay { kind: Kind::Get, segment: Some(to.segment()) });
                self.wanted.push(Wanted { id, from, expect, memory });
                return Ok(());
            }
            Move::Vacate { id, slot, .. } => (slot.device(), Command::Vacate { id, slot }, None, Kind::Housekeeping),
            Move::FormatZone { id, device, zone, slot_bytes } => {
                (device, Command::FormatZone { id, zone, slot_bytes }, None, Kind::Housekeeping)
            }
            Move::Verify { id, place: VerifyPlace::Nvme(slot), expect } => {
                (slot.device(), Command::Verify { id, slot, expect }, None, Kind::VerifyNvme)
            }
            Move::Verify { id, place: VerifyPlace::Dram(slot), expect } => {
                let order = VerifyOrder { id, slot: slot_of(self, slot, Outcome::Corrupt)?, expect };
                let sent = self.verifier.as_ref().is_some_and(|verifier| verifier.try_send(order).is_ok());
                self.in_flight.insert(id, UnderWay { kind: Kind::VerifyDram, segment: None });
                return if sent { Ok(()) } else { Err(NotGiven(id, GONE)) };
            }
            Move::Probe { id, device } => (device, Command::Probe { id }, None, Kind::Housekeeping),
        };
        self.in_flight.insert(id, UnderWay { kind, segment });
        self.order(device, DeviceOrder { command, segment }).map_err(|()| NotGiven(id, GONE))
    }

    /// Gives the object tier something to do. `false`: there is no room, or no tier.
    pub(super) fn order_object(&mut self, order: Order) -> bool {
        let orders = self.object.as_ref().and_then(|link| link.orders.as_ref());
        orders.is_some_and(|orders| orders.try_send(order).is_ok())
    }

    fn order(&mut self, device: DeviceId, order: DeviceOrder) -> Result<(), ()> {
        let device = self.devices.get_mut(usize::from(device.0)).ok_or(())?;
        let orders = device.orders.as_ref().ok_or(())?;
        match orders.try_send(order) {
            Ok(()) => {
                device.dirty = true;
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(()),
        }
    }

    /// Tells the ladder what came of its moves; whether there was anything.
    pub(super) fn take_outcomes(&mut self, now: Time) -> bool {
        let mut any = false;
        for _ in 0..OUTCOMES_PER_TURN {
            let Ok((id, outcome)) = self.outcomes.try_recv() else { break };
            any = true;
            if let Some(UnderWay { kind, segment }) = self.in_flight.remove(&id) {
                // Before anybody hears of it: the device is not to blame for memory that is gone.
                let lost = segment.is_some_and(|segment| self.look_for_loss(segment, now));
                if !(lost && matches!(kind, Kind::Fetch | Kind::Get)) {
                    self.count_outcome(kind, &outcome);
                }
            }
            self.ladder.finished(id, outcome, now);
        }
        any
    }

    /// Gives a segment up whose bytes are gone: somebody of the tenant cut the file short. Returns whether they are.
    pub(super) fn look_for_loss(&mut self, segment: SegmentId, now: Time) -> bool {
        let memory = self.ladder.table().extent(SlotId::new(segment, 0));
        let gone = memory.is_some_and(|slot| slot.memory().poisoned());
        if gone && self.ladder.lose_segment(segment, now) {
            tracing::warn!(segment = segment.0, "an arena segment lost its bytes: its blocks are given up");
        }
        gone
    }

    fn count_outcome(&self, kind: Kind, outcome: &Outcome) {
        match (kind, outcome) {
            (Kind::Spill, Outcome::Done { bytes, .. }) => self.counters.moved(Edge::DramToNvme).add(*bytes),
            (Kind::Fetch, Outcome::Done { bytes, .. }) => self.counters.moved(Edge::NvmeToDram).add(*bytes),
            (Kind::Put, Outcome::Done { bytes, .. }) => self.counters.moved(Edge::DramToObject).add(*bytes),
            (Kind::Get, Outcome::Done { bytes, .. }) => self.counters.moved(Edge::ObjectToDram).add(*bytes),
            (Kind::Get, Outcome::Corrupt) => self.counters.corrupt(Tier::Object).add(1),
            (Kind::Spill | Kind::Put | Kind::VerifyDram, Outcome::Corrupt) => self.counters.corrupt(Tier::Dram).add(1),
            (Kind::Fetch | Kind::VerifyNvme, Outcome::Corrupt) => self.counters.corrupt(Tier::Nvme).add(1),
            (_, Outcome::Done { .. } | Outcome::Corrupt | Outcome::Missing | Outcome::Failed(_)) => {}
        }
    }

    /// Passes on what loads have come to; whether one of them ended.
    pub(super) fn pass_on_replies(&mut self) -> bool {
        let mut ended = false;
        while let Some(reply) = self.ladder.poll_reply() {
            ended |= reply.end.is_some();
            self.pass_on(&reply);
        }
        ended
    }

    fn pass_on(&mut self, reply: &Reply) {
        let at = usize::from(reply.client.get());
        // A client that is gone, or whose session was replaced, has no such load any more.
        let Some(mut client) = self.clients[at].take() else { return };
        if let Some(place) = client.loads.iter().position(|load| load.request == reply.request) {
            let load = client.loads[place];
            let room = (load.count as usize).saturating_sub(reply.first as usize);
            let landed = &reply.landed[..reply.landed.len().min(room)];
            client.write_landed(load.slab, reply.first as usize, landed);
            let whole = self.count_landed(landed, load.payload_bytes);
            match reply.end {
                None => {
                    let count = reply.first + whole;
                    let _ = client.progress(&Completion { count, ..self.blank(load.token, Status::Partial) });
                }
                Some(end) => {
                    client.loads.swap_remove(place);
                    if let Some(reason) = end.reason {
                        self.counters.misses(reason).add(u64::from(load.count.saturating_sub(end.blocks)));
                    }
                    let op = kvd_proto::wire::ring::Op::Load;
                    self.counters.op_latency(op).record(clock::now().since(load.started));
                    let last =
                        Completion { reason: end.reason, count: end.blocks, ..self.blank(load.token, Status::Ok) };
                    // A ring that is broken shows at the next look at it.
                    let waits = client.complete(&last).unwrap_or(false);
                    self.counters.completions_delayed.add(u64::from(waits));
                }
            }
        }
        self.clients[at] = Some(client);
    }

    /// Blocks among `landed` that are whole; counts their bytes as on their way to the engine.
    pub(super) fn count_landed(&self, landed: &[Landed], payload_bytes: u32) -> u32 {
        let whole = landed.iter().filter(|block| block.status == LandedStatus::Landed).count();
        self.counters.moved(Edge::DramToEngine).add(whole as u64 * u64::from(payload_bytes));
        whole as u32
    }
}
