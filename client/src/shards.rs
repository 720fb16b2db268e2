//! Other shards of a view's blocks: those that ranks of another tensor or pipeline parallel size wrote.
//!
//! Where a chain is not here in the view's own shard, the daemon is asked which others it has, and what of their records belongs to
//! the view's is put together from them.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvd_nixl::device::Stretch;
use kvd_proto::wire::session::{Body, ListShards, OpenView, ShardRange};
use kvd_proto::{Cover, GroupSpec, SOURCES_MAX, Shard, UnitRun};

use crate::session::{Session, SessionId};
use crate::view::Inner;

/// How old the daemon's word on which shards it has may become.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a view knows of other shards.
#[derive(Debug)]
pub(crate) struct Others {
    group: GroupSpec,
    shard: Shard,
    /// See [`GroupSpec::layer_units`].
    layer_units: Option<Vec<u32>>,
    block_tokens: u32,
    /// Guards what the daemon told; not held while it is asked.
    known: Mutex<Known>,
    /// Rung when it has told.
    told: Condvar,
}

/// The daemon has so much of the time that is left to tell of its shards.
const ASKING_PART: u32 = 4;

#[derive(Debug)]
struct Known {
    /// Opens a view, but for its shard.
    message: OpenView,
    /// When which daemon was asked last.
    asked: Option<(SessionId, Instant)>,
    /// The daemon that told `sources`, or did not answer in time.
    told_by: Option<SessionId>,
    sources: Arc<Sources>,
}

/// Shards that the daemon has, and that have something of a view's records.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    shards: Vec<Shard>,
    pub(crate) views: Vec<Arc<Inner>>,
    /// `None`: they do not have all of it.
    cover: Option<Cover>,
}

/// A source by its number, and what is taken of its records.
pub(crate) type Chosen = (usize, Arc<Excerpt>);

/// What a record of one shard has of another one's.
#[derive(Debug)]
pub(crate) struct Excerpt {
    /// In bytes; in the order in which they are copied.
    pub(crate) stretches: Vec<Stretch>,
    /// The same in units.
    runs: Vec<UnitRun>,
    unit_bytes: usize,
    /// Units of all of them.
    pub(crate) units: usize,
    /// Bytes of the record that is asked for.
    pub(crate) whole_bytes: usize,
}

impl Excerpt {
    fn new(runs: Vec<UnitRun>, unit_bytes: usize, whole_bytes: usize) -> Self {
        let bytes = |units: u32| units as usize * unit_bytes;
        let stretch = |run: &UnitRun| Stretch { from: bytes(run.from), to: bytes(run.to), bytes: bytes(run.units) };
        let units = runs.iter().map(|run| run.units as usize).sum();
        Self { stretches: runs.iter().map(stretch).collect(), runs, unit_bytes, units, whole_bytes }
    }

    /// All of a record of the same shard.
    pub(crate) fn whole(view: &Inner) -> Self {
        let all = UnitRun { from: 0, to: 0, units: view.units.count };
        Self::new(vec![all], view.units.unit_bytes as usize, view.payload_bytes as usize)
    }

    /// What of it belongs to these units of the record that is asked for.
    pub(crate) fn of_units(&self, units: &Range<u32>) -> Self {
        let cut = |run: &UnitRun| {
            let (start, end) = (run.to.max(units.start), (run.to + run.units).min(units.end));
            (start < end).then(|| UnitRun { from: run.from + (start - run.to), to: start, units: end - start })
        };
        Self::new(self.runs.iter().filter_map(cut).collect(), self.unit_bytes, self.whole_bytes)
    }

    /// Of the checksums of all units of a record those of what is copied, in its order.
    pub(crate) fn select(&self, all: &[u64], chosen: &mut Vec<u64>) -> Option<()> {
        chosen.clear();
        for run in &self.runs {
            let from = run.from as usize;
            chosen.extend_from_slice(all.get(from..from + run.units as usize)?);
        }
        Some(())
    }
}

impl Others {
    pub(crate) fn new(group: &GroupSpec, shard: &Shard, block_tokens: u32, message: OpenView) -> Self {
        let known = Mutex::new(Known { message, asked: None, told_by: None, sources: Arc::default() });
        let layer_units = group.layer_units(shard);
        Self { group: group.clone(), shard: shard.clone(), layer_units, block_tokens, known, told: Condvar::new() }
    }

    /// The layers of the view's shard.
    pub(crate) fn layers(&self) -> Range<u16> {
        self.shard.layers()
    }

    /// The first unit of each layer in the view's records, and one past the last; `None`: layers cannot be told apart.
    pub(crate) fn layer_units(&self) -> Option<&[u32]> {
        self.layer_units.as_deref()
    }

    /// Keeps the rate for shards to come; those that are known.
    pub(crate) fn set_prefill_rate(&self, tokens_per_second: f64) -> Arc<Sources> {
        let mut known = self.lock();
        known.message.prefill_tokens_per_second = tokens_per_second;
        known.sources.clone()
    }

    /// How long the engine needs to compute so many blocks, if it has said so.
    pub(crate) fn computing(&self, blocks: u32) -> Option<Duration> {
        let rate = self.lock().message.prefill_tokens_per_second;
        Duration::try_from_secs_f64(f64::from(blocks) * f64::from(self.block_tokens) / rate).ok().filter(|_| rate > 0.0)
    }

    /// The shards that the daemon has now, or had a moment ago.
    pub(crate) fn ask(&self, session: &Session, view: u16, deadline: Instant) -> Arc<Sources> {
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / ASKING_PART;
        {
            let mut known = self.lock();
            let fresh = |(asked, when): (SessionId, Instant)| asked == session.id && now < when + ASK_AGAIN;
            if !session.terms.lists_shards {
                return known.sources.clone();
            }
            if known.asked.is_some_and(fresh) {
                return self.once_told(known, session.id, until);
            }
            // Before it is asked: other threads do not ask as well.
            known.asked = Some((session.id, now));
        }
        let answer = session.control.ask(Body::ListShards(ListShards { view: view.into() }), until);
        let mut known = self.lock();
        // Another thread may have asked the next daemon meanwhile: what this one had is its word no more.
        if known.asked.is_none_or(|(asked, _)| asked != session.id) {
            return known.sources.clone();
        }
        match answer {
            Ok((Body::Shards(told), _)) => self.learn(&mut known, &told.shards),
            // It cannot say, or speaks otherwise: it has none.
            Ok(_) => known.sources = Arc::default(),
            Err(error) => {
                session.control_failed(error);
            }
        }
        known.told_by = Some(session.id);
        self.told.notify_all();
        known.sources.clone()
    }

    /// What this daemon told; waits where another thread asks it for the first time. What an earlier daemon told is not its word.
    fn once_told(&self, known: MutexGuard<'_, Known>, daemon: SessionId, until: Instant) -> Arc<Sources> {
        let left = until.saturating_duration_since(Instant::now());
        let untold =
            |known: &mut Known| known.told_by != Some(daemon) && known.asked.is_some_and(|(asked, _)| asked == daemon);
        let waited = self.told.wait_timeout_while(known, left, untold);
        waited.unwrap_or_else(PoisonError::into_inner).0.sources.clone()
    }

    /// Takes in what the daemon told.
    fn learn(&self, known: &mut Known, told: &[ShardRange]) {
        let told = told.iter().take(SOURCES_MAX).filter_map(|range| Shard::try_from(range).ok());
        let mut shards: Vec<Shard> = told.filter(|shard| *shard != self.shard).collect();
        shards.sort_by_key(Shard::to_bytes);
        shards.dedup();
        // One that is none of this group is left out.
        shards.retain(|shard| self.group.record_bytes(shard).is_ok());
        let before = known.sources.clone();
        if shards == before.shards {
            return;
        }
        let view = |shard: &Shard| match before.shards.iter().zip(&before.views).find(|(known, _)| *known == shard) {
            Some((_, view)) => Some((shard.clone(), view.clone())),
            None => {
                let view = Inner::other(&self.group, shard, self.block_tokens, known.message.clone());
                Some((shard.clone(), Arc::new(view.ok()?)))
            }
        };
        let (shards, views): (Vec<Shard>, Vec<Arc<Inner>>) = shards.iter().filter_map(view).unzip();
        let cover = Cover::new(&self.group, &self.shard, &shards);
        let cover = cover.filter(|cover| cover.split(u32::MAX).is_some());
        known.sources = Arc::new(Sources { shards, views, cover });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    /// Those that have anything of the view's records, where all of them together have all of it.
    pub(crate) fn usable(&self) -> impl Iterator<Item = (usize, &Arc<Inner>)> {
        let of = |cover| self.views.iter().enumerate().filter(move |(at, _)| Cover::uses(cover, *at));
        self.cover.iter().flat_map(of)
    }

    /// How much of a chain can be put together, where the sources have such prefixes of it, and what of which source: `None`
    /// where that is no more than `own` blocks.
    pub(crate) fn choose(&self, view: &Inner, prefixes: &[u32], own: u32) -> Option<(u32, Vec<Chosen>)> {
        let cover = self.cover.as_ref()?;
        let blocks = cover.longest(prefixes);
        if blocks <= own {
            return None;
        }
        let has = (0..).zip(prefixes).fold(0, |all, (at, prefix)| all | u32::from(*prefix >= blocks) << at);
        let (unit_bytes, whole_bytes) = (view.units.unit_bytes as usize, view.payload_bytes as usize);
        let excerpt = |(at, runs)| (at, Arc::new(Excerpt::new(runs, unit_bytes, whole_bytes)));
        Some((blocks, cover.split(has)?.into_iter().map(excerpt).collect()))
    }
}
