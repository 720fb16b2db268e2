//! What happens to kvd while an engine serves: the tokens stay the same, no request waits for long, and caching goes on by itself.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use kvd_tests::{Daemon, Scratch, ask_serving};
use rustix::process::{Signal, kill_process};

use crate::engine::{Answer, FOUND, Vllm};
use crate::vllm::{SEEDS, metric, options, told};

/// What a request may wait for kvd at most: a match of half a second, a load of two, and a store that is given up before the next
/// step's. On top of what computing takes, which varies by half on a busy machine.
const WAITS: Duration = Duration::from_secs(4);
/// Until an engine hits again once kvd is back.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// Moments after a request's beginning: in its match, in its load, while it computes, and when it stores.
const MOMENTS: [u64; 6] = [0, 3, 20, 60, 400, 2_000];

/// Everything that does not need another engine. Returns the daemon that runs in the end.
pub(crate) fn all(engine: &mut Vllm, truth: &[Answer], daemon: Daemon, scratch: &Scratch) -> Daemon {
    let daemon = killed(engine, truth, daemon, scratch);
    stopped(engine, truth, &daemon);
    corrupted_in_dram(engine, truth, scratch);
    without_socket(engine, truth, daemon, scratch)
}

/// The answer of the truth, no later than computing it takes and what a request may wait.
fn ask(engine: &mut Vllm, truth: &[Answer], number: usize) -> Answer {
    let answer = engine.ask(SEEDS[number]);
    assert_eq!(answer.tokens, truth[number].tokens, "the tokens of an engine without a connector");
    let slowest = truth.iter().map(|answer| answer.wall_s).fold(0.0, f64::max);
    assert!(answer.wall_s < 1.5 * slowest + WAITS.as_secs_f64(), "{answer:?} where computing takes {slowest} s");
    answer
}

/// A request finds all of its blocks again, soon after `since`.
fn expect_back(engine: &mut Vllm, truth: &[Answer], since: Instant) {
    loop {
        engine.forget();
        let begun = since.elapsed();
        // What was lost is stored by the first that computes it, so the second is asked.
        ask(engine, truth, 0);
        engine.forget();
        if ask(engine, truth, 0).cached == FOUND {
            return;
        }
        assert!(begun < BACK_WITHIN, "no hits although kvd has been back for {begun:?}:\n{}", engine.logged());
    }
}

/// SIGKILL at one moment of a request after the other.
fn killed(engine: &mut Vllm, truth: &[Answer], mut daemon: Daemon, scratch: &Scratch) -> Daemon {
    let mut answers = Vec::new();
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        engine.forget();
        let pid = daemon.pid();
        answers.push(std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(moment));
                kill_process(pid, Signal::KILL).expect("ours to kill");
            });
            ask(engine, truth, number % SEEDS.len())
        }));
        daemon.kill();
        daemon = Daemon::start(scratch, &options());
        expect_back(engine, truth, Instant::now());
    }
    println!("{}", told("kvd killed meanwhile", &answers));
    daemon
}

/// A daemon that stands still.
fn stopped(engine: &mut Vllm, truth: &[Answer], daemon: &Daemon) {
    daemon.signal(Signal::STOP);
    let answers: Vec<Answer> = (0..2 * SEEDS.len())
        .map(|number| {
            engine.forget();
            ask(engine, truth, number % SEEDS.len())
        })
        .collect();
    daemon.signal(Signal::CONT);
    println!("{}", told("kvd stopped meanwhile", &answers));
    expect_back(engine, truth, Instant::now());
}

/// A bit of every 16 KiB of what lies in DRAM: no block is as it was.
fn corrupted_in_dram(engine: &mut Vllm, truth: &[Answer], scratch: &Scratch) {
    for seed in 0..SEEDS.len() {
        ask(engine, truth, seed);
    }
    flip(scratch.dram());
    let answers: Vec<Answer> = (0..SEEDS.len())
        .map(|number| {
            engine.forget();
            ask(engine, truth, number)
        })
        .collect();
    println!("{}", told("a bit of every 16 KiB in DRAM flipped", &answers));
    assert!(metric(scratch, "kvd_blocks_corrupt_total{tier=\"dram\"}") > 0, "it was found");
    expect_back(engine, truth, Instant::now());
}

/// Segments are the large files of the folder.
fn flip(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("the arena's folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            flip(&path);
        } else if entry.metadata().is_ok_and(|about| about.len() >= 1 << 20) {
            let file = File::options().read(true).write(true).open(&path).expect("ours");
            let mut at = 12_345;
            let mut byte = [0];
            while file.read_at(&mut byte, at).is_ok_and(|read| read == 1) {
                byte[0] ^= 16;
                file.write_at(&byte, at).expect("written");
                at += 16 << 10;
            }
        }
    }
}

/// Somebody removes the socket's file; what is open stays open, and the next daemon makes another.
fn without_socket(engine: &mut Vllm, truth: &[Answer], daemon: Daemon, scratch: &Scratch) -> Daemon {
    std::fs::remove_file(scratch.socket()).expect("it was there");
    engine.forget();
    ask(engine, truth, 0);
    daemon.kill();
    let daemon = Daemon::start(scratch, &options());
    expect_back(engine, truth, Instant::now());
    ask_serving(scratch, &["status"]);
    daemon
}
