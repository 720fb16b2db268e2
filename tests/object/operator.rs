//! What an operator sees of the object tier, and does to it.

use std::fs;
use std::process::Command;

use kvd_tests::{Daemon, DaemonOptions, Scratch, ask_serving};
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
