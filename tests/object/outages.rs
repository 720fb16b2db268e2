//! Outages that last: no such host, no bucket, credentials that are wrong or expire, a clock that is off, a bucket that is
//! only read.
//!
//! Goal: local tiers as ever, one clear reason in status and `kvd doctor`, and service by itself once the cause is gone.

use std::process::Command;

use kvd_tests::{Daemon, TestEngine, ask_serving, skip};
use serde_json::Value;

use crate::pool::{BLOCKS, Node, Store, served, within};
use crate::proxy::{Proxy, Trouble};
use crate::server::{Make, replace_credentials};

/// Why the daemon's store is down, if it is.
pub(crate) fn condition(node: &Node) -> Option<String> {
    let told = ask_serving(&node.scratch, &["tiers", "object"]);
    (told["condition"] == "down").then(|| told["last_error"].as_str().unwrap_or_default().to_owned())
}

/// What `kvd doctor` has against the store, with the remedy; `None` for nothing.
pub(crate) fn doctor(node: &Node) -> Option<String> {
    let mut kvd = Command::new(Daemon::program());
    let ended = kvd.args(["doctor", "--json"]).args(node.settings()).output().expect("kvd can be started");
    let told: Value = serde_json::from_slice(&ended.stdout).expect("one JSON object");
    let findings = told["findings"].as_array().expect("findings");
    let of_store: Vec<_> = findings.iter().filter(|finding| finding["check"] == "object store").collect();
    assert_eq!(of_store.len(), 1, "one finding: {of_store:?}");
    (of_store[0]["severity"] != "ok").then(|| format!("{} {}", of_store[0]["cause"], of_store[0]["remedy"]))
}

fn work_locally(engine: &TestEngine, chain: u64) {
    assert_eq!(engine.store(chain, 0, BLOCKS).granted, BLOCKS, "an engine never waits for the store");
    assert_eq!(engine.check(chain, BLOCKS).right, BLOCKS, "what is here is served");
}

/// The store is down for this reason, in status and to the doctor.
fn expect_told(node: &Node, status: &str, doctors: &[&str]) {
    within(&format!("status says {status}"), || condition(node).is_some_and(|why| why.contains(status)));
    // Between two tries it is down.
    within("metrics say it", || node.metric("kvd_object_up") == 0);
    let told = doctor(node).expect("a finding");
    assert!(doctors.iter().all(|part| told.contains(part)), "{told}");
}

/// What the first stores now the second serves.
fn expect_service(writer: &Node, reader: &Node, chain: u64) {
    within("the store is up", || writer.metric("kvd_object_up") == 1);
    assert_eq!(writer.engine(11).store(chain, 0, BLOCKS).granted, BLOCKS);
    assert_eq!(served(&reader.engine(12), chain).object, BLOCKS);
}

fn server(name: &str) -> Option<Store> {
    Store::server(name).inspect_err(|reason| skip(&format!("outage of the object tier, {name}"), reason)).ok()
}

#[test]
fn a_host_that_nobody_knows() {
    let Some(store) = server("no-host") else { return };
    let endpoint = ("tiers.object.endpoint", "http://kvd-tests.invalid:8333");
    let node = Node::start("no-host", &store, &[endpoint]);
    expect_told(&node, "cannot be reached", &["nobody answers there", "tiers.object.endpoint"]);
    work_locally(&node.engine(1), 1);
}

#[test]
fn a_bucket_that_is_deleted_and_made_again() {
    let store = match Store::own_server(Make::SeaweedFs) {
        Ok(store) => store,
        Err(reason) => return skip("a bucket that is deleted", &reason),
    };
    let (a, b) = (Node::start("bucket-a", &store, &[]), Node::start("bucket-b", &store, &[]));
    expect_service(&a, &b, 1);
    store.of_server().delete_bucket().expect("deleted");
    work_locally(&a.engine(1), 2);
    expect_told(&a, "no such bucket", &["there is no such bucket", "kvd makes none"]);
    work_locally(&a.engine(1), 3);
    assert_eq!(b.engine(2).check(1, BLOCKS).wrong, 0);
    store.of_server().make_bucket().expect("made");
    expect_service(&a, &b, 4);
    expect_service(&b, &a, 5);
}

#[test]
fn credentials_that_are_wrong_expire_and_are_renewed() {
    let Some(store) = server("credentials") else { return };
    let right = store.of_server().credentials();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("credentials");
    let shown = file.display().to_string();
    replace_credentials(&file, &right.with_file_name("wrong"));
    let a = Node::start("credentials-a", &store, &[("tiers.object.credentials_file", &shown)]);
    let b = Node::start("credentials-b", &store, &[("tiers.object.writable", "false")]);
    let doctors = ["the store does not accept the credentials", "tiers.object.credentials_file"];
    expect_told(&a, "SignatureDoesNotMatch", &doctors);
    work_locally(&a.engine(1), 1);
    replace_credentials(&file, &right);
    expect_service(&a, &b, 2);
    // And once more while it runs.
    replace_credentials(&file, &right.with_file_name("wrong"));
    work_locally(&a.engine(1), 3);
    expect_told(&a, "SignatureDoesNotMatch", &doctors);
    replace_credentials(&file, &right);
    expect_service(&a, &b, 4);
    assert_eq!(doctor(&a), None);
}

#[test]
fn a_clock_that_is_off() {
    let Some(store) = server("clock") else { return };
    let proxy = Proxy::start(store.of_server().port());
    let endpoint = proxy.endpoint();
    let a = Node::start("clock-a", &store, &[("tiers.object.endpoint", &endpoint)]);
    let b = Node::start("clock-b", &store, &[("tiers.object.writable", "false")]);
    expect_service(&a, &b, 1);
    proxy.trouble_all(Trouble::Status(403, "RequestTimeTooSkewed"));
    work_locally(&a.engine(1), 2);
    expect_told(&a, "RequestTimeTooSkewed", &["the store does not accept the credentials", "the clock"]);
    proxy.clear();
    expect_service(&a, &b, 3);
}

#[test]
fn a_bucket_that_is_only_read() {
    let Some(store) = server("only-read") else { return };
    let right = store.of_server().credentials();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("credentials");
    let shown = file.display().to_string();
    replace_credentials(&file, &right.with_file_name("reader"));
    let writer = Node::start("only-read-writer", &store, &[]);
    let node = Node::start("only-read", &store, &[("tiers.object.credentials_file", &shown)]);
    expect_told(&node, "AccessDenied", &["can be listed, but not written", "tiers.object.writable = false"]);
    work_locally(&node.engine(1), 1);
    // What others write it serves all the same.
    assert_eq!(writer.engine(2).store(2, 0, BLOCKS).granted, BLOCKS);
    assert_eq!(served(&node.engine(1), 2).object, BLOCKS);
    replace_credentials(&file, &right);
    expect_service(&node, &writer, 3);
}
