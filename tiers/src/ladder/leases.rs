//! Leases: what instances hold, numbered so that an old number is never taken for a new lease.

use std::collections::VecDeque;

use kvd_proto::{BlockHash, BlockKey, Time};

use super::guards::FillingSlot;
use super::lanes::Speed;
use super::nodes::NodeId;
use crate::ids::{ClientSlot, LeaseId, SlotId};

/// A slot to fill.
pub(super) struct Grant {
    pub(super) node: NodeId,
    /// `None` once it was committed or given up.
    pub(super) slot: Option<FillingSlot>,
    pub(super) hash: BlockHash,
    pub(super) parent_hash: Option<BlockHash>,
    /// As offered: the node may be cut loose from its parent while it is filled.
    pub(super) parent_key: Option<BlockKey>,
}

pub(super) enum LeaseKind {
    /// A matched prefix: its deepest block, which holds the others.
    Match { deepest: NodeId, blocks: u32 },
    /// Slots to fill.
    Fill { grants: Vec<Grant>, open: u32 },
}

pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) instance: u8,
    /// The process that got it.
    pub(super) client: ClientSlot,
    pub(super) kind: LeaseKind,
    pub(super) slot_bytes: u32,
    pub(super) speed: Speed,
    /// Bytes counted against the instance's cap.
    pub(super) charge: u64,
    pub(super) touched: Time,
    /// Slots that loads under this lease pinned, each for the process that asked.
    pub(super) pins: Vec<(SlotId, ClientSlot)>,
    /// Loads under way.
    pub(super) loads: u32,
    /// Given up by its owner; it ends when the last pin and load do.
    pub(super) released: bool,
}

const INDEX_BITS: u32 = 20;
/// Entries of the idle list that one call looks at.
const IDLE_LOOKS_MAX: usize = 256;

/// All leases.
pub(super) struct Leases {
    leases: Vec<Option<Lease>>,
    free: Vec<u32>,
    serial: u64,
    used: u32,
    max: u32,
    /// When to look again whether a lease is idle. One entry per match lease.
    idle: VecDeque<(Time, LeaseId)>,
}

impl Leases {
    pub(super) fn new(max: u32) -> Self {
        Self {
            leases: Vec::new(),
            free: Vec::new(),
            serial: 0,
            used: 0,
            max: max.min((1 << INDEX_BITS) - 1),
            idle: VecDeque::new(),
        }
    }

    pub(super) fn full(&self) -> bool {
        self.used >= self.max
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Numbers `lease` and keeps it. The caller looked at [`Leases::full`].
    pub(super) fn add(&mut self, mut lease: Lease) -> LeaseId {
        debug_assert!(!self.full());
        let index = self.free.pop().unwrap_or_else(|| {
            self.leases.push(None);
            self.leases.len() as u32 - 1
        });
        self.serial += 1;
        let id = LeaseId(self.serial << INDEX_BITS | u64::from(index));
        lease.id = id;
        let idles = matches!(lease.kind, LeaseKind::Match { .. });
        let touched = lease.touched;
        self.leases[index as usize] = Some(lease);
        if idles {
            self.note_idle(touched, id);
        }
        self.used += 1;
        id
    }

    fn index(id: LeaseId) -> usize {
        (id.0 & ((1 << INDEX_BITS) - 1)) as usize
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(Self::index(id))?.as_ref().filter(|lease| lease.id == id)
    }

    pub(super) fn get_mut(&mut self, id: LeaseId) -> Option<&mut Lease> {
        self.leases.get_mut(Self::index(id))?.as_mut().filter(|lease| lease.id == id)
    }

    pub(super) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        self.get(id)?;
        let index = Self::index(id);
        self.free.push(index as u32);
        self.used -= 1;
        self.leases[index].take()
    }

    /// The lease at this place of the table, for sweeps; `Err` behind the end.
    pub(super) fn at(&self, index: u32) -> Result<Option<LeaseId>, ()> {
        self.leases.get(index as usize).map(|found| found.as_ref().map(|lease| lease.id)).ok_or(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter().flatten()
    }

    fn note_idle(&mut self, touched: Time, id: LeaseId) {
        if self.idle.len() >= 2 * self.max as usize {
            let mut idle = std::mem::take(&mut self.idle);
            idle.retain(|(_, id)| self.get(*id).is_some());
            self.idle = idle;
        }
        self.idle.push_back((touched, id));
    }

    /// When the oldest entry of the idle list was made.
    pub(super) fn idle_front(&self) -> Option<Time> {
        self.idle.front().map(|(touched, _)| *touched)
    }

    /// The next lease that was not touched since `before`, taken off the list. A lease that was goes to the back, and so does
    /// one that is in use: that one is looked at again as if touched `now`, or the clock would be asked for without end.
    pub(super) fn pop_idle(&mut self, before: Time, now: Time) -> Option<LeaseId> {
        for _ in 0..self.idle.len().min(IDLE_LOOKS_MAX) {
            let (when, id) = *self.idle.front()?;
            if when > before {
                return None;
            }
            self.idle.pop_front();
            let Some(lease) = self.get(id) else { continue };
            let busy = lease.loads > 0 || !lease.pins.is_empty() || lease.released;
            if lease.touched <= before && !busy {
                return Some(id);
            }
            let soon = Time::from_nanos(before.as_nanos() + 1);
            let again = match busy {
                true if cfg!(kvd_bug = "idle_spin") => soon,
                true => now,
                false => lease.touched.max(when),
            };
            self.idle.push_back((again, id));
        }
        None
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.leases.capacity() * size_of::<Option<Lease>>()
            + self.idle.capacity() * size_of::<(Time, LeaseId)>()
            + self.free.capacity() * 4
    }
}
