//! What the core does for the object tier, as `kvd/src/core/questions.rs`: questions to the catalog, whose answers are late and
//! may be stale, the store's ups and downs, purges of the store.

use std::collections::BTreeSet;
use std::time::Duration;

use kvd_proto::Time;
use kvd_tiers::ladder::{Outcome, Purge, RemoteChain};
use kvd_tiers::{ObjectPlace, SlotId, ViewId};

use crate::blocks::Block;
use crate::config::ObjectHabits;
use crate::daemon::Flight;
use crate::engines::Process;
use crate::store::{Happening, Row};
use crate::tier::{Around, Tier};
use crate::world::World;

/// Questions of one process at a time.
const QUESTIONS_MAX: usize = 4;

/// How long an engine waits for what it was told of.
const LOAD_WAIT: Duration = Duration::from_millis(40);

/// How long reads stand still while the block that one brings is taken away and stored anew.
const STALL: Duration = Duration::from_millis(15);

/// Why the catalog is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Match { want_lease: bool },
    Prefetch,
}

/// A chain of which only the beginning is here.
struct Question {
    process: usize,
    view: ViewId,
    blocks: Vec<Block>,
    /// The first block that is asked about.
    first: u32,
    purpose: Purpose,
    /// When the catalog is looked at, when its answer is there, when nobody waits for it any longer.
    looked_at: Time,
    answered_at: Time,
    due: Time,
    found: Option<Vec<Row>>,
    /// Purges that had been asked for.
    purges: u64,
}

/// The core's ends of the object tier.
pub(crate) struct Link {
    pub(crate) tier: Tier,
    /// Whether the catalog is worth asking.
    up: bool,
    questions: Vec<Question>,
    /// Purges of the store that wait for the ladder's to be over.
    store_purges: Vec<(Purge, u64)>,
    purges_asked: u64,
    /// Places that brought nothing: not to be asked for again unless the catalog names them again.
    refused: BTreeSet<ObjectPlace>,
    /// What the ladder was told: records taken, known, not taken, come.
    taken: u64,
    known: u64,
    dropped: u64,
    came: u64,
}

impl Link {
    pub(crate) fn new(habits: ObjectHabits) -> Self {
        Self {
            tier: Tier::new(habits),
            up: true,
            questions: Vec::new(),
            store_purges: Vec::new(),
            purges_asked: 0,
            refused: BTreeSet::new(),
            taken: 0,
            known: 0,
            dropped: 0,
            came: 0,
        }
    }

    pub(crate) fn due(&self) -> Option<Time> {
        let questions = self.questions.iter().map(|question| match question.found {
            None => question.looked_at.min(question.due),
            Some(_) => question.answered_at.min(question.due),
        });
        questions.chain(self.tier.due()).min()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.tier.is_idle() && self.questions.is_empty() && self.store_purges.is_empty()
    }

    /// Nobody waits for the answers of a process that is gone, or has joined again.
    pub(crate) fn forget(&mut self, process: usize) {
        self.questions.retain(|question| question.process != process);
    }

    pub(crate) fn purge(&mut self, purge: Purge, asked: u64) {
        self.store_purges.push((purge, asked));
        self.purges_asked += 1;
    }

    /// While a purge is under way nothing is learned from the catalog: it names what the purge has yet to reach.
    fn purging(&self) -> bool {
        !self.store_purges.is_empty() || self.tier.purges_open()
    }

    /// A fetch is asked for.
    pub(crate) fn getting(&self, from: ObjectPlace) {
        assert!(!self.refused.contains(&from), "{from:?} brought nothing and is asked for again");
    }

    /// A move of the tier ends.
    pub(crate) fn told(&mut self, flight: &Flight, outcome: Outcome) {
        match (flight, outcome) {
            (Flight::Put, Outcome::Done { bytes: 0, .. }) => self.known += 1,
            (Flight::Put, Outcome::Done { .. }) => self.taken += 1,
            (Flight::Put, Outcome::Missing | Outcome::Failed(_)) => self.dropped += 1,
            (Flight::Get { .. }, Outcome::Done { .. }) => self.came += 1,
            // What comes of one that was displaced is nobody's.
            (Flight::Get { from, displaced: false, .. }, Outcome::Corrupt | Outcome::Missing) => {
                self.refused.insert(*from);
            }
            _ => {}
        }
    }
}

impl World {
    /// Asks the catalog for what is not here of a chain. `false`: there is nothing to ask, or nobody.
    pub(crate) fn ask_catalog(&mut self, at: usize, view: ViewId, blocks: &[Block], purpose: Purpose) -> bool {
        let hashes = self.hashes(blocks);
        let now = self.now;
        let (Some(daemon), Some(store)) = (&mut self.daemon, &mut self.store) else { return false };
        let Some(link) = daemon.object.as_mut().filter(|link| link.up && !link.purging()) else { return false };
        let first = daemon.ladder.blocks_here(view, &hashes);
        let asked = link.questions.iter().filter(|question| question.process == at).count();
        if first as usize >= blocks.len() || asked >= QUESTIONS_MAX {
            return false;
        }
        let looked_at = now + store.delay();
        link.questions.push(Question {
            process: at,
            view,
            blocks: blocks.to_vec(),
            first,
            purpose,
            looked_at,
            answered_at: looked_at + store.delay(),
            due: now + store.chance.micros(200..20_000),
            found: None,
            purges: link.purges_asked,
        });
        self.count("questions");
        true
    }

    /// The object tier works, and tells the core.
    pub(crate) fn pump_object(&mut self) {
        let touched = if self.store.is_some() { self.touched() } else { BTreeSet::new() };
        let (Some(daemon), Some(store)) = (&mut self.daemon, &mut self.store) else { return };
        let Some(link) = &mut daemon.object else { return };
        let table = daemon.ladder.table().clone();
        let (names, oracle, now) = (&self.names, &self.oracle, self.now);
        let mut around = Around { store, table: &table, names, oracle, touched, now };
        if daemon.ladder.purging() == 0 {
            for (purge, asked) in std::mem::take(&mut link.store_purges) {
                link.tier.start_purge(purge, asked, &mut around, &mut daemon.outcomes);
            }
        }
        link.tier.pump(&mut around, &mut daemon.outcomes);
        let told = (store.reads, store.writes);
        let news = told != link.tier.up && store.chance.percent(20);
        if news {
            link.tier.up = told;
            link.up = told.0;
        }
        for (purge, asked) in link.tier.take_purged() {
            self.oracle.purged(&self.names, purge, asked);
            *self.tally.entry("store_purges").or_default() += 1;
        }
        if news {
            self.say(|| format!("the store: reads and writes {told:?}"));
            self.call(|ladder, now| ladder.set_object_up(told.0, told.1, now));
        }
        self.answer_questions();
    }

    fn answer_questions(&mut self) {
        let now = self.now;
        loop {
            let (Some(daemon), Some(store)) = (&mut self.daemon, &self.store) else { return };
            let Some(link) = &mut daemon.object else { return };
            for question in link.questions.iter_mut().filter(|one| one.found.is_none() && one.looked_at <= now) {
                let asked = question.blocks[question.first as usize..].iter();
                let rows = asked.map_while(|block| store.catalog.lookup(&self.names.key(*block)));
                question.found = Some(rows.collect());
            }
            let answered = |one: &Question| one.due <= now || one.found.is_some() && one.answered_at <= now;
            let Some(which) = link.questions.iter().position(answered) else { return };
            let mut question = link.questions.remove(which);
            let late = question.answered_at > now;
            let mut rows = question.found.take().filter(|_| !late).unwrap_or_default();
            if link.purging() || question.purges != link.purges_asked {
                rows.clear();
            }
            for (row, block) in rows.iter().zip(&question.blocks[question.first as usize..]) {
                link.refused.remove(&row.remote.place);
                assert!(!store.was_purged(block.lane, row.pack), "{block:?} is found where a purge took it from");
            }
            self.count(if late { "questions_late" } else { "questions_answered" });
            self.answer(&question, &rows);
        }
    }

    fn answer(&mut self, question: &Question, rows: &[Row]) {
        let Question { process, view, blocks, first, purpose, .. } = question;
        let asked = &blocks[*first as usize..];
        match purpose {
            Purpose::Match { want_lease } => {
                let before = self.processes[*process].prefixes.len();
                self.matching(*process, *view, blocks, *want_lease, Some((*first, rows)));
                let got = self.processes[*process].prefixes.len() > before;
                if got && !rows.is_empty() && self.store_chance(70) {
                    // As an engine does that was told of blocks elsewhere.
                    self.load_from(*process, before, 0, LOAD_WAIT);
                }
            }
            Purpose::Prefetch => {
                let (client, hashes) = (self.processes[*process].client, self.hashes(blocks));
                let records: Vec<_> = rows.iter().map(|row| row.remote).collect();
                let remote = RemoteChain { first: *first, records: &records };
                self.call_quietly(|ladder, now| ladder.prefetch_remote(client, *view, &hashes, remote, now));
                self.imported(asked, rows);
                self.hand_out();
            }
        }
    }

    /// Blocks that the ladder was told of: as good as committed when their records were.
    pub(crate) fn imported(&mut self, blocks: &[Block], rows: &[Row]) {
        for (block, row) in blocks.iter().zip(rows) {
            let found = self.explained(*block);
            if found.is_none_or(|record| record.dram.is_none() && record.nvme.is_none()) {
                self.oracle.imported(*block, row.since);
            }
        }
    }

    /// Something happens to the store that is none of this node's doing.
    pub(crate) fn store_happens(&mut self) {
        let learns = self.daemon.is_some();
        let flights = self.daemon.iter().flat_map(|daemon| daemon.flights.values());
        let fetching = flights.filter(|(_, flight)| matches!(flight, Flight::Get { displaced: false, .. })).count() > 0;
        if fetching && self.make.operators && self.store_chance(5) {
            return self.displace_one();
        }
        let serial = self.oracle.next_serial();
        let Some(store) = &mut self.store else { return };
        if !store.chance.percent(12) {
            return;
        }
        match store.happen(&self.names, serial, learns) {
            Happening::Nothing => {}
            Happening::Learned => self.count("learned"),
            Happening::Vanished => self.count("packs_vanished"),
            Happening::Rotted => self.count("records_rotted"),
            Happening::Published(blocks) => {
                self.say(|| format!("another node publishes {blocks:?}"));
                self.count("published");
            }
            Happening::Purge(purge) if self.make.operators => self.purge(purge),
            Happening::Purge(_) => {}
            Happening::Turns(turns) => {
                self.call(|ladder, now| ladder.set_object_turns(turns, now));
            }
        }
    }

    /// True in `percent` of a hundred cases, by the store's own chance.
    fn store_chance(&mut self, percent: u64) -> bool {
        self.store.as_mut().is_some_and(|store| store.chance.percent(percent))
    }

    pub(crate) fn forget_questions(&mut self, at: usize) {
        let link = self.daemon.as_mut().and_then(|daemon| daemon.object.as_mut());
        link.into_iter().for_each(|link| link.forget(at));
    }

    /// Records that were asked for in one turn, side by side, are one request.
    pub(crate) fn start_runs(&mut self) {
        let link = self.daemon.as_mut().and_then(|daemon| daemon.object.as_mut());
        if let (Some(link), Some(store)) = (link, &mut self.store) {
            link.tier.start_runs(self.now, store);
        }
    }

    /// How many of the object tier's moves there may be at a time.
    pub(crate) fn check_object_moves(&self) {
        let (Some(daemon), Some(object)) = (&self.daemon, self.make.ladder.object) else { return };
        let slot_bytes = |key| {
            let block = self.store.as_ref().expect("there is a tier").block(key);
            u64::from(self.names.lanes[block.lane].slot_bytes)
        };
        let (mut gets, mut get_bytes, mut puts) = (0, 0, 0);
        for (_, flight) in daemon.flights.values() {
            match flight {
                Flight::Get { key, .. } => {
                    gets += 1;
                    get_bytes += slot_bytes(key);
                }
                Flight::Put => puts += 1,
                Flight::Spill { .. } | Flight::Fetch { .. } | Flight::Vacate | Flight::Other => {}
            }
        }
        assert!(gets <= object.gets_max, "{gets} records are fetched at a time");
        assert!(puts <= object.puts_max, "{puts} records are given to the tier at a time");
        let bounded = get_bytes <= object.get_bytes_max.max(object.run_bytes_max);
        assert!(bounded || gets == 1, "{get_bytes} bytes are fetched at a time");
    }

    /// After every event.
    pub(crate) fn check_object(&self) {
        let Some(daemon) = &self.daemon else { return };
        let Some((link, object)) = daemon.object.as_ref().zip(self.make.ladder.object) else { return };
        let counted = daemon.ladder.counters();
        assert_eq!((counted.uploaded, counted.uploads_known), (link.taken, link.known), "records given to the tier");
        assert!(counted.uploads_dropped >= link.dropped, "records that the tier refused are counted");
        assert!(counted.got <= link.came, "{} records came, {} are counted", link.came, counted.got);
        assert!(counted.object_hits == 0 || counted.imported > 0, "what comes from there was asked for");
        let stats = daemon.ladder.stats().object.expect("it is configured");
        assert!(stats.remotes <= object.remotes_max, "{} records are known to lie there alone", stats.remotes);
        assert!(stats.getting <= object.gets_max && stats.putting <= object.puts_max, "{stats:?}");
        assert!(
            object.writes || stats.putting + stats.upload_queue == 0,
            "nothing is given to a tier that is only read"
        );
    }

    /// An operator takes a block away that is being fetched; an engine stores it anew, or gives up, and asks for it again.
    fn displace_one(&mut self) {
        let (Some(daemon), Some(store)) = (&mut self.daemon, &mut self.store) else { return };
        let fetched = daemon.flights.values().find_map(|(_, flight)| match flight {
            Flight::Get { key, displaced: false, .. } => Some(*key),
            _ => None,
        });
        let Some(key) = fetched else { return };
        let block = store.block(&key);
        daemon.object.iter_mut().for_each(|link| link.tier.stall(self.now + STALL));
        let here = |process: &Process| process.alive && process.epoch == self.epoch;
        let viewer =
            self.processes.iter().enumerate().filter(|(_, process)| here(process)).find_map(|(at, process)| {
                process.views.iter().find(|(lane, _)| *lane == block.lane).map(|(_, view)| (at, *view))
            });
        let Some((at, view)) = viewer else { return };
        let chain = (0..=block.position).map(|position| self.names.block(block.lane, block.chain, position));
        let (chain, last) = (chain.collect::<Vec<_>>(), block.position as usize);
        if self.call(|ladder, now| ladder.evict(&key, None, now)).is_none() {
            return;
        }
        self.oracle.evicted(block);
        self.count("displaced");
        let fills = self.processes[at].fills.len();
        self.offer_blocks(at, view, &chain, last..last + 1);
        if self.processes[at].fills.len() > fills && self.daemon.is_some() && self.store_chance(80) {
            self.abandon_fill(at, fills, true);
        }
        self.ask_catalog(at, view, &chain, Purpose::Match { want_lease: true });
    }

    /// A block is filled anew: whatever is still on its way to another slot for it is nobody's.
    pub(crate) fn displaced(&mut self, block: Block, granted: Option<SlotId>) {
        let wanted = self.names.key(block);
        for (_, flight) in self.daemon.iter_mut().flat_map(|daemon| daemon.flights.values_mut()) {
            if let Flight::Get { key, to, displaced, .. } = flight
                && *key == wanted
            {
                assert_ne!(Some(*to), granted, "{to:?} is granted while it is fetched into");
                *displaced = true;
            }
        }
    }

    /// At the end nothing is under way, and a record that lies only in the store is known for what hangs on it.
    pub(crate) fn check_object_at_rest(&self) {
        let daemon = self.daemon.as_ref().expect("it was started");
        let Some(stats) = daemon.ladder.stats().object else { return };
        assert_eq!((stats.getting, stats.putting, stats.upload_queue), (0, 0, 0), "the tier's moves never end");
        assert!(daemon.ladder.uploads_done());
        let all = self.names.all();
        for block in &all {
            if self.explained(*block).is_none_or(|record| record.object.is_none()) {
                continue;
            }
            let children = all.iter().filter(|child| self.names.parent(**child) == Some(*block));
            let mut children = children.filter_map(|child| self.explained(*child));
            assert!(children.next().is_some(), "{block:?} is remote though nothing hangs on it");
        }
    }

    /// How long the wind-down may go on for the tier's sake.
    pub(crate) fn object_rests(&self) -> bool {
        let Some(daemon) = &self.daemon else { return false };
        let stats = daemon.ladder.stats().object;
        let moves = stats.is_none_or(|stats| stats.getting + stats.putting + stats.upload_queue == 0);
        moves && daemon.object.as_ref().is_none_or(Link::is_idle)
    }

    /// The store recovers.
    pub(crate) fn calm_store(&mut self) {
        if let Some(store) = &mut self.store {
            (store.reads, store.writes) = (true, true);
        }
    }
}
