//! What an operator reads when the configuration is wrong: the messages are part of the interface.

use std::path::PathBuf;

use super::*;
use crate::machine::fake::FakeMachine;
use crate::machine::{Entry, EntryKind, Filesystem, MemoryLimit};

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
fn the_object_tier_is_a_folder_of_this_node_unless_somebody_says_otherwise() {
    let machine = FakeMachine::healthy();
    let object = with(&[], &machine).config.object_options().expect("on");
    assert_eq!(object.url, StoreUrl::Folder("/home/kv/.local/state/kvd/objects".into()));
    assert_eq!((object.share_bytes, object.pack_bytes), (16 << 30, 64 << 20));
    assert!(object.writable && !object.path_style && object.expire_after.is_none() && object.idle_after.is_none());

    // A quarter of what is free at most, and packs that fit into it; where there is next to nothing, no tier.
    let free = |bytes| {
        let mut machine = FakeMachine::healthy();
        let disk = Filesystem { kind: "ext4".into(), free_bytes: bytes, total_bytes: 9 << 30, read_only: false };
        machine.filesystems.insert("/".into(), disk);
        machine
    };
    let machine = free(1 << 30);
    let loaded = with(&["tiers.nvme.enabled=false"], &machine);
    let object = loaded.config.object_options().expect("on");
    assert_eq!((object.share_bytes, object.pack_bytes), (256 << 20, 32 << 20));
    assert_eq!(check(&loaded, &machine), []);
    let machine = free(255 << 20);
    let loaded = with(&["tiers.nvme.enabled=false"], &machine);
    assert_eq!(loaded.config.object_options(), None);
    assert_eq!(check(&loaded, &machine), []);

    let machine = FakeMachine::healthy();
    let bucket = ["tiers.object.url=s3://kv-cache/llm", "tiers.object.endpoint=http://10.0.0.1:9000"];
    let object = with(&bucket, &machine).config.object_options().expect("on");
    assert!(object.path_style, "as those want it who are not AWS");
    assert_eq!(object.share_bytes, 256 << 30);
    let times = ["tiers.object.expire_after=7days", "tiers.object.idle_after=1h"];
    let object = with(&times, &machine).config.object_options().expect("on");
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!((object.expire_after, object.idle_after), (Some(hour * 24 * 7), Some(hour)));
    assert_eq!(with(&["tiers.object.enabled=false"], &machine).config.object_options(), None);
}

#[test]
fn an_address_of_no_store_is_refused_where_it_stands() {
    let said = refusal_of("[tiers.object]\nurl = \"s4://bucket\"\n");
    assert_eq!(
        said,
        "kvd.toml:2:1: tiers.object.url: `s4://` is not spoken here: did you mean `s3://`?\n  remedy: for example tiers.object.url = \"s3://kv-cache/llm\""
    );
    let said = refusal_of("[tiers.object]\nurl = \"s3://me:hunter2@bucket\"\n");
    assert!(said.contains("credentials do not belong into an address") && !said.contains("hunter2"), "{said}");
}

#[test]
fn what_does_not_fit_together_in_the_object_tier_is_refused_with_its_key() {
    const S3: &str = "tiers.object.url=s3://kv-cache/llm";
    const HTTP: &str = "tiers.object.endpoint=http://10.0.0.1:9000";
    let mut machine = FakeMachine::healthy();
    machine.variables.insert("AWS_ACCESS_KEY_ID", "id".into());
    let file = |mode| Entry { kind: EntryKind::File, uid: 1000, mode, bytes: 99, allocated_bytes: 4096 };
    machine.entries.insert("/etc/open".into(), file(0o644));
    machine.entries.insert("/etc/private".into(), file(0o600));
    machine.read_only.push("/ro".into());
    let cases: &[(&[&str], &str, &str)] = &[
        (&["tiers.object.pack_bytes=512KiB"], "pack_bytes", "from 1MiB to 1GiB"),
        (&["tiers.object.pack_bytes=2GiB"], "pack_bytes", "from 1MiB to 1GiB"),
        (&["tiers.object.share=100MiB", "tiers.object.pack_bytes=64MiB"], "share", "no room for two packs"),
        (&["tiers.object.share=2TiB"], "share", "more than all 500GiB"),
        (&["tiers.object.requests_max=0"], "requests_max", "from 1 to 256"),
        (&["tiers.object.requests_max=257"], "requests_max", "from 1 to 256"),
        (&["tiers.object.request_timeout=1ms"], "request_timeout", "from 100ms to 1h"),
        (&["tiers.object.sync_every=0s"], "sync_every", "from 100ms to 1h"),
        (&["tiers.object.pack_age=2h"], "pack_age", "from 10ms to 1h"),
        (&["tiers.object.expire_after=2s"], "expire_after", "as soon as they come"),
        (&["tiers.object.idle_after=1s"], "idle_after", "as soon as they come"),
        (&[HTTP], "endpoint", "only an s3:// address has one, and the store is file:///home"),
        (&["tiers.object.url=gs://kv-cache", "tiers.object.region=eu"], "region", "only an s3:// address"),
        (&["tiers.object.path_style=true"], "path_style", "only an s3:// address"),
        (&["tiers.object.credentials_file=/etc/private"], "credentials_file", "only an s3:// address"),
        (&[S3, "tiers.object.endpoint=http://me:hunter2@host"], "endpoint", "credentials do not belong"),
        (&[S3, "tiers.object.endpoint=ftp://host"], "endpoint", "only http:// and https://"),
        (&[S3, "tiers.object.endpoint=minio:9000"], "endpoint", "only http:// and https://"),
        (&[S3, "tiers.object.endpoint=http://host/bucket"], "endpoint", "more than a server"),
        (&[S3, HTTP, "tiers.object.path_style=false"], "path_style", "before an IP address"),
        (&[S3, HTTP, "tiers.object.ca_file=/etc/open"], "ca_file", "without TLS"),
        (&["tiers.object.ca_file=/etc/open"], "ca_file", "no certificate is looked at"),
        (&[S3, "tiers.object.ca_file=/etc/none"], "ca_file", "does not exist"),
        (&[S3, "tiers.object.credentials_file=/etc/open"], "credentials_file", "can be read by others (mode 0644)"),
        (&["tiers.object.url=file:///etc/open"], "url", "is not a folder"),
        (&["tiers.object.url=file:///ro/objects"], "url", "cannot be written by user 1000"),
        (&["tiers.object.url=file:///none", "tiers.object.writable=false"], "url", "only to be read"),
        (&["tiers.object.url=az://kv-cache"], "url", "the account"),
    ];
    for (set, key, says) in cases {
        let said = with(set, &machine).checked(&machine).expect_err(says).to_string();
        let line = said.lines().find(|line| line.contains(says)).unwrap_or_else(|| panic!("{set:?}: {said}"));
        assert!(line.contains(&format!("tiers.object.{key}: ")), "{set:?}: {said}");
        assert!(said.contains("\n  remedy: ") && !said.contains("hunter2"), "{said}");
    }
    for fine in [
        &[S3][..],
        &[S3, HTTP, "tiers.object.credentials_file=/etc/private"],
        &[S3, "tiers.object.endpoint=https://s3.example.org", "tiers.object.ca_file=/etc/open"],
        &[S3, "tiers.object.endpoint=https://s3.example.org", "tiers.object.path_style=false"],
        &["tiers.object.enabled=false", "tiers.object.pack_bytes=1", HTTP],
    ] {
        assert!(with(fine, &machine).checked(&machine).is_ok(), "{fine:?}");
    }
}

const DIGEST: &str = "9c41000000000000000000000000000000000000000000000000000000000001";

#[test]
fn limits_of_namespaces_are_read_and_printed_as_they_are_written() {
    let text = format!(
        "[tiers.object]\nexpire_after = \"7days\"\n\n[[tiers.object.limits]]\nnamespace = \"{DIGEST}\"\nmax_age = \"1h\"\n\n\
         [[tiers.object.limits]]\ntenant = \"default\"\nmax_idle = \"0s\"\n"
    );
    let (_folder, loaded) = load_text(&text);
    let loaded = loaded.expect("good");
    assert_eq!(check(&loaded, &FakeMachine::healthy()), []);
    let limits = loaded.config.object_options().expect("on").limits;
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!(limits[0].namespace.map(|digest| digest.to_string()).as_deref(), Some(DIGEST));
    assert_eq!((limits[0].max_age, limits[0].max_idle), (Some(hour), None));
    assert_eq!((limits[1].namespace, limits[1].max_idle), (None, Some(std::time::Duration::ZERO)));
    let shown = effective(&loaded).into_iter().find(|value| value.key == "tiers.object.limits").expect("shown");
    assert!(shown.value.starts_with("[{ max_age = \"1h\", namespace = \"9c41"), "{}", shown.value);
    let again = with(&[&format!("tiers.object.limits={}", shown.value)], &FakeMachine::healthy());
    assert_eq!(again.config.tiers.object.limits, loaded.config.tiers.object.limits);
}

#[test]
fn a_limit_that_is_none_is_refused_where_it_stands() {
    let said = refusal_of("[[tiers.object.limits]]\nnamespace = \"9c41\"\nmax_age = \"1h\"\n");
    assert!(
        said.starts_with("kvd.toml:1:16: tiers.object.limits: `9c41` is no namespace: write all 64 digits"),
        "{said}"
    );
    let said = refusal_of("[tiers.object]\nlimits = [{ tenant = \"default\", max_ago = \"1h\" }]\n");
    assert!(said.starts_with("kvd.toml:2:1: tiers.object.limits: unknown field `max_ago`"), "{said}");
    let machine = FakeMachine::healthy();
    let set = Sources { assignments: vec!["tiers.object.limits=[{ tenant = 3 }]".into()], ..Sources::default() };
    let said = load(&set, &machine).expect_err("refused").to_string();
    assert!(said.contains("invalid type: integer `3`, expected a string"), "{said}");

    let named = format!("{{ namespace = \"{DIGEST}\", max_age = \"1h\" }}");
    for (limits, says) in [
        ("{ max_age = \"1h\" }".to_owned(), "limit 1: it says neither which namespace nor which tenant"),
        (format!("{named}, {{ tenant = \"other\", max_age = \"1h\" }}"), "limit 2: no tenant `other` is served here"),
        ("{ tenant = \"default\" }".to_owned(), "limit 1: it limits nothing"),
        ("{ tenant = \"default\", max_idle = \"1s\" }".to_owned(), "limit 1: max_idle of 1s: packs would go"),
        (format!("{named}, {named}"), "limit 2: it is for the same packs as limit 1"),
    ] {
        let said = with(&[&format!("tiers.object.limits=[{limits}]")], &machine).checked(&machine).expect_err(says);
        let said = said.to_string();
        assert!(said.contains(&format!("tiers.object.limits: {says}")) && said.contains("\n  remedy: "), "{said}");
    }
    let both = format!("tiers.object.limits=[{{ namespace = \"{DIGEST}\", tenant = \"default\", max_age = \"1h\" }}]");
    assert_eq!(with(&[&both], &machine).checked(&machine).expect("fine"), [], "a namespace of a tenant");
    let reader = with(&[&both, "tiers.object.writable=false", "tiers.object.url=s3://kv-cache"], &machine);
    let remarks = reader.checked(&machine).expect("only a remark");
    assert!(remarks.iter().any(|remark| remark.to_string().contains("nothing is deleted by a node")), "{remarks:?}");
}

#[test]
fn a_bucket_whose_secret_nobody_else_has_is_remarked() {
    let mut machine = FakeMachine::healthy();
    machine.variables.insert("AWS_ACCESS_KEY_ID", "id".into());
    let remarks =
        with(&["tiers.object.url=s3://kv-cache"], &machine).checked(&machine).expect("it serves all the same");
    assert!(
        remarks[0].to_string().contains("tenant.secret_file: the tenant's secret is this node's own"),
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
