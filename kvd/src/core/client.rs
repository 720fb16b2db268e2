//! What the core keeps of one session.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use kvd_nixl::sys::{MemoryExtent, RingError, Signal};
use kvd_proto::wire::ring::{Completion, ENTRY_BYTES};
use kvd_proto::wire::slab::{LANDED_BYTES, Landed};
use kvd_proto::{BlockHash, Epoch, HASH_BYTES_MAX, InstanceId, NamespaceDigest, Shard, Time, UnitOrder};
use kvd_tiers::{ClientSlot, RequestId, ViewId};

use crate::session::{SessionId, SessionLink, ViewRequest};

/// Views of one session at most.
pub(super) const VIEWS_MAX: usize = 256;
/// Questions of one session that may wait for the catalog: matches own a slab each, and as many prefetches.
pub(super) const QUESTIONS_MAX: usize = 2 * kvd_proto::wire::ring::SLABS as usize;
/// Loads of one session that may wait: one per slab makes sense, as each owns its slab.
pub(super) const LOADS_MAX: usize = kvd_proto::wire::ring::SLABS as usize;

/// A view that a session opened, by its number in requests.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) id: ViewId,
    pub(super) namespace: NamespaceDigest,
    pub(super) group: u16,
    pub(super) shard: Shard,
    pub(super) payload_bytes: u32,
    pub(super) meta_bytes: u32,
    pub(super) unit_bytes: u32,
    pub(super) units: u32,
    pub(super) unit_order: UnitOrder,
    /// Some plane is whole in every shard of a layer.
    pub(super) replicated: bool,
    pub(super) block_tokens: u32,
    pub(super) token_ids: bool,
    pub(super) hash_bytes: usize,
}

impl View {
    /// Whether it is the one that is asked for: with the namespace, the shard and what goes with a record all else is equal.
    pub(super) fn is(&self, wanted: &ViewRequest) -> bool {
        (self.namespace, self.group, &self.shard) == (wanted.namespace, wanted.group, &wanted.shard)
            && (self.token_ids, self.hash_bytes) == (wanted.token_ids, wanted.hash_bytes)
    }

    /// Whether records of another shard can have anything of this one's.
    pub(super) fn overlaps(&self, other: &Shard) -> bool {
        let meet = |one: Range<u16>, two: Range<u16>| one.start.max(two.start) < one.end.min(two.end);
        let heads = self.replicated || meet(self.shard.heads(), other.heads());
        *other != self.shard
            && other.interleave() == self.shard.interleave()
            && heads
            && meet(self.shard.layers(), other.layers())
    }
}

/// A load that waits for moves.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitingLoad {
    pub(super) request: RequestId,
    pub(super) token: u64,
    pub(super) slab: u16,
    pub(super) count: u32,
    pub(super) payload_bytes: u32,
    pub(super) started: Time,
}

/// What waits for the catalog's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A match, to be answered under this token, with or without a lease.
    Match { token: u64, want_lease: bool },
    /// A question how much is there, to be answered under this token.
    Probe { token: u64 },
    /// A prefetch, which was answered.
    Prefetch,
}

/// A chain that the catalog was asked about.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) ticket: u64,
    pub(super) view: ViewId,
    /// Of the whole chain. The client may change its slab meanwhile.
    pub(super) hashes: Arc<[BlockHash]>,
    /// The first that was asked about.
    pub(super) first: u32,
    pub(super) purpose: Purpose,
    pub(super) asked: Time,
    pub(super) due: Time,
    /// Purges of the store that had been asked for.
    pub(super) purges: u64,
}

/// Who a client is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) instance: InstanceId,
    pub(super) role: &'static str,
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) uid: u32,
    /// 0 where it cannot be seen.
    pub(super) pid: u32,
    /// In clock ticks since boot; with the pid it names one process.
    pub(super) start_time: u64,
    /// Of the daemon that it joined: this one, or one before it.
    pub(super) epoch: Epoch,
}

/// One client slot that is taken.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) session: SessionId,
    pub(super) slot: ClientSlot,
    /// `None` for a process of an earlier epoch that has not rejoined: only its instance is known.
    pub(super) identity: Identity,
    /// `None` once the socket is gone.
    pub(super) link: Option<SessionLink>,
    pub(super) connected: Time,
    pub(super) requests: u64,
    pub(super) views: Vec<View>,
    pub(super) loads: Vec<WaitingLoad>,
    /// Chains that the catalog was asked about.
    pub(super) questions: Vec<Question>,
    /// Completions that found the ring full. Bounded: requests are taken only while it is empty, and each leaves at most one
    /// final completion per waiting load or question behind.
    backlog: VecDeque<[u8; ENTRY_BYTES]>,
    /// Completions were pushed since the client was last woken.
    dirty: bool,
}

impl Client {
    pub(super) fn new(
        session: SessionId,
        slot: ClientSlot,
        identity: Identity,
        link: Option<SessionLink>,
        now: Time,
    ) -> Self {
        Self {
            session,
            slot,
            identity,
            link,
            connected: now,
            requests: 0,
            views: Vec::new(),
            loads: Vec::new(),
            questions: Vec::new(),
            backlog: VecDeque::with_capacity(LOADS_MAX + 1),
            dirty: false,
        }
    }

    /// The next request, unless answers to earlier ones are still on their way.
    pub(super) fn next_request(&mut self) -> Result<Option<[u8; ENTRY_BYTES]>, RingError> {
        if !self.backlog.is_empty() {
            return Ok(None);
        }
        self.link.as_mut().map_or(Ok(None), |link| link.requests.pop())
    }

    /// Puts a completion into the ring, or keeps it until there is room. `true`: it had to wait.
    pub(super) fn complete(&mut self, completion: &Completion) -> Result<bool, RingError> {
        let Some(link) = &mut self.link else { return Ok(false) };
        let entry = completion.encode();
        if self.backlog.is_empty() && link.completions.push(&entry)? {
            self.dirty = true;
            return Ok(false);
        }
        self.backlog.push_back(entry);
        Ok(true)
    }

    /// Tells of progress if there is room; progress that finds none is told with the end.
    pub(super) fn progress(&mut self, completion: &Completion) -> Result<(), RingError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        // Half of the ring is left to final completions, so that they rarely wait.
        let room =
            self.backlog.is_empty() && link.completions.free()? > u64::from(kvd_proto::wire::ring::RING_ENTRIES / 2);
        if room && link.completions.push(&completion.encode())? {
            self.dirty = true;
        }
        Ok(())
    }

    /// Delivers what waits, and wakes the client if it sleeps.
    pub(super) fn deliver(&mut self) -> Result<(), RingError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        while let Some(entry) = self.backlog.front() {
            if !link.completions.push(entry)? {
                break;
            }
            self.backlog.pop_front();
            self.dirty = true;
        }
        if std::mem::take(&mut self.dirty) {
            // A bell that is broken belongs to a client that is gone; its socket tells.
            let _ = link.completions.wake(&link.bell);
        }
        Ok(())
    }

    /// Its rings are gone, and with them everything that was to be said there.
    pub(super) fn unplug(&mut self) {
        self.link = None;
        self.loads.clear();
        self.questions.clear();
        self.backlog.clear();
        self.dirty = false;
    }

    pub(super) fn is_backlogged(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Announces sleep on this client's ring; `false` if a request is there.
    pub(super) fn park(&mut self) -> Result<bool, RingError> {
        match &mut self.link {
            // A backlogged client's requests are not taken, so they must not keep us awake.
            Some(link) if self.backlog.is_empty() => link.requests.park(),
            _ => Ok(true),
        }
    }

    pub(super) fn unpark(&self) {
        if let Some(link) = &self.link {
            link.requests.unpark();
        }
    }

    /// Takes away the bell's signals. `false`: the peer's end is closed.
    pub(super) fn drain_bell(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.bell.drain().is_ok())
    }

    pub(super) fn slab(&self, slab: u16) -> Option<MemoryExtent> {
        self.link.as_ref()?.slab(slab)
    }

    /// Writes a part of a load's answer into its slab; `first` counts blocks.
    pub(super) fn write_landed(&self, slab: u16, first: usize, landed: &[Landed]) {
        let Some(slab) = self.slab(slab) else { return };
        for (at, block) in landed.iter().enumerate() {
            // Bounded when the request was taken; a write that does not fit would be ours to find, not the client's.
            let written = slab.write((first + at) * LANDED_BYTES, &block.encode());
            debug_assert!(written.is_ok());
        }
    }
}

/// The hashes in a slab, read when asked for: a match looks at few of them. The client may change them meanwhile; each is
/// read once, and whatever is read is a hash.
#[derive(Debug)]
pub(super) struct SlabHashes {
    pub(super) slab: MemoryExtent,
    /// Of the first hash, in bytes.
    pub(super) at: usize,
    pub(super) count: u32,
    pub(super) hash_bytes: usize,
}

impl SlabHashes {
    pub(super) fn hash(&self, index: u32) -> BlockHash {
        let mut padded = [0; HASH_BYTES_MAX];
        let at = self.at + index as usize * HASH_BYTES_MAX;
        self.slab.read(at, &mut padded).expect("the request was checked against the slab");
        BlockHash::new(&padded[..self.hash_bytes]).expect("a view's hashes have 1 to 32 bytes")
    }
}
