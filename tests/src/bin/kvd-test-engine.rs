//! An engine process for tests that kill, stop and orphan engines: orders by line on standard input, answers by line of
//! JSON on standard output. It ends with its standard input.
//!
//! ```text
//! kvd-test-engine SOCKET NUMBER BLOCK_BYTES BLOCKS
//!
//! store CHAIN FROM TO    stores blocks of a chain
//! check CHAIN COUNT      matches, loads and compares
//! hold CHAIN COUNT       matches and keeps the lease
//! release                gives all kept leases back
//! churn CHAIN            two threads store chains from here on and read each of them again and again
//! rest                   ends these threads; tells what they read
//! report                 which epoch is joined, how often one was, and what the threads have read so far
//! inherit SECONDS        starts a child that keeps every descriptor of this process open and sleeps
//! ```

#![forbid(unsafe_code)]

use std::io::BufRead as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use kvd_client::Match;
use kvd_tests::{Checked, TestEngine};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

/// How often a stored chain is read before the next one.
const READS: u32 = 3;
/// Between the chains of two threads.
const CHAINS_APART: u64 = 1 << 32;

#[derive(Debug, Default)]
struct Tally {
    right: u64,
    wrong: u64,
    corrupt: u64,
    stored: u64,
}

/// Threads that store and read without a pause.
#[derive(Debug, Default)]
struct Churn {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Churn {
    fn start(&mut self, engine: &TestEngine, block_bytes: usize, chain: u64) {
        self.stop.store(false, Ordering::Relaxed);
        for thread in 0..2 {
            let engine = engine.sibling(block_bytes, engine.blocks() as usize);
            let (stop, tally) = (self.stop.clone(), self.tally.clone());
            let work = move || {
                let mut chain = chain + thread * CHAINS_APART;
                while !stop.load(Ordering::Relaxed) {
                    turn(&engine, chain, &tally);
                    chain += 1;
                }
            };
            self.threads.push(std::thread::spawn(work));
        }
    }

    fn rest(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread of the engine panicked");
        }
    }

    fn told(&self) -> Value {
        let tally = self.tally.lock().expect("nobody panics with the counts held");
        json!({ "right": tally.right, "wrong": tally.wrong, "corrupt": tally.corrupt, "stored": tally.stored })
    }
}

fn turn(engine: &TestEngine, chain: u64, tally: &Mutex<Tally>) {
    let stored = engine.store(chain, 0, engine.blocks());
    let read: Vec<Checked> = (0..READS).map(|_| engine.check(chain, engine.blocks())).collect();
    let mut tally = tally.lock().expect("nobody panics with the counts held");
    tally.stored += u64::from(stored.granted);
    for checked in &read {
        tally.right += u64::from(checked.right);
        tally.wrong += u64::from(checked.wrong);
        tally.corrupt += u64::from(checked.corrupt);
        if checked.wrong + checked.corrupt > 0 {
            eprintln!("chain {chain}: {checked:?}");
        }
    }
}

/// Starts a child that holds all that this process has open. Descriptors of the client are closed on exec; their doubles
/// are not, and are the same open files.
fn inherit(seconds: u64) -> Result<u32> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut doubles = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number: i32 = entry?.file_name().to_string_lossy().parse().context("a number")?;
        // The folder's own descriptor is closed by now or about to be.
        let Ok(double) = pidfd_getfd(&this, number, PidfdGetfdFlags::empty()) else { continue };
        fcntl_setfd(&double, FdFlags::empty())?;
        doubles.push(double);
    }
    let mut sleep = Command::new("sleep");
    sleep.arg(seconds.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(sleep.spawn()?.id())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, number, block_bytes, blocks] = &arguments[..] else { bail!("SOCKET NUMBER BLOCK_BYTES BLOCKS") };
    let block_bytes: usize = block_bytes.parse()?;
    let engine = TestEngine::connect(Path::new(socket), number.parse()?, block_bytes, blocks.parse()?);
    let mut churn = Churn::default();
    let mut held: Vec<Match> = Vec::new();
    println!("{}", json!({ "joined": engine.engine().times_joined() }));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = |index: usize| -> Result<u64> { Ok(words.get(index).context("a number is missing")?.parse()?) };
        let small = |index: usize| -> Result<u32> { Ok(u32::try_from(at(index)?)?) };
        let answer = match words.first().copied().unwrap_or_default() {
            "store" => {
                let stored = engine.store(at(1)?, small(2)?, small(3)?);
                let reason = stored.reason.map(|reason| reason.as_str());
                json!({ "granted": stored.granted, "present": stored.present, "refused": stored.refused, "reason": reason })
            }
            "check" => {
                let checked = engine.check(at(1)?, small(2)?);
                let reason = checked.reason.map(|reason| reason.as_str());
                json!({ "matched": checked.matched, "right": checked.right, "wrong": checked.wrong,
                    "corrupt": checked.corrupt, "reason": reason })
            }
            "hold" => {
                let found = engine.find(at(1)?, small(2)?);
                let answer =
                    json!({ "blocks": found.blocks(), "reason": found.reason().map(|reason| reason.as_str()) });
                held.push(found);
                answer
            }
            "release" => {
                held.clear();
                json!({})
            }
            "churn" => {
                churn.start(&engine, block_bytes, at(1)?);
                json!({})
            }
            "rest" => {
                churn.rest();
                churn.told()
            }
            "report" => {
                let epoch = engine.engine().epoch().map(|epoch| epoch.get());
                json!({ "epoch": epoch, "joined": engine.engine().times_joined(), "read": churn.told() })
            }
            "inherit" => json!({ "pid": inherit(at(1)?)? }),
            other => bail!("no such order: {other}"),
        };
        println!("{answer}");
    }
    Ok(())
}
