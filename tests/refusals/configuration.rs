//! Mistakes in the configuration: exit code 2, and file, line, column, key and remedy for each, nothing done.

use std::process::Command;

use kvd_tests::{Daemon, Scratch};

struct Mistake {
    text: &'static str,
    /// Line and column, `None` where a default is concerned.
    at: &'static str,
    says: &'static str,
    remedy: &'static str,
}

const MISTAKES: [Mistake; 12] = [
    Mistake {
        text: "[tiers.dram]\ncapacty = \"1GiB\"\n",
        at: ":2:1",
        says: "unknown key `tiers.dram.capacty`",
        remedy: "did you mean `tiers.dram.capacity`?",
    },
    Mistake { text: "[tiers.dram]\n\ncapacity = \"1 apple\"\n", at: ":3:1", says: "tiers.dram.capacity", remedy: "" },
    Mistake {
        text: "[tiers.dram]\ncapacity = \"1MiB\"\n",
        at: ":2:1",
        says: "tiers.dram.capacity: 1MiB is less than one segment",
        remedy: "at least \"64MiB\"",
    },
    Mistake {
        text: "[tiers.dram]\ncapacity = \"900TiB\"\n",
        at: ":2:1",
        says: "tiers.dram.capacity",
        remedy: "or less",
    },
    Mistake {
        text: "[tiers.nvme]\ncapacity = \"64MiB\"\n",
        at: ":2:1",
        says: "tiers.nvme.capacity",
        remedy: "at least \"128MiB\"",
    },
    Mistake { text: "[tiers.nvme]\nio = \"aio\"\n", at: ":2:1", says: "tiers.nvme.io", remedy: "" },
    Mistake {
        text: "[tiers.nvme]\npaths = []\n",
        at: ":2:1",
        says: "tiers.nvme.paths: no path",
        remedy: "tiers.nvme.enabled = false",
    },
    Mistake { text: "policy = \"lfu\"\n", at: ":1:1", says: "policy", remedy: "" },
    Mistake { text: "[session]\nmax = 65\n", at: ":2:1", says: "session.max: 65 sessions", remedy: "session.max = 64" },
    Mistake { text: "[admin]\nlisten = \"0.0.0.0:7411\"\n", at: ":2:1", says: "admin.listen", remedy: "127.0.0.1" },
    Mistake { text: "[match]\ndeadline = \"0s\"\n", at: ":2:1", says: "match.deadline", remedy: "50ms" },
    Mistake {
        text: "[tiers]\n  dram = 7\n",
        at: ":2:3",
        says: "`tiers.dram` is a section",
        remedy: "write [tiers.dram]",
    },
];

#[test]
fn each_mistake_names_its_place_its_key_and_a_remedy() {
    let scratch = Scratch::new("mistakes");
    let file = scratch.data().join("kvd.toml");
    let data = scratch.data().join("data");
    for mistake in &MISTAKES {
        std::fs::write(&file, mistake.text).expect("written");
        for command in [&["serve"][..], &["config", "check"]] {
            let mut kvd = Command::new(Daemon::program());
            kvd.env_clear().env("HOME", &data).args(command).arg("--config").arg(&file);
            let ended = kvd.output().expect("kvd can be started");
            let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
            // 6 is what `config check` says of a check that failed.
            let code = ended.status.code();
            assert!(code == Some(2) || command[0] == "config" && code == Some(6), "{}: {code:?} {said}", mistake.text);
            let place = format!("{}{}: ", file.display(), mistake.at);
            let all =
                [place.as_str(), mistake.says, mistake.remedy, if mistake.remedy.is_empty() { "" } else { "remedy:" }];
            for wanted in all {
                assert!(said.contains(wanted), "{}: `{wanted}` is not in:\n{said}", mistake.text);
            }
        }
        assert!(!data.exists(), "nothing is done: {}", mistake.text);
    }
}

#[test]
fn mistakes_in_the_environment_and_on_the_command_line_are_named_too() {
    let scratch = Scratch::new("mistakes-elsewhere");
    let mut kvd = Command::new(Daemon::program());
    kvd.env_clear().env("HOME", scratch.data()).env("KVD__SESSION__MAXX", "3");
    let ended = kvd.args(["serve", "--set", "lease.idle=yesterday"]).output().expect("kvd can be started");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    for wanted in ["environment KVD__SESSION__MAXX: unknown key", "did you mean `session.max`?", "--set lease.idle"] {
        assert!(said.contains(wanted), "`{wanted}` is not in:\n{said}");
    }
    let mut kvd = Command::new(Daemon::program());
    let ended = kvd.args(["serve", "--config", "/no/such/kvd.toml"]).output().expect("kvd can be started");
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("/no/such/kvd.toml"));
}
