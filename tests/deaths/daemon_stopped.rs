//! A daemon that stands still under load: engines miss within their deadlines and go on afterwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvd_tests::{Daemon, DaemonOptions, Scratch, TestEngine};
use rand::Rng;
use rustix::process::Signal;

use crate::process::{BLOCK, CHAIN, Held, within};
use crate::{count, generator};

const MATCH_DEADLINE: Duration = Duration::from_millis(50);
const LOAD_DEADLINE: Duration = Duration::from_millis(400);
const STORE_DEADLINE: Duration = Duration::from_millis(400);
/// What a loaded machine may add before a thread runs again.
const SLACK: Duration = Duration::from_millis(250);
/// How long joining may take before it gives up.
const JOIN_MAX: Duration = Duration::from_millis(2500);

/// The longest calls, and what they read.
#[derive(Debug, Clone, Copy, Default)]
struct Calls {
    find: Duration,
    load: Duration,
    store: Duration,
    right: u64,
    wrong: u64,
    corrupt: u64,
}

fn timed<T>(longest: &mut Duration, call: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = call();
    *longest = began.elapsed().max(*longest);
    result
}

/// A stop signal takes effect thread by thread; until it has, a handshake may still be answered.
fn stands_still(daemon: &Daemon) -> bool {
    let tasks = format!("/proc/{}/task", daemon.pid().as_raw_nonzero());
    let stopped = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state stands behind the name, which may hold anything but ends with the last bracket.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    };
    std::fs::read_dir(tasks).expect("the daemon lives").flatten().all(stopped)
}

fn one_turn(engine: &TestEngine, chain: u64, calls: &Mutex<Calls>) {
    let mut mine = Calls::default();
    timed(&mut mine.store, || engine.store(chain, 0, CHAIN));
    let found = timed(&mut mine.find, || engine.find(chain, CHAIN));
    let checked = timed(&mut mine.load, || engine.load(chain, &found));
    let mut calls = calls.lock().expect("nobody panics with the counts held");
    calls.find = calls.find.max(mine.find);
    calls.load = calls.load.max(mine.load);
    calls.store = calls.store.max(mine.store);
    calls.right += u64::from(checked.right);
    calls.wrong += u64::from(checked.wrong);
    calls.corrupt += u64::from(checked.corrupt);
}

#[test]
fn calls_miss_in_time_while_the_daemon_stands_still() {
    let mut rng = generator("daemon_stopped");
    let scratch = Scratch::new("standstill");
    let mut daemon = Daemon::start(&scratch, &DaemonOptions::sized("192MiB", "192MiB"));
    let mut options = TestEngine::options(&scratch.socket(), 1);
    options.match_deadline = Some(MATCH_DEADLINE);
    options.load_deadline = Some(LOAD_DEADLINE);
    options.store_deadline = STORE_DEADLINE;
    let engine = TestEngine::join(options.clone(), BLOCK, CHAIN as usize).expect("the daemon accepts us");
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(Mutex::new(Calls::default()));
    let threads: Vec<_> = (0..3)
        .map(|thread| {
            let (engine, stop, calls) = (engine.sibling(BLOCK, CHAIN as usize), stop.clone(), calls.clone());
            std::thread::spawn(move || {
                let mut chain = thread << 32;
                while !stop.load(Ordering::Relaxed) {
                    one_turn(&engine, chain, &calls);
                    chain += 1;
                }
            })
        })
        .collect();
    let (stops, still) = (count(2, 20), count(Duration::from_secs(2), Duration::from_secs(30)));
    let mut recovered = Duration::ZERO;
    for _ in 0..stops {
        std::thread::sleep(Duration::from_micros(rng.random_range(0..200_000)));
        daemon.signal(Signal::STOP);
        within(Duration::from_secs(1), "every thread of the daemon stands still", || stands_still(&daemon));
        let stopped = Instant::now();
        // Nobody can join either, and finds that out in time.
        let mut join = Duration::ZERO;
        let refused = timed(&mut join, || TestEngine::join(options.clone(), BLOCK, 1).is_err());
        assert!(refused && join <= JOIN_MAX, "joining a stopped daemon took {join:?}");
        let missed = engine.check(0, CHAIN);
        assert_eq!(missed.right, 0, "a stopped daemon serves nothing: {missed:?}");
        std::thread::sleep(still.saturating_sub(stopped.elapsed()));
        daemon.signal(Signal::CONT);
        let before = calls.lock().expect("nobody panics with the counts held").right;
        recovered = recovered.max(within(Duration::from_secs(5), "engines go on", || {
            calls.lock().expect("nobody panics with the counts held").right > before
        }));
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("an engine's thread panicked"));
    let calls = *calls.lock().expect("nobody panics with the counts held");
    println!("daemon_stopped: {stops} stops of {still:?}, {calls:?}, engines go on after {recovered:?}");
    assert!(daemon.alive());
    assert_eq!((calls.wrong, calls.corrupt), (0, 0), "a late byte: {calls:?}");
    assert_eq!(engine.engine().times_joined(), 1, "the session outlives the stop");
    assert!(calls.find <= MATCH_DEADLINE + SLACK, "a match took {:?}", calls.find);
    assert!(calls.load <= LOAD_DEADLINE + SLACK, "a load took {:?}", calls.load);
    // An offer and a commit have a deadline each.
    assert!(calls.store <= 2 * STORE_DEADLINE + SLACK, "a store took {:?}", calls.store);
    within(Duration::from_secs(10), "nothing is held afterwards", || Held::of(&scratch).leases == 0);
}

/// Each call that gave up has a lease by the time the daemon has answered it; together they are all that the engine may have.
#[test]
fn the_first_match_after_a_standstill_is_not_refused_for_those_before() {
    let scratch = Scratch::new("late-leases");
    let chain = 64;
    // Half of it may be leased: less than five times the chain.
    let options = DaemonOptions::sized("128MiB", "128MiB");
    let daemon = Daemon::start(&scratch, &options);
    let mut options = TestEngine::options(&scratch.socket(), 1);
    options.match_deadline = Some(MATCH_DEADLINE);
    let engine = TestEngine::join(options, 256 << 10, chain as usize).expect("the daemon accepts us");
    assert_eq!(engine.store(1, 0, chain).granted, chain);
    daemon.signal(Signal::STOP);
    within(Duration::from_secs(5), "it stands still", || stands_still(&daemon));
    (0..6).for_each(|_| assert_eq!(engine.find(1, chain).blocks(), 0));
    daemon.signal(Signal::CONT);
    // Long enough for all that was asked; nobody asks meanwhile.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(engine.find(1, chain).blocks(), chain);
}
