//! Which block falls first, and whether a newcomer is worth a victim.
//!
//! A policy sees accesses and gives ranks; the ladder does the rest. Only tier-leaves fall (blocks without a child in that
//! tier). They wait in queues that the policy names; in each the lowest rank is first, and among the firsts the policy chooses.
//! A match touches its deepest block and a few above it; when a leaf falls, its parent inherits from it, so that a prefix
//! never looks older than what was built on it.

mod adaptive;
mod lru;

use kvd_proto::{BlockKey, Time};

pub use adaptive::Adaptive;
pub use lru::Lru;

/// How much a block is worth keeping: the lowest rank falls first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rank(pub u64);

/// How many ancestors of the deepest matched block are told: enough to learn from, few enough for a match of microseconds.
pub const ABOVE_MAX: u32 = 16;

/// Queues that a policy may sort the evictable blocks of a space into.
pub const QUEUES_MAX: usize = 256;

/// What happened to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// The deepest block of a match: everything above it was used as well.
    Hit,
    /// A block was offered that is not resident: the candidate for admission. Offers arrive in chain order.
    Offer,
    /// A block right above the deepest one of a match, from there upwards: at most [`ABOVE_MAX`] of them are told.
    Above,
    /// A block was offered behind one that was not admitted, and is not stored: only to be remembered.
    Refused,
    /// A block was brought from NVMe into DRAM by a load or a prefetch.
    Fetch,
}

/// One access to one block.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// What happened.
    pub kind: AccessKind,
    /// Which block. Keys are uniform: any eight bytes are a good fingerprint.
    pub key: BlockKey,
    /// Its place in its chain, from 0.
    pub position: u32,
    /// Blocks of the chain known to this request: matched ones for a hit, the last offered one's position + 1 for an offer.
    pub chain_blocks: u32,
    /// Bytes of its slot.
    pub slot_bytes: u32,
    /// The rank it has so far; of the parent for an offer.
    pub rank: Rank,
    /// When.
    pub now: Time,
}

/// A space that is contended for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// The arena.
    Dram,
    /// All NVMe devices together.
    Nvme,
}

/// Decides what is worth its space. Deterministic, bounded memory, a few hundred nanoseconds per call, no clock.
pub trait Policy {
    /// A block was accessed: its new rank. Every access that the ladder tells of comes here exactly once.
    fn rank(&mut self, access: &Access) -> Rank;

    /// Whether `candidate` may push out the block with rank `victim` (the lowest evictable one). Asked only when `space` is
    /// full; `access` is the offer, or the block to be spilled. `false` leaves everything as it is and ends the offer here.
    fn admit(&mut self, space: Space, candidate: Rank, victim: Rank, access: &Access) -> bool;

    /// The queue, below [`QUEUES_MAX`], in which a block of this rank waits to fall; within it the lowest rank is first.
    fn queue(&self, _rank: Rank) -> usize {
        0
    }

    /// Which of these falls, as an index: the lowest ranks of all queues that are not empty.
    fn choose(&mut self, firsts: &[Rank]) -> usize {
        let lowest = firsts.iter().enumerate().min_by_key(|(_, rank)| **rank);
        lowest.map_or(0, |(index, _)| index)
    }

    /// The rank of a block after its child of rank `child` fell: its own, but no older than what was built on it.
    fn inherit(&self, own: Rank, child: Rank) -> Rank {
        own.max(child)
    }

    /// A block left `space`. `gone` says that no copy is left anywhere.
    fn evicted(&mut self, space: Space, key: &BlockKey, rank: Rank, gone: bool);
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn rank(&mut self, access: &Access) -> Rank {
        (**self).rank(access)
    }

    fn admit(&mut self, space: Space, candidate: Rank, victim: Rank, access: &Access) -> bool {
        (**self).admit(space, candidate, victim, access)
    }

    fn queue(&self, rank: Rank) -> usize {
        (**self).queue(rank)
    }

    fn choose(&mut self, firsts: &[Rank]) -> usize {
        (**self).choose(firsts)
    }

    fn inherit(&self, own: Rank, child: Rank) -> Rank {
        (**self).inherit(own, child)
    }

    fn evicted(&mut self, space: Space, key: &BlockKey, rank: Rank, gone: bool) {
        (**self).evicted(space, key, rank, gone);
    }
}
