//! A daemon as its operator meets it: start, look, reload, a second one, stop.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A daemon in a folder of its own; killed when dropped.
struct Daemon {
    folder: tempfile::TempDir,
    child: Child,
}

fn kvd(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    command.env_clear().env("HOME", folder).env("PATH", "/usr/bin:/bin");
    command
}

impl Daemon {
    fn start(settings: &str) -> Daemon {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("kvd.toml");
        let arena = folder.path().join("arena");
        let sizes = "[tiers.dram]\ncapacity = \"64MiB\"\npath = ";
        let text = format!(
            "{sizes}{arena:?}\n[tiers.nvme]\ncapacity = \"192MiB\"\n[tiers.object]\nenabled = false\n{settings}"
        );
        std::fs::write(&config, text).expect("written");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let child =
            kvd(folder.path()).arg("serve").arg("--config").arg(&config).stderr(log).spawn().expect("kvd starts");
        let mut daemon = Daemon { folder, child };
        daemon.wait_for("serving epoch=");
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).expect("the log")
    }

    fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "`{text}` is not in the log:\n{}", self.log());
            assert!(self.child.try_wait().expect("waited").is_none(), "kvd ended:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        kvd(self.folder.path()).args(arguments).output().expect("kvd runs")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signalled");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_daemon_is_looked_at_reloaded_guarded_and_stopped() {
    let mut daemon = Daemon::start("[gate]\nenabled = true\n");
    let status = daemon.run(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let status = json(&status);
    assert_eq!((&status["state"], &status["epoch"]), (&"serving".into(), &1.into()));
    assert_eq!(status["tiers"][0]["tier"], "dram");
    for command in ["tiers", "devices", "sessions", "namespaces", "leases", "drain", "scrub"] {
        let output = daemon.run(&[command, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
        assert!(json(&output).is_object());
    }
    assert_eq!(daemon.run(&["explain", "00ff"]).status.code(), Some(4));
    assert_eq!(daemon.run(&["top", "--count", "1"]).status.code(), Some(0));

    // Everything of it is guarded against a second user.
    let config = daemon.path("kvd.toml");
    let config = config.to_str().expect("text");
    let second = daemon.run(&["serve", "--config", config]);
    assert_eq!(second.status.code(), Some(7), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another kvd uses the data folder"), "{second:?}");
    assert_eq!(daemon.run(&["fsck"]).status.code(), Some(7));

    let text = std::fs::read_to_string(config).expect("the configuration");
    std::fs::write(config, text.replace("enabled = true", "enabled = maybe")).expect("written");
    daemon.signal(Signal::HUP);
    daemon.wait_for("configuration not reloaded, the daemon goes on as it was");
    std::fs::write(config, text.replace("enabled = true", "enabled = false")).expect("written");
    daemon.signal(Signal::HUP);
    daemon.wait_for("configuration reloaded applied=[\"gate.enabled\"]");
    let shown = daemon.run(&["config", "show", "--running"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.lines().any(|line| line.starts_with("gate.enabled") && line.contains("false")), "{shown}");

    daemon.signal(Signal::TERM);
    assert_eq!(daemon.child.wait().expect("waited").code(), Some(0), "{}", daemon.log());
    assert!(!daemon.path(".local/state/kvd/kvd.sock.admin").exists());
    assert_eq!(daemon.run(&["status"]).status.code(), Some(3));
    let fsck = daemon.run(&["fsck", "--json"]);
    assert_eq!((fsck.status.code(), &json(&fsck)["ok"]), (Some(0), &true.into()), "{fsck:?}");
}

#[test]
fn fsck_tells_that_a_device_has_lost_its_directory() {
    let mut daemon = Daemon::start("");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.child.wait().expect("waited").code(), Some(0), "{}", daemon.log());
    let whole = daemon.run(&["fsck", "--json"]);
    assert_eq!(whole.status.code(), Some(0), "{whole:?}");
    let path = json(&whole)["devices"][0]["path"].as_str().expect("a path").to_owned();
    let device = std::fs::File::options().read(true).write(true).open(path).expect("the device's file");
    // docs/formats/nvme.md: a byte of each copy of the superblock.
    let flip = |at: u64| {
        let mut byte = [0];
        device.read_exact_at(&mut byte, at).expect("read");
        device.write_all_at(&[byte[0] ^ 1], at).expect("written");
    };
    flip(100);
    assert_eq!(daemon.run(&["fsck"]).status.code(), Some(0), "there is a second copy");
    flip(65536 + 100);
    let lost = daemon.run(&["fsck", "--json"]);
    assert_eq!(lost.status.code(), Some(6), "{lost:?}");
    let report = json(&lost);
    assert_eq!((&report["ok"], &report["devices"][0]["directory_lost"]), (&false.into(), &true.into()), "{report}");
    let told = daemon.run(&["fsck"]);
    assert_eq!(told.status.code(), Some(6), "{told:?}");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    for words in ["DAMAGED: both copies of its superblock are damaged", "lost", "formats it anew", "remedy: "] {
        assert!(text.contains(words), "`{words}` is missing: {text}");
    }
    flip(100);
    assert_eq!(daemon.run(&["fsck"]).status.code(), Some(0), "put back, and nothing was written");
}

#[test]
fn metrics_are_scraped_where_they_are_configured() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let daemon = Daemon::start(&format!("[metrics]\nlisten = \"{port}\"\n"));
    let mut stream = std::net::TcpStream::connect(port).expect("connected");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: kvd\r\n\r\n").expect("asked");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("answered");
    assert!(reply.contains("kvd_tier_capacity_bytes{tier=\"dram\"} 67108864"), "{reply}");
    let printed = daemon.run(&["status", "--metrics"]);
    assert!(String::from_utf8_lossy(&printed.stdout).contains("kvd_block_misses_total{reason=\"cold\"} 0"));
}

#[test]
fn a_daemon_that_cannot_start_says_so_and_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("data/nvme.kvd")).expect("a folder where the file should be");
    let data_dir = format!("data_dir={}", folder.path().join("data").display());
    let child =
        kvd(folder.path()).args(["serve", "--set", &data_dir]).stderr(Stdio::piped()).spawn().expect("kvd starts");
    let output = child.wait_with_output().expect("kvd ends");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nvme.kvd is a folder"), "{output:?}");
}
