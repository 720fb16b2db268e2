//! The bound of a bucket that two nodes share, under more than it holds; two collectors at once; and a purge at the end.
//!
//! Goal: the bucket never holds more than the shares and one pack per node, whatever is asked of it, and in the end nothing.
//! Method: the trace is played on both nodes at once while somebody else lists the bucket again and again. A short form
//! always; with KVD_OBJECT=1 more than 5 GiB in a bound of 1 GiB.

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvd_tests::{Daemon, TestEngine, skip};
use serde_json::{Value, json};

use crate::pool::{BLOCKS, Node, Store, served, within};

/// How much is played, and how much of it may stay.
struct Form {
    name: &'static str,
    share: (&'static str, u64),
    pack: (&'static str, u64),
    dram: &'static str,
    nvme: &'static str,
    /// Of the trace: all of it has 182 790 distinct blocks.
    requests: Option<&'static str>,
    block_bytes: &'static str,
}

const SHORT: Form = Form {
    name: "short",
    share: ("8MiB", 8 << 20),
    pack: ("1MiB", 1 << 20),
    dram: "64MiB",
    nvme: "128MiB",
    requests: Some("400"),
    block_bytes: "8192",
};
const LONG: Form = Form {
    name: "long",
    share: ("512MiB", 512 << 20),
    pack: ("64MiB", 64 << 20),
    dram: "512MiB",
    nvme: "1GiB",
    requests: None,
    block_bytes: "32768",
};

#[test]
fn a_folder_is_kept_within_its_bound() {
    within_its_bound(&Store::folder(), "folder", &SHORT);
}

#[test]
fn a_bucket_is_kept_within_its_bound() {
    match Store::server("bound") {
        Ok(store) => within_its_bound(&store, "seaweedfs", &SHORT),
        Err(reason) => skip("the bound of a bucket on SeaweedFS", &reason),
    }
}

#[test]
fn a_gigabyte_shared_by_two_nodes_is_kept_under_five() {
    let name = "a bound of 1 GiB under 5 GiB";
    if std::env::var_os("KVD_OBJECT").is_none() {
        return skip(name, "set KVD_OBJECT=1 to run it");
    }
    within_its_bound(&Store::folder(), "folder", &LONG);
    match Store::server("gigabyte") {
        Ok(store) => within_its_bound(&store, "seaweedfs", &LONG),
        Err(reason) => skip(name, &reason),
    }
}

fn within_its_bound(store: &Store, made_of: &str, form: &Form) {
    let settings = [
        ("tiers.dram.capacity", form.dram),
        ("tiers.nvme.capacity", form.nvme),
        ("tiers.object.share", form.share.0),
        ("tiers.object.pack_bytes", form.pack.0),
        ("tiers.object.request_timeout", "10s"),
    ];
    let nodes = ["a", "b"].map(|node| Node::start(&format!("bound-{made_of}-{node}"), store, &settings));
    within("the nodes know of each other", || nodes.iter().all(|node| node.metric("kvd_object_nodes") == 2));
    let (reports, peak) = watched(store, || {
        let reports = [replay(&nodes[0], form), replay(&nodes[1], form)].map(report);
        within("all is uploaded", || {
            nodes
                .iter()
                .all(|node| node.metric("kvd_object_waiting_records") + node.metric("kvd_object_buffered_bytes") == 0)
        });
        reports
    });
    let of_both = |key: &str| reports.iter().filter_map(|report| report[key].as_u64()).sum::<u64>();
    let from_store = reports.iter().filter_map(|report| report["hit_by_tier"]["object"].as_u64()).sum::<u64>();
    let written: u64 = nodes.iter().map(|node| node.metric("kvd_object_transferred_bytes_total{way=\"up\"}")).sum();
    let (bound, most) = (2 * form.share.1, 2 * (form.share.1 + form.pack.1));
    println!(
        "{}",
        json!({
            "store": made_of, "form": form.name, "bound_bytes": bound, "peak_bytes": peak, "uploaded_bytes": written,
            "hit_rate": of_both("blocks_hit") as f64 / of_both("blocks_asked") as f64,
            "hits_from_store": from_store, "blocks_asked": of_both("blocks_asked"), "wrong_blocks": of_both("wrong_blocks"),
        })
    );
    assert_eq!(of_both("wrong_blocks"), 0);
    assert!(written > 4 * bound, "{written} bytes are not much for a bound of {bound}");
    assert!(peak <= most, "{peak} bytes where {bound} may be, and a pack per node");
    assert!(peak > bound / 2, "{peak} bytes: what is allowed is not used");
    nodes.iter().for_each(|node| assert!(node.metric("kvd_object_own_bytes") <= form.share.1));
    collected_twice_at_once(&nodes);
    for node in &nodes {
        let mut kvd = Command::new(Daemon::program());
        kvd.args(["purge", "--all", "--yes", "--socket"]).arg(node.scratch.socket());
        let ended = kvd.output().expect("kvd can be started");
        assert!(ended.status.success(), "{}", said(&ended));
    }
    assert_eq!(store.objects(), [], "a purge leaves nothing");
}

/// Two that delete the same at the same time, while the nodes store and load.
fn collected_twice_at_once(nodes: &[Node; 2]) {
    let [writer, reader] = [nodes[0].engine(7), nodes[1].engine(8)];
    let first = 9_000_000;
    for round in 0..3 {
        stored(&writer, first + round);
        let both = [collect(&nodes[0]), collect(&nodes[1])];
        let checked = reader.check(first + round, BLOCKS);
        assert_eq!(checked.wrong, 0, "{checked:?}");
        let ended = both.map(|child| child.wait_with_output().expect("it ends"));
        // Of two that begin at the same moment one may leave it to the other.
        let gives_way = |ended: &Output| said(ended).contains("another collector began at this moment");
        assert!(ended.iter().any(|ended| ended.status.success()), "{}", said(&ended[0]));
        let fine = |ended: &Output| ended.status.success() || gives_way(ended);
        assert!(ended.iter().all(fine), "{} {}", said(&ended[0]), said(&ended[1]));
    }
    stored(&writer, first + 10);
    served(&reader, first + 10);
}

/// Blocks of another size than those of the trace: some of these have to make room first.
fn stored(writer: &TestEngine, chain: u64) {
    within("there is room", || {
        let stored = writer.store(chain, 0, BLOCKS);
        stored.granted + stored.present == BLOCKS
    });
}

fn said(ended: &Output) -> String {
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

fn collect(node: &Node) -> Child {
    let mut kvd = Command::new(Daemon::program());
    kvd.args(["object", "gc"]).args(node.settings());
    kvd.args(["--set", "tiers.object.pack_age=10ms", "--set", "tiers.object.expire_after=11ms"]);
    kvd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("kvd can be started")
}

fn replay(node: &Node, form: &Form) -> Child {
    let mut kvd = Command::new(Daemon::program());
    kvd.args(["replay", "--json", "--block-bytes", form.block_bytes, "--socket"]).arg(node.scratch.socket());
    kvd.args(form.requests.into_iter().flat_map(|requests| ["--limit-requests", requests]));
    kvd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("kvd can be started")
}

fn report(replay: Child) -> Value {
    let ended = replay.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "the replay failed");
    serde_json::from_slice(&ended.stdout).expect("one JSON object")
}

/// The most bytes that were seen in the store during some work.
fn watched<T>(store: &Store, work: impl FnOnce() -> T) -> (T, u64) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut peak = 0;
            while !over.load(Ordering::SeqCst) {
                peak = peak.max(store.objects().iter().map(|(_, bytes)| bytes).sum());
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        // Also where the work fails: the scope waits for the watcher.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::SeqCst);
        let peak = watching.join().expect("no panic");
        match worked {
            Ok(worked) => (worked, peak),
            Err(failure) => std::panic::resume_unwind(failure),
        }
    })
}
