//! What a shell sees: exit codes, help, and errors that say what to do. No daemon is needed here.

use std::path::Path;
use std::process::{Command, Output};

fn kvd(arguments: &[&str], home: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    command.args(arguments).env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin");
    command.output().expect("kvd runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("kvd ends by itself")
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn help_ends_with_0_and_wrong_usage_with_2() {
    let home = tempfile::tempdir().expect("a folder");
    let help = kvd(&["--help"], home.path());
    assert_eq!(code(&help), 0);
    for command in ["serve", "status", "top", "tiers", "explain", "doctor", "config", "fsck", "object", "completions"] {
        assert!(out(&help).contains(&format!("\n  {command} ")), "{command} is not listed");
        let help = kvd(&[command, "--help"], home.path());
        assert_eq!(code(&help), 0);
        assert!(out(&help).contains("Examples:\n  kvd "), "{command}: {}", out(&help));
    }
    assert_eq!(code(&kvd(&["--version"], home.path())), 0);
    for wrong in [&["no-such-command"][..], &["explain"], &["explain", "xyz"], &["status", "--sockt", "/x"], &["purge"]]
    {
        assert_eq!(code(&kvd(wrong, home.path())), 2, "{wrong:?}");
    }
}

#[test]
fn without_a_daemon_the_way_to_start_one_is_told() {
    let home = tempfile::tempdir().expect("a folder");
    let status = kvd(&["status"], home.path());
    assert_eq!(code(&status), 3);
    assert!(
        err(&status).contains("kvd.sock.admin does not exist\n  remedy: is kvd running? start it with `kvd serve`"),
        "{}",
        err(&status)
    );
    let stale = home.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(home.path().join("left.sock.admin")).expect("bound"));
    let status = kvd(&["tiers", "--json", "--socket", stale.to_str().expect("text")], home.path());
    assert_eq!(code(&status), 3);
    assert_eq!(out(&status), "");
    let error = json(&err(&status));
    assert_eq!(error["error"]["code"], "unavailable");
    assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains("nobody listens")), "{error}");
}

#[test]
fn what_destroys_is_not_done_unasked() {
    let home = tempfile::tempdir().expect("a folder");
    for command in [&["purge", "--all"][..], &["evict", "00ff"]] {
        let refused = kvd(command, home.path());
        assert_eq!(code(&refused), 5, "{command:?}");
        assert!(err(&refused).contains("--yes"), "{}", err(&refused));
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_file_line_key_and_remedy() {
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("kvd.toml");
    std::fs::write(&file, "[tiers.dram]\ncapacity = \"100TiB\"\n").expect("written");
    let file = file.to_str().expect("text");
    let serve = kvd(&["serve", "--config", file], home.path());
    assert_eq!(code(&serve), 2, "{}", err(&serve));
    assert!(err(&serve).contains(&format!("{file}:2:1: tiers.dram.capacity: 100TiB")), "{}", err(&serve));
    assert!(err(&serve).contains("remedy: set"), "{}", err(&serve));
    let check = kvd(&["config", "check", "--config", file, "--json"], home.path());
    assert_eq!(code(&check), 6);
    let problems = json(&out(&check));
    assert_eq!(problems["ok"], false);
    assert_eq!(problems["problems"][0]["origin"]["line"], 2);
    let serve = kvd(&["serve", "--set", "tiers.drm.capacity=1GiB"], home.path());
    assert_eq!(code(&serve), 2);
    assert!(err(&serve).contains("did you mean `tiers.dram.capacity`?"), "{}", err(&serve));
}

#[test]
fn the_configuration_explains_itself() {
    let home = tempfile::tempdir().expect("a folder");
    let all = json(&out(&kvd(&["config", "explain", "--json"], home.path())));
    assert!(all.as_array().is_some_and(|keys| keys.len() > 20));
    let one = kvd(&["config", "explain", "gate.enabled"], home.path());
    assert!(code(&one) == 0 && out(&one).contains("KVD__GATE__ENABLED"), "{}", out(&one));
    let wrong = kvd(&["config", "explain", "gate.enable"], home.path());
    assert_eq!(code(&wrong), 4);
    assert!(err(&wrong).contains("did you mean `gate.enabled`?"));
    let schema = json(&out(&kvd(&["config", "schema"], home.path())));
    assert_eq!(schema["properties"]["tiers"]["properties"]["nvme"]["properties"]["enabled"]["type"], "boolean");
    let shown = kvd(&["config", "show", "--set", "policy=lru"], home.path());
    assert!(
        out(&shown).lines().any(|line| line.starts_with("policy") && line.ends_with("--set policy")),
        "{}",
        out(&shown)
    );
}

#[test]
fn doctor_speaks_json_and_finds_a_seeded_fault() {
    let home = tempfile::tempdir().expect("a folder");
    let doctor = kvd(&["doctor", "--json", "--set", "admin.listen=0.0.0.0:1"], home.path());
    assert_eq!(code(&doctor), 6);
    let report = json(&out(&doctor));
    assert!(report["checks"].as_u64().is_some_and(|checks| checks >= 12), "{report}");
    let findings = report["findings"].as_array().expect("a list");
    assert!(
        findings.iter().any(|finding| finding["severity"] == "error"
            && finding["cause"].as_str().is_some_and(|cause| cause.contains("admin.listen"))),
        "{report}"
    );
}

#[test]
fn a_store_that_is_not_there_is_told_and_not_made() {
    let home = tempfile::tempdir().expect("a folder");
    let data = format!("data_dir={}", home.path().join("data").display());
    let url = format!("tiers.object.url=file://{}", home.path().join("objects").display());
    for command in [&["object", "ls"][..], &["object", "verify"], &["object", "gc"], &["object", "gc", "--dry-run"]] {
        let off = kvd(&[command, &["--set", &data, "--set", "tiers.object.enabled=false"]].concat(), home.path());
        assert_eq!(code(&off), 2, "{command:?}");
        assert!(err(&off).contains("no object tier"), "{}", err(&off));
        let arguments = ["--set", &data, "--set", "tiers.object.enabled=true", "--set", &url];
        let none = kvd(&[command, &arguments].concat(), home.path());
        assert_eq!(code(&none), 4, "{command:?}: {}", err(&none));
        assert!(err(&none).contains("does not exist\n  remedy: "), "{}", err(&none));
    }
    assert!(!home.path().join("objects").exists());
}

#[test]
fn completions_are_written_for_every_shell() {
    let home = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "zsh", "fish"] {
        let done = kvd(&["completions", shell], home.path());
        assert!(code(&done) == 0 && out(&done).contains("explain"), "{shell}");
    }
}
