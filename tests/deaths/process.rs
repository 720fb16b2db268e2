//! An engine in a process of its own, that can be killed and stopped.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kvd_tests::{Scratch, ask_serving};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Bytes of a block in these tests.
pub(crate) const BLOCK: usize = 64 * 1024;
/// Bytes of its slot.
pub(crate) const SLOT: u64 = BLOCK as u64 + 4096;
/// Blocks of a chain: its copy takes long enough to be met in the middle.
pub(crate) const CHAIN: u32 = 64;

/// A running kvd-test-engine, killed with the value.
#[derive(Debug)]
pub(crate) struct EngineProcess {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl EngineProcess {
    /// Starts and joins as instance `number`.
    pub(crate) fn start(scratch: &Scratch, number: u8) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvd-test-engine"));
        command.arg(scratch.socket()).args([number.to_string(), BLOCK.to_string(), CHAIN.to_string()]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the engine can be started");
        let orders = child.stdin.take().expect("it was asked for");
        let answers = BufReader::new(child.stdout.take().expect("it was asked for"));
        let mut engine = Self { child, orders, answers };
        assert_eq!(engine.answer()["joined"], 1);
        engine
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn order(&mut self, order: &str) -> Value {
        writeln!(self.orders, "{order}").expect("the engine listens");
        self.answer()
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the engine answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the engine has ended: {line:?}"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child can be signalled");
    }

    /// SIGSTOP, and waits until it stands still.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let status = format!("/proc/{}/status", self.child.id());
        within(Duration::from_secs(5), "the engine stands still", || {
            fs::read_to_string(&status).expect("it lives").lines().any(|line| line.starts_with("State:\tT"))
        });
    }

    /// SIGKILL; returns when it is dead: the time from which its leases may not be held any more.
    pub(crate) fn kill(mut self) -> Instant {
        self.child.kill().expect("our child can be killed");
        self.child.wait().expect("our child can be waited for");
        Instant::now()
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        // Already dead after `kill`, and that is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the daemon says of the numbers that must come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) sessions: u64,
    pub(crate) leases: u64,
    pub(crate) moves: u64,
    /// Slots of the arena that somebody may touch.
    pub(crate) pins: u64,
    pub(crate) dram_records: u64,
    pub(crate) dram_bytes: u64,
}

impl Held {
    pub(crate) fn of(scratch: &Scratch) -> Self {
        let status = ask_serving(scratch, &["status"]);
        let number = |value: &Value| value.as_u64().expect("the status has numbers");
        let dram = &status["tiers"][0];
        Self {
            sessions: number(&status["sessions"]),
            leases: number(&status["leases"]),
            moves: number(&status["moves"]),
            pins: number(&dram["held_records"]),
            dram_records: number(&dram["records"]),
            dram_bytes: number(&dram["used_bytes"]),
        }
    }

    /// Nobody holds anything, and every slot in use is a record: none is left half filled.
    pub(crate) fn nothing(&self) -> bool {
        self.leases + self.moves + self.pins == 0 && self.dram_bytes == self.dram_records * SLOT
    }
}

/// Waits for something that must come.
pub(crate) fn within(most: Duration, what: &str, mut come: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !come() {
        assert!(began.elapsed() < most, "not within {most:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

/// The time that 99 of 100 do not exceed.
pub(crate) fn p99(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[(samples.len() * 99).div_ceil(100) - 1]
}
