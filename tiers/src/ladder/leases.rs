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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lease(touched: Time) -> Lease {
        Lease {
            id: LeaseId(0),
            instance: 0,
            client: ClientSlot::new(0).unwrap(),
            kind: LeaseKind::Match { deepest: NodeId(0), blocks: 1 },
            slot_bytes: 8192,
            speed: Speed { block_tokens: 16, tokens_per_second: 0 },
            charge: 8192,
            touched,
            pins: Vec::new(),
            loads: 0,
            released: false,
        }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn an_old_number_is_never_a_new_lease() {
        let mut leases = Leases::new(3);
        let all = [1, 2, 3].map(|second| leases.add(lease(at(second))));
        assert!(leases.full());
        assert_eq!(leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), all);
        assert!(all.iter().all(|id| leases.get(*id).is_some_and(|found| found.id == *id)));
        assert_eq!(leases.remove(all[1]).map(|lease| lease.touched), Some(at(2)));
        assert!(leases.remove(all[1]).is_none());
        assert_eq!((leases.used(), leases.full(), leases.at(1)), (2, false, Ok(None)));
        let new = leases.add(lease(at(4)));
        assert!(leases.get(all[1]).is_none() && leases.get_mut(all[1]).is_none() && leases.remove(all[1]).is_none());
        assert_eq!(leases.get_mut(new).map(|lease| lease.touched), Some(at(4)));
        assert_eq!((leases.at(1), leases.at(2), leases.at(3)), (Ok(Some(new)), Ok(Some(all[2])), Err(())));
        assert!(leases.full());
    }

    #[test]
    fn only_what_nobody_touched_or_uses_is_idle() {
        let mut leases = Leases::new(8);
        let all = [1, 1, 1, 1, 2, 3].map(|second| leases.add(lease(at(second))));
        leases.get_mut(all[0]).unwrap().touched = at(9);
        leases.get_mut(all[1]).unwrap().loads = 1;
        leases.get_mut(all[2]).unwrap().pins.push((SlotId::from_raw(0), ClientSlot::new(0).unwrap()));
        leases.get_mut(all[3]).unwrap().released = true;
        assert_eq!(leases.idle_front(), Some(at(1)));
        assert_eq!(leases.pop_idle(at(2), at(20)), Some(all[4]));
        assert_eq!(leases.pop_idle(at(2), at(20)), None, "the last was touched later");
        leases.get_mut(all[1]).unwrap().loads = 0;
        assert_eq!(leases.pop_idle(at(9), at(29)), Some(all[5]));
        assert_eq!(leases.pop_idle(at(9), at(29)), Some(all[0]), "nine is when it was touched");
        assert_eq!(
            leases.pop_idle(at(19), at(39)),
            None,
            "who was busy is looked at again after as long as the others"
        );
        assert_eq!(leases.pop_idle(at(20), at(40)), Some(all[1]));
        assert_eq!(leases.pop_idle(at(20), at(40)), None);
        assert_eq!(leases.idle_front(), Some(at(40)));
    }

    #[test]
    fn leases_that_come_and_go_leave_no_trail() {
        let mut leases = Leases::new(4);
        let kept = [1, 2].map(|second| leases.add(lease(at(second))));
        for second in 0..100 {
            let id = leases.add(lease(at(10 + second)));
            leases.remove(id).unwrap();
            assert!(leases.idle.len() <= 8, "two entries for each lease that there may be");
        }
        assert_eq!([leases.pop_idle(at(5), at(200)), leases.pop_idle(at(5), at(200))], kept.map(Some));
        assert_eq!(leases.leases.len(), 3, "places are used again");
    }
}
