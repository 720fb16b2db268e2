//! From the engine's memory into the arena: offer, copy with checksums, commit.

use std::time::Instant;

use kvd_nixl::sys::copy::Units;
use kvd_proto::wire::ring::{BLOCKS_PER_CALL_MAX, FLAG_PARENT, FLAG_TOKENS, Op, Request, Status};
use kvd_proto::wire::slab::{GRANTED_BYTES, Granted, GrantedStatus, offer_bytes, put_commit, put_hash};
use kvd_proto::{BlockHash, HASH_BYTES_MAX, MissReason};

use crate::layout::BlockMemory;
use crate::link::{Call, CallError};
use crate::matching::reason_of;
use crate::segments::Segment;
use crate::session::Session;
use crate::view::{Opened, View, request};
use std::sync::Arc;

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
        let mut done = 0;
        while done < count {
            let deadline = Instant::now() + self.engine.shared.options.store_deadline;
            let offered = self.inner.opened(&session, deadline).and_then(|opened| {
                let call = session.link.call(deadline)?;
                let most = self.blocks_per_offer(&call, block_tokens);
                let batch = Batch { store, first: done, count: most.min(count - done), block_tokens };
                let before = stored;
                let result = self.store_batch(&session, opened, call, &batch, &mut stored);
                if result.is_err() {
                    // Nothing of the batch is known to be published.
                    stored = before;
                }
                result.map(|()| batch.count)
            });
            match offered {
                Ok(blocks) => done += blocks,
                Err(error) => {
                    stored.refuse(count - done, reason_of(error));
                    return stored;
                }
            }
        }
        stored
    }

    /// How many blocks fit a slab: their hashes and tokens, then their grants, then their commits.
    fn blocks_per_offer(&self, call: &Call<'_>, block_tokens: usize) -> usize {
        let slab = call.slab().len();
        let offer = offer_bytes(1, u32::try_from(block_tokens).unwrap_or(u32::MAX)).unwrap_or(usize::MAX);
        let commit = 8 + 8 * self.inner.units.count as usize;
        let most = slab.saturating_sub(HASH_BYTES_MAX) / offer.max(commit).max(GRANTED_BYTES);
        most.clamp(1, BLOCKS_PER_OFFER_MAX)
    }

    fn store_batch(
        &self,
        session: &Session,
        opened: Opened,
        mut call: Call<'_>,
        batch: &Batch<'_>,
        stored: &mut Stored,
    ) -> Result<(), CallError> {
        call.slab().write(0, &batch.offer()).map_err(|_| CallError::Timeout)?;
        let position = batch.store.first_position.saturating_add(batch.first as u32);
        let offer = Request { flags: batch.flags(), first: position, ..request(Op::Offer, opened.number, batch.count) };
        call.send(offer)?;
        let answer = call.next()?;
        if answer.status != Status::Ok {
            stored.refuse(batch.count, answer.reason.unwrap_or(MissReason::Quota));
            return Ok(());
        }
        let lease = GrantLease { session, lease: answer.lease };
        let mut filled = Filling { view: self, session, opened, segments: Vec::new(), commit: Vec::new(), count: 0 };
        for index in 0..batch.count {
            let Some(granted) = read_granted(&call, index) else { return Err(CallError::Timeout) };
            match granted.status {
                GrantedStatus::Granted => {
                    filled.fill(&granted, &batch.store.sources[batch.first + index], call.deadline())?;
                }
                GrantedStatus::Present | GrantedStatus::InFlight => stored.present += 1,
                GrantedStatus::Refused => stored.refuse(1, granted.reason.unwrap_or(MissReason::Quota)),
            }
        }
        if filled.count > 0 {
            let deadline = Instant::now() + self.engine.shared.options.store_deadline;
            let published = filled.commit(call, lease.lease, deadline)?.min(filled.count);
            stored.granted += published;
            stored.refuse((filled.count - published) as usize, MissReason::LeaseLost);
        }
        Ok(())
    }
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

    /// Publishes what was filled: how many blocks.
    fn commit(&self, call: Call<'_>, lease: u64, deadline: Instant) -> Result<u32, CallError> {
        drop(call);
        let mut call = self.session.link.call(deadline)?;
        call.slab().write(0, &self.commit).map_err(|_| CallError::Timeout)?;
        let count = self.count as usize;
        call.send(Request { lease, ..request(Op::Commit, self.opened.number, count) })?;
        call.next().map(|answer| answer.count)
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
