//! vLLM says the same tokens with kvd as without it.
//!
//! Method: engines in processes of their own, one after the other, all asked the same prompts; the first one has no connector and is
//! the truth. That blocks came from kvd, and out of which tier, is read from vLLM's answers and the daemon's counters.

use std::time::{Duration, Instant};

use kvd_tests::{Daemon, DaemonOptions, Scratch, ask_serving, skip};
use serde_json::json;

use crate::engine::{Answer, BLOCK_TOKENS, FOUND, Vllm};
use crate::faults::{self, Truth};
use crate::setup::{Form, needed};

/// Prompts that every engine is asked.
pub(crate) const SEEDS: [u64; 3] = [7, 8, 9];
/// Prompts that nobody has stored before kvd is killed in their stores.
pub(crate) const NEW_SEEDS: [u64; 2] = [17, 18];

/// A fresh engine finds every prompt, all of it comes, and the tokens are those of the truth.
pub(crate) fn expect_found(engine: &mut Vllm, truth: &[Answer], tier: &str) {
    let found: Vec<Answer> = SEEDS.iter().map(|seed| engine.ask(*seed)).collect();
    println!("{}", told(&format!("a fresh engine, from {tier}"), &found));
    for (found, truth) in found.iter().zip(truth) {
        assert_eq!(found.cached, FOUND, "all whole blocks come from kvd");
        assert_eq!(found.tokens, truth.tokens, "the tokens of an engine without a connector");
    }
    // What vLLM took for cached and did not get it would have computed after all.
    assert_eq!(engine.counted("vllm:kvd_load_blocks/missed"), 0.0, "{}", engine.logged());
}

/// Times of answers, for people.
pub(crate) fn told(what: &str, answers: &[Answer]) -> String {
    let cached: Vec<u64> = answers.iter().map(|answer| answer.cached).collect();
    let [ttft, wall] = [|answer: &Answer| answer.ttft_s, |answer: &Answer| answer.wall_s]
        .map(|time| answers.iter().map(|answer| (time(answer) * 1e3).round()).collect::<Vec<f64>>());
    json!({"engine": what, "cached": cached, "ttft_ms": ttft, "wall_ms": wall}).to_string()
}

pub(crate) fn metric(scratch: &Scratch, series: &str) -> u64 {
    let told = ask_serving(scratch, &["status", "--metrics"]);
    let text = told["text"].as_str().expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no series {series} in\n{text}"));
    value.parse::<f64>().expect("a number") as u64
}

fn hits(scratch: &Scratch, tier: &str) -> u64 {
    metric(scratch, &format!("kvd_block_hits_total{{tier=\"{tier}\"}}"))
}

pub(crate) fn within(what: &str, mut come: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !come() {
        assert!(Instant::now() < until, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn options() -> DaemonOptions {
    DaemonOptions::sized("512MiB", "1GiB").with("tiers.object.enabled", "true").with("tiers.object.pack_age", "1s")
}

#[test]
fn tokens_are_the_same_with_blocks_from_kvd() {
    let Some(setup) = needed(Form::Short, "vLLM on kvd") else { return };
    let scratch = Scratch::new("vllm");
    let mut daemon = Daemon::start(&scratch, &options());
    let socket = scratch.socket();
    let (truth, new): (Vec<Answer>, Vec<Answer>) = {
        let mut alone = Vllm::alone(&setup);
        let truth = SEEDS.iter().map(|seed| alone.ask(*seed)).collect();
        (truth, NEW_SEEDS.iter().map(|seed| alone.ask(*seed)).collect())
    };
    println!("{}", told("without a connector", &truth));
    assert!(truth.iter().all(|answer| answer.cached == 0), "{truth:?}");

    {
        let mut cold = Vllm::on_kvd(&setup, &socket);
        let cold: Vec<Answer> = SEEDS.iter().map(|seed| cold.ask(*seed)).collect();
        println!("{}", told("cold, storing", &cold));
        for (cold, truth) in cold.iter().zip(&truth) {
            assert_eq!((&cold.tokens, cold.cached), (&truth.tokens, 0));
        }
    }
    let mut warm = Vllm::on_kvd(&setup, &socket);
    expect_found(&mut warm, &truth, "DRAM");
    assert!(hits(&scratch, "dram") > 0 && hits(&scratch, "nvme") == 0, "out of DRAM");
    let loaded = (SEEDS.len() as u64 * FOUND / BLOCK_TOKENS) as f64;
    assert_eq!(warm.counted("vllm:kvd_load_blocks/dram"), loaded, "vLLM counts what came");
    let whole = crate::setup::setup(Form::All);
    let stands_still = if whole.is_ok() { Duration::from_secs(30) } else { Duration::from_secs(5) };
    let truth = Truth { known: &truth, new: &new };
    daemon = faults::all(&mut warm, &truth, daemon, &scratch, stands_still);
    drop(warm);

    if let Err(reason) = whole {
        return skip("vLLM on kvd: fresh engines after a kill, from NVMe and from the object tier", &reason);
    }
    daemon.kill();
    daemon = Daemon::start(&scratch, &options());
    expect_found(&mut Vllm::on_kvd(&setup, &socket), truth.known, "DRAM after a kill");
    assert!(hits(&scratch, "dram") > 0, "what was in DRAM has outlived the daemon");

    ask_serving(&scratch, &["drain"]);
    within("all is in the object tier", || {
        metric(&scratch, "kvd_object_waiting_records") + metric(&scratch, "kvd_object_buffered_bytes") == 0
    });
    daemon.kill();
    scratch.delete_dram();
    daemon = Daemon::start(&scratch, &options());
    let mut warm = Vllm::on_kvd(&setup, &socket);
    expect_found(&mut warm, truth.known, "NVMe");
    assert!(hits(&scratch, "nvme") > 0 && hits(&scratch, "object") == 0, "out of NVMe");
    daemon = faults::corrupted_on_nvme(&mut warm, truth.known, daemon, &scratch);
    drop(warm);

    daemon.kill();
    scratch.delete_dram();
    std::fs::remove_file(scratch.data().join("nvme.kvd")).expect("gone");
    daemon = Daemon::start(&scratch, &options());
    let mut warm = Vllm::on_kvd(&setup, &socket);
    expect_found(&mut warm, truth.known, "the object tier");
    assert!(hits(&scratch, "object") > 0 && hits(&scratch, "nvme") == 0, "out of the object tier");
    faults::corrupted_in_the_object_tier(&mut warm, truth.known, daemon, &scratch);
}
