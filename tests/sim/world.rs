//! A world: one event after the other, and after each the daemon's turn and the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvd_nixl::io::{Fault, FaultPlan, FaultRule, FaultTrigger};
use kvd_proto::wire::slab::LandedStatus;
use kvd_proto::{Epoch, Time};
use kvd_tiers::ladder::{Ladder, Move, Outcome, Reply};
use kvd_tiers::policy::{Adaptive, Lru, Policy};
use kvd_tiers::record::Scratch;
use kvd_tiers::{ClientSlot, DeviceId, SlotId, ViewId};

use crate::blocks::Names;
use crate::config::Make;
use crate::daemon::{Daemon, Flight, Recovered, Start, Survivor};
use crate::disks::Disk;
use crate::engines::{Held, Loads, Process};
use crate::oracle::Oracle;
use crate::random::Random;
use crate::store::Store;
use crate::table::Table;

pub(crate) type Core = Ladder<Table, Box<dyn Policy>>;

/// Calls at one instant beyond which the ladder or a device is going round in circles.
const CALLS_PER_INSTANT_MAX: u32 = 20_000;
/// Makes the chance of the object tier's own: with this one the seeds of `regressions.rs` have no such tier, as when they
/// were found.
const OBJECT_CHANCE: u64 = 3;
/// Instants within one event beyond which somebody asks to be called all the time: each of some leases that are in use is looked
/// at once in its idle time, which is a 1550th of the longest wait.
const INSTANTS_PER_EVENT_MAX: u32 = 60_000;

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) make: Make,
    pub(crate) names: Names,
    pub(crate) now: Time,
    pub(crate) epoch: u64,
    pub(crate) table: Table,
    pub(crate) disks: Vec<Disk>,
    pub(crate) store: Option<Store>,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) restart_at: Time,
    pub(crate) processes: Vec<Process>,
    /// Deaths that the daemon has yet to hear of.
    pub(crate) burials: Vec<(Time, ClientSlot, Vec<ViewId>)>,
    pub(crate) loads: Loads,
    pub(crate) oracle: Oracle,
    pub(crate) requests: u64,
    pub(crate) scratch: Scratch,
    /// The next call into the ladder is the daemon's last.
    pub(crate) doomed: bool,
    pub(crate) events: u64,
    /// What happened, for the report: a rule that nothing tries proves nothing.
    pub(crate) tally: Tally,
    hash: u64,
    trace: bool,
}

/// Counts by name.
pub(crate) type Tally = BTreeMap<&'static str, u64>;

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut make = Make::draw(&mut random);
        let mut chance = Random::new(seed ^ OBJECT_CHANCE << 32);
        make.add_object(&mut chance);
        let names = Names::draw(&make, &mut random);
        let disks = (0..make.devices).map(|id| Disk::new(DeviceId(id as u8), make.zones, &mut random)).collect();
        let store = make.object.map(|habits| Store::new(habits, &names, chance));
        Self {
            random,
            make,
            names,
            store,
            now: Time::from_nanos(1_000_000_000),
            epoch: 0,
            table: Table::default(),
            disks,
            daemon: None,
            restart_at: Time::ZERO,
            processes: Vec::new(),
            burials: Vec::new(),
            loads: BTreeMap::new(),
            oracle: Oracle::default(),
            requests: 0,
            scratch: Scratch::default(),
            doomed: false,
            events: 0,
            tally: Tally::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            trace: std::env::var_os("KVD_SIM_TRACE").is_some(),
        }
    }

    /// Part of what two runs of a seed must agree on.
    pub(crate) fn note(&mut self, what: u64) {
        self.hash = (self.hash ^ what).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    /// Tells what happens, for who looks into one seed.
    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>6} {:>14} {}", self.events, self.now.as_nanos(), what());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// One event.
    pub(crate) fn step(&mut self) {
        self.events += 1;
        self.doomed = self.random.per_mille(self.make.kills / 2);
        let drawn = self.random.range(0..1000);
        self.note(drawn);
        match drawn {
            0..700 => self.engine_acts(),
            700..960 => {
                let wait = match self.random.index(20) {
                    0 => self.random.micros(1_000..50_000),
                    1 if self.random.percent(10) => Duration::from_secs(31),
                    _ => self.random.micros(0..300),
                };
                self.advance(wait);
            }
            960..970 if self.make.operators => self.operate(),
            970..985 => self.trouble(),
            985..987 => self.die(),
            987..988 if self.make.power_losses => self.lose_power(),
            _ => {}
        }
        if self.random.per_mille(self.make.kills) {
            self.kill();
        }
        self.store_happens();
        self.doomed = false;
        self.turn();
        self.check();
    }

    /// Calls the ladder; `None` when there is none, or when it did not live to answer.
    pub(crate) fn call<R>(&mut self, call: impl FnOnce(&mut Core, Time) -> R) -> Option<R> {
        let result = self.call_quietly(call);
        self.hand_out();
        result
    }

    /// The same; what the ladder wants then is left for the caller to pass on.
    pub(crate) fn call_quietly<R>(&mut self, call: impl FnOnce(&mut Core, Time) -> R) -> Option<R> {
        let daemon = self.daemon.as_mut()?;
        self.table.mark();
        let result = call(&mut daemon.ladder, self.now);
        if std::mem::take(&mut self.doomed) {
            self.table.rewind(&mut self.random);
            self.kill();
            return None;
        }
        Some(result)
    }

    /// Slots that living processes may touch.
    pub(crate) fn touched(&self) -> BTreeSet<SlotId> {
        self.processes.iter().filter(|process| process.alive).flat_map(Process::slots).collect()
    }

    /// Passes on what the ladder wants moved and what loads came to.
    pub(crate) fn hand_out(&mut self) {
        let Some(daemon) = self.daemon.as_mut() else { return };
        let mut moves = Vec::new();
        while let Some(next) = daemon.ladder.poll_move() {
            moves.push(next);
        }
        let mut replies = Vec::new();
        while let Some(reply) = daemon.ladder.poll_reply() {
            replies.push(reply);
        }
        for next in moves {
            self.note(next.id().0);
            self.say(|| format!("  wants {next:?}"));
            match &next {
                Move::Fetch { to, expect, .. } | Move::Get { to, expect, .. } => {
                    assert!(!self.touched().contains(to), "{to:?} is fetched into while a live client may touch it");
                    self.oracle.rotted.remove(to);
                    let daemon = self.daemon.as_ref().expect("it asks");
                    let twice = daemon.flights.values().any(|(_, flight)| flight.fetches(expect.key));
                    assert!(!twice, "{} is fetched twice at a time", expect.key);
                }
                Move::Vacate { slot, .. } => self.oracle.vacating(*slot),
                Move::Put { .. }
                | Move::Spill { .. }
                | Move::FormatZone { .. }
                | Move::Verify { .. }
                | Move::Probe { .. } => {}
            }
            let now = self.now;
            self.daemon.as_mut().expect("it asks").hand_out(next, self.store.as_mut(), now);
        }
        self.check_object_moves();
        self.start_runs();
        for reply in replies {
            self.answered(&reply);
        }
    }

    /// More of a load that waited.
    fn answered(&mut self, reply: &Reply) {
        let Some(load) = self.loads.get_mut(&reply.request) else {
            let gone = self.processes.iter().all(|process| !process.alive || process.client != reply.client);
            assert!(gone, "an answer that nobody waits for: {reply:?}");
            return;
        };
        assert_eq!(load.got, reply.first, "parts of an answer follow each other");
        let (at, lease, first) = (load.process, load.lease, load.first);
        let mut landed = Vec::new();
        for one in &reply.landed {
            match one.status {
                LandedStatus::Landed => {
                    landed.push((first + load.got, *one));
                    load.got += 1;
                }
                LandedStatus::Missed => assert!(reply.end.is_some(), "a miss ends the load"),
            }
        }
        assert!(load.got <= load.count, "more landed than was asked for");
        if let Some(end) = reply.end {
            assert_eq!(end.blocks, load.got, "the end counts what landed");
            assert!(end.reason.is_some() || load.got == load.count, "a short load says why");
            self.loads.remove(&reply.request);
        }
        self.note(reply.landed.len() as u64);
        self.say(|| format!("  reply {reply:?}"));
        if let Some(prefix) = self.processes[at].prefixes.iter_mut().find(|prefix| prefix.lease == lease) {
            for (index, landed) in landed {
                prefix.held.push(Held::new(&self.table, prefix.blocks[index as usize], index, landed));
            }
        }
    }

    /// The daemon's other threads, and what they tell the core.
    pub(crate) fn turn(&mut self) {
        if self.daemon.is_none() {
            if self.now >= self.restart_at || self.random.percent(5) {
                self.start();
            }
            return;
        }
        self.bury();
        if self.random.percent(80) {
            self.pump();
        }
        while self.daemon.as_ref().is_some_and(|daemon| !daemon.outcomes.is_empty()) && self.random.percent(75) {
            self.deliver();
        }
    }

    pub(crate) fn pump(&mut self) {
        for disk in &self.disks {
            disk.advance(self.now);
        }
        let Some(daemon) = self.daemon.as_mut() else { return };
        let before = daemon.outcomes.len();
        daemon.pump(self.now);
        for (id, outcome) in daemon.outcomes[before..].iter().copied() {
            let (_, flight) = daemon.flights.get(&id).expect("a move is answered once");
            if let (Flight::Spill { to, entry }, Outcome::Done { .. }) = (flight, outcome) {
                self.oracle.spilled(*to, entry);
            }
        }
        self.pump_object();
    }

    /// One outcome reaches the core, any of those on their way.
    fn deliver(&mut self) {
        let Some(daemon) = self.daemon.as_mut() else { return };
        let at = self.random.index(daemon.outcomes.len());
        let (id, outcome) = daemon.outcomes.swap_remove(at);
        let (_, flight) = daemon.flights.remove(&id).unwrap_or_else(|| panic!("{id:?} is answered twice"));
        daemon.object.iter_mut().for_each(|link| link.told(&flight, outcome));
        self.say(|| format!("  {id:?} ends: {outcome:?}"));
        self.note(id.0 << 8 | u64::from(matches!(outcome, Outcome::Done { .. })));
        if matches!(outcome, Outcome::Corrupt | Outcome::Missing) {
            self.oracle.cuts_allowed = true;
        }
        if outcome == Outcome::Missing {
            self.count("gone");
        }
        self.doomed = self.random.per_mille(self.make.kills / 4);
        self.call(|ladder, now| ladder.finished(id, outcome, now));
    }

    fn bury(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.burials).into_iter().partition(|(when, _, _)| *when <= now);
        self.burials = later;
        for (_, client, views) in due as Vec<(Time, ClientSlot, Vec<ViewId>)> {
            self.call(|ladder, now| {
                views.iter().for_each(|view| ladder.close_view(*view));
                ladder.client_died(client, now);
            });
        }
    }

    /// Time goes on by `wait`, stopping wherever somebody wants to be called.
    pub(crate) fn advance(&mut self, wait: Duration) {
        let target = self.now + wait;
        let (mut instants, mut calls) = (0, 0);
        loop {
            let ladder = self.daemon.as_ref().and_then(|daemon| daemon.ladder.poll_timeout());
            let devices = self.daemon.as_ref().and_then(Daemon::devices_due);
            let disks = self.disks.iter().filter_map(Disk::next_due).min();
            let next = [ladder, devices, disks].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= target) else { break };
            if next > self.now {
                (self.now, calls) = (next, 0);
                instants += 1;
            }
            calls += 1;
            let endless = calls >= CALLS_PER_INSTANT_MAX || instants >= INSTANTS_PER_EVENT_MAX;
            assert!(!endless, "no end: {calls} {instants} ladder {ladder:?} devices {devices:?} {}", self.state());
            self.pump();
            if ladder.is_some_and(|due| due <= self.now) {
                self.call(|ladder, now| ladder.tick(now));
            }
            self.late_loads();
            while self.daemon.as_ref().is_some_and(|daemon| !daemon.outcomes.is_empty()) && self.random.percent(70) {
                self.deliver();
            }
        }
        self.now = target;
        for disk in &self.disks {
            disk.advance(target);
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// Takes over what the ladder has counted, at the end of its life.
    pub(crate) fn count_life(&mut self) {
        let Some(daemon) = &self.daemon else { return };
        let counted = *daemon.ladder.counters();
        let lived = [
            ("committed", counted.committed),
            ("dram_hits", counted.dram_hits),
            ("nvme_hits", counted.nvme_hits),
            ("spilled", counted.spilled),
            ("fetched", counted.fetched),
            ("dram_evictions", counted.dram_evictions),
            ("nvme_evictions", counted.nvme_evictions),
            ("corrupt_dram", counted.corrupt_dram),
            ("corrupt_nvme", counted.corrupt_nvme),
            ("device_failures", counted.device_failures),
            ("cuts", counted.cuts),
            ("orphans_expired", counted.orphans_expired),
            ("leases_expired", counted.leases_expired),
            ("segments_drained", counted.segments_drained),
            ("zones_drained", counted.zones_drained),
            ("restored", counted.restored),
            ("object_hits", counted.object_hits),
            ("uploaded", counted.uploaded),
            ("uploads_known", counted.uploads_known),
            ("uploads_dropped", counted.uploads_dropped),
            ("imported", counted.imported),
            ("got", counted.got),
            ("corrupt_object", counted.corrupt_object),
        ];
        for (what, count) in lived {
            *self.tally.entry(what).or_default() += count;
        }
    }

    fn state(&self) -> String {
        self.daemon.as_ref().map_or_else(String::new, |daemon| {
            format!("{:?} {:?} {:?}", self.make.ladder, daemon.ladder.stats(), daemon.flights)
        })
    }

    /// Every load is answered by its deadline.
    fn late_loads(&self) {
        let idle =
            self.daemon.as_ref().is_none_or(|daemon| daemon.ladder.poll_timeout().is_none_or(|due| due > self.now));
        for (request, load) in self.loads.iter().filter(|_| idle) {
            assert!(load.deadline > self.now, "{request:?} was due at {:?}, it is {:?}", load.deadline, self.now);
        }
    }

    /// A daemon starts: killed on the way at times, or stopped by a disk.
    pub(crate) fn start(&mut self) {
        self.epoch += 1;
        self.note(0x57A7 + self.epoch);
        self.say(|| format!("epoch {} starts", self.epoch));
        let dies = self.random.percent(25);
        let plans = self.start_plans(dies);
        let survivors = self.processes.iter().filter(|process| process.alive).map(|process| Survivor {
            client: process.client,
            instance: process.instance,
            tenant: process.tenant,
        });
        let policy: Box<dyn Policy> =
            if self.make.adaptive { Box::new(Adaptive::new(64)) } else { Box::new(Lru::default()) };
        let start = Start {
            config: self.make.ladder.clone(),
            object: self.make.object,
            policy,
            table: self.table.clone(),
            survivors: survivors.collect(),
            plans,
            epoch: Epoch::new(self.epoch),
            now: self.now,
            random: &mut self.random,
        };
        let started = Daemon::start(&self.disks, start);
        for disk in &self.disks {
            self.now = self.now.max(disk.now());
        }
        for disk in &self.disks {
            disk.advance(self.now);
        }
        self.restart_at = self.now + self.random.micros(0..1_000);
        self.count(if dies { "starts_killed" } else { "starts" });
        if dies {
            self.table.rewind(&mut self.random);
            self.disks.iter().for_each(|disk| disk.sim.kill());
            return;
        }
        match started {
            Ok((daemon, recovered)) => self.started(daemon, &recovered),
            Err((device, error)) => {
                let number = usize::from(device.0);
                assert!(self.disks[number].tainted, "a sound disk does not open: {error}");
                self.disks.iter().for_each(|disk| disk.sim.kill());
                self.replace_disk(number);
            }
        }
    }

    /// A start that will be killed stops having effects on its disks at some operation.
    fn start_plans(&mut self, dies: bool) -> Vec<FaultPlan> {
        let mut plans = Vec::new();
        for _ in &self.disks {
            let last = self.random.range(1..40);
            let dead = FaultRule::new(Fault::EIO, FaultTrigger::From(last));
            plans.push(if dies { FaultPlan::new([dead]) } else { FaultPlan::default() });
        }
        plans
    }

    fn started(&mut self, daemon: Daemon, recovered: &Recovered) {
        self.daemon = Some(daemon);
        self.oracle.recovered(recovered, &self.disks);
        self.check_chains_restored(recovered);
        self.hand_out();
    }
}
