//! From the engine's memory into the arena: offer, copy with checksums, commit.

use std::time::Instant;

use kvd_nixl::sys::copy::Units;
use kvd_proto::wire::ring::{BLOCKS_PER_CALL_MAX, FLAG_PARENT, FLAG_TOKENS, Op, Request, Status};
use kvd_proto::wire::slab::{GRANTED_BYTES, Granted, GrantedStatus, offer_bytes, put_commit, put_hash};
use kvd_proto::{BlockHash, HASH_BYTES_MAX, MissReason};

use crate::deadline::deadline_in;
use crate::layout::BlockMemory;
use crate::link::{Call, CallError};
use crate::matching::reason_of;
use crate::segments::Segment;
use crate::session::Session;
use crate::view::{Opened, View, request};
use std::sync::Arc;

/// Bytes of the copies of one batch, at most: some hundred microseconds, in which the daemon deals with the batches around it.
/// Each batch wakes the daemon twice, which takes 5 us each.
const BATCH_BYTES: usize = 8 << 20;
/// Of the first and the last one, for which the client has to wait.
const EDGE_BATCH_BYTES: usize = 1 << 20;
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
    /// Where each lies in the engine's memory.
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
        let block_tokens = if self.inner.token_ids { self.inner.block_tokens as usize } else { 0 };
        let right = store.tokens.len() == count * block_tokens
            && store.hashes.iter().all(|hash| hash.len() == self.inner.hash_bytes)
            && store.sources.iter().all(|source| source.fits(self.inner.payload_bytes as usize));
        if !right {
            stored.refuse(count, MissReason::Cold);
            return stored;
        }
        let mut settled = 0;
        let deadline = self.store_deadline();
        let ended = self.inner.opened(&session, deadline).and_then(|opened| {
            let lane = Lane { view: self, session: &session, opened };
            lane.store_all(&Batches { store, count, block_tokens }, &mut stored, &mut settled)
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

    /// How many blocks the batch after `done` blocks has, with `left` to go: no more than fit a slab (their hashes and tokens,
    /// then their grants, then their commits), and no more than keep the copies of one batch about as long as the daemon's
    /// work on its neighbours. Batches grow from the first one on and shrink to the last.
    fn blocks_per_offer(&self, call: &Call<'_>, block_tokens: usize, done: usize, left: usize) -> usize {
        let slab = call.slab().len();
        let offer = offer_bytes(1, u32::try_from(block_tokens).unwrap_or(u32::MAX)).unwrap_or(usize::MAX);
        let commit = 8 + 8 * self.inner.units.count as usize;
        let most = slab.saturating_sub(HASH_BYTES_MAX) / offer.max(commit).max(GRANTED_BYTES);
        let of = |bytes: usize| (bytes / self.inner.payload_bytes.max(1) as usize).clamp(2, BLOCKS_PER_OFFER_MAX);
        let enough = done.min(left / 2).clamp(of(EDGE_BATCH_BYTES), of(BATCH_BYTES));
        most.clamp(1, enough.min(left).max(1))
    }
}

/// The way of batches to the daemon: while one is copied, the next is offered and the one before is published.
struct Lane<'a> {
    view: &'a View,
    session: &'a Session,
    opened: Opened,
}

impl<'a> Lane<'a> {
    /// Stores batch after batch; `settled` blocks of them are accounted for in `stored`.
    fn store_all(&self, batches: &Batches<'_>, stored: &mut Stored, settled: &mut usize) -> Result<(), CallError> {
        let mut first = 0;
        let mut ahead: Option<Offered<'a, '_>> = None;
        let mut behind: Option<Published<'a>> = None;
        loop {
            let offered = match ahead.take() {
                Some(offered) => offered,
                None if first == batches.count => break,
                None => {
                    // A store that waits for a place while it holds another could wait for ever.
                    if let Some(before) = behind.take() {
                        before.settle(stored, settled)?;
                    }
                    self.offer(self.session.link.call(self.view.store_deadline())?, batches, &mut first)?
                }
            };
            // Only where a place is free at once, for the same reason.
            if first < batches.count
                && let Some(call) = self.session.link.try_call(self.view.store_deadline())
            {
                ahead = Some(self.offer(call, batches, &mut first)?);
            }
            let published = self.fill(offered)?;
            if let Some(before) = behind.replace(published) {
                before.settle(stored, settled)?;
            }
        }
        behind.map_or(Ok(()), |last| last.settle(stored, settled))
    }

    /// Sends the offer of the batch that begins at `first`, which moves on.
    fn offer<'b>(
        &self,
        mut call: Call<'a>,
        batches: &Batches<'b>,
        first: &mut usize,
    ) -> Result<Offered<'a, 'b>, CallError> {
        let count = self.view.blocks_per_offer(&call, batches.block_tokens, *first, batches.count - *first);
        let batch = Batch { store: batches.store, first: *first, count, block_tokens: batches.block_tokens };
        call.slab().write(0, &batch.offer()).map_err(|_| CallError::Timeout)?;
        let position = batch.store.first_position.saturating_add(batch.first as u32);
        let offer = request(Op::Offer, self.opened.number, batch.count);
        call.send(Request { flags: batch.flags(), first: position, ..offer })?;
        *first += count;
        Ok(Offered { call, batch })
    }

    /// Copies what is wanted of a batch, and sends its commit.
    fn fill(&self, offered: Offered<'a, '_>) -> Result<Published<'a>, CallError> {
        let Offered { mut call, batch } = offered;
        let answer = call.next()?;
        let mut tally = Stored::default();
        if answer.status != Status::Ok {
            tally.refuse(batch.count, answer.reason.unwrap_or(MissReason::Quota));
            return Ok(Published { call: None, lease: None, filled: 0, tally, blocks: batch.count });
        }
        let lease = GrantLease { session: self.session, lease: answer.lease };
        let (view, session, opened) = (self.view, self.session, self.opened);
        let mut filled = Filling { view, session, opened, segments: Vec::new(), commit: Vec::new(), count: 0 };
        for index in 0..batch.count {
            let Some(granted) = read_granted(&call, index) else { return Err(CallError::Timeout) };
            match granted.status {
                GrantedStatus::Granted => {
                    filled.fill(&granted, &batch.store.sources[batch.first + index], call.deadline())?;
                }
                GrantedStatus::Present | GrantedStatus::InFlight => tally.present += 1,
                GrantedStatus::Refused => tally.refuse(1, granted.reason.unwrap_or(MissReason::Quota)),
            }
        }
        let (filled, commit) = (filled.count, filled.commit);
        let mut open = None;
        if filled > 0 {
            call.renew(view.store_deadline());
            call.slab().write(0, &commit).map_err(|_| CallError::Timeout)?;
            call.send(Request { lease: lease.lease, ..request(Op::Commit, opened.number, filled as usize) })?;
            open = Some(call);
        }
        Ok(Published { call: open, lease: Some(lease), filled, tally, blocks: batch.count })
    }
}

/// A batch that the daemon has been asked about.
struct Offered<'a, 'b> {
    call: Call<'a>,
    batch: Batch<'b>,
}

/// A batch that is copied, its commit under way.
struct Published<'a> {
    call: Option<Call<'a>>,
    /// Given back behind the commit's answer, unless it has ended with it.
    lease: Option<GrantLease<'a>>,
    filled: u32,
    tally: Stored,
    blocks: usize,
}

impl Published<'_> {
    /// Waits for the commit's answer and counts.
    fn settle(mut self, stored: &mut Stored, settled: &mut usize) -> Result<(), CallError> {
        if let Some(call) = &mut self.call {
            let published = call.next()?.count.min(self.filled);
            self.tally.granted += published;
            self.tally.refuse((self.filled - published) as usize, MissReason::LeaseLost);
            // All that was granted was filled, or the store would have ended before.
            if published == self.filled {
                self.lease.take().into_iter().for_each(GrantLease::is_over);
            }
        }
        stored.granted += self.tally.granted;
        stored.present += self.tally.present;
        stored.refused += self.tally.refused;
        stored.reason = stored.reason.or(self.tally.reason);
        *settled += self.blocks;
        Ok(())
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

/// Gives back what was granted and not committed, however the store ends.
struct GrantLease<'a> {
    session: &'a Session,
    lease: u64,
}

impl GrantLease<'_> {
    /// The daemon ends a lease with the last commit under it.
    fn is_over(mut self) {
        self.lease = 0;
    }
}

impl Drop for GrantLease<'_> {
    fn drop(&mut self) {
        if self.lease != 0 && !self.session.link.is_down() {
            self.session.link.give_back(Op::Abandon, self.lease);
        }
    }
}

/// Slots being filled, and what the commit will say of them.
struct Filling<'a> {
    view: &'a View,
    session: &'a Session,
    opened: Opened,
    segments: Vec<(u32, Arc<Segment>)>,
    commit: Vec<u8>,
    count: u32,
}

impl Filling<'_> {
    fn fill(&mut self, granted: &Granted, source: &BlockMemory<'_>, deadline: Instant) -> Result<(), CallError> {
        let segment = self.segment(granted.segment, deadline)?;
        let _copying = self.session.begin_copy().ok_or(CallError::Down)?;
        let (inner, meta_bytes) = (&self.view.inner, self.opened.meta_bytes);
        let payload_bytes = inner.payload_bytes as usize;
        let slot = (meta_bytes + payload_bytes <= granted.slot_bytes as usize)
            .then(|| segment.extent(granted.offset, granted.slot_bytes as usize))
            .flatten();
        let payload = slot.and_then(|slot| slot.part(meta_bytes, payload_bytes).ok()).ok_or(CallError::Timeout)?;
        let algorithm = self.opened.algorithm;
        let units = Units { unit_bytes: inner.units.unit_bytes as usize, algorithm, seed: granted.seed };
        let mut checksums = vec![0; inner.units.count as usize];
        source.gather(&payload, &units, &mut checksums).map_err(|_| CallError::Timeout)?;
        put_commit(&mut self.commit, granted.index, &checksums);
        self.count += 1;
        Ok(())
    }

    fn segment(&mut self, number: u32, deadline: Instant) -> Result<Arc<Segment>, CallError> {
        if let Some((_, open)) = self.segments.iter().find(|(found, _)| *found == number) {
            return Ok(open.clone());
        }
        let open = self.session.segment(number, deadline)?;
        self.segments.push((number, open.clone()));
        Ok(open)
    }
}

fn read_granted(call: &Call<'_>, index: usize) -> Option<Granted> {
    let mut bytes = [0; GRANTED_BYTES];
    call.slab().read(index * GRANTED_BYTES, &mut bytes).ok()?;
    Granted::decode(&bytes).ok()
}
