//! The daemon under attack, the honest engine beside it, and what is counted of both.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvd_tests::{Checked, Daemon, DaemonOptions, Scratch, TestEngine};

/// Bytes of an honest block.
pub(crate) const BLOCK: usize = 64 * 1024;
/// Blocks of an honest chain.
pub(crate) const CHAIN: u32 = 16;
/// By how much the daemon's anonymous memory may grow under attack.
const GROWTH_MAX: u64 = 32 << 20;

/// What the daemon takes of the system.
#[derive(Clone, Copy, Debug)]
struct Taken {
    anonymous_bytes: u64,
    descriptors: usize,
}

/// A daemon and an engine that does nothing but its work.
pub(crate) struct Node {
    pub(crate) scratch: Scratch,
    pub(crate) daemon: Daemon,
    before: Taken,
    honest: Option<Honest>,
}

struct Honest {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(TestEngine, Tally)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    turns: u64,
    right: u64,
    wrong: u64,
}

impl Tally {
    fn add(&mut self, checked: &Checked) {
        self.right += u64::from(checked.right);
        self.wrong += u64::from(checked.wrong);
        assert_eq!(checked.wrong, 0, "{checked:?}");
    }
}

fn work(engine: TestEngine, chains: u64, stop: &AtomicBool) -> (TestEngine, Tally) {
    let mut tally = Tally::default();
    // At least one turn, however short the attack.
    while tally.turns == 0 || !stop.load(Ordering::Relaxed) {
        let chain = tally.turns % chains;
        engine.store(chain, 0, CHAIN);
        tally.add(&engine.check(chain, CHAIN));
        tally.add(&engine.check(chain / 2, CHAIN));
        tally.turns += 1;
    }
    (engine, tally)
}

impl Node {
    /// DRAM of four segments, NVMe of twice that.
    pub(crate) fn start(test: &str) -> Self {
        Self::with(test, &DaemonOptions::sized("256MiB", "512MiB"), u64::MAX, |_| {}).0
    }

    /// Whatever daemon is wanted; the honest engine's work is about so many chains, and begins after `first`.
    pub(crate) fn with<R>(
        test: &str,
        options: &DaemonOptions,
        chains: u64,
        first: impl FnOnce(&Scratch) -> R,
    ) -> (Self, R) {
        let scratch = Scratch::new(test);
        let daemon = Daemon::start(&scratch, options);
        let engine = TestEngine::connect(&scratch.socket(), 1, BLOCK, CHAIN as usize);
        // Once through everything, so that what is made at first use counts as there.
        for chain in 1 << 32..(1 << 32) + 8 {
            engine.store(chain, 0, CHAIN);
            assert_eq!(engine.check(chain, CHAIN).wrong, 0);
        }
        let came_first = first(&scratch);
        let before = taken(&daemon);
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || work(engine, chains, &until));
        (Self { scratch, daemon, before, honest: Some(Honest { stop, thread }) }, came_first)
    }

    /// The attack is over: the daemon lives, and the honest engine kept its session and met no wrong byte.
    pub(crate) fn alive(&mut self) -> TestEngine {
        let honest = self.honest.take().expect("asked once");
        honest.stop.store(true, Ordering::Relaxed);
        let (engine, tally) = honest.thread.join().expect("the honest engine met wrong bytes");
        assert!(self.daemon.alive(), "the daemon ended:\n{}", self.daemon.log());
        assert_eq!(engine.engine().times_joined(), 1, "the honest session was cut:\n{}", self.daemon.log());
        assert!(tally.right > 0 && tally.wrong == 0, "{tally:?}");
        println!("honest {tally:?}");
        engine
    }

    /// And more: stores go on, and nothing is kept of the attack.
    pub(crate) fn unharmed(&mut self) {
        let engine = self.alive();
        // Stored when all is calm, so nothing excuses a miss.
        let chain = 1 << 33;
        within("a chain is stored whole", || {
            engine.store(chain, 0, CHAIN);
            engine.check(chain, CHAIN).right == CHAIN
        });
        within("the descriptors are back", || taken(&self.daemon).descriptors <= self.before.descriptors);
        let now = taken(&self.daemon);
        let growth = now.anonymous_bytes.saturating_sub(self.before.anonymous_bytes);
        println!("daemon before {:?}, after {now:?}", self.before);
        assert!(growth < GROWTH_MAX, "{growth} bytes of anonymous memory more than before");
    }
}

fn taken(daemon: &Daemon) -> Taken {
    let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
    let status = fs::read_to_string(format!("{process}/status")).expect("the daemon lives");
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = anonymous.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("in kB");
    let names = fs::read_dir(format!("{process}/fd")).expect("the daemon lives").flatten();
    let names = names.filter_map(|entry| fs::read_link(entry.path()).ok());
    // Segments are opened as the honest engine fills them; what a command line call leaves is not of sessions either.
    let descriptors = names.filter(|name| !name.to_string_lossy().contains("/seg-")).count();
    Taken { anonymous_bytes: kib << 10, descriptors }
}

/// Waits for something that must come.
pub(crate) fn within(what: &str, mut come: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !come() {
        assert!(Instant::now() < until, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
