//! A real vLLM in a process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::setup::{Setup, script};

/// vLLM's blocks on CPUs.
pub(crate) const BLOCK_TOKENS: u64 = 128;
/// Of a prompt.
pub(crate) const PROMPT_TOKENS: u64 = 2200;
/// What an engine that finds all of a prompt does not compute: whole blocks, and never the last token.
pub(crate) const FOUND: u64 = (PROMPT_TOKENS - 1) / BLOCK_TOKENS * BLOCK_TOKENS;

/// An engine that says nothing for so long hangs: it takes two minutes to start on a busy machine.
const ANSWERS_WITHIN: Duration = Duration::from_secs(240);
/// It ends with its input, and is killed where it does not.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// What an engine said to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// Of the greedy choice.
    pub(crate) tokens: Vec<u64>,
    /// Tokens of the prompt that it did not compute.
    pub(crate) cached: u64,
    /// Until the last token.
    pub(crate) wall_s: f64,
    /// Until the first one.
    pub(crate) ttft_s: f64,
}

/// The engine. It ends with the value.
#[derive(Debug)]
pub(crate) struct Vllm {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    log: NamedTempFile,
}

impl Vllm {
    /// An engine that computes everything.
    pub(crate) fn alone(setup: &Setup) -> Self {
        Self::start(setup, &Value::Null)
    }

    /// One that keeps its prefixes in the daemon behind this socket.
    pub(crate) fn on_kvd(setup: &Setup, socket: &Path) -> Self {
        let connector = json!({
            "kv_connector": "KvdConnector",
            "kv_connector_module_path": "kvd.vllm",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"socket": socket, "match_deadline": 0.5},
        });
        Self::start(setup, &connector)
    }

    fn start(setup: &Setup, connector: &Value) -> Self {
        let log = NamedTempFile::new().expect("a log");
        let mut python = setup.python();
        python.arg(script("ask.py")).arg(&setup.model).arg(connector.to_string());
        python.stdin(Stdio::piped()).stdout(Stdio::piped());
        python.stderr(log.reopen().expect("the log"));
        let mut child = python.spawn().expect("python can be started");
        let (orders, said) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("piped")));
        let (tell, answers) = sync_channel(16);
        std::thread::spawn(move || {
            let answers = said.lines().map_while(Result::ok);
            let mut answers = answers.filter_map(|line| line.strip_prefix("ANSWER ").map(str::to_owned));
            answers.try_for_each(|answer| tell.send(answer))
        });
        let mut engine = Self { child, orders, answers, log };
        assert_eq!(engine.next_answer()["ready"], true);
        engine
    }

    /// Asks a prompt that is drawn from a seed.
    pub(crate) fn ask(&mut self, seed: u64) -> Answer {
        self.order(&json!({"seed": seed, "prompt_tokens": PROMPT_TOKENS, "tokens": 24}));
        let told = self.next_answer();
        let answer = Answer {
            tokens: told["tokens"].as_array().expect("tokens").iter().filter_map(Value::as_u64).collect(),
            cached: told["cached"].as_u64().expect("a number"),
            wall_s: told["wall_s"].as_f64().expect("a number"),
            ttft_s: told["ttft_s"].as_f64().expect("a number"),
        };
        assert_eq!(answer.tokens.len(), 24, "{told}");
        answer
    }

    /// Empties vLLM's own prefix cache, so that what is found comes from kvd.
    pub(crate) fn forget(&mut self) {
        self.order(&json!({"forget": true}));
        assert_eq!(self.next_answer()["forgotten"], true);
    }

    /// What vLLM itself counts of kvd's work.
    pub(crate) fn counted(&mut self, name: &str) -> f64 {
        self.order(&json!({"counted": true}));
        self.next_answer()[name].as_f64().unwrap_or(0.0)
    }

    /// What it logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    fn order(&mut self, order: &Value) {
        let orders = self.orders.as_mut().expect("open until the end");
        writeln!(orders, "{order}").expect("the engine reads");
    }

    fn next_answer(&mut self) -> Value {
        match self.answers.recv_timeout(ANSWERS_WITHIN) {
            Ok(answer) => serde_json::from_str(&answer).expect("JSON"),
            Err(error) => panic!("the engine hangs or has ended ({error}):\n{}", self.logged()),
        }
    }
}

impl Drop for Vllm {
    fn drop(&mut self) {
        self.orders = None;
        let until = Instant::now() + ENDS_WITHIN;
        while Instant::now() < until {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
