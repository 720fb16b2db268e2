//! An engine process that is killed with leases and copies under way.

use std::fs;
use std::time::Duration;

use kvd_tests::{Daemon, DaemonOptions, Scratch, ask};
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{CHAIN, EngineProcess, Held, p99, within};
use crate::{count, generator};

/// From the true death of an engine until nothing of it is held.
const BACK_MAX: Duration = Duration::from_secs(1);
/// What the daemon's own memory may grow by over all deaths. The pool is full from the first ones on.
const GROWTH_KIB_MAX: u64 = 1024;

/// What of a daemon could leak.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    memory_kib: u64,
}

/// Threads of the daemon; not the kernel's own helpers of its io_uring, which come and go as it sees fit.
fn threads_of(daemon: &Daemon) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid().as_raw_nonzero())).expect("it runs");
    let names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| !name.starts_with("iou-")).count()
}

impl Footprint {
    fn of(daemon: &Daemon) -> Self {
        let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
        let entries = |folder: &str| fs::read_dir(format!("{process}/{folder}")).expect("it lives").count();
        let status = fs::read_to_string(format!("{process}/status")).expect("it lives");
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = memory.and_then(|text| text.trim().strip_suffix(" kB")).expect("the kernel counts memory");
        Self {
            descriptors: entries("fd"),
            threads: threads_of(daemon),
            memory_kib: memory.trim().parse().expect("a number"),
        }
    }
}

#[test]
fn what_a_killed_engine_held_comes_back_and_nothing_leaks() {
    let mut rng = generator("engine_killed");
    let scratch = Scratch::new("killed");
    let options = DaemonOptions::sized("128MiB", "192MiB");
    let daemon = Daemon::start(&scratch, &options);
    // The pool, and with it the index, is full after some ten of them: growth counts from then on.
    let (deaths, warm) = (count(20, 200), 20);
    let mut back = Vec::new();
    let mut baseline = None;
    for death in 0..deaths + warm {
        let mut engine = EngineProcess::start(&scratch, 1);
        engine.order(&format!("store {death} 0 {CHAIN}"));
        for _ in 0..rng.random_range(1..4) {
            engine.order(&format!("hold {death} {CHAIN}"));
        }
        engine.order(&format!("churn {}", 1_000_000 + death * 1000));
        std::thread::sleep(Duration::from_micros(rng.random_range(0..40_000)));
        assert!(Held::of(&scratch).leases > 0, "the test holds leases");
        let dead = engine.kill();
        within(Duration::from_secs(10), "leases and session of a dead engine are gone", || {
            let held = Held::of(&scratch);
            held.leases + held.sessions == 0
        });
        back.push(dead.elapsed());
        let mut last = None;
        within(Duration::from_secs(20), "nothing is held after a death", || {
            let held = Held::of(&scratch);
            if last.replace(held) != Some(held) && held.moves == 0 {
                println!("{held:?}");
            }
            held.nothing()
        });
        if death + 1 == warm {
            baseline = Some(Footprint::of(&daemon));
        }
    }
    let (before, after) = (baseline.expect("taken after the warm-up"), Footprint::of(&daemon));
    let (p99, max) = (p99(back.clone()), back.iter().max().expect("there were deaths"));
    println!("engine_killed: {} deaths, back p99 {p99:?} max {max:?}, {before:?} -> {after:?}", back.len());
    assert!(p99 <= BACK_MAX, "{back:?}");
    assert_eq!(after.descriptors, before.descriptors, "descriptors leak");
    assert_eq!(after.threads, before.threads, "threads leak");
    assert!(after.memory_kib <= before.memory_kib + GROWTH_KIB_MAX, "memory leaks: {before:?} -> {after:?}");
}

#[test]
fn a_child_that_keeps_the_socket_open_does_not_keep_the_leases() {
    let scratch = Scratch::new("child");
    let _daemon = Daemon::start(&scratch, &DaemonOptions::sized("128MiB", "192MiB"));
    for _ in 0..count(2, 20) {
        let mut engine = EngineProcess::start(&scratch, 1);
        engine.order(&format!("store 1 0 {CHAIN}"));
        assert_eq!(engine.order(&format!("hold 1 {CHAIN}"))["blocks"], CHAIN);
        let answer = engine.order("inherit 60");
        let child = answer["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a child");
        let sockets = fs::read_dir(format!("/proc/{}/fd", child.as_raw_nonzero())).expect("the child lives");
        let open: Vec<_> = sockets.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        assert!(open.iter().any(|target| target.to_string_lossy().starts_with("socket:")), "{open:?}");
        assert_eq!(Held::of(&scratch).leases, 1);
        let dead = engine.kill();
        within(Duration::from_secs(10), "the leases of a dead engine with a living child are gone", || {
            let held = Held::of(&scratch);
            held.leases + held.sessions + held.pins == 0
        });
        let took = dead.elapsed();
        println!("child_keeps_socket: back after {took:?}");
        assert!(took <= BACK_MAX, "{took:?}");
        let alive = fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero())).expect("the child lives");
        assert!(!alive.contains(") Z "), "the child was to outlive its parent");
        kill_process(child, Signal::KILL).expect("the child lives still");
        let sessions = ask(&scratch, &["sessions"]).expect("the daemon answers");
        assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(0), "{sessions}");
    }
}
