//! Loads layer after layer: the engine computes the first ones of all blocks while the next ones come in.
//!
//! A record holds its layers one after the other, so some layers of a record are a part of it, as another shard's heads are.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::device::{Lane, RecordMove, Way};
use kvd_nixl::sys::copy::Units;
use kvd_proto::{MissReason, Tier};

use super::copying::{Stop, part_of, report};
use super::holding::{Held, hold};
use super::{Asked, Loaded, Run, Source};
use crate::convoy::Convoy;
use crate::deadline::deadline_in;
use crate::layout::{BlockMemory, Cuts, Place};
use crate::link::CallError;
use crate::matching::{Match, reason_of};
use crate::shards::Excerpt;
use crate::view::View;

/// Steps that a device has under way before the first of them is waited for.
const STEPS_AHEAD: usize = 3;

/// How far a load by layers has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayersLoaded {
    /// Layers that are in place and verified, beside those before them.
    pub layers: Range<u16>,
    /// In so many blocks, from the first asked for: never more than in the layers before.
    pub blocks: u32,
}

/// Blocks of one source, in their order.
struct Lot<'a> {
    source: &'a Source<'a>,
    /// The destination of the first one.
    first: usize,
    held: Vec<Held>,
    /// What of this source's records is asked for, of all layers.
    excerpt: Arc<Excerpt>,
}

/// What blocks are copied from, and how many there are.
#[derive(Default)]
struct Lots<'a> {
    lots: Vec<Lot<'a>>,
    blocks: usize,
    /// Why no more.
    reason: Option<MissReason>,
    corrupt: u32,
}

/// A part of a block that a device copies.
struct Expecting {
    lot: usize,
    block: usize,
    sums: Vec<u64>,
}

/// Steps on their way.
struct Work<'a> {
    convoy: Convoy<'a, Expecting>,
    lots: Vec<Lot<'a>>,
    targets: &'a [BlockMemory<'a>],
    deadline: Instant,
    tally: Tally,
}

struct Tally {
    /// Blocks all of whose layers so far are in place, or under way.
    blocks: usize,
    /// Why no more.
    reason: Option<MissReason>,
    /// The copy that came wrong and ended them there: its lot, and its place there.
    wrong: Option<(usize, usize)>,
}

impl View {
    /// As [`View::load_within`], layer after layer: each time when `layers_per_step` more layers of the blocks are in place and
    /// verified, `ready` is called, on this thread. The result is the truth: blocks that it does not count must not be used,
    /// whatever was said of their first layers. Before the first layer is copied all blocks are waited for until they lie in DRAM, for
    /// half of the time at most; where some do not, those before them are loaded.
    /// Where layers cannot be told apart in a record, all are one step.
    pub fn load_by_layers(
        &self,
        found: &Match,
        blocks: Range<u32>,
        destinations: &[BlockMemory<'_>],
        layers_per_step: u16,
        within: Duration,
        mut ready: impl FnMut(LayersLoaded),
    ) -> Loaded {
        let deadline = deadline_in(within);
        let known = self.others.as_ref().and_then(|others| Some((others.layers(), others.layer_units()?)));
        let (Some((layers, units)), Some(session)) = (known, found.session.as_deref()) else {
            let loaded = self.load_within(found, blocks, destinations, within);
            let layers = self.others.as_ref().map_or(0..0, |others| others.layers());
            if loaded.blocks > 0 {
                ready(LayersLoaded { layers, blocks: loaded.blocks });
            }
            return loaded;
        };
        let asked = Asked::new(found, blocks, destinations.len());
        let (own, views) = (Source { view: self, found, excerpt: None }, self.other_views(found));
        let others = Source::others(&views, found);
        // What has landed by then must still be copied.
        let held_until = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let Lots { lots, blocks, reason, corrupt } = self.lots(&own, &others, &asked, held_until);
        let mut work = Work {
            convoy: Convoy::new(session, Way::ToDevice),
            lots,
            targets: &destinations[..blocks],
            deadline,
            tally: Tally { blocks, reason, wrong: None },
        };
        if let Err(error) = work.copy(units, layers, layers_per_step.max(1), &mut ready) {
            work.tally.end_at(0, reason_of(error));
        }
        let mut run = Run { reason: work.tally.reason, corrupt, ..Run::default() };
        if let Some((lot, block)) = work.tally.wrong {
            let Lot { source, held, .. } = &work.lots[lot];
            // Whether the daemon has heard it or not, the block is none.
            let _ = report(source, held[block].lease, held[block].position, deadline);
            run.corrupt += 1;
        }
        run.tiers = (0..work.tally.blocks).map(|block| work.tier(block)).collect();
        run.loaded()
    }

    /// Holds what blocks are copied from.
    fn lots<'a>(&self, own: &'a Source<'a>, others: &'a [Source<'a>], asked: &Asked, deadline: Instant) -> Lots<'a> {
        let here = asked.own.len();
        let mut all = Lots { blocks: here + asked.others.len(), reason: asked.reason, ..Lots::default() };
        all.add(own, 0, asked.own.clone(), Arc::new(Excerpt::whole(&self.inner)), deadline);
        for other in others {
            if let Some(excerpt) = other.excerpt {
                all.add(other, here, asked.others.clone(), excerpt.clone(), deadline);
            }
        }
        all
    }
}

impl<'a> Lots<'a> {
    fn add(
        &mut self,
        source: &'a Source<'a>,
        first: usize,
        blocks: Range<u32>,
        excerpt: Arc<Excerpt>,
        deadline: Instant,
    ) {
        // Of what another source has not, the rest is of no use.
        let wanted = blocks.len().min(self.blocks.saturating_sub(first));
        if wanted == 0 {
            return;
        }
        let (held, stop) = hold(source, blocks.start..blocks.start + wanted as u32, deadline);
        if let Some(stop) = stop {
            self.blocks = first + held.len();
            self.reason = Some(stop.reason());
            self.corrupt += u32::from(matches!(stop, Stop::Corrupt(_)));
        }
        self.lots.push(Lot { source, first, held, excerpt });
    }
}

impl Tally {
    /// This block is none, nor are those behind it.
    fn end_at(&mut self, at: usize, reason: MissReason) {
        if at < self.blocks {
            (self.blocks, self.reason, self.wrong) = (at, Some(reason), None);
        }
    }

    /// The same for block `block` of a lot that begins at `first`: its copy is not what it should be.
    fn wrong_at(&mut self, lot: usize, first: usize, block: usize) {
        if first + block < self.blocks {
            self.end_at(first + block, MissReason::Corrupt);
            self.wrong = Some((lot, block));
        }
    }
}

impl Work<'_> {
    /// Copies all steps. `units`: the first unit of each layer in the view's records, and one past the last.
    fn copy(
        &mut self,
        units: &[u32],
        layers: Range<u16>,
        layers_per_step: u16,
        ready: &mut impl FnMut(LayersLoaded),
    ) -> Result<(), CallError> {
        let step = |start: u16| start..start.saturating_add(layers_per_step).min(layers.end);
        let steps: Vec<Range<u16>> = layers.clone().step_by(layers_per_step.into()).map(step).collect();
        let row = |layer: u16| units[usize::from(layer - layers.start)];
        let mut under_way = Vec::with_capacity(steps.len());
        for at in 0..steps.len() + STEPS_AHEAD {
            if let Some(step) = steps.get(at) {
                if Instant::now() >= self.deadline {
                    return Err(CallError::Timeout);
                }
                under_way.push(self.send(row(step.start)..row(step.end))?);
            }
            let before = at.checked_sub(STEPS_AHEAD).and_then(|at| steps.get(at).zip(under_way.get(at)));
            if let Some((layers, moves)) = before {
                self.finish(*moves)?;
                let blocks = self.tally.blocks as u32;
                if blocks > 0 {
                    ready(LayersLoaded { layers: layers.clone(), blocks });
                }
            }
        }
        Ok(())
    }

    /// Copies these units of all blocks, or gives them to a device; how many moves that are.
    fn send(&mut self, units: Range<u32>) -> Result<usize, CallError> {
        let mut moves = 0;
        let (mut sums, mut found) = (Vec::new(), Vec::new());
        for (number, lot) in self.lots.iter_mut().enumerate() {
            let excerpt = lot.excerpt.of_units(&units);
            if excerpt.units == 0 {
                continue;
            }
            let inner = &lot.source.view.inner;
            let (payload_bytes, unit_bytes) = (inner.payload_bytes as usize, inner.units.unit_bytes as usize);
            // The lane of a block, and its part for this excerpt.
            let mut lane: Option<(&Lane, Lane)> = None;
            let mut cuts = Cuts::default();
            for (block, held) in lot.held.iter_mut().enumerate() {
                let at = lot.first + block;
                if at >= self.tally.blocks {
                    break;
                }
                let target = &self.targets[at];
                let known = excerpt.select(&held.sums, &mut sums);
                if known.is_none() || !target.fits(excerpt.whole_bytes, unit_bytes) {
                    // The engine's mistake: nothing is copied, the block is not told.
                    self.tally.end_at(at, MissReason::Cold);
                    break;
                }
                match target.place() {
                    Place::Host(host) => {
                        if Instant::now() >= self.deadline {
                            return Err(CallError::Timeout);
                        }
                        let copying = self.convoy.session().begin_copy().ok_or(CallError::Down)?;
                        found.resize(excerpt.units, 0);
                        let units = Units { unit_bytes, algorithm: held.slot.algorithm, seed: held.slot.seed };
                        let copied = host.scatter_excerpt(&held.slot.payload, &excerpt, &mut cuts, &units, &mut found);
                        drop(copying);
                        match copied {
                            Ok(()) if found == sums => {}
                            Ok(()) => self.tally.wrong_at(number, lot.first, block),
                            // As above.
                            Err(_) => self.tally.end_at(at, MissReason::Cold),
                        }
                    }
                    Place::Device { lane: base, index } => {
                        if held.pinned.is_none() && held.slot.algorithm == ChecksumAlgorithm::Xxh3 {
                            held.pinned = held.slot.segment.pin(base);
                        }
                        if held.pinned.is_none() {
                            self.tally.end_at(at, MissReason::Device);
                            break;
                        }
                        let part = match &lane {
                            Some((known, part)) if known.is(base) => part,
                            _ => match part_of(base, payload_bytes, &excerpt) {
                                Ok(part) => &lane.insert((base, part)).1,
                                Err(stop) => {
                                    self.tally.end_at(at, stop.reason());
                                    break;
                                }
                            },
                        };
                        let one = RecordMove {
                            host: held.slot.payload.clone(),
                            pinned: held.pinned.clone(),
                            index: *index,
                            seed: held.slot.seed,
                        };
                        let expecting = Expecting { lot: number, block, sums: sums.clone() };
                        self.convoy.add(part, one, expecting, self.deadline)?;
                        moves += 1;
                    }
                }
            }
        }
        self.convoy.send(self.deadline)?;
        Ok(moves)
    }

    /// Waits for so many moves, the oldest that are under way.
    fn finish(&mut self, moves: usize) -> Result<(), CallError> {
        for _ in 0..moves {
            let moved = self.convoy.next()?.ok_or(CallError::Device)?;
            let Expecting { lot, block, sums } = moved.tag;
            if moved.sums != sums {
                self.tally.wrong_at(lot, self.lots[lot].first, block);
            }
        }
        Ok(())
    }

    /// The slowest tier that a block came from.
    fn tier(&self, block: usize) -> Option<Tier> {
        let held = self.lots.iter().filter_map(|lot| lot.held.get(block.checked_sub(lot.first)?));
        held.map(|held| held.slot.tier).max().flatten()
    }
}
