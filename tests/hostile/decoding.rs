//! The bodies of the fuzz targets, run over mutations of the same seeds; and the two readers that sit behind a program.

use std::process::Command;

use kvd_tests::{Daemon, Scratch};
use rand::Rng as _;
use rand::rngs::SmallRng;

use crate::decoders::{DECODERS, golden_device_is_sealed_as_the_product_does, seeds};
use crate::{count, generator, mutate};

#[test]
fn no_decoder_panics_or_accepts_two_spellings() {
    let mut random = generator("decoders");
    golden_device_is_sealed_as_the_product_does();
    for (name, decode) in DECODERS {
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| decode(seed));
        // A device is opened and checked for each input.
        let rounds = if *name == "nvme" { count(300, 20_000) } else { count(20_000, 1_000_000) };
        for _ in 0..rounds {
            let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
            for _ in 0..random.random_range(1..=3) {
                mutate::any(&mut bytes, &mut random);
            }
            decode(&bytes);
        }
    }
}

/// Runs kvd on a file of mutated text; it must end by itself with one of `codes`.
fn read_by_kvd(name: &str, text: &str, arguments: &[&str], codes: &[i32], random: &mut SmallRng) {
    let scratch = Scratch::new(name);
    let file = scratch.data().join(name);
    for _ in 0..count(60, 3000) {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..random.random_range(1..=3) {
            mutate::any(&mut bytes, random);
        }
        std::fs::write(&file, &bytes).expect("written");
        let mut kvd = Command::new(Daemon::program());
        kvd.env_clear().env("HOME", scratch.data()).args(arguments).arg(&file);
        let ended = kvd.output().expect("kvd can be started");
        let said = String::from_utf8_lossy(&ended.stderr);
        let code = ended.status.code().unwrap_or(-1);
        assert!(
            codes.contains(&code) && !said.contains("panicked"),
            "{code}: {said}\n{:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[test]
fn a_mutated_configuration_is_read_or_refused() {
    let text = "policy = \"lru\"\n[tiers.dram]\ncapacity = \"64MiB\"\nprefault = true\n[tiers.nvme]\npaths = [\"/tmp/a\"]\n\
        capacity = \"1GiB\"\nread_bandwidth_max = \"1GiB/s\"\n[lease]\nidle = \"2m\"\n[session]\nallowed_uids = [7]\n";
    read_by_kvd("kvd.toml", text, &["config", "check", "--config"], &[0, 2, 6], &mut generator("config"));
}

#[test]
fn a_mutated_trace_is_read_or_refused() {
    let text = "{\"timestamp\": 0, \"input_length\": 900, \"output_length\": 5, \"hash_ids\": [0, 1]}\n\
        {\"timestamp\": 3, \"input_length\": 1400, \"output_length\": 5, \"hash_ids\": [0, 1, 2]}\n";
    // 3: the trace was read, and then there is no daemon to play it on.
    let arguments = ["replay", "--socket", "/no/such/kvd.sock", "--trace"];
    read_by_kvd("trace.jsonl", text, &arguments, &[2, 3], &mut generator("trace"));
}

/// The seeds of the fuzz targets as files, where `KVD_SEEDS` names a folder; else, that those of the repository are these.
#[test]
fn the_corpus_holds_the_seeds() {
    let given = std::env::var_os("KVD_SEEDS").map(std::path::PathBuf::from);
    let folder = given.clone().unwrap_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus"));
    for (name, _) in DECODERS {
        for (number, seed) in seeds(name).iter().enumerate() {
            let file = folder.join(name).join(format!("seed-{number}"));
            if given.is_some() {
                std::fs::create_dir_all(folder.join(name)).expect("a folder");
                std::fs::write(&file, seed).expect("written");
            }
            assert!(std::fs::read(&file).is_ok_and(|found| found == *seed), "{} is not the seed", file.display());
        }
    }
}
