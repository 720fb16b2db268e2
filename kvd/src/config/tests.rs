//! What an operator reads when the configuration is wrong: the messages are part of the interface.

use std::path::PathBuf;

use super::*;
use crate::machine::fake::FakeMachine;
use crate::machine::{Filesystem, MemoryLimit};

fn load_text(text: &str) -> (tempfile::TempDir, Result<Loaded, ConfigError>) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kvd.toml");
    std::fs::write(&file, text).expect("written");
    let sources = Sources { file: Some(file), ..Sources::default() };
    (folder, load(&sources, &FakeMachine::healthy()))
}

/// The message with the folder of the test cut out of it.
fn refusal_of(text: &str) -> String {
    let (folder, result) = load_text(text);
    result.expect_err("refused").to_string().replace(&format!("{}/", folder.path().display()), "")
}

fn with(assignments: &[&str], machine: &FakeMachine) -> Loaded {
    let sources =
        Sources { assignments: assignments.iter().map(|text| text.to_string()).collect(), ..Sources::default() };
    load(&sources, machine).expect("loads")
}

#[test]
fn a_mistake_in_the_file_is_named_with_line_column_key_and_remedy() {
    let unknown = "[tiers.dram]\ncapacty = \"1GiB\"\n";
    assert_eq!(
        refusal_of(unknown),
        "kvd.toml:2:1: unknown key `tiers.dram.capacty`\n  remedy: did you mean `tiers.dram.capacity`?"
    );
    let unit = "data_dir = \"/x\"\n\n  [tiers.dram]\n  capacity = \"64 gigs\"\n";
    assert_eq!(
        refusal_of(unit),
        "kvd.toml:4:3: tiers.dram.capacity: `64 gigs` is not a size: write a number and a unit, like \"64GiB\" or \"500MB\"\n  remedy: for example tiers.dram.capacity = \"64GiB\""
    );
    assert_eq!(
        refusal_of("policy = \"fifo\"\n"),
        "kvd.toml:1:1: policy: unknown variant `fifo`, expected `adaptive` or `lru`\n  remedy: for example policy = \"lru\""
    );
    assert_eq!(
        refusal_of("tiers = 3\n"),
        "kvd.toml:1:1: `tiers` is a section, not a value\n  remedy: write [tiers] and its keys below"
    );
    assert!(
        refusal_of("[gate]\nenabled = yes\n").starts_with("kvd.toml:2:11: "),
        "{}",
        refusal_of("[gate]\nenabled = yes\n")
    );
    assert!(refusal_of("[match]\ndeadline = 50\n").contains("kvd.toml:2:1: match.deadline: "));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = refusal_of("sockt = \"/a\"\n[tiers.nvme]\nio = \"magic\"\n[session]\nmax = -1\n");
    assert_eq!(text.matches("remedy:").count(), 3, "{text}");
}

#[test]
fn the_later_layer_wins_and_every_value_knows_where_it_was_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kvd.toml");
    std::fs::write(&file, "policy = \"lru\"\n[tiers.dram]\ncapacity = \"1GiB\"\n[lease]\nidle = \"2m\"\n")
        .expect("written");
    let sources = Sources {
        file: Some(file.clone()),
        environment: vec![
            ("KVD__TIERS__DRAM__CAPACITY".into(), "2GiB".into()),
            ("KVD__LEASE__IDLE".into(), "3m".into()),
            ("HOME".into(), "/root".into()),
        ],
        assignments: vec![
            "tiers.dram.capacity=3GiB".into(),
            "tiers.nvme.paths=[\"/a/1\", \"/b/2\"]".into(),
            "gate.enabled=false".into(),
        ],
    };
    let loaded = load(&sources, &FakeMachine::healthy()).expect("loads");
    assert_eq!(loaded.config.tiers.dram.capacity, Size(3 << 30));
    assert_eq!(loaded.origin("tiers.dram.capacity"), Origin::CommandLine { key: "tiers.dram.capacity".into() });
    assert_eq!(loaded.origin("lease.idle"), Origin::Environment { variable: "KVD__LEASE__IDLE".into() });
    assert_eq!(loaded.origin("policy"), Origin::File { path: file, line: 1, column: 1 });
    assert_eq!(loaded.origin("socket"), Origin::Default);
    assert_eq!(loaded.config.tiers.nvme.paths, [PathBuf::from("/a/1"), PathBuf::from("/b/2")]);
    assert!(!loaded.config.gate.enabled);
}

#[test]
fn mistakes_outside_the_file_are_named_by_their_variable_or_argument() {
    let sources = Sources {
        environment: vec![("KVD__TIERS__DRAM__CAPACITI".into(), "1GiB".into())],
        assignments: vec!["tiers.dram.capacity".into(), "session.max=many".into()],
        ..Sources::default()
    };
    let text = load(&sources, &FakeMachine::healthy()).expect_err("refused").to_string();
    assert!(text.contains("environment KVD__TIERS__DRAM__CAPACITI: unknown key `tiers.dram.capaciti`\n  remedy: did you mean `tiers.dram.capacity`?"), "{text}");
    assert!(text.contains("--set tiers.dram.capacity: no `=` in it"), "{text}");
    assert!(text.contains("--set session.max: session.max: invalid type: string \"many\""), "{text}");
}

#[test]
fn without_any_configuration_the_sizes_fit_the_machine() {
    let loaded = with(&[], &FakeMachine::healthy());
    let config = &loaded.config;
    assert_eq!(config.tiers.dram.capacity, Size(4 << 30));
    assert_eq!(config.tiers.nvme.capacity, Size(16 << 30));
    assert_eq!(config.data_dir, PathBuf::from("/home/kv/.local/state/kvd"));
    assert_eq!(config.socket, PathBuf::from("/home/kv/.local/state/kvd/kvd.sock"));
    assert_eq!(config.admin.socket, PathBuf::from("/home/kv/.local/state/kvd/kvd.sock.admin"));
    assert!(config.tiers.dram.path.starts_with("/dev/shm"));
    assert_eq!(check(&loaded, &FakeMachine::healthy()), []);
    // Docker's default /dev/shm.
    let mut small = FakeMachine::healthy();
    small.filesystems.insert(
        "/dev/shm".into(),
        Filesystem { kind: "tmpfs".into(), free_bytes: 64 << 20, total_bytes: 64 << 20, read_only: false },
    );
    let loaded = with(&[], &small);
    assert_eq!(loaded.config.tiers.dram.path, PathBuf::from("/home/kv/.local/state/kvd/arena"));
    assert_eq!(loaded.config.tiers.dram.capacity, Size(256 << 20));
    let remarks = loaded.checked(&small).expect("it serves all the same");
    assert!(
        remarks[0].to_string().contains("tiers.dram.path: /home/kv/.local/state/kvd/arena is on ext4, not in memory"),
        "{remarks:?}"
    );
}

#[test]
fn a_pool_larger_than_the_cgroup_is_refused_with_what_would_fit() {
    for version in [1, 2] {
        let mut machine = FakeMachine::healthy();
        machine.memory_limit = Some(MemoryLimit { bytes: 4 << 30, version, file: "/sys/fs/cgroup/memory.max".into() });
        let loaded = with(&["tiers.dram.capacity=8GiB"], &machine);
        let text = loaded.checked(&machine).expect_err("refused").to_string();
        assert!(text.starts_with("--set tiers.dram.capacity: tiers.dram.capacity: 8GiB of pool and 512MiB for the daemon itself exceed the cgroup's memory limit of 4GiB"), "{text}");
        assert!(text.contains(&format!("cgroup v{version}")), "{text}");
        assert!(text.contains("set tiers.dram.capacity = \"3584MiB\" or less"), "{text}");
    }
}

#[test]
fn a_pool_larger_than_its_tmpfs_is_refused_but_an_adopted_one_is_not() {
    let mut machine = FakeMachine::healthy();
    machine.filesystems.insert(
        "/dev/shm".into(),
        Filesystem { kind: "tmpfs".into(), free_bytes: 1 << 30, total_bytes: 9 << 30, read_only: false },
    );
    let loaded = with(&["tiers.dram.capacity=8GiB", "tiers.dram.path=/dev/shm/kvd"], &machine);
    assert!(loaded.checked(&machine).expect_err("refused").to_string().contains("docker run --shm-size"));
    machine.folder_bytes.insert("/dev/shm/kvd".into(), 8 << 30);
    assert!(loaded.checked(&machine).is_ok());
}

#[test]
fn the_admin_api_is_not_offered_to_other_machines() {
    let machine = FakeMachine::healthy();
    let loaded = with(&["admin.listen=0.0.0.0:7411"], &machine);
    assert!(
        loaded
            .checked(&machine)
            .expect_err("refused")
            .to_string()
            .contains("admin.listen: 0.0.0.0:7411 can be reached")
    );
    assert!(with(&["admin.listen=[::1]:7411"], &machine).checked(&machine).is_ok());
}

#[test]
fn secrets_do_not_show() {
    let loaded = with(&["telemetry.otlp.endpoint=http://me:hunter2@collector:4317"], &FakeMachine::healthy());
    let shown = effective(&loaded);
    let endpoint = shown.iter().find(|value| value.key == "telemetry.otlp.endpoint").expect("shown");
    assert_eq!(endpoint.value, "\"http://[redacted]@collector:4317\"");
}

#[test]
fn what_is_printed_as_effective_can_be_set_again() {
    let machine = FakeMachine::healthy();
    let loaded = with(&["policy=lru", "session.allowed_uids=[7]"], &machine);
    let text: Vec<String> =
        effective(&loaded).into_iter().filter(|v| v.value != "off").map(|v| format!("{}={}", v.key, v.value)).collect();
    let again = with(&text.iter().map(String::as_str).collect::<Vec<_>>(), &machine);
    assert_eq!(again.config, loaded.config);
}

#[test]
fn a_reload_changes_only_the_stated_subset() {
    let machine = FakeMachine::healthy();
    let old = with(&[], &machine);
    let new = with(&["gate.enabled=false", "log.level=debug", "policy=lru"], &machine);
    let reload = compare(&old, &new);
    assert_eq!(reload.applied, ["gate.enabled", "log.level"]);
    assert_eq!(reload.needs_restart, ["policy"]);
}
