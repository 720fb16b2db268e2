use std::process::Command;

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
