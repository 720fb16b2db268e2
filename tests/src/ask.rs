use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Daemon, Scratch};

/// What `kvd COMMAND --json` says of the daemon on `scratch`; `None` while it does not answer.
pub fn ask(scratch: &Scratch, command: &[&str]) -> Option<Value> {
    let mut kvd = Command::new(Daemon::program());
    kvd.args(command).arg("--json").arg("--socket").arg(scratch.socket());
    let answer = kvd.output().expect("kvd can be started");
    // 6: the daemon answers and says that it is degraded.
    matches!(answer.status.code(), Some(0 | 6))
        .then(|| serde_json::from_slice(&answer.stdout).expect("kvd prints JSON"))
}

/// The same of a daemon that serves engines: its admin socket may open a moment after theirs. Panics when it does not.
pub fn ask_serving(scratch: &Scratch, command: &[&str]) -> Value {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(answer) = ask(scratch, command) {
            return answer;
        }
        assert!(Instant::now() < until, "the daemon serves engines and does not answer its operator");
        std::thread::sleep(Duration::from_millis(1));
    }
}
