//! One part of a run: what the daemon lands is copied, checked, and only then counted.

use std::ops::Range;
use std::time::Instant;

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::device::{Lane, PartError, RecordMove, Way};
use kvd_nixl::sys::copy::Units;
use kvd_proto::wire::ring::{Op, Request, Status};
use kvd_proto::{MissReason, Tier};

use super::Source;
use super::slots::Slots;
use crate::convoy::Convoy;
use crate::layout::{BlockMemory, Cuts, Place};
use crate::link::{Call, CallError, Link};
use crate::matching::{Part, reason_of};
use crate::session::Session;
use crate::shards::Excerpt;
use crate::view::{Opened, request};

/// Why a run of a load stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The daemon has no more.
    Miss(MissReason),
    /// The copy of this position, counted in the lease, is not what it should be.
    Corrupt(u32),
}

/// What was copied of one shard.
pub(super) struct Copied {
    /// For each block that is in place, where it lay.
    pub(super) tiers: Vec<Option<Tier>>,
    /// Why no more are.
    pub(super) stop: Option<Stop>,
}

/// Copies blocks `blocks` out of one lease of each source. While a device is at those of one, the next are given to it.
pub(super) fn copy<'a>(
    sources: &'a [Source<'a>],
    parts: &[&Part],
    blocks: Range<u32>,
    targets: &'a [BlockMemory<'a>],
    deadline: Instant,
) -> Vec<Copied> {
    let mut works = Vec::with_capacity(sources.len());
    let mut each = sources.iter().zip(parts).peekable();
    let (mut ahead, mut wanted) = (None, blocks.len());
    let first = |part: &Part| blocks.start - part.blocks.start;
    while let Some((source, part)) = each.next() {
        let asked = match ahead.take() {
            Some(asked) => Ok(asked),
            None => source.ask(part.lease, first(part), wanted as u32, deadline, |link| link.call(deadline)),
        };
        // Only where a place is free at once: who waits for one while he holds another could wait for ever.
        let free = |link: &'a Link| link.try_call(deadline).ok_or(CallError::Timeout);
        let next = each.peek();
        ahead = next.and_then(|(source, part)| source.ask(part.lease, first(part), wanted as u32, deadline, free).ok());
        let work = asked.map(|asked| Work::take_all(source, asked, &targets[..wanted]));
        wanted = work.as_ref().map_or(0, |work| work.taken);
        works.push(work);
        if wanted == 0 {
            break;
        }
    }
    // What a device has under way comes before whatever stopped the rest.
    let ended = works.into_iter().map(|work| match work {
        Ok(work) => work.end(),
        Err(stop) => Copied { tiers: Vec::new(), stop: Some(stop) },
    });
    ended.collect()
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Miss(reason_of(error))
    }
}

/// A block that a device copies: where it came from, and the checksums that it must have.
#[derive(Debug)]
struct Expecting {
    tier: Option<Tier>,
    sums: Vec<u64>,
}

/// A request for blocks that is under way.
pub(super) struct Sent<'a> {
    pub(super) session: &'a Session,
    pub(super) opened: Opened,
    pub(super) call: Call<'a>,
    /// Their first one's position in the lease.
    first: u32,
    wanted: u32,
}

impl<'a> Source<'a> {
    /// Asks for blocks of a lease.
    pub(super) fn ask(
        &'a self,
        lease: u64,
        first: u32,
        wanted: u32,
        deadline: Instant,
        place: impl FnOnce(&'a Link) -> Result<Call<'a>, CallError>,
    ) -> Result<Sent<'a>, Stop> {
        let current = self.view.engine.shared.session();
        // Another epoch, or a child of the process that took the lease.
        let lost = Stop::Miss(MissReason::LeaseLost);
        let session = self.found.session.as_deref().ok_or(lost)?;
        if current.is_none_or(|current| current.id != session.id) {
            return Err(lost);
        }
        let opened = self.view.inner.opened(session, deadline)?;
        let mut call = place(&session.link)?;
        call.send(Request { first, lease, ..request(Op::Load, opened.number, wanted as usize) })?;
        Ok(Sent { session, opened, call, first, wanted })
    }
}

/// Tells the daemon that the DRAM copy of a block is bad, and waits until it has put it aside.
pub(super) fn report(source: &Source<'_>, lease: u64, position: u32, deadline: Instant) -> Result<(), CallError> {
    let session = source.found.session.as_deref().ok_or(CallError::Down)?;
    // The call of the load has just been given back; its deadline holds here too.
    let mut call = session.link.call(deadline)?;
    call.send(Request { first: position, lease, ..request(Op::Corrupt, 0, 1) })?;
    call.next().map(drop)
}

impl Stop {
    /// What it is for those who are told.
    pub(super) fn reason(self) -> MissReason {
        match self {
            Self::Miss(reason) => reason,
            Self::Corrupt(_) => MissReason::Corrupt,
        }
    }

    /// Says which position a stop is about.
    fn at(self, position: u32) -> Self {
        match self {
            Self::Corrupt(_) => Self::Corrupt(position),
            miss @ Self::Miss(_) => miss,
        }
    }
}

/// What the copies of one shard work with.
struct Work<'a> {
    /// What a device copies. The first to go: nothing outlives it that it needs.
    convoy: Convoy<'a, Expecting>,
    /// A device's lane, and the lane for the excerpt on it.
    lane: Option<(&'a Lane, Lane)>,
    source: &'a Source<'a>,
    slots: Slots<'a>,
    /// Checksums that a block must have, and those that it has: memory that is used again for each.
    expected: Vec<u64>,
    found: Vec<u64>,
    cuts: Cuts,
    /// Position of the first block in its lease.
    first: u32,
    /// Blocks that were copied, or given to a device.
    taken: usize,
    /// Those that are in place.
    tiers: Vec<Option<Tier>>,
    /// Why no more are taken.
    stop: Option<Stop>,
    /// A block that a device had is not in place, or nobody knows.
    torn: bool,
}

impl<'a> Work<'a> {
    /// Takes what lands until all targets have their block or the daemon has no more.
    fn take_all(source: &'a Source<'a>, sent: Sent<'a>, targets: &'a [BlockMemory<'a>]) -> Self {
        let Sent { session, opened, mut call, first, wanted } = sent;
        let units = source.excerpt.map_or(source.view.inner.units.count as usize, |excerpt| excerpt.units);
        let mut work = Self {
            convoy: Convoy::new(session, Way::ToDevice),
            lane: None,
            source,
            slots: Slots::new(source, session, opened, call.deadline()),
            expected: Vec::new(),
            found: vec![0; units],
            cuts: Cuts::default(),
            first,
            taken: 0,
            tiers: Vec::new(),
            stop: None,
            torn: false,
        };
        work.stop = work.take_landed(&mut call, wanted, targets).err();
        work
    }

    fn take_landed(&mut self, call: &mut Call<'_>, wanted: u32, targets: &'a [BlockMemory<'a>]) -> Result<(), Stop> {
        loop {
            let answer = call.next()?;
            let landed = targets.len().min(answer.count.min(wanted) as usize);
            while self.taken < landed {
                self.take(call, &targets[self.taken])?;
                self.taken += 1;
            }
            self.convoy.send(self.slots.deadline)?;
            let all = self.taken == targets.len();
            match answer.status {
                // Another source has less than was asked for: what else comes is nobody's.
                _ if all && targets.len() < wanted as usize => return Ok(()),
                Status::Partial => {}
                Status::Ok if all => return Ok(()),
                Status::Ok | Status::Refused | Status::BadRequest => {
                    return Err(Stop::Miss(answer.reason.unwrap_or(MissReason::LeaseLost)));
                }
            }
        }
    }

    /// Waits for what a device has under way.
    fn end(mut self) -> Copied {
        let landed = self.land_all().err();
        let position = self.first + self.tiers.len() as u32;
        let stop = landed.or(self.stop).map(|stop| stop.at(position));
        Copied { tiers: self.tiers, stop }
    }

    /// Copies the next landed block and checks it, or gives it to a device.
    fn take(&mut self, call: &Call<'_>, target: &'a BlockMemory<'a>) -> Result<(), Stop> {
        let (slot, reading) = self.slots.open(call, self.taken)?;
        let (inner, excerpt) = (&self.source.view.inner, self.source.excerpt);
        match excerpt {
            None => std::mem::swap(&mut self.expected, &mut self.slots.sums),
            Some(excerpt) => {
                excerpt.select(&self.slots.sums, &mut self.expected).ok_or(Stop::Miss(MissReason::Cold))?;
            }
        }
        // A destination that does not fit is the engine's mistake: nothing is copied, the block is not told.
        let (payload_bytes, unit_bytes) = (inner.payload_bytes as usize, inner.units.unit_bytes as usize);
        if !target.fits(excerpt.map_or(payload_bytes, |excerpt| excerpt.whole_bytes), unit_bytes) {
            return Err(Stop::Miss(MissReason::Cold));
        }
        match target.place() {
            Place::Host(target) => {
                // Blocks are told in their order.
                self.land_all()?;
                let units = Units { unit_bytes, algorithm: slot.algorithm, seed: slot.seed };
                let copied = match excerpt {
                    None => target.scatter(&slot.payload, &units, &mut self.found),
                    Some(excerpt) => {
                        target.scatter_excerpt(&slot.payload, excerpt, &mut self.cuts, &units, &mut self.found)
                    }
                };
                drop(reading);
                copied.map_err(|_| Stop::Miss(MissReason::Cold))?;
                if self.found != self.expected {
                    return Err(Stop::Corrupt(0));
                }
                self.tiers.push(slot.tier);
            }
            Place::Device { lane, index } => {
                drop(reading);
                if slot.algorithm != ChecksumAlgorithm::Xxh3 {
                    return Err(Stop::Miss(MissReason::Device));
                }
                let pinned = slot.segment.pin(lane).ok_or(Stop::Miss(MissReason::Device))?;
                self.take_lane(lane, payload_bytes)?;
                let Some((_, lane)) = &self.lane else { return Err(Stop::Miss(MissReason::Device)) };
                let one = RecordMove { host: slot.payload, pinned: Some(pinned), index: *index, seed: slot.seed };
                self.convoy.add(
                    lane,
                    one,
                    Expecting { tier: slot.tier, sums: self.expected.clone() },
                    self.slots.deadline,
                )?;
            }
        }
        Ok(())
    }

    /// The lane for what is copied of records with so many bytes.
    fn take_lane(&mut self, lane: &'a Lane, payload_bytes: usize) -> Result<(), Stop> {
        if self.lane.as_ref().is_some_and(|(taken, _)| taken.is(lane)) {
            return Ok(());
        }
        let part = match self.source.excerpt {
            None => lane.clone(),
            Some(excerpt) => part_of(lane, payload_bytes, excerpt)?,
        };
        self.lane = Some((lane, part));
        Ok(())
    }

    /// Waits for what was given to a device, and checks it. Behind the first that is not in place nothing counts.
    fn land_all(&mut self) -> Result<(), Stop> {
        if self.torn {
            return Ok(());
        }
        // What is under way lands also where the rest cannot be sent any more.
        let sent = self.convoy.send(self.slots.deadline);
        let landed = self.land_sent().and(sent.map_err(Stop::from));
        self.torn = landed.is_err();
        landed
    }

    fn land_sent(&mut self) -> Result<(), Stop> {
        while let Some(moved) = self.convoy.next()? {
            if moved.sums != moved.tag.sums {
                return Err(Stop::Corrupt(0));
            }
            self.tiers.push(moved.tag.tier);
        }
        Ok(())
    }
}

/// The part of a lane for what is copied of records with so many bytes.
pub(super) fn part_of(lane: &Lane, payload_bytes: usize, excerpt: &Excerpt) -> Result<Lane, Stop> {
    lane.part(payload_bytes, &excerpt.stretches).map_err(|error| match error {
        // What the layout has no part for is the engine's own: as one that does not fit.
        PartError::Layout(_) => Stop::Miss(MissReason::Cold),
        PartError::Device(_) => Stop::Miss(MissReason::Device),
    })
}
