//! Every release of vLLM that there is for CPUs, and that the connector says it knows.

use kvd_tests::{Daemon, Scratch, skip};

use crate::engine::{Answer, Vllm};
use crate::setup::{Form, Setup, needed, script, setup_release};
use crate::vllm::{SEEDS, expect_found, options, told};

/// Beside the one that the other tests run with. Of 0.33 there is none for CPUs.
const RELEASES: [&str; 6] = ["0.26.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0"];

#[test]
fn tokens_are_the_same_with_every_release() {
    for release in RELEASES {
        match setup_release(release) {
            Ok(setup) => stored_and_found(release, &setup),
            Err(reason) => skip(&format!("vLLM {release} on kvd"), &reason),
        }
    }
}

/// What one engine computes and stores, the next one finds; a daemon that is killed costs it no token.
fn stored_and_found(release: &str, setup: &Setup) {
    let scratch = Scratch::new("vllm-release");
    let daemon = Daemon::start(&scratch, &options());
    let ask = |engine: &mut Vllm| SEEDS.iter().map(|seed| engine.ask(*seed)).collect::<Vec<Answer>>();
    let computed = ask(&mut Vllm::on_kvd(setup, &scratch.socket()));
    println!("{}", told(&format!("vLLM {release}, storing"), &computed));
    assert!(computed.iter().all(|answer| answer.cached == 0), "computed");
    let mut warm = Vllm::on_kvd(setup, &scratch.socket());
    expect_found(&mut warm, &computed, &format!("DRAM, vLLM {release}"));
    daemon.kill();
    warm.forget();
    for (alone, computed) in ask(&mut warm).iter().zip(&computed) {
        assert_eq!((&alone.tokens, alone.cached), (&computed.tokens, 0), "vLLM {release} without its daemon");
    }
}

/// A release that nobody has tried is refused in words.
#[test]
fn a_release_that_is_not_known_is_refused() {
    let Some(setup) = needed(Form::Short, "releases of vLLM that are refused") else { return };
    let ended = setup.python().arg(script("releases.py")).output().expect("it starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
