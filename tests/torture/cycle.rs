//! One kill and one start, and what is compared across them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvd_tests::{Checked, Daemon, DaemonOptions, Scratch, TestEngine, ask_serving};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::Plan;
use crate::figures::{Figures, Millis};
use crate::load::{CHAIN, Kind, Load, SMALL, Shared};

/// The longest time between a start and the next kill, beside what the checks take.
const DELAY_MS_MAX: u64 = 300;
/// The longest time between a start and a kill in the middle of the recovery.
const RECOVERY_MS_MAX: u64 = 120;
/// Chains that are looked at before and after a kill.
const SAMPLED: usize = 40;
/// How long moves may take to come to rest.
const STILL_MAX: Duration = Duration::from_secs(20);
/// How long an engine may take to rejoin.
const REJOIN_MAX: Duration = Duration::from_secs(30);

/// Kinds of kills, in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Engines held still: counts before and after are exact.
    Still,
    /// In the middle of everything.
    UnderLoad,
    /// The same, and again before the next daemon is ready.
    AgainInRecovery,
}

impl When {
    fn of(cycle: u64) -> Self {
        match cycle % 4 {
            0 => Self::Still,
            2 => Self::AgainInRecovery,
            _ => Self::UnderLoad,
        }
    }
}

/// What a daemon says of itself.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    records: u64,
    moves: u64,
    dram: u64,
    nvme: u64,
    evicted: u64,
    restored_dram: u64,
    restored_nvme: u64,
}

impl Counts {
    fn of(scratch: &Scratch) -> Self {
        let status = ask_serving(scratch, &["status"]);
        let number = |value: &Value| value.as_u64().expect("the status has numbers");
        let tier = |at: usize, name: &str| number(&status["tiers"][at][name]);
        Self {
            records: number(&status["records"]),
            moves: number(&status["moves"]),
            dram: tier(0, "records"),
            nvme: tier(1, "records"),
            evicted: tier(0, "evicted") + tier(1, "evicted"),
            restored_dram: number(&status["restored_dram"]),
            restored_nvme: number(&status["restored_nvme"]),
        }
    }

    /// Waits until nothing moves any more.
    fn still(scratch: &Scratch) -> Self {
        let until = Instant::now() + STILL_MAX;
        let mut before = Self::of(scratch);
        loop {
            std::thread::sleep(Duration::from_millis(15));
            let now = Self::of(scratch);
            if before.moves + now.moves == 0 && (before.nvme, before.dram) == (now.nvme, now.dram) {
                return now;
            }
            assert!(Instant::now() < until, "moves do not come to rest: {now:?}");
            before = now;
        }
    }
}

/// The whole test's state.
pub(crate) struct Torture {
    plan: Plan,
    scratch: Scratch,
    options: DaemonOptions,
    daemon: Option<Daemon>,
    load: Option<Load>,
    shared: Arc<Shared>,
    rng: SmallRng,
    figures: Figures,
    restarts: Vec<f64>,
    rejoins: Vec<f64>,
}

impl Torture {
    /// Starts a daemon, fills its pool, and lets the engines loose.
    pub(crate) fn prepare(plan: Plan) -> Self {
        let scratch = Scratch::new("torture");
        // LRU takes every newcomer, so that something falls for each: the default policy refuses most of what comes once.
        let options = DaemonOptions::sized(plan.dram, plan.nvme).with("policy", "lru");
        let daemon = Daemon::start(&scratch, &options);
        let shared = Arc::new(Shared::default());
        fill(&scratch, &shared, Kind::Small, plan.small_chains);
        fill(&scratch, &shared, Kind::Large, plan.large_chains);
        let counts = Counts::still(&scratch);
        println!("torture: filled, {counts:?}");
        assert!(counts.records >= plan.records_min, "too few records for the test: {counts:?}");
        let load = Load::start(&scratch, &shared, plan.seed);
        let figures =
            Figures { seed: plan.seed, cycles: plan.cycles, records_first: counts.records, ..Figures::default() };
        Self {
            plan,
            scratch,
            options,
            daemon: Some(daemon),
            load: Some(load),
            shared,
            rng: SmallRng::seed_from_u64(plan.seed),
            figures,
            restarts: Vec::new(),
            rejoins: Vec::new(),
        }
    }

    /// Some time of load, a kill, a start, and the comparison.
    pub(crate) fn cycle(&mut self, cycle: u64) {
        std::thread::sleep(Duration::from_micros(self.rng.random_range(0..DELAY_MS_MAX * 1000)));
        let when = When::of(cycle);
        let shared = self.shared.clone();
        let held = (when == When::Still).then(|| shared.gate.write().expect("no engine panicked"));
        let before = if held.is_some() { Counts::still(&self.scratch) } else { Counts::of(&self.scratch) };
        let sample: Vec<u64> = (0..SAMPLED).map(|_| self.shared.known(Kind::Small, &mut self.rng)).collect();
        let lengths = held.is_some().then(|| self.lengths(&sample));
        self.figures.evicted += before.evicted;
        self.daemon.take().expect("one runs").kill();
        if when == When::AgainInRecovery {
            self.kill_in_recovery();
        }
        let (began, probe) = self.restart(&sample);
        let after = Counts::of(&self.scratch);
        let kept = if held.is_some() { &mut self.figures.nvme_still } else { &mut self.figures.nvme_under_load };
        kept.add(before.nvme, after.restored_nvme);
        if let Some(lengths) = lengths {
            self.figures.dram_still.add(before.dram, after.restored_dram);
            let found: u32 = sample.iter().map(|&chain| probe.find(chain, CHAIN).blocks()).sum();
            self.figures.matched_still.add(lengths.into(), found.into());
        }
        self.read_adopted(&probe, &sample, &after);
        drop(held);
        if cycle.is_multiple_of(3) {
            self.wait_for_engines(began, &probe);
        }
        if cycle.is_multiple_of(100) {
            println!("torture: cycle {cycle}, {when:?}, before {before:?}, after {after:?}");
        }
    }

    fn lengths(&self, sample: &[u64]) -> u32 {
        let probe = TestEngine::connect(&self.scratch.socket(), 9, SMALL, CHAIN as usize);
        sample.iter().map(|&chain| probe.find(chain, CHAIN).blocks()).sum()
    }

    fn kill_in_recovery(&mut self) {
        for _ in 0..self.rng.random_range(1..=3) {
            let daemon = Daemon::launch(&self.scratch, &self.options);
            std::thread::sleep(Duration::from_micros(self.rng.random_range(0..RECOVERY_MS_MAX * 1000)));
            daemon.kill();
            self.figures.kills_in_recovery += 1;
        }
    }

    /// Starts the successor; returns when a client has its first hit: of the sample, or, where churn had pushed all of it out
    /// before the kill, of a block that it stores itself.
    fn restart(&mut self, sample: &[u64]) -> (Instant, TestEngine) {
        let began = Instant::now();
        let mut daemon = Daemon::launch(&self.scratch, &self.options);
        let options = TestEngine::options(&self.scratch.socket(), 9);
        let probe = loop {
            match TestEngine::join(options.clone(), SMALL, CHAIN as usize) {
                Ok(probe) => break probe,
                Err(_) => daemon.expect_alive(began.elapsed()),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        while sample.iter().all(|&chain| probe.find(chain, CHAIN).blocks() == 0) {
            daemon.expect_alive(began.elapsed());
            let fresh = u64::MAX - self.restarts.len() as u64;
            probe.store(fresh, 0, 1);
            if probe.find(fresh, 1).blocks() == 1 {
                break;
            }
        }
        self.restarts.push(began.elapsed().as_secs_f64() * 1e3);
        self.daemon = Some(daemon);
        (began, probe)
    }

    /// Reads what was found. The sample was drawn before the kill, so in some cycles all of it lies on NVMe alone: hits from
    /// the adopted arena are counted apart from the adoption itself.
    fn read_adopted(&mut self, probe: &TestEngine, sample: &[u64], after: &Counts) {
        let read: Vec<Checked> = sample.iter().map(|&chain| probe.check(chain, CHAIN)).collect();
        let hit = read.iter().any(|checked| checked.dram > 0);
        self.figures.dram_adopted_cycles += u64::from(after.restored_dram > 0);
        self.figures.dram_hit_cycles += u64::from(hit);
        if !hit {
            println!("torture: no hit from DRAM in the sample, restored {}: {read:?}", after.restored_dram);
        }
        let mut tally = self.shared.tally.lock().expect("nobody panics with the counts held");
        read.iter().for_each(|checked| tally.add(checked));
    }

    fn wait_for_engines(&mut self, began: Instant, probe: &TestEngine) {
        let epoch = probe.engine().epoch();
        let engines = &self.load.as_ref().expect("the engines run").engines;
        while engines.iter().any(|engine| engine.epoch() != epoch) {
            assert!(began.elapsed() < REJOIN_MAX, "an engine does not rejoin: {engines:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.rejoins.push(began.elapsed().as_secs_f64() * 1e3);
    }

    /// Ends the engines and reads everything once more.
    pub(crate) fn end(mut self) -> Figures {
        self.load.take().expect("the engines run").stop();
        let reader = TestEngine::connect(&self.scratch.socket(), 8, SMALL, CHAIN as usize);
        let large = reader.sibling(Kind::Large.bytes(), CHAIN as usize);
        let mut tally = *self.shared.tally.lock().expect("nobody panics with the counts held");
        for (engine, kind) in [(&reader, Kind::Small), (&large, Kind::Large)] {
            let chains = self.shared.next(kind).load(Ordering::Relaxed);
            (0..chains).for_each(|chain| tally.add(&engine.check(chain, CHAIN)));
        }
        let counts = Counts::of(&self.scratch);
        let figures = &mut self.figures;
        figures.records_last = counts.records;
        figures.reads_verified = tally.right;
        figures.wrong_blocks = tally.wrong;
        figures.refused_copies = tally.refused_copies;
        figures.from_dram = tally.dram;
        figures.from_nvme = tally.nvme;
        figures.stored = tally.stored;
        figures.recovered_ratio = figures.nvme_still.ratio_min;
        figures.restart_ms = Millis::of(std::mem::take(&mut self.restarts));
        figures.rejoin_ms = Millis::of(std::mem::take(&mut self.rejoins));
        figures.call_ms_max = tally.longest.as_secs_f64() * 1e3;
        println!("torture: {} cycles of {}", figures.cycles, self.plan.cycles);
        self.figures.clone()
    }
}

/// Stores `chains` new chains. Waits now and then, so that what falls out of DRAM has been written to NVMe before.
fn fill(scratch: &Scratch, shared: &Shared, kind: Kind, chains: u64) {
    let engine = TestEngine::connect(&scratch.socket(), 3, kind.bytes(), CHAIN as usize);
    let chains_per_rest = (24 << 20) / (kind.bytes() as u64 * u64::from(CHAIN));
    for chain in 0..chains {
        engine.store(chain, 0, CHAIN);
        shared.next(kind).fetch_add(1, Ordering::Relaxed);
        if chain % chains_per_rest == 0 {
            Counts::still(scratch);
        }
    }
}
