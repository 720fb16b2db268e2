//! One part of a run: what the daemon lands is copied, checked, and only then counted.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::device::{Lane, PartError, RecordMove, Way};
use kvd_nixl::sys::copy::Units;
use kvd_proto::wire::ring::{Op, Request, Status};
use kvd_proto::wire::slab::{LANDED_BYTES, Landed, LandedStatus};
use kvd_proto::{MissReason, Tier};

use super::Run;
use crate::convoy::Convoy;
use crate::layout::{BlockMemory, Place};
use crate::link::{Call, CallError};
use crate::matching::{Part, reason_of};
use crate::metadata::{Expected, read_checksums};
use crate::segments::Segment;
use crate::session::Session;
use crate::shards::Share;
use crate::view::{Opened, View, request};

/// Why a run of a load stopped.
pub(super) enum Stop {
    /// The daemon has no more.
    Miss(MissReason),
    /// The copy of this position, counted in the lease, is not what it should be.
    Corrupt(u32),
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

/// What one load works with: memory that is used again for each block, and segments that were looked at.
struct Work<'a> {
    /// What a device copies. The first to go: nothing outlives it that it needs.
    convoy: Convoy<'a, Expecting>,
    /// A device's lane, and the lane for the share on it.
    lane: Option<(&'a Lane, Lane)>,
    view: &'a View,
    share: Option<&'a Share>,
    session: &'a Session,
    opened: Opened,
    scratch: Vec<u8>,
    expected: Vec<u64>,
    found: Vec<u64>,
    segments: Vec<(u32, Arc<Segment>)>,
    deadline: Instant,
    /// Blocks of the part that are in place, from its first one on.
    done: u32,
    /// A block that a device had is not in place, or nobody knows.
    torn: bool,
    run: &'a mut Run,
}

impl View {
    #[expect(clippy::too_many_arguments, reason = "one part of a run, with what the run has")]
    pub(super) fn load_part<'a>(
        &'a self,
        session: &'a Session,
        part: &Part,
        blocks: Range<u32>,
        share: Option<&'a Share>,
        targets: &'a [BlockMemory<'a>],
        deadline: Instant,
        run: &'a mut Run,
    ) -> Result<(), Stop> {
        if self.engine.shared.session().is_none_or(|current| current.id != session.id) {
            // Another epoch, or a child of the process that took the lease.
            return Err(Stop::Miss(MissReason::LeaseLost));
        }
        let opened = self.inner.opened(session, deadline)?;
        let mut call = session.link.call(deadline)?;
        let first = blocks.start - part.blocks.start;
        let load = Request { first, lease: part.lease, ..request(Op::Load, opened.number, blocks.len()) };
        call.send(load)?;
        let mut work = Work {
            convoy: Convoy::new(session, Way::ToDevice),
            lane: None,
            view: self,
            share,
            session,
            opened,
            scratch: Vec::new(),
            expected: Vec::new(),
            found: vec![0; share.map_or(self.inner.units.count as usize, |share| share.units)],
            segments: Vec::new(),
            deadline,
            done: 0,
            torn: false,
            run,
        };
        let taken = work.take_all(&mut call, blocks.len(), targets);
        // What a device has under way comes before whatever stopped the rest.
        let landed = work.land_all();
        landed.and(taken).map_err(|stop| stop.at(first + work.done))
    }
}

impl Stop {
    /// Says which position a stop is about.
    fn at(self, position: u32) -> Self {
        match self {
            Self::Corrupt(_) => Self::Corrupt(position),
            miss @ Self::Miss(_) => miss,
        }
    }
}

/// Tells the daemon that the DRAM copy of a block is bad, and waits until it has put it aside.
pub(super) fn report(session: &Session, lease: u64, position: u32, deadline: Instant) -> Result<(), CallError> {
    // The call of the load has just been given back; its deadline holds here too.
    let mut call = session.link.call(deadline)?;
    call.send(Request { first: position, lease, ..request(Op::Corrupt, 0, 1) })?;
    call.next().map(drop)
}

impl<'a> Work<'a> {
    /// Takes what lands until all have or the daemon has no more.
    fn take_all(&mut self, call: &mut Call<'_>, wanted: usize, targets: &'a [BlockMemory<'a>]) -> Result<(), Stop> {
        let mut taken = 0;
        loop {
            let answer = call.next()?;
            let landed = answer.count.min(wanted as u32);
            while taken < landed {
                self.take(call, taken, &targets[taken as usize])?;
                taken += 1;
            }
            self.convoy.send(self.deadline)?;
            match answer.status {
                Status::Partial => {}
                Status::Ok if taken as usize == wanted => return Ok(()),
                Status::Ok | Status::Refused | Status::BadRequest => {
                    return Err(Stop::Miss(answer.reason.unwrap_or(MissReason::LeaseLost)));
                }
            }
        }
    }

    /// Copies one landed block and checks it, or gives it to a device.
    fn take(&mut self, call: &Call<'_>, index: u32, target: &'a BlockMemory<'a>) -> Result<(), Stop> {
        let landed = read_landed(call, index).ok_or(Stop::Miss(MissReason::TierDown))?;
        if landed.status == LandedStatus::Missed {
            return Err(Stop::Miss(landed.reason.unwrap_or(MissReason::Cold)));
        }
        if Instant::now() >= self.deadline {
            return Err(Stop::Miss(MissReason::Timeout));
        }
        let segment = self.segment(landed.segment)?;
        let copying = self.session.begin_copy().ok_or(Stop::Miss(MissReason::TierDown))?;
        let (inner, meta_bytes) = (&self.view.inner, self.opened.meta_bytes);
        let payload_bytes = inner.payload_bytes as usize;
        let slot = (meta_bytes + payload_bytes <= landed.slot_bytes as usize)
            .then(|| segment.extent(landed.offset, landed.slot_bytes as usize))
            .flatten()
            .ok_or(Stop::Miss(MissReason::TierDown))?;
        let (Ok(metadata), Ok(payload)) = (slot.part(0, meta_bytes), slot.part(meta_bytes, payload_bytes)) else {
            return Err(Stop::Miss(MissReason::TierDown));
        };
        let expected = Expected {
            meta_checksum: landed.meta_checksum,
            generation: landed.generation,
            payload_bytes: inner.payload_bytes,
            unit_bytes: inner.units.unit_bytes,
            units: inner.units.count,
        };
        let algorithm = read_checksums(&metadata, &expected, &mut self.scratch, &mut self.expected);
        let Some(algorithm) = algorithm else { return Err(Stop::Corrupt(0)) };
        if let Some(share) = self.share {
            self.expected = share.select(&self.expected).ok_or(Stop::Miss(MissReason::Cold))?;
        }
        // A destination that does not fit is the engine's mistake: nothing is copied, the block is not told.
        let (whole_bytes, unit_bytes) =
            (self.share.map_or(payload_bytes, |share| share.whole_bytes), inner.units.unit_bytes);
        if !target.fits(whole_bytes, unit_bytes as usize) {
            return Err(Stop::Miss(MissReason::Cold));
        }
        match target.place() {
            Place::Host(target) => {
                // Blocks are told in their order.
                self.land_all()?;
                let units = Units { unit_bytes: inner.units.unit_bytes as usize, algorithm, seed: landed.seed };
                let copied = match self.share {
                    None => target.scatter(&payload, &units, &mut self.found),
                    Some(share) => target.scatter_share(&payload, share, &units, &mut self.found),
                };
                drop(copying);
                copied.map_err(|_| Stop::Miss(MissReason::Cold))?;
                if self.found != self.expected {
                    return Err(Stop::Corrupt(0));
                }
                self.count(landed.tier);
            }
            Place::Device { lane, index } => {
                drop(copying);
                if algorithm != ChecksumAlgorithm::Xxh3 {
                    return Err(Stop::Miss(MissReason::Device));
                }
                let pinned = segment.pin(lane).ok_or(Stop::Miss(MissReason::Device))?;
                self.take_lane(lane, payload_bytes)?;
                let Some((_, lane)) = &self.lane else { return Err(Stop::Miss(MissReason::Device)) };
                let one = RecordMove { host: payload, pinned: Some(pinned), index: *index, seed: landed.seed };
                let expecting = Expecting { tier: landed.tier, sums: self.expected.clone() };
                self.convoy.add(lane, one, expecting, self.deadline)?;
            }
        }
        Ok(())
    }

    /// The lane for what is copied of records with so many bytes.
    fn take_lane(&mut self, lane: &'a Lane, payload_bytes: usize) -> Result<(), Stop> {
        if self.lane.as_ref().is_some_and(|(taken, _)| taken.is(lane)) {
            return Ok(());
        }
        let part = match self.share {
            None => lane.clone(),
            Some(share) => {
                let part = lane.part(payload_bytes, &share.stretches);
                // What the layout has no part for is the engine's own: as one that does not fit.
                part.map_err(|error| match error {
                    PartError::Layout(_) => Stop::Miss(MissReason::Cold),
                    PartError::Device(_) => Stop::Miss(MissReason::Device),
                })?
            }
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
        let sent = self.convoy.send(self.deadline);
        let landed = self.land_sent().and(sent.map_err(Stop::from));
        self.torn = landed.is_err();
        landed
    }

    fn land_sent(&mut self) -> Result<(), Stop> {
        while let Some(moved) = self.convoy.next()? {
            if moved.sums != moved.tag.sums {
                return Err(Stop::Corrupt(0));
            }
            self.count(moved.tag.tier);
        }
        Ok(())
    }

    /// The next block in order is in place.
    fn count(&mut self, tier: Option<Tier>) {
        self.done += 1;
        self.run.tiers.push(tier);
    }

    fn segment(&mut self, number: u32) -> Result<Arc<Segment>, Stop> {
        if let Some((_, open)) = self.segments.iter().find(|(found, _)| *found == number) {
            return Ok(open.clone());
        }
        let open = self.session.segment(number, self.deadline)?;
        self.segments.push((number, open.clone()));
        Ok(open)
    }
}

fn read_landed(call: &Call<'_>, index: u32) -> Option<Landed> {
    let mut bytes = [0; LANDED_BYTES];
    call.slab().read(index as usize * LANDED_BYTES, &mut bytes).ok()?;
    Landed::decode(&bytes).ok()
}
