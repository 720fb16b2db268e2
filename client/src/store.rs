//! From the engine's memory into the arena: offer, copy with checksums, commit.

mod filling;
mod pipeline;

use std::time::Instant;

use kvd_proto::wire::ring::{BLOCKS_PER_CALL_MAX, FLAG_PARENT, FLAG_TOKENS};
use kvd_proto::wire::slab::{GRANTED_BYTES, offer_bytes, put_hash};
use kvd_proto::{BlockHash, HASH_BYTES_MAX, MissReason};

use crate::deadline::deadline_in;
use crate::layout::BlockMemory;
use crate::link::Call;
use crate::matching::reason_of;
use crate::view::View;
use pipeline::Pipeline;

/// Bytes of the copies of one batch, at most: some hundred microseconds, in which the daemon deals with the batches around it.
/// Each batch wakes the daemon twice, which takes 5 us each.
const BATCH_BYTES: usize = 8 << 20;
/// Of the first and the last one, for which the client has to wait.
const EDGE_BATCH_BYTES: usize = 1 << 20;
/// The same for a device, which copies faster and is slower to begin; its largest batches fill a chunk of its lane.
const DEVICE_EDGE_BATCH_BYTES: usize = 4 << 20;
/// Blocks of one offer: enough to spread the round trips, few enough that the first ones are of use to others soon.
const BLOCKS_PER_OFFER_MAX: usize = 256;
const _: () = assert!(BLOCKS_PER_OFFER_MAX <= BLOCKS_PER_CALL_MAX as usize);

/// A chain's next blocks, to be stored.
#[derive(Debug, Clone, Copy)]
pub struct StoreRequest<'a> {
    /// The block before the first one; `None` where the chain begins here.
    pub parent: Option<BlockHash>,
    /// Position of the first one in its chain.
    pub first_position: u32,
    /// The blocks, each one the child of the one before.
    pub hashes: &'a [BlockHash],
    /// Where each lies in the engine's memory. What a device still writes there must have ended: its work and ours are in no
    /// order. A [`crate::device::Mark`] says when it has.
    pub sources: &'a [BlockMemory<'a>],
    /// The token ids of all blocks, one after the other. Exactly if the view was opened with `token_ids`.
    pub tokens: &'a [u32],
}

/// What a store did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    /// Blocks copied and published.
    pub granted: u32,
    /// Blocks that the daemon had already, or that another process is just storing.
    pub present: u32,
    /// Blocks not stored.
    pub refused: u32,
    /// Why the first of these was not.
    pub reason: Option<MissReason>,
}

impl Stored {
    fn refuse(&mut self, blocks: usize, reason: MissReason) {
        self.refused += u32::try_from(blocks).unwrap_or(u32::MAX);
        self.reason = self.reason.or((blocks > 0).then_some(reason));
    }
}

impl View {
    /// Gives blocks to the daemon. Copies only what it wants. When this returns the blocks it counts as granted can be
    /// matched by anybody of the tenant, and the sources may change.
    pub fn store(&self, store: &StoreRequest<'_>) -> Stored {
        let mut stored = Stored::default();
        let count = store.hashes.len().min(store.sources.len());
        let Some(session) = self.engine.shared.session() else {
            stored.refuse(count, MissReason::TierDown);
            return stored;
        };
        let (payload_bytes, unit_bytes) = (self.inner.payload_bytes as usize, self.inner.units.unit_bytes as usize);
        let block_tokens = if self.inner.token_ids { self.inner.block_tokens as usize } else { 0 };
        let right = store.tokens.len() == count * block_tokens
            && store.hashes.iter().all(|hash| hash.len() == self.inner.hash_bytes)
            && store.sources.iter().all(|source| source.fits(payload_bytes, unit_bytes));
        if !right {
            stored.refuse(count, MissReason::Cold);
            return stored;
        }
        let mut settled = 0;
        let deadline = self.store_deadline();
        let ended = self.inner.opened(&session, deadline).and_then(|opened| {
            let pipeline = Pipeline { view: self, session: &session, opened };
            pipeline.store_all(&Batches { store, count, block_tokens }, &mut stored, &mut settled)
        });
        if let Err(error) = ended {
            // Of batches that had not come to their end nothing is known to be published.
            stored.refuse(count - settled, reason_of(error));
        }
        stored
    }

    fn store_deadline(&self) -> Instant {
        deadline_in(self.engine.shared.options.store_deadline)
    }
}

/// How many blocks batches have: they grow from the first one on and shrink to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    /// The most that fit a slab: their hashes and tokens, then their grants, then their commits.
    slab: usize,
    /// Of the first and the last batch, for which the client has to wait.
    edge: usize,
    /// Of a batch whose copies take about as long as the daemon's work on its neighbours.
    full: usize,
}

impl Pace {
    /// `meta_bytes` stand before each payload; a batch may have `lease_share` bytes of slots.
    fn new(
        view: &View,
        meta_bytes: usize,
        call: &Call<'_>,
        batches: &Batches<'_>,
        done: usize,
        lease_share: usize,
    ) -> Self {
        let inner = &view.inner;
        let offer = offer_bytes(1, u32::try_from(batches.block_tokens).unwrap_or(u32::MAX)).unwrap_or(usize::MAX);
        let commit = 8 + 8 * inner.units.count as usize;
        let slab = call.slab().len().saturating_sub(HASH_BYTES_MAX) / offer.max(commit).max(GRANTED_BYTES);
        let of = |bytes: usize| (bytes / inner.payload_bytes.max(1) as usize).clamp(2, BLOCKS_PER_OFFER_MAX);
        let (edge, full) = match batches.store.sources[done].lane() {
            None => (of(EDGE_BATCH_BYTES), of(BATCH_BYTES)),
            Some(lane) => (of(DEVICE_EDGE_BATCH_BYTES), lane.records_max().clamp(2, BLOCKS_PER_OFFER_MAX)),
        };
        let slots = lease_share / (meta_bytes + inner.payload_bytes as usize).max(1);
        Self { slab, edge, full: full.min(slots).max(1) }
    }

    /// Blocks of the next batch, after `done` of them and with `left` to go, which is not 0.
    fn next(self, done: usize, left: usize) -> usize {
        let enough = done.min(left / 2).clamp(self.edge.min(self.full), self.full);
        self.slab.clamp(1, enough.min(left).max(1))
    }
}

/// What a store is cut from.
struct Batches<'a> {
    store: &'a StoreRequest<'a>,
    count: usize,
    block_tokens: usize,
}

/// The blocks of one offer.
struct Batch<'a> {
    store: &'a StoreRequest<'a>,
    first: usize,
    count: usize,
    block_tokens: usize,
}

impl Batch<'_> {
    fn parent(&self) -> Option<&BlockHash> {
        match self.first.checked_sub(1) {
            Some(before) => self.store.hashes.get(before),
            None => self.store.parent.as_ref(),
        }
    }

    fn flags(&self) -> u8 {
        let parent = if self.parent().is_some() { FLAG_PARENT } else { 0 };
        let tokens = if self.block_tokens > 0 { FLAG_TOKENS } else { 0 };
        parent | tokens
    }

    fn offer(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HASH_BYTES_MAX * (self.count + 1) + 4 * self.count * self.block_tokens);
        match self.parent() {
            Some(parent) => put_hash(&mut out, parent),
            None => out.resize(HASH_BYTES_MAX, 0),
        }
        self.store.hashes[self.first..][..self.count].iter().for_each(|hash| put_hash(&mut out, hash));
        let tokens = self.store.tokens.iter().skip(self.first * self.block_tokens);
        tokens.take(self.count * self.block_tokens).for_each(|token| out.extend(token.to_le_bytes()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All batches of a store, from the first to the last.
    fn batches(pace: Pace, count: usize) -> Vec<usize> {
        let mut sizes = Vec::new();
        while sizes.iter().sum::<usize>() < count {
            let done = sizes.iter().sum();
            sizes.push(pace.next(done, count - done));
        }
        sizes
    }

    #[test]
    fn batches_grow_and_shrink_and_never_go_beyond() {
        let pace = Pace { slab: 1000, edge: 16, full: 128 };
        assert_eq!(batches(pace, 1024), [16, 16, 32, 64, 128, 128, 128, 128, 128, 128, 64, 32, 16, 16]);
        assert_eq!(batches(pace, 3), [3]);
        assert_eq!(batches(pace, 17), [16, 1]);
        assert_eq!(batches(Pace { slab: 5, ..pace }, 12), [5, 5, 2]);
        assert_eq!(
            batches(Pace { slab: 0, ..pace }, 2),
            [1, 1],
            "one that does not fit is refused where it is written"
        );
        assert_eq!(batches(Pace { full: 2, ..pace }, 5), [2, 2, 1], "a small lease");
        for count in 1..600 {
            let sizes = batches(pace, count);
            assert_eq!(sizes.iter().sum::<usize>(), count);
            assert!(sizes.iter().all(|size| (1..=128).contains(size)), "{sizes:?}");
        }
    }
}
