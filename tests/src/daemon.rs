use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Scratch;

/// How long a daemon may take until it accepts sessions, before the test gives up.
const READY_MAX: Duration = Duration::from_secs(30);

/// What a test wants of its daemon; everything else is the default.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// `--set KEY=VALUE` pairs.
    pub set: Vec<(String, String)>,
    /// Program and arguments put before kvd, such as `["prlimit", "--memlock=8388608"]`.
    pub wrapper: Vec<String>,
}

impl DaemonOptions {
    /// DRAM and NVMe of the given sizes, such as "256MiB".
    pub fn sized(dram: &str, nvme: &str) -> Self {
        let set = vec![("tiers.dram.capacity".into(), dram.into()), ("tiers.nvme.capacity".into(), nvme.into())];
        Self { set, wrapper: Vec::new() }
    }

    /// Adds one setting.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.set.push((key.into(), value.into()));
        self
    }
}

/// A running `kvd serve`, killed with the value.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// From start to the first accepted connection.
    pub ready_after: Duration,
}

impl Daemon {
    /// The built program: it lies beside the test programs' folder.
    pub fn program() -> PathBuf {
        let exe = std::env::current_exe().expect("a test knows its path");
        let found = exe.ancestors().map(|folder| folder.join("kvd")).find(|path| path.is_file());
        found.expect("kvd is not built: run `cargo build --workspace --bins` first (make test does)")
    }

    /// Starts on `scratch` and returns when sessions are accepted; panics with the daemon's log when it never gets there.
    pub fn start(scratch: &Scratch, options: &DaemonOptions) -> Self {
        let started = Instant::now();
        let mut daemon = Self::launch(scratch, options);
        while UnixStream::connect(scratch.socket()).is_err() {
            daemon.expect_alive(started.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        daemon.ready_after = started.elapsed();
        daemon
    }

    /// Starts on `scratch` and does not wait: for tests that kill it before it is ready, or wait in their own way.
    pub fn launch(scratch: &Scratch, options: &DaemonOptions) -> Self {
        let (child, log) = spawn(scratch, options);
        Self { child, log, ready_after: Duration::ZERO }
    }

    /// Panics with the daemon's log if it has ended, or is not ready although it was started `ago`.
    pub fn expect_alive(&mut self, ago: Duration) {
        if let Some(status) = self.child.try_wait().expect("the child can be asked") {
            panic!("kvd ended at start with {status}:\n{}", self.log());
        }
        assert!(ago < READY_MAX, "kvd is not ready after {READY_MAX:?}:\n{}", self.log());
    }

    /// Runs a daemon that is expected to end by itself; returns its exit code and log.
    pub fn refused(scratch: &Scratch, options: &DaemonOptions) -> (Option<i32>, String) {
        let (mut child, log) = spawn(scratch, options);
        let until = Instant::now() + READY_MAX;
        loop {
            if let Some(status) = child.try_wait().expect("the child can be asked") {
                return (status.code(), fs::read_to_string(log).unwrap_or_default());
            }
            if Instant::now() > until {
                child.kill().expect("our child can be killed");
                child.wait().expect("our child can be waited for");
                panic!("kvd was expected to refuse:\n{}", fs::read_to_string(log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The daemon's process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our child can be signalled");
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("our child can be killed");
        self.child.wait().expect("our child can be waited for");
    }

    /// SIGTERM, and waits for the exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.child.wait().expect("our child can be waited for").code()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().expect("the child can be asked").is_none()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            file.read_to_string(&mut text).expect("the log is text");
        }
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A daemon that was killed or stopped already answers with an error here, and that is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(scratch: &Scratch, options: &DaemonOptions) -> (Child, PathBuf) {
    let log = scratch.data().join("kvd.log");
    let file = File::options().create(true).append(true).open(&log).expect("the log can be opened");
    let program = Daemon::program();
    let mut command = match options.wrapper.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.arg("serve");
    let fixed = [
        ("data_dir", scratch.data().display().to_string()),
        ("socket", scratch.socket().display().to_string()),
        ("tiers.dram.path", scratch.dram().display().to_string()),
        ("tiers.object.enabled", "false".to_owned()),
    ];
    let given = options.set.iter().map(|(key, value)| (key.as_str(), value.clone()));
    for (key, value) in fixed.into_iter().chain(given) {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    let output = file.try_clone().expect("a descriptor can be doubled");
    let child = command.stdin(Stdio::null()).stdout(output).stderr(file).spawn().expect("kvd can be started");
    (child, log)
}
