//! From the arena into the engine's memory: copy, check, and only then tell.

mod copying;
mod holding;
mod layers;
mod slots;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_proto::{MissReason, Tier};

use crate::deadline::deadline_in;
use crate::layout::BlockMemory;
use crate::matching::{Match, reason_of};
use crate::shards::Excerpt;
use crate::view::View;
use copying::{Copied, Stop, copy, report};
pub use layers::LayersLoaded;

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
    /// Adds the blocks that need what all have copied; how many.
    fn add(&mut self, copied: &[Copied]) -> usize {
        let blocks = copied.iter().map(|one| one.tiers.len()).min().unwrap_or(0);
        self.tiers.extend((0..blocks).map(|block| copied.iter().map(|one| one.tiers[block]).max().flatten()));
        blocks
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

/// A shard that is copied from.
struct Source<'a> {
    view: &'a View,
    found: &'a Match,
    /// What of its records; `None`: all.
    excerpt: Option<&'a Arc<Excerpt>>,
}

impl<'a> Source<'a> {
    /// What the blocks behind the view's own are put together from; `views`: [`View::other_views`].
    fn others(views: &'a [View], found: &'a Match) -> Vec<Self> {
        let sources = views.iter().zip(&found.others);
        sources.map(|(view, other)| Source { view, found: &other.found, excerpt: Some(&other.excerpt) }).collect()
    }
}

/// Blocks of a match that a load is about.
struct Asked {
    /// Those in the view's own shard.
    own: Range<u32>,
    /// Those behind, which are put together.
    others: Range<u32>,
    /// Why what was asked for beyond them is none.
    reason: Option<MissReason>,
}

impl Asked {
    fn new(found: &Match, blocks: Range<u32>, destinations: usize) -> Self {
        let wanted = u32::try_from(blocks.len().min(destinations)).unwrap_or(u32::MAX);
        let end = blocks.start.saturating_add(wanted);
        let known = if found.others.is_empty() { found.own_blocks() } else { found.blocks() };
        let matched = known.clamp(blocks.start, end);
        let own = found.own_blocks().clamp(blocks.start, matched);
        let reason = (matched < end).then(|| found.reason().unwrap_or(MissReason::LeaseLost));
        Self { own: blocks.start..own, others: own..matched, reason }
    }
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
        let deadline = deadline_in(within);
        let asked = Asked::new(found, blocks, destinations.len());
        let own = Source { view: self, found, excerpt: None };
        let mut run = run(&[own], asked.own.clone(), destinations, deadline);
        let here = run.tiers.len();
        if here == asked.own.len() && !asked.others.is_empty() {
            let views = self.other_views(found);
            let sources = Source::others(&views, found);
            run = run.then(self::run(&sources, asked.others.clone(), &destinations[here..], deadline));
        }
        if run.tiers.len() == asked.own.len() + asked.others.len() {
            run.reason = asked.reason;
        }
        run.loaded()
    }

    fn other_views(&self, found: &Match) -> Vec<View> {
        found.others.iter().map(|other| self.of_other(&other.view)).collect()
    }
}

/// Copies blocks out of records of one shard, or of several that make them up together.
fn run(sources: &[Source<'_>], blocks: Range<u32>, destinations: &[BlockMemory<'_>], deadline: Instant) -> Run {
    let mut run = Run::default();
    // A good copy may lie below the one that was reported: the load goes on as long as it gets further, or another source's copy
    // may be what was wrong. One block first and then twice as many each time, for what is asked for behind the next bad copy is
    // asked for again.
    let (mut tries_here, mut at_a_time) = (0, u32::MAX);
    while run.tiers.len() < blocks.len() {
        let done = run.tiers.len();
        let position = blocks.start + done as u32;
        let mut parts = Vec::with_capacity(sources.len());
        for Source { found, .. } in sources {
            match found.parts.iter().find(|part| part.blocks.contains(&position)) {
                Some(part) => parts.push(part),
                None => {
                    run.reason = Some(found.reason().unwrap_or(MissReason::LeaseLost));
                    return run;
                }
            }
        }
        let end = blocks.end.min(position.saturating_add(at_a_time));
        let end = parts.iter().fold(end, |end, part| end.min(part.blocks.end));
        let copied = copy(sources, &parts, position..end, &destinations[done..], deadline);
        let common = run.add(&copied);
        if common > 0 {
            tries_here = 0;
        }
        let mut stop = None;
        for ((source, part), one) in sources.iter().zip(&parts).zip(&copied) {
            let reason = match one.stop {
                None => continue,
                Some(Stop::Miss(reason)) => Some(reason),
                Some(Stop::Corrupt(at)) => {
                    run.corrupt += 1;
                    let reported = report(source, part.lease, at, deadline);
                    let once_more = reported.is_ok() && tries_here < sources.len();
                    (!once_more).then(|| reported.err().map_or(MissReason::Corrupt, reason_of))
                }
            };
            // The one that has least ends it.
            if one.tiers.len() == common {
                stop = stop.or(Some(reason));
            }
        }
        match stop {
            None => at_a_time = at_a_time.saturating_mul(2),
            Some(None) => (tries_here, at_a_time) = (tries_here + 1, 1),
            Some(reason) => {
                run.reason = reason;
                return run;
            }
        }
    }
    run
}
