//! From the arena into the engine's memory: copy, check, and only then tell.

mod copying;

use std::ops::Range;
use std::time::{Duration, Instant};

use kvd_proto::{MissReason, Tier};

use crate::deadline::deadline_in;
use crate::layout::BlockMemory;
use crate::matching::{Match, reason_of};
use crate::shards::Share;
use crate::view::View;
use copying::{Stop, report};

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

/// Blocks that were copied from one shard after the other, from the first on.
#[derive(Debug, Default)]
struct Run {
    /// For each that is in place, where it lay.
    tiers: Vec<Option<Tier>>,
    reason: Option<MissReason>,
    corrupt: u32,
}

impl Run {
    fn missed(reason: MissReason) -> Self {
        Self { reason: Some(reason), ..Self::default() }
    }

    /// Blocks that need what both have copied.
    fn and(mut self, other: Self) -> Self {
        if other.tiers.len() < self.tiers.len() {
            self.tiers.truncate(other.tiers.len());
            self.reason = other.reason;
        }
        self.tiers.iter_mut().zip(other.tiers).for_each(|(tier, other)| *tier = (*tier).max(other));
        self.corrupt += other.corrupt;
        self
    }

    /// Blocks that follow, where all before them are in place.
    fn then(mut self, next: Self) -> Self {
        self.tiers.extend(next.tiers);
        (self.reason, self.corrupt) = (next.reason, self.corrupt + next.corrupt);
        self
    }

    fn loaded(&self) -> Loaded {
        let mut loaded = Loaded { reason: self.reason, corrupt: self.corrupt, ..Loaded::default() };
        for tier in &self.tiers {
            loaded.blocks += 1;
            match tier {
                Some(Tier::Nvme) => loaded.from_nvme += 1,
                Some(Tier::Object) => loaded.from_object += 1,
                _ => loaded.from_dram += 1,
            }
        }
        loaded
    }
}

/// What of a match is copied, and of which records.
#[derive(Clone, Copy)]
struct Source<'a> {
    found: &'a Match,
    /// `None`: whole records.
    share: Option<&'a Share>,
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
        let wanted = u32::try_from(blocks.len().min(destinations.len())).unwrap_or(u32::MAX);
        let (deadline, end) = (deadline_in(within), blocks.start.saturating_add(wanted));
        let own = found.own_blocks().clamp(blocks.start, end);
        let source = Source { found, share: None };
        let run = self.run(source, blocks.start..own, destinations, deadline);
        let here = run.tiers.len();
        if here < (own - blocks.start) as usize || own == end {
            return run.loaded();
        }
        run.then(self.put_together(found, own..end, &destinations[here..], deadline)).loaded()
    }

    /// Copies blocks that lie in other shards.
    fn put_together(
        &self,
        found: &Match,
        blocks: Range<u32>,
        destinations: &[BlockMemory<'_>],
        deadline: Instant,
    ) -> Run {
        let mut run: Option<Run> = None;
        for other in &found.others {
            let wanted = run.as_ref().map_or(blocks.len(), |run| run.tiers.len());
            let view = self.of_other(&other.view);
            let source = Source { found: &other.found, share: Some(&other.share) };
            let next = view.run(source, blocks.start..blocks.start + wanted as u32, destinations, deadline);
            run = Some(match run {
                Some(before) => before.and(next),
                None => next,
            });
        }
        run.unwrap_or_else(|| Run::missed(found.reason().unwrap_or(MissReason::LeaseLost)))
    }

    /// Copies blocks out of records of one shard.
    fn run(&self, source: Source<'_>, blocks: Range<u32>, destinations: &[BlockMemory<'_>], deadline: Instant) -> Run {
        let (found, mut run) = (source.found, Run::default());
        // One retry per load: a good copy may lie below the one that was reported.
        let mut retried = false;
        while run.tiers.len() < blocks.len() {
            let done = run.tiers.len();
            let position = blocks.start + done as u32;
            let part = found.parts.iter().find(|part| part.blocks.contains(&position));
            let (Some(session), Some(part)) = (&found.session, part) else {
                run.reason = Some(found.reason().unwrap_or(MissReason::LeaseLost));
                return run;
            };
            let end = part.blocks.end.min(blocks.end);
            let targets = &destinations[done..];
            let stop = self.load_part(session, part, position..end, source.share, targets, deadline, &mut run);
            match stop {
                Ok(()) => {}
                Err(Stop::Miss(reason)) => {
                    run.reason = Some(reason);
                    return run;
                }
                Err(Stop::Corrupt(at)) => {
                    run.corrupt += 1;
                    let reported = report(session, part.lease, at, deadline);
                    if retried || reported.is_err() {
                        run.reason = Some(reported.err().map_or(MissReason::Corrupt, reason_of));
                        return run;
                    }
                    retried = true;
                }
            }
        }
        run
    }
}
