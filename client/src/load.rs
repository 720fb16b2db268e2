//! From the arena into the engine's memory: copy, check, and only then tell.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::device::{RecordMove, Way};
use kvd_nixl::sys::copy::Units;
use kvd_proto::wire::ring::{Op, Request, Status};
use kvd_proto::wire::slab::{LANDED_BYTES, Landed, LandedStatus};
use kvd_proto::{MissReason, Tier};

use crate::convoy::Convoy;
use crate::deadline::deadline_in;
use crate::layout::{BlockMemory, Place};
use crate::link::{Call, CallError};
use crate::matching::{Match, Part, reason_of};
use crate::metadata::{Expected, read_checksums};
use crate::segments::Segment;
use crate::session::Session;
use crate::view::{Opened, View, request};

/// What a load did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loaded {
    /// How many blocks, from the first asked for, are in the engine's memory and verified. What lies in the destinations
    /// behind them is undefined.
    pub blocks: u32,
    /// Why the next one is not; `None` if all are.
    pub reason: Option<MissReason>,
    /// Of these blocks, those that lay in DRAM.
    pub from_dram: u32,
    /// Of these blocks, those that came from NVMe.
    pub from_nvme: u32,
    /// Of these blocks, those that came from the object tier.
    pub from_object: u32,
    /// Copies that did not match their checksums and were reported.
    pub corrupt: u32,
}

/// Why a run of a load stopped.
enum Stop {
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
    view: &'a View,
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
    loaded: &'a mut Loaded,
}

impl View {
    /// Copies blocks `blocks` of a match into `destinations`, one each, in order. What a device still does with destinations
    /// must have ended: its work and ours are in no order. Ends at the first that cannot be had, at
    /// the latest when the engine's load deadline is over.
    pub fn load(&self, found: &Match, blocks: Range<u32>, destinations: &[BlockMemory<'_>]) -> Loaded {
        let within = self.load_deadline(found.session.as_deref());
        self.load_within(found, blocks, destinations, within)
    }

    /// The same, at the latest `within` from now. The deadline is looked at between blocks: the copy of one block that has
    /// begun is finished. So is what a device has begun: some chunks of its lane, a millisecond each; one that hangs is waited
    /// for ten seconds, once.
    pub fn load_within(
        &self,
        found: &Match,
        blocks: Range<u32>,
        destinations: &[BlockMemory<'_>],
        within: Duration,
    ) -> Loaded {
        let mut loaded = Loaded::default();
        let wanted = blocks.len().min(destinations.len());
        let deadline = deadline_in(within);
        // One retry per load: a good copy may lie below the one that was reported.
        let mut retried = false;
        while (loaded.blocks as usize) < wanted {
            let position = blocks.start + loaded.blocks;
            let part = found.parts.iter().find(|part| part.blocks.contains(&position));
            let (Some(session), Some(part)) = (&found.session, part) else {
                loaded.reason = Some(found.reason().unwrap_or(MissReason::LeaseLost));
                return loaded;
            };
            let end = part.blocks.end.min(blocks.start + wanted as u32);
            let targets = &destinations[loaded.blocks as usize..];
            let stop = self.load_part(session, part, position..end, targets, deadline, &mut loaded);
            match stop {
                Ok(()) => {}
                Err(Stop::Miss(reason)) => {
                    loaded.reason = Some(reason);
                    return loaded;
                }
                Err(Stop::Corrupt(at)) => {
                    loaded.corrupt += 1;
                    let reported = report(session, part.lease, at, deadline);
                    if retried || reported.is_err() {
                        loaded.reason = Some(reported.err().map_or(MissReason::Corrupt, reason_of));
                        return loaded;
                    }
                    retried = true;
                }
            }
        }
        loaded
    }

    fn load_part<'a>(
        &'a self,
        session: &'a Session,
        part: &Part,
        blocks: Range<u32>,
        targets: &'a [BlockMemory<'a>],
        deadline: Instant,
        loaded: &'a mut Loaded,
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
            view: self,
            session,
            opened,
            scratch: Vec::new(),
            expected: Vec::new(),
            found: vec![0; self.inner.units.count as usize],
            segments: Vec::new(),
            deadline,
            done: 0,
            torn: false,
            loaded,
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
fn report(session: &Session, lease: u64, position: u32, deadline: Instant) -> Result<(), CallError> {
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
        match target.place() {
            Place::Host(target) => {
                // Blocks are told in their order.
                self.land_all()?;
                let units = Units { unit_bytes: inner.units.unit_bytes as usize, algorithm, seed: landed.seed };
                // A destination that does not fit is the engine's mistake: nothing is copied, the block is not told.
                let copied = target.scatter(&payload, &units, &mut self.found);
                drop(copying);
                copied.map_err(|_| Stop::Miss(MissReason::Cold))?;
                if self.found != self.expected {
                    return Err(Stop::Corrupt(0));
                }
                self.count(landed.tier);
            }
            Place::Device { lane, index } => {
                drop(copying);
                if !target.fits(payload_bytes, inner.units.unit_bytes as usize) {
                    return Err(Stop::Miss(MissReason::Cold));
                }
                if algorithm != ChecksumAlgorithm::Xxh3 {
                    return Err(Stop::Miss(MissReason::Device));
                }
                let pinned = segment.pin(lane).ok_or(Stop::Miss(MissReason::Device))?;
                let one = RecordMove { host: payload, pinned: Some(pinned), index: *index, seed: landed.seed };
                let expecting = Expecting { tier: landed.tier, sums: self.expected.clone() };
                self.convoy.add(lane, one, expecting, self.deadline)?;
            }
        }
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
        self.loaded.blocks += 1;
        match tier {
            Some(Tier::Nvme) => self.loaded.from_nvme += 1,
            Some(Tier::Object) => self.loaded.from_object += 1,
            _ => self.loaded.from_dram += 1,
        }
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
