//! What more than one engine, or one on a full disk, makes of the same daemon.

use std::fs::File;
use std::io::Write as _;

use kvd_tests::{Daemon, Scratch, SmallDisk, ask_serving};

use crate::engine::{Answer, BLOCK_TOKENS, FOUND, Vllm};
use crate::setup::{Form, needed};
use crate::vllm::{NEW_SEEDS, SEEDS, metric, options, told, within};

fn ask(engine: &mut Vllm, seeds: &[u64]) -> Vec<Answer> {
    seeds.iter().map(|seed| engine.ask(*seed)).collect()
}

/// All of it came from kvd, and says what computing said.
fn expect_found(what: &str, found: &[Answer], computed: &[Answer], engine: &mut Vllm) {
    println!("{}", told(what, found));
    for (found, computed) in found.iter().zip(computed) {
        assert_eq!((&found.tokens, found.cached), (&computed.tokens, FOUND), "{what}");
    }
    assert_eq!(engine.counted("vllm:kvd_load_blocks/missed"), 0.0, "{}", engine.logged());
}

/// Each finds what the other stored at the same time, and it is kept once.
#[test]
fn two_engines_at_once_find_each_others_prompts() {
    let Some(setup) = needed(Form::All, "two engines on one kvd") else { return };
    let scratch = Scratch::new("vllm-two");
    let _daemon = Daemon::start(&scratch, &options());
    let socket = scratch.socket();
    let (mut one, mut other) = (Vllm::on_kvd(&setup, &socket), Vllm::on_kvd(&setup, &socket));
    let (known, new) = std::thread::scope(|scope| {
        let known = scope.spawn(|| ask(&mut one, &SEEDS));
        let new = ask(&mut other, &NEW_SEEDS);
        (known.join().expect("answers"), new)
    });
    println!("{}", told("one of two at once, storing", &known));
    println!("{}", told("the other, storing", &new));
    assert!(known.iter().chain(&new).all(|answer| answer.cached == 0), "computed");
    let (new_again, known_again) = std::thread::scope(|scope| {
        let new = scope.spawn(|| ask(&mut one, &NEW_SEEDS));
        let known = ask(&mut other, &SEEDS);
        (new.join().expect("answers"), known)
    });
    expect_found("the one, of the other's prompts", &new_again, &new, &mut one);
    expect_found("the other, of the one's prompts", &known_again, &known, &mut other);
    let all = (SEEDS.len() + NEW_SEEDS.len()) as u64 * FOUND / BLOCK_TOKENS;
    assert_eq!(ask_serving(&scratch, &["status"])["blocks"], all, "one copy of each block for both");
}

/// Others fill the disk below NVMe and the object tier before anything is stored.
#[test]
fn a_full_disk_costs_an_engine_nothing_that_was_there() {
    let Some(setup) = needed(Form::All, "vLLM on a full disk") else { return };
    let scratch = Scratch::new("vllm-full-disk");
    let Some(_disk) = SmallDisk::mount("vLLM on a full disk", scratch.data(), "220MiB") else { return };
    let daemon = Daemon::start(&scratch, &options().with("tiers.nvme.capacity", "128MiB"));
    let mut engine = Vllm::on_kvd(&setup, &scratch.socket());
    let mut junk = File::create(scratch.data().join("junk")).expect("a file of somebody else");
    while junk.write_all(&[7; 1 << 16]).is_ok() {}
    let computed = ask(&mut engine, &SEEDS);
    println!("{}", told("storing on a full disk", &computed));
    within("the store says that it is full", || metric(&scratch, "kvd_object_up") == 0);
    engine.forget();
    let found = ask(&mut engine, &SEEDS);
    expect_found("finding on a full disk", &found, &computed, &mut engine);
    drop(engine);
    assert_eq!(daemon.stop(), Some(0));
}
