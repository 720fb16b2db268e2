//! The wheel by itself: what Python code stores, other Python code loads.

use std::process::Command;

use kvd_tests::{Daemon, DaemonOptions, Scratch};
use serde_json::Value;

use crate::setup::{Form, needed, script};

#[test]
fn python_code_stores_and_loads() {
    let Some(setup) = needed(Form::Short, "the Python wheel") else { return };
    let scratch = Scratch::new("wheel");
    let _daemon = Daemon::start(&scratch, &DaemonOptions::sized("64MiB", "128MiB"));
    let ended = setup.python().arg(script("wheel.py")).arg(scratch.socket()).output().expect("it starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// The Python side looks for the daemon where the daemon without a configuration listens.
#[test]
fn python_code_finds_the_daemon() {
    let Some(setup) = needed(Form::Short, "the Python wheel's default socket") else { return };
    let environments: [&[(&str, &str)]; 4] = [
        &[("HOME", "/home/x")],
        &[("HOME", "/home/x"), ("XDG_STATE_HOME", "/state")],
        &[("HOME", "/home/x"), ("XDG_RUNTIME_DIR", "/run/user/9")],
        &[],
    ];
    for environment in environments {
        let said = |command: &mut Command| {
            for name in ["HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "KVD_SOCKET"] {
                command.env_remove(name);
            }
            command.envs(environment.iter().copied());
            String::from_utf8(command.output().expect("it starts").stdout).expect("text")
        };
        let shown = said(Command::new(Daemon::program()).args(["config", "show", "--json"]));
        let shown: Value = serde_json::from_str(&shown).expect("one JSON object");
        let values = shown["values"].as_array().expect("values");
        let socket = values.iter().find(|value| value["key"] == "socket").expect("it has a socket");
        let found = said(setup.python().args(["-c", "import kvd; print(kvd.default_socket())"]));
        assert_eq!(socket["value"].as_str().expect("text").trim_matches('"'), found.trim(), "{environment:?}");
    }
}
