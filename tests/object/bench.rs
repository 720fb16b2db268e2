//! `kvd bench object`: small, for what it tells and what it leaves behind. Its figures are none on a machine that tests.

use std::process::{Child, Command, Stdio};

use kvd_tests::{Daemon, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::pool::within;
use crate::server::Server;

fn bench(server: &Server, prefix: &str) -> Child {
    let mut kvd = Command::new(Daemon::program());
    kvd.args(["bench", "object", "--json", "--bytes", "32MiB", "--pack-bytes", "4MiB", "--record-bytes", "256KiB"]);
    kvd.args([
        "--rounds",
        "1",
        "--url",
        &format!("s3://{}/{prefix}", Server::BUCKET),
        "--endpoint",
        &server.endpoint(),
    ]);
    kvd.arg("--credentials-file").arg(server.credentials());
    kvd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kvd can be started")
}

#[test]
fn the_bench_counts_its_requests_and_leaves_nothing_behind() {
    let name = "kvd bench object";
    let server = match Server::shared() {
        Ok(server) => server,
        Err(reason) => return skip(name, &reason),
    };
    let ended = bench(&server, "bench").wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let case = &report["cases"][0];
    let number = |name: &str| case[name].as_u64().unwrap_or_else(|| panic!("{name} in {case}"));
    assert!(number("packs") == 8 && number("pack_records") == 15, "{case}");
    assert!(number("gets") <= number("contiguous_runs") + 1 + number("hedges"), "{case}");
    // A pack and its index each, and what the daemon says of itself.
    assert!(case["puts_per_gib"].as_f64().is_some_and(|puts| puts * 30.0 / 1024.0 <= 2.0 * 8.0 + 1.0), "{case}");
    for way in ["put", "get"] {
        assert!(case[way]["kvd"]["gb_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{case}");
    }
    assert_eq!(server.objects("bench"), []);
}

#[test]
fn a_bench_that_is_interrupted_leaves_nothing_behind() {
    let name = "kvd bench object, interrupted";
    let server = match Server::shared() {
        Ok(server) => server,
        Err(reason) => return skip(name, &reason),
    };
    let mut child = bench(&server, "cut");
    within("something is in the bucket", || {
        let ended = child.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "it ended before it was interrupted: {ended:?}");
        !server.objects("cut").is_empty()
    });
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("it can be signalled");
    let ended = child.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(server.objects("cut"), []);
}
