//! What an operator sees of the object tier, and does to it.

use std::fs;
use std::process::Command;

use kvd_tests::{Daemon, DaemonOptions, Scratch, ask_serving};
use kvd_tiers::object::{PackIndex, pack_path};
use serde_json::Value;

use crate::pool::{BLOCKS, Node, Store, published, served, within};

fn tier(node: &Node) -> Value {
    ask_serving(&node.scratch, &["tiers", "object"])
}

#[test]
fn the_tier_tells_of_its_store_its_packs_and_its_cost() {
    let store = Store::folder();
    let (a, b) = (Node::start("told-a", &store, &[]), Node::start("told-b", &store, &[]));
    assert_eq!(a.engine(1).store(1, 0, BLOCKS).granted, BLOCKS);
    a.uploaded(1);
    let from_store = served(&b.engine(2), 1).object;
    let packs = published(&store.path());
    let writer = tier(&a);
    assert_eq!(writer["condition"], "up", "{writer}");
    assert_eq!((&writer["reads"], &writer["writes"], &writer["writable"]), (&true.into(), &true.into(), &true.into()));
    assert_eq!(writer["own_packs"], packs.len(), "{writer}");
    assert_eq!(writer["own_records"], BLOCKS, "{writer}");
    let bytes: u64 = packs.iter().map(|pack| pack.pack_bytes()).sum();
    assert_eq!((&writer["own_bytes"], &writer["cost"]["stored_bytes"]), (&bytes.into(), &bytes.into()), "{writer}");
    assert!(writer["bytes_up"].as_u64() >= Some(bytes), "{writer}");
    let put = |request: &&Value| request["op"] == "put" && request["outcome"] == "ok";
    let puts = writer["requests"].as_array().expect("requests").iter().find(put).expect("some were put");
    assert!(puts["count"].as_u64() >= Some(2 * packs.len() as u64), "packs and their indexes: {writer}");
    let cost = &writer["cost"];
    let window = cost["window_seconds"].as_f64().expect("seconds").max(1.0);
    let requests = cost["put_list_per_day"].as_f64().expect("requests") * window / 86_400.0;
    assert!(requests >= puts["count"].as_f64().expect("a count"), "lists are counted with them: {writer}");
    let reader = tier(&b);
    // It matched again and again until all of the chain was there.
    let matched = |count: &Value| count.as_u64() >= Some(from_store.into());
    assert!(reader["own_packs"] == 0 && matched(&reader["hit_blocks"]), "{reader}");
    assert_eq!(reader["loaded_records"], from_store, "{reader}");
    assert!(reader["speed"]["gate_latency_seconds"].as_f64() > Some(0.0), "{reader}");
    within("both know each other", || tier(&b)["nodes"] == 2 && tier(&b)["known_packs"] == packs.len());
    let hits = &ask_serving(&b.scratch, &["status"])["hits"];
    assert!(matched(&hits["object"]), "{hits}");
}

#[test]
fn a_store_that_is_gone_is_told_with_the_reason() {
    let store = Store::folder();
    let node = Node::start("told-gone", &store, &[]);
    assert_eq!(node.engine(1).store(1, 0, BLOCKS).granted, BLOCKS);
    node.uploaded(1);
    let aside = store.path().with_extension("aside");
    fs::rename(store.path(), &aside).expect("renamed");
    within("it is down", || tier(&node)["condition"] == "down");
    let told = tier(&node);
    assert!(!told["last_error"].as_str().unwrap_or_default().is_empty(), "{told}");
    within("the daemon says that it is degraded", || {
        let status = ask_serving(&node.scratch, &["status"]);
        let remarks = status["remarks"].as_array().expect("remarks");
        let said = |remark: &Value| remark.as_str().is_some_and(|text| text.contains("the object tier's store"));
        status["state"] == "degraded" && remarks.iter().any(said)
    });
    fs::rename(&aside, store.path()).expect("renamed back");
    within("it is up again", || tier(&node)["condition"] == "up");
}

#[test]
fn a_daemon_without_the_tier_says_so() {
    let scratch = Scratch::new("told-none");
    let _daemon = Daemon::start(&scratch, &DaemonOptions::sized("128MiB", "128MiB"));
    ask_serving(&scratch, &["status"]);
    let mut kvd = Command::new(Daemon::program());
    let ended = kvd.args(["tiers", "object", "--socket"]).arg(scratch.socket()).output().expect("kvd can be started");
    assert_eq!(ended.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("has no object tier"));
}

fn scrub(node: &Node, more: &[&str]) -> Value {
    let mut command = vec!["scrub", "--tier", "object"];
    command.extend(more);
    ask_serving(&node.scratch, &command)
}

/// Changes a byte of a record.
fn rot(store: &Store, pack: &PackIndex) {
    let path = store.path().join(pack_path(pack.pack));
    let mut bytes = fs::read(&path).expect("a pack");
    let first = &pack.entries[0];
    bytes[(first.offset + first.record_bytes) as usize - 100] ^= 4;
    fs::write(&path, bytes).expect("written");
}

#[test]
fn a_scrub_finds_damage_and_what_lies_in_the_pack_is_a_miss() {
    let store = Store::folder();
    let (a, b) = (Node::start("scrub-a", &store, &[]), Node::start("scrub-b", &store, &[]));
    let (writer, reader) = (a.engine(1), b.engine(2));
    for chain in 0..4 {
        assert_eq!(writer.store(chain, 0, BLOCKS).granted, BLOCKS);
    }
    a.uploaded(1);
    let packs = published(&store.path());
    within("the other node knows the packs", || b.metric("kvd_object_known_packs") == packs.len() as u64);
    let records: u64 = packs.iter().map(|pack| pack.entries.len() as u64).sum();
    let whole = scrub(&a, &[]);
    assert_eq!((&whole["done"], &whole["corrupt"]), (&records.into(), &0.into()), "{whole}");
    assert_eq!((&whole["finished"], &whole["damaged_packs"]), (&true.into(), &0.into()), "{whole}");
    let bytes: u64 = packs.iter().map(|pack| pack.pack_bytes()).sum();
    assert_eq!(whole["bytes"], bytes, "{whole}");
    assert_eq!(scrub(&b, &[])["done"], 0, "it has no packs of its own");
    assert_eq!(scrub(&b, &["--all-nodes"])["done"], records);

    // The other node has read nothing of it yet; it stops to ask for the pack, and goes on with the others.
    rot(&store, &packs[0]);
    let found = scrub(&b, &["--all-nodes"]);
    assert_eq!((&found["corrupt"], &found["damaged_packs"]), (&1.into(), &1.into()), "{found}");
    within("it is forgotten", || tier(&b)["known_packs"] == packs.len() - 1);
    let again = scrub(&b, &["--all-nodes"]);
    let left = records - packs[0].entries.len() as u64;
    assert_eq!((&again["done"], &again["corrupt"]), (&left.into(), &0.into()), "{again}");
    for chain in 0..4 {
        assert_eq!(reader.check(chain, BLOCKS).wrong, 0);
    }
    assert_eq!(b.metric("kvd_blocks_corrupt_total{tier=\"object\"}"), 0, "no engine met it");

    // Its own node deletes it.
    let found = scrub(&a, &[]);
    assert_eq!((&found["corrupt"], &found["damaged_packs"]), (&1.into(), &1.into()), "{found}");
    let left = published(&store.path());
    assert_eq!(left.len(), packs.len() - 1);
    assert!(left.iter().all(|pack| pack.pack != packs[0].pack));
    assert_eq!(tier(&a)["own_packs"], left.len());

    // One that is gone altogether is damage as well.
    fs::remove_file(store.path().join(pack_path(left[0].pack))).expect("gone");
    let found = scrub(&a, &[]);
    assert_eq!((&found["corrupt"], &found["damaged_packs"]), (&left[0].entries.len().into(), &1.into()), "{found}");
}

#[test]
fn a_scrub_joins_the_one_under_way() {
    let store = Store::folder();
    let node = Node::start("scrub-join", &store, &[]);
    let engine = node.engine(1);
    for chain in 0..6 {
        assert_eq!(engine.store(chain, 0, BLOCKS).granted, BLOCKS);
    }
    node.uploaded(1);
    // 12 MiB at 1 MiB a second: the second comes while the first goes on.
    std::thread::scope(|scope| {
        let first = scope.spawn(|| scrub(&node, &["--rate", "1MiB/s"]));
        within("the first has begun", || node.metric("kvd_object_scrubs_total{outcome=\"asked\"}") == 1);
        let second = scrub(&node, &["--rate", "unlimited"]);
        let first = first.join().expect("no panic");
        assert_eq!((&first["finished"], &second["finished"]), (&true.into(), &true.into()), "{first} {second}");
    });
    assert_eq!(node.metric("kvd_object_scrubs_total{outcome=\"done\"}"), 1);
}

#[test]
fn an_operator_collects_what_is_too_old_for_its_namespace() {
    let store = Store::folder();
    let node = Node::start("limits", &store, &[]);
    assert_eq!(node.engine(1).store(1, 0, BLOCKS).granted, BLOCKS);
    node.uploaded(1);
    let packs = published(&store.path()).len();
    let namespaces = ask_serving(&node.scratch, &["namespaces"]);
    let digest = namespaces["namespaces"][0]["digest"].as_str().expect("a digest").to_owned();
    let collect = |namespace: &str| {
        let data = node.scratch.data();
        let mut kvd = Command::new(Daemon::program());
        kvd.args(["object", "gc", "--json"]);
        let limits = format!("[{{ namespace = \"{namespace}\", max_age = \"20ms\" }}]");
        for (key, value) in [
            ("data_dir", data.display().to_string()),
            ("tenant.secret_file", data.join("shared.secret").display().to_string()),
            ("tiers.object.url", format!("file://{}", store.path().display())),
            ("tiers.object.pack_age", "10ms".to_owned()),
            ("tiers.object.limits", limits),
        ] {
            kvd.arg("--set").arg(format!("{key}={value}"));
        }
        let ended = kvd.output().expect("kvd can be started");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        serde_json::from_slice::<Value>(&ended.stdout).expect("JSON")["expired"].as_u64().expect("a count")
    };
    assert_eq!(collect(&"77".repeat(32)), 0, "nobody's namespace");
    assert_eq!(collect(&digest), packs as u64);
    assert_eq!(published(&store.path()).len(), 0);
}
