//! What the core thread owns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::Thread;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use kvd_nixl::sys::{EventFd, MemoryExtent, Signal};
use kvd_proto::{Epoch, TenantKey, Time};
use kvd_tiers::dram::Arena;
use kvd_tiers::ladder::{Ladder, Outcome, SlotTable};
use kvd_tiers::policy::Policy;
use kvd_tiers::record::META_BYTES_MAX;
use kvd_tiers::{ClientSlot, MoveId, SegmentId, SlotEntry, SlotId, TenantId};

use crate::core::client::Client;
use crate::core::device::{DeviceHealth, Order};
use crate::core::handle::Asked;
use crate::core::namespaces::Namespaces;
use crate::core::sleeper::Sleeper;
use crate::core::verify::VerifyOrder;
use crate::metrics::counters::Counters;
use crate::object::purging::Scope;
use crate::object::tier::{ObjectLink, Wanted};
use crate::session::{Control, SessionCall};

/// The policy, whichever was configured.
pub(super) type AnyPolicy = Box<dyn Policy + Send>;

/// The arena, which also tells the preparer how far segments are in use.
pub(super) struct ArenaTable {
    pub(super) arena: Arena,
    /// One more than the highest segment ever assigned; read by the preparer.
    pub(super) assigned: Arc<AtomicU32>,
    pub(super) preparer: Thread,
}

impl SlotTable for ArenaTable {
    fn write(&mut self, slot: SlotId, entry: &SlotEntry) {
        self.arena.write(slot, entry);
    }

    fn vacate(&mut self, slot: SlotId, generation: u32) {
        self.arena.vacate(slot, generation);
    }

    fn pin(&mut self, slot: SlotId, client: ClientSlot) {
        self.arena.pin(slot, client);
    }

    fn unpin(&mut self, slot: SlotId, client: ClientSlot) {
        self.arena.unpin(slot, client);
    }

    fn assign_segment(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool {
        let assigned = self.arena.assign_segment(segment, tenant, slot_bytes);
        // Relaxed: a hint of how far to prepare.
        self.assigned.fetch_max(segment.0 + 1, Ordering::Relaxed);
        self.preparer.unpark();
        assigned
    }

    fn scrub(&mut self, segment: SegmentId) {
        self.arena.scrub(segment);
    }
}

impl ArenaTable {
    /// The memory of a slot, if its segment is in use and whole.
    pub(super) fn extent(&self, slot: SlotId) -> Option<MemoryExtent> {
        let (_, slot_bytes) = self.arena.assignment(slot.segment())?;
        let segment = self.arena.files().get(slot.segment())?;
        let at = slot.index() as usize * slot_bytes as usize;
        MemoryExtent::new(segment.memory().clone(), at, slot_bytes as usize).ok()
    }
}

/// The core's end of one device.
pub(super) struct DeviceLink {
    pub(super) path: String,
    pub(super) io: &'static str,
    pub(super) capacity_bytes: u64,
    /// `None` once the daemon stops.
    pub(super) orders: Option<Sender<Order>>,
    pub(super) waker: kvd_nixl::io::IoWaker,
    pub(super) health: Arc<DeviceHealth>,
    /// Orders were sent since the device was last woken.
    pub(super) dirty: bool,
}

/// Settings that requests use.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) tenant: TenantId,
    pub(super) tenant_key: TenantKey,
    pub(super) match_deadline: Duration,
    pub(super) load_deadline: Duration,
    pub(super) stop_deadline: Duration,
}

/// What the start found, for the status.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StartReport {
    pub(super) started: Time,
    pub(super) ready: Time,
    pub(super) restored_dram: u64,
    pub(super) restored_nvme: u64,
}

/// Everything that the core thread owns. Its neighbours speak to it through channels and ring `doorbell`.
pub(crate) struct Core {
    pub(super) ladder: Ladder<ArenaTable, AnyPolicy>,
    pub(super) epoch: Epoch,
    pub(super) settings: Settings,
    pub(super) report: StartReport,
    /// By client slot.
    pub(super) clients: Vec<Option<Client>>,
    /// The client that is served first in the next turn.
    pub(super) first_client: usize,
    pub(super) next_request: u64,
    pub(super) gauges_due: Time,
    pub(super) namespaces: Namespaces,
    /// Drains that came to their end, and how many records the last one left in DRAM alone.
    pub(super) drains: u64,
    pub(super) drain_left: u64,
    pub(super) devices: Vec<DeviceLink>,
    /// `None` where there is no object tier.
    pub(super) object: Option<ObjectLink>,
    /// Purges that reach the store once the ladder's are over.
    pub(super) store_purges: Vec<Scope>,
    /// Records to be asked of it at the end of the turn.
    pub(super) wanted: Vec<Wanted>,
    /// The object tier answers.
    pub(super) object_up: bool,
    /// When questions to the catalog are given up.
    pub(super) questions_due: BTreeSet<(Time, u64)>,
    /// `None` once the daemon stops.
    pub(super) verifier: Option<Sender<VerifyOrder>>,
    pub(super) sleeper: Sleeper,
    /// Set by whoever stops the daemon.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) calls: Receiver<SessionCall>,
    pub(super) control: Sender<Control>,
    pub(super) control_event: Arc<EventFd>,
    pub(super) commands: Receiver<Asked>,
    pub(super) outcomes: Receiver<(MoveId, Outcome)>,
    pub(super) counters: Arc<Counters>,
    /// What each move in flight does, for the counters; the ladder bounds them.
    pub(super) in_flight: BTreeMap<MoveId, super::moves::UnderWay>,
    pub(super) scratch: Scratchpad,
}

/// Memory that requests use in turn; made once.
pub(super) struct Scratchpad {
    pub(super) landed: Vec<kvd_proto::wire::slab::Landed>,
    pub(super) granted: Vec<kvd_proto::wire::slab::Granted>,
    pub(super) slab: Vec<u8>,
    pub(super) metadata: Vec<u8>,
    pub(super) tokens: Vec<u8>,
}

impl Scratchpad {
    pub(super) fn new() -> Self {
        let blocks = kvd_proto::wire::ring::BLOCKS_PER_CALL_MAX as usize;
        Self {
            landed: Vec::with_capacity(blocks),
            granted: Vec::with_capacity(blocks),
            slab: vec![0; kvd_proto::wire::ring::SLAB_BYTES as usize],
            metadata: vec![0; META_BYTES_MAX],
            tokens: Vec::new(),
        }
    }
}

impl Core {
    /// Tells the sessions thread something. Its channel has room for one word per client slot and more.
    pub(super) fn control(&self, control: Control) {
        if self.control.try_send(control).is_err() {
            tracing::error!(?control, "the sessions thread does not listen");
        }
        let _ = self.control_event.signal();
    }
}
