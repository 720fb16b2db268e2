//! The longest prefix that the daemon has, and the hold on it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::sys::{MemoryError, MemoryExtent};
use kvd_proto::wire::ring::{BLOCKS_PER_CALL_MAX, FLAG_LEASE, FLAG_PROBE, Op, Request, Status};
use kvd_proto::{BlockHash, HASH_BYTES_MAX, MissReason, Tier};

use crate::deadline::deadline_in;
use crate::link::CallError;
use crate::session::Session;
use crate::shards::Excerpt;
use crate::view::{Inner, View, request};

/// An hour: what takes longer is as good as never.
const ESTIMATE_MAX_US: u64 = 3_600_000_000;
/// Hashes that are put together before they go into the slab.
const HASHES_PER_PAGE: usize = 128;

/// A prefix that was found, held for this engine until it is dropped or [released](Match::release).
#[derive(Debug, Default)]
pub struct Match {
    blocks: u32,
    /// Of those, what is here in the view's own shard.
    own: u32,
    reason: Option<MissReason>,
    slowest: Option<Tier>,
    estimate: Duration,
    /// Where the leases hold; `None` if there is none.
    pub(crate) session: Option<Arc<Session>>,
    /// One lease per [`BLOCKS_PER_CALL_MAX`] hashes.
    pub(crate) parts: Vec<Part>,
    /// What the blocks behind the view's own are put together from.
    pub(crate) others: Vec<Other>,
}

/// What another shard gives.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) view: Arc<Inner>,
    pub(crate) found: Match,
    pub(crate) excerpt: Arc<Excerpt>,
}

/// What one lease holds.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) lease: u64,
    /// Positions in the hashes of the match.
    pub(crate) blocks: Range<u32>,
}

impl Match {
    /// Length of the prefix.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// How much of it is here in the view's own shard. The blocks behind are put together from shards that ranks of another tensor
    /// or pipeline parallel size wrote: to be stored once they are loaded, so that what follows them has its parents in this shard.
    pub fn own_blocks(&self) -> u32 {
        self.own
    }

    /// Why the first block behind the prefix is none of it; `None` if all matched.
    pub fn reason(&self) -> Option<MissReason> {
        self.reason
    }

    /// The slowest tier that holds a part of it.
    pub fn slowest(&self) -> Option<Tier> {
        self.slowest
    }

    /// How long the daemon needs to bring it into DRAM, by what it has measured.
    pub fn estimate(&self) -> Duration {
        self.estimate
    }

    /// Gives the hold back now.
    pub fn release(self) {}

    pub(crate) fn missed(reason: MissReason) -> Self {
        let mut found = Self::default();
        found.reason = Some(reason);
        found
    }
}

impl Drop for Match {
    fn drop(&mut self) {
        let Some(session) = self.session.take().filter(|session| !session.link.is_down()) else { return };
        for part in self.parts.drain(..) {
            session.link.give_back(Op::Release, part.lease);
        }
    }
}

impl View {
    /// The longest prefix of `hashes` that can be loaded. Never later than the engine's match deadline (50 ms unless set).
    pub fn match_prefix(&self, hashes: &[BlockHash]) -> Match {
        let session = self.engine.shared.session();
        let deadline = deadline_in(self.match_deadline(session.as_deref()));
        self.match_until(session, hashes, deadline)
    }

    /// The longest prefix of `hashes` that can be loaded; never later than `within` from now.
    pub fn match_prefix_within(&self, hashes: &[BlockHash], within: Duration) -> Match {
        self.match_until(self.engine.shared.session(), hashes, deadline_in(within))
    }

    fn match_until(&self, session: Option<Arc<Session>>, hashes: &[BlockHash], deadline: Instant) -> Match {
        let Some(session) = session else { return Match::missed(MissReason::TierDown) };
        if hashes.iter().any(|hash| hash.len() != self.inner.hash_bytes) {
            return Match::missed(MissReason::Cold);
        }
        let mut found = self.match_here(&session, hashes, deadline);
        if (found.blocks as usize) < hashes.len() {
            self.match_others(&session, hashes, deadline, &mut found);
        }
        found
    }

    /// In the view's own shard.
    fn match_here(&self, session: &Arc<Session>, hashes: &[BlockHash], deadline: Instant) -> Match {
        let mut found = Match::default();
        found.session = Some(session.clone());
        for part in hashes.chunks(BLOCKS_PER_CALL_MAX as usize) {
            match self.match_part(session, part, deadline, &mut found) {
                Ok(blocks) if blocks as usize == part.len() => {}
                Ok(_) => return found,
                Err(error) => {
                    found.reason = Some(reason_of(error));
                    return found;
                }
            }
        }
        found
    }

    /// Puts more blocks together from other shards, if those have them.
    fn match_others(&self, session: &Arc<Session>, hashes: &[BlockHash], deadline: Instant, found: &mut Match) {
        let silent = matches!(found.reason, Some(MissReason::TierDown | MissReason::Timeout));
        if silent || Instant::now() >= deadline {
            return;
        }
        let opened = self.others.as_ref().zip(self.inner.opened(session, deadline).ok());
        let Some((others, opened)) = opened else { return };
        let sources = others.ask(session, opened.number, deadline);
        let mut prefixes = vec![0; sources.views.len()];
        for (at, inner) in sources.usable() {
            prefixes[at] = self.of_other(inner).probe(session, hashes, deadline);
        }
        let Some((mut blocks, excerpts)) = sources.choose(&self.inner, &prefixes, found.own) else { return };
        let (mut parts, mut reason) = (Vec::with_capacity(excerpts.len()), found.reason);
        for (at, excerpt) in excerpts {
            let inner = &sources.views[at];
            let other = self.of_other(inner).match_here(session, &hashes[..blocks as usize], deadline);
            if other.blocks < blocks {
                // It fell meanwhile, or cannot be held.
                (blocks, reason) = (other.blocks, other.reason);
            }
            if blocks <= found.own {
                return;
            }
            parts.push(Other { view: inner.clone(), found: other, excerpt });
        }
        // Each of them pays by itself, or the daemon would have left it out; together they must as well.
        let fetching: Duration = parts.iter().map(|other| other.found.estimate).sum();
        let more = blocks - found.own;
        if others.computing(more).is_some_and(|computing| computing < fetching * more / blocks) {
            found.reason = Some(MissReason::SlowerThanRecompute);
            return;
        }
        found.blocks = blocks;
        found.reason = reason.filter(|_| (blocks as usize) < hashes.len());
        found.slowest = parts.iter().map(|other| other.found.slowest).max().flatten().max(found.slowest);
        found.estimate += fetching;
        found.others = parts;
    }

    /// How much of a chain is there. Nothing is held, and the daemon does not count it as use.
    fn probe(&self, session: &Session, hashes: &[BlockHash], deadline: Instant) -> u32 {
        let mut blocks = 0;
        for part in hashes.chunks(BLOCKS_PER_CALL_MAX as usize) {
            let found = self.inner.opened(session, deadline).and_then(|opened| {
                let mut call = session.link.call(deadline)?;
                put_hashes(call.slab(), part).map_err(|_| CallError::Timeout)?;
                call.send(Request { flags: FLAG_PROBE, ..request(Op::Match, opened.number, part.len()) })?;
                call.next()
            });
            let count = found.map_or(0, |answer| answer.count.min(part.len() as u32));
            blocks += count;
            if (count as usize) < part.len() {
                break;
            }
        }
        blocks
    }

    /// The view of another shard.
    pub(crate) fn of_other(&self, inner: &Arc<Inner>) -> Self {
        Self { engine: self.engine.clone(), inner: inner.clone(), others: None }
    }

    fn match_part(
        &self,
        session: &Session,
        hashes: &[BlockHash],
        deadline: Instant,
        found: &mut Match,
    ) -> Result<u32, CallError> {
        let opened = self.inner.opened(session, deadline)?;
        let mut call = session.link.call(deadline)?;
        put_hashes(call.slab(), hashes).map_err(|_| CallError::Timeout)?;
        call.send(Request { flags: FLAG_LEASE, ..request(Op::Match, opened.number, hashes.len()) })?;
        let answer = call.next()?;
        // A daemon that claims more than was asked, or a hit without a hold on it, is not believed.
        let held = answer.status == Status::Ok && (answer.count == 0 || answer.lease != 0);
        let blocks = if held { answer.count.min(hashes.len() as u32) } else { 0 };
        if answer.lease != 0 {
            found.parts.push(Part { lease: answer.lease, blocks: found.blocks..found.blocks + blocks });
        }
        found.blocks += blocks;
        found.own += blocks;
        found.slowest = found.slowest.max(answer.tier);
        found.estimate += Duration::from_micros(answer.arg.min(ESTIMATE_MAX_US));
        found.reason = match (blocks as usize == hashes.len(), answer.reason) {
            (true, _) => None,
            (false, reason) => Some(reason.unwrap_or(MissReason::Cold)),
        };
        Ok(blocks)
    }
}

/// Puts the hashes where the daemon reads them. A page at a time: asking the slab for its bounds costs more than 32 bytes do.
fn put_hashes(slab: &MemoryExtent, hashes: &[BlockHash]) -> Result<(), MemoryError> {
    let mut page = [0; HASHES_PER_PAGE * HASH_BYTES_MAX];
    for (number, hashes) in hashes.chunks(HASHES_PER_PAGE).enumerate() {
        for (place, hash) in page.as_chunks_mut().0.iter_mut().zip(hashes) {
            *place = hash.padded();
        }
        slab.write(number * page.len(), &page[..hashes.len() * HASH_BYTES_MAX])?;
    }
    Ok(())
}

/// What a call without an answer means for its blocks.
pub(crate) fn reason_of(error: CallError) -> MissReason {
    match error {
        CallError::Down => MissReason::TierDown,
        CallError::Timeout => MissReason::Timeout,
        CallError::Device => MissReason::Device,
    }
}
