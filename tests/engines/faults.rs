//! What happens to kvd while an engine serves: the tokens stay the same, no request waits for long, and caching goes on by itself.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use kvd_tests::{Daemon, Scratch, ask, ask_serving};
use rustix::process::{Signal, kill_process};

use crate::engine::{Answer, FOUND, Vllm};
use crate::vllm::{NEW_SEEDS, SEEDS, metric, options, told};

/// What a request may wait for kvd at most: a match of half a second, a load of two, and a store that is given up before the next
/// step's. On top of what computing takes, which varies by half on a busy machine.
const WAITS: Duration = Duration::from_secs(4);
/// Until the engine's processes have joined again once kvd is back.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// Until a daemon that stood still is asked again.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// Moments after the beginning of a request that finds its blocks: in its match, in its load, while its last tokens are computed.
const MOMENTS: [u64; 6] = [0, 2, 8, 20, 40, 400];

/// What an engine without a connector says.
pub(crate) struct Truth<'a> {
    /// To prompts whose blocks are stored.
    pub(crate) known: &'a [Answer],
    /// To prompts that are new.
    pub(crate) new: &'a [Answer],
}

/// Everything that does not need another engine. Returns the daemon that runs in the end.
pub(crate) fn all(
    engine: &mut Vllm,
    truth: &Truth<'_>,
    daemon: Daemon,
    scratch: &Scratch,
    stands_still: Duration,
) -> Daemon {
    let daemon = killed_in_loads(engine, truth.known, daemon, scratch);
    let daemon = killed_in_stores(engine, truth, daemon, scratch);
    stopped(engine, truth.known, &daemon, stands_still);
    corrupted_in_dram(engine, truth.known, scratch);
    without_socket(engine, truth.known, daemon, scratch)
}

/// The answer of the truth, no later than computing it takes and what a request may wait.
fn asked(engine: &mut Vllm, seed: u64, truth: &Answer) -> Answer {
    let answer = engine.ask(seed);
    assert_eq!(answer.tokens, truth.tokens, "the tokens of an engine without a connector");
    let most = 1.5 * truth.wall_s + WAITS.as_secs_f64();
    assert!(answer.wall_s < most, "{answer:?} where computing takes {} s", truth.wall_s);
    answer
}

/// A prompt is asked for that vLLM itself does not have any more, and all of it comes from kvd.
fn expect_hit(engine: &mut Vllm, truth: &[Answer]) {
    engine.forget();
    let missed = engine.counted("vllm:kvd_load_blocks/missed");
    assert_eq!(asked(engine, SEEDS[0], &truth[0]).cached, FOUND, "{}", engine.logged());
    assert_eq!(engine.counted("vllm:kvd_load_blocks/missed"), missed, "{}", engine.logged());
}

/// A new daemon; the engine's two processes find it by themselves.
fn again(engine: &Vllm, scratch: &Scratch) -> Daemon {
    let daemon = Daemon::start(scratch, &options());
    let since = Instant::now();
    while ask(scratch, &["sessions"]).is_none_or(|told| told["total"] != 2) {
        assert!(since.elapsed() < BACK_WITHIN, "not joined again: {}", engine.logged());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(PATIENCE);
    daemon
}

/// The same, and the next request hits.
fn restarted(engine: &mut Vllm, truth: &[Answer], scratch: &Scratch) -> Daemon {
    let daemon = again(engine, scratch);
    expect_hit(engine, truth);
    daemon
}

/// SIGKILL at one moment of a request after the other.
fn killed_in_loads(engine: &mut Vllm, truth: &[Answer], mut daemon: Daemon, scratch: &Scratch) -> Daemon {
    let mut answers = Vec::new();
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        engine.forget();
        let (pid, number) = (daemon.pid(), number % SEEDS.len());
        answers.push(std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(moment));
                kill_process(pid, Signal::KILL).expect("ours to kill");
            });
            asked(engine, SEEDS[number], &truth[number])
        }));
        daemon.kill();
        daemon = restarted(engine, truth, scratch);
    }
    println!("{}", told("kvd killed in matches and loads", &answers));
    daemon
}

/// SIGKILL as soon as blocks of a new prompt are offered.
fn killed_in_stores(engine: &mut Vllm, truth: &Truth<'_>, mut daemon: Daemon, scratch: &Scratch) -> Daemon {
    let mut answers = Vec::new();
    for (seed, new) in NEW_SEEDS.into_iter().zip(truth.new) {
        let (pid, before) = (daemon.pid(), offered(scratch));
        answers.push(std::thread::scope(|scope| {
            scope.spawn(move || {
                let until = Instant::now() + Duration::from_secs(60);
                while offered(scratch) == before {
                    assert!(Instant::now() < until, "nothing of a new prompt is offered");
                }
                kill_process(pid, Signal::KILL).expect("ours to kill");
            });
            asked(engine, seed, new)
        }));
        daemon.kill();
        daemon = restarted(engine, truth.known, scratch);
        engine.forget();
        asked(engine, seed, new);
    }
    println!("{}", told("kvd killed in stores", &answers));
    daemon
}

fn offered(scratch: &Scratch) -> u64 {
    metric(scratch, "kvd_blocks_offered_total")
}

/// A daemon that stands still for so long.
fn stopped(engine: &mut Vllm, truth: &[Answer], daemon: &Daemon, time: Duration) {
    daemon.signal(Signal::STOP);
    let (since, mut answers) = (Instant::now(), Vec::new());
    while answers.len() < 2 * SEEDS.len() || since.elapsed() < time {
        engine.forget();
        let number = answers.len() % SEEDS.len();
        answers.push(asked(engine, SEEDS[number], &truth[number]));
    }
    daemon.signal(Signal::CONT);
    println!("{}", told(&format!("kvd stopped for {:.0} s", since.elapsed().as_secs_f64()), &answers));
    std::thread::sleep(PATIENCE);
    expect_hit(engine, truth);
}

/// Every prompt, whatever of it is found.
fn ask_all(engine: &mut Vllm, truth: &[Answer], what: &str) {
    let answers: Vec<Answer> = (0..SEEDS.len())
        .map(|number| {
            engine.forget();
            asked(engine, SEEDS[number], &truth[number])
        })
        .collect();
    println!("{}", told(what, &answers));
}

/// What was computed instead of damaged blocks is stored in their place: soon every prompt comes from kvd again.
fn expect_repaired(engine: &mut Vllm, truth: &[Answer]) {
    let until = Instant::now() + Duration::from_secs(120);
    for (seed, truth) in SEEDS.into_iter().zip(truth) {
        loop {
            engine.forget();
            let missed = engine.counted("vllm:kvd_load_blocks/missed");
            let found = asked(engine, seed, truth).cached == FOUND;
            if found && engine.counted("vllm:kvd_load_blocks/missed") == missed {
                break;
            }
            assert!(Instant::now() < until, "damaged blocks are not replaced: {}", engine.logged());
        }
    }
}

fn corrupt(scratch: &Scratch, tier: &str) -> u64 {
    metric(scratch, &format!("kvd_blocks_corrupt_total{{tier=\"{tier}\"}}"))
}

/// A bit of every 16 KiB of what lies in DRAM: no block is as it was. Their good copies on NVMe are found in the same load.
fn corrupted_in_dram(engine: &mut Vllm, truth: &[Answer], scratch: &Scratch) {
    ask_serving(scratch, &["drain"]);
    flip(scratch.dram(), 16 << 10);
    let missed = engine.counted("vllm:kvd_load_blocks/missed");
    ask_all(engine, truth, "a bit of every 16 KiB in DRAM flipped");
    assert!(corrupt(scratch, "dram") > 0, "it was found");
    assert_eq!(engine.counted("vllm:kvd_load_blocks/missed"), missed, "{}", engine.logged());
    expect_repaired(engine, truth);
}

/// A bit of every MiB on the device, while there is nothing in DRAM.
pub(crate) fn corrupted_on_nvme(engine: &mut Vllm, truth: &[Answer], daemon: Daemon, scratch: &Scratch) -> Daemon {
    daemon.kill();
    scratch.delete_dram();
    flip(&scratch.data().join("nvme.kvd"), 1 << 20);
    let daemon = again(engine, scratch);
    ask_all(engine, truth, "a bit of every MiB on NVMe flipped");
    assert!(corrupt(scratch, "nvme") > 0, "it was found");
    expect_repaired(engine, truth);
    daemon
}

/// A bit of every MiB of the packs, while there is nothing else.
pub(crate) fn corrupted_in_the_object_tier(engine: &mut Vllm, truth: &[Answer], daemon: Daemon, scratch: &Scratch) {
    daemon.kill();
    scratch.delete_dram();
    std::fs::remove_file(scratch.data().join("nvme.kvd")).expect("gone");
    flip(&scratch.data().join("objects"), 1 << 20);
    let _daemon = again(engine, scratch);
    ask_all(engine, truth, "a bit of every MiB in the object tier flipped");
    assert!(corrupt(scratch, "object") > 0, "it was found");
    expect_repaired(engine, truth);
}

/// A bit of every so many bytes of a file, or of the large files in a folder: segments, or packs.
fn flip(path: &Path, every: u64) {
    if path.is_dir() {
        std::fs::read_dir(path).expect("a folder of kvd").flatten().for_each(|entry| flip(&entry.path(), every));
        return;
    }
    let file = File::options().read(true).write(true).open(path).expect("ours");
    if file.metadata().is_ok_and(|about| about.len() < 1 << 20) {
        return;
    }
    let (mut at, mut byte) = (12_345, [0]);
    while file.read_at(&mut byte, at).is_ok_and(|read| read == 1) {
        byte[0] ^= 16;
        file.write_at(&byte, at).expect("written");
        at += every;
    }
}

/// Somebody removes the socket's file; what is open stays open, and the next daemon makes another.
fn without_socket(engine: &mut Vllm, truth: &[Answer], daemon: Daemon, scratch: &Scratch) -> Daemon {
    std::fs::remove_file(scratch.socket()).expect("it was there");
    expect_hit(engine, truth);
    daemon.kill();
    let daemon = restarted(engine, truth, scratch);
    ask_serving(scratch, &["status"]);
    daemon
}
