//! Engines that never rest, and check what they read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvd_proto::MissReason;
use kvd_tests::{Checked, Scratch, TestEngine};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Bytes of a small block: its slot has 8 KiB.
pub(crate) const SMALL: usize = 4096;
/// Bytes of a large block.
pub(crate) const LARGE: usize = 64 * 1024;
/// Blocks of a chain.
pub(crate) const CHAIN: u32 = 32;
/// A chain is stored in two parts, so that chains also end and go on at other places than their ends.
const HALF: u32 = CHAIN / 2;

/// A size of blocks; each is a namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Small,
    Large,
}

impl Kind {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }
}

/// What all engines did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) right: u64,
    pub(crate) wrong: u64,
    pub(crate) refused_copies: u64,
    pub(crate) dram: u64,
    pub(crate) nvme: u64,
    pub(crate) stored: u64,
    pub(crate) longest: Duration,
}

impl Tally {
    pub(crate) fn add(&mut self, checked: &Checked) {
        self.right += u64::from(checked.right);
        self.wrong += u64::from(checked.wrong);
        self.refused_copies += u64::from(checked.corrupt);
        self.dram += u64::from(checked.dram);
        self.nvme += u64::from(checked.nvme);
    }
}

/// What the engines' threads share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Held for reading over each act; who holds it for writing holds the engines still. Nothing is taken above it.
    pub(crate) gate: RwLock<()>,
    stop: AtomicBool,
    /// The number of the next new chain, by kind.
    next: [AtomicU64; 2],
    /// Guards the counts. Held for moments.
    pub(crate) tally: Mutex<Tally>,
}

impl Shared {
    pub(crate) fn next(&self, kind: Kind) -> &AtomicU64 {
        &self.next[kind as usize]
    }

    /// A chain that was stored at some time: one of the last, or any.
    pub(crate) fn known(&self, kind: Kind, rng: &mut SmallRng) -> u64 {
        let next = self.next(kind).load(Ordering::Relaxed).max(1);
        let first = if rng.random_bool(0.5) { next.saturating_sub(48) } else { 0 };
        rng.random_range(first..next)
    }
}

/// Threads of engines at work.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) shared: Arc<Shared>,
    /// One of each process.
    pub(crate) engines: Vec<kvd_client::Engine>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Two sessions: one with three threads, one with one.
    pub(crate) fn start(scratch: &Scratch, shared: &Arc<Shared>, seed: u64) -> Self {
        let first = TestEngine::connect(&scratch.socket(), 1, SMALL, CHAIN as usize);
        let second = TestEngine::connect(&scratch.socket(), 2, SMALL, CHAIN as usize);
        let engines = vec![first.engine().clone(), second.engine().clone()];
        let large = first.sibling(LARGE, CHAIN as usize);
        let third = first.sibling(SMALL, CHAIN as usize);
        let work = [(first, Kind::Small), (large, Kind::Large), (third, Kind::Small), (second, Kind::Small)];
        let threads = work.into_iter().enumerate().map(|(thread, (engine, kind))| {
            let shared = shared.clone();
            let rng = SmallRng::seed_from_u64(seed ^ (thread as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let name = format!("engine-{thread}");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || Worker { engine, kind, shared, rng }.run())
                .expect("a thread can be started")
        });
        Self { shared: shared.clone(), threads: threads.collect(), engines }
    }

    /// Ends the threads; one that panicked ends the test.
    pub(crate) fn stop(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("an engine's thread panicked");
        }
    }
}

struct Worker {
    engine: TestEngine,
    kind: Kind,
    shared: Arc<Shared>,
    rng: SmallRng,
}

impl Worker {
    fn run(mut self) {
        let shared = self.shared.clone();
        while !shared.stop.load(Ordering::Relaxed) {
            let turn = shared.gate.read().expect("nobody panics with the gate held");
            let began = Instant::now();
            let down = self.act();
            let took = began.elapsed();
            drop(turn);
            let mut tally = shared.tally.lock().expect("nobody panics with the counts held");
            tally.longest = tally.longest.max(took);
            drop(tally);
            if down {
                // The daemon is dead; an engine would compute now.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// One act; whether the daemon was not there.
    fn act(&mut self) -> bool {
        match self.rng.random_range(0..100) {
            0..45 => self.read(),
            45..80 => {
                let chain = self.shared.next(self.kind).fetch_add(1, Ordering::Relaxed);
                self.store(chain, 0, HALF) || self.store(chain, HALF, CHAIN)
            }
            80..88 => {
                let chain = self.shared.known(self.kind, &mut self.rng);
                self.engine.prefetch(chain, CHAIN);
                self.read_chain(chain)
            }
            88..94 => {
                let chain = self.shared.known(self.kind, &mut self.rng);
                self.engine.find(chain, CHAIN).reason() == Some(MissReason::TierDown)
            }
            _ => {
                // What an engine does after a miss: it computes the rest and stores it.
                let chain = self.shared.known(self.kind, &mut self.rng);
                let have = self.engine.find(chain, CHAIN).blocks();
                have < CHAIN && self.store(chain, have, CHAIN)
            }
        }
    }

    fn read(&mut self) -> bool {
        let chain = self.shared.known(self.kind, &mut self.rng);
        self.read_chain(chain)
    }

    fn read_chain(&mut self, chain: u64) -> bool {
        let checked = self.engine.check(chain, CHAIN);
        if checked.wrong + checked.corrupt > 0 {
            eprintln!("chain {chain} of {:?}: {checked:?}", self.kind);
        }
        self.shared.tally.lock().expect("nobody panics with the counts held").add(&checked);
        checked.reason == Some(MissReason::TierDown)
    }

    fn store(&mut self, chain: u64, from: u32, to: u32) -> bool {
        let stored = self.engine.store(chain, from, to);
        self.shared.tally.lock().expect("nobody panics with the counts held").stored += u64::from(stored.granted);
        stored.reason == Some(MissReason::TierDown)
    }
}
