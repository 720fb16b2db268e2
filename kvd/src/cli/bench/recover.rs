//! `kvd bench recover`: what a resident record costs the daemon in memory, and how soon after SIGKILL its successor serves
//! what both tiers held.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use kvd_proto::Tier;
use serde::Serialize;

use super::cpu::load_average;
use super::node::{Node, NodeOptions, PIECE_BYTES, status};
use super::stats::median;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Output, pairs};
use crate::service::proto;
use filler::{CHAIN_BLOCKS, Filler, slot_bytes};

mod filler;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench recover --path /var/lib/kvd        two million records: 18 GB there and 2 GiB of shared memory, minutes
  kvd bench recover --records 100000 --json    a smaller one

Ends with 1, after the report, when a figure is not as required.";

/// A daemon that wrote nothing for so long has stopped spilling.
const STANDSTILL_MAX: Duration = Duration::from_secs(30);
/// Records stored and not written yet: what waits to be spilled in order. Beyond that DRAM fills with what must not fall.
const AHEAD_MAX: u64 = 4096;
const BYTES_MAX: f64 = 128.0;
const SECONDS_MAX: f64 = 5.0;

/// `kvd bench recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Records that are resident on NVMe when the daemon is killed.
    #[arg(long, default_value_t = 2_000_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10_000..))]
    records: u32,
    /// Payload of a record.
    #[arg(long, default_value_t = 4096, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(256..=1 << 20))]
    block_bytes: u32,
    /// The DRAM tier.
    #[arg(long, default_value_t = 2048, value_name = "MIB", value_parser = clap::value_parser!(u64).range(128..=1 << 20))]
    dram_mib: u64,
    /// Kills and starts; the slowest start is judged.
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=99))]
    restarts: u32,
    /// Folder on the disk that takes the NVMe tier.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    path: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    block_bytes: u32,
    dram_bytes: u64,
    fill_seconds: f64,
    filled: Filled,
    memory: Memory,
    restarts: Vec<Restart>,
    /// Of the restarts, the slowest to its first hits from both tiers.
    slowest_seconds: f64,
    required: Required,
    within_required: bool,
    load_average: f64,
}

/// What was resident before the first kill.
#[derive(Clone, Copy, Debug, Serialize)]
struct Filled {
    /// In all: those in both tiers count once.
    records: u64,
    dram: u64,
    nvme: u64,
}

/// Of the daemon, the arena's mapping apart.
#[derive(Debug, Serialize)]
struct Memory {
    /// Before the first record.
    baseline_bytes: u64,
    full_bytes: u64,
    bytes_per_record: f64,
    index_bytes_per_record: f64,
    /// Of the successor that was started last, whole: its baseline cannot be told apart.
    successor_bytes_per_record: f64,
}

/// Times from the start of the process.
#[derive(Debug, Serialize)]
struct Restart {
    /// It accepts sessions.
    ready_seconds: f64,
    /// A client has a verified block that lay in DRAM.
    dram_hit_seconds: f64,
    /// And one that lay on NVMe.
    nvme_hit_seconds: f64,
    restored_dram: u64,
    restored_nvme: u64,
}

#[derive(Debug, Serialize)]
struct Required {
    bytes_per_record: f64,
    seconds: f64,
}

/// Measures.
pub(super) fn run(args: &RecoverArgs, output: Output) -> Outcome {
    let options = options(args);
    let mut node = Node::start(&options)?;
    let connection = node.connection();
    let filler = Filler::join(&node.socket(), args.block_bytes)?;
    let (baseline, index_before) = (node.memory_bytes()?, status(&connection)?.index_bytes);
    let started = Instant::now();
    let chains = fill(&filler, args, output, &|| status(&connection))?;
    let fill_seconds = started.elapsed().as_secs_f64();
    let full = status(&connection)?;
    let filled = Filled { records: full.records, dram: records(&full, proto::Tier::Dram), nvme: nvme(&full) };
    let full_bytes = node.memory_bytes()?;
    drop(filler);
    let restarts = (0..args.restarts).map(|_| restart(&mut node, &options, args.block_bytes, chains));
    let restarts = restarts.collect::<Result<Vec<_>, Failure>>()?;
    let per_record = |bytes: u64| tenths(bytes as f64 / filled.records.max(1) as f64);
    let memory = Memory {
        baseline_bytes: baseline,
        full_bytes,
        bytes_per_record: per_record(full_bytes.saturating_sub(baseline)),
        index_bytes_per_record: per_record(full.index_bytes.saturating_sub(index_before)),
        successor_bytes_per_record: per_record(node.memory_bytes()?),
    };
    let hits = restarts.iter().map(|restart| restart.dram_hit_seconds.max(restart.nvme_hit_seconds));
    let slowest_seconds = hits.fold(0.0, f64::max);
    let report = Report {
        block_bytes: args.block_bytes,
        dram_bytes: options.dram_bytes,
        fill_seconds: tenths(fill_seconds),
        within_required: memory.bytes_per_record <= BYTES_MAX && slowest_seconds <= SECONDS_MAX,
        filled,
        memory,
        restarts,
        slowest_seconds,
        required: Required { bytes_per_record: BYTES_MAX, seconds: SECONDS_MAX },
        load_average: load_average(),
    };
    output.show(&report, text)?;
    if report.within_required { Ok(Exit::Ok) } else { Err(not_within(&report)) }
}

fn not_within(report: &Report) -> Failure {
    let (bytes, seconds) = (report.memory.bytes_per_record, report.slowest_seconds);
    let message = format!(
        "not as required: {bytes} bytes per record, at most {BYTES_MAX}; {seconds:.3} s to the first hits, at most \
         {SECONDS_MAX} s"
    );
    Failure::new(Exit::Failure, message)
        .remedy("few records carry the daemon's fixed cost: repeat it with --records 2000000, on a quiet machine")
}

fn options(args: &RecoverArgs) -> NodeOptions {
    let records = u64::from(args.records) * slot_bytes(args.block_bytes);
    // A tenth for the device's directory and for what is stored beyond the count while the last are written.
    let nvme_bytes = (records + records / 10).next_multiple_of(PIECE_BYTES) + 4 * PIECE_BYTES;
    NodeOptions {
        label: "node",
        dram_bytes: args.dram_mib << 20,
        nvme_bytes: Some(nvme_bytes),
        base: args.path.clone(),
        set: Vec::new(),
    }
}

/// Stores chains until NVMe has the records; how many.
fn fill(
    filler: &Filler,
    args: &RecoverArgs,
    output: Output,
    status: &dyn Fn() -> Result<proto::StatusResponse, Failure>,
) -> Result<u64, Failure> {
    let bar = output.progress(u64::from(args.records), "storing records");
    let (mut chains, mut before, mut moved_at) = (0, 0, Instant::now());
    loop {
        let written = nvme(&status()?);
        bar.set_position(written);
        if written >= u64::from(args.records) {
            bar.finish_and_clear();
            return Ok(chains);
        }
        if written > before {
            (before, moved_at) = (written, Instant::now());
        } else if moved_at.elapsed() > STANDSTILL_MAX {
            let message = format!("the daemon has written {written} of {} records and goes no further", args.records);
            return Err(Failure::new(Exit::Failure, message));
        }
        // A chain that was refused in part is stored once more.
        if chains * u64::from(CHAIN_BLOCKS) < written + AHEAD_MAX && filler.store(chains)? == 0 {
            chains += 1;
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn records(status: &proto::StatusResponse, tier: proto::Tier) -> u64 {
    status.tiers.iter().filter(|one| one.tier() == tier).map(|one| one.records).sum()
}

fn nvme(status: &proto::StatusResponse) -> u64 {
    records(status, proto::Tier::Nvme)
}

/// Kills the daemon and starts the next one.
fn restart(node: &mut Node, options: &NodeOptions, block_bytes: u32, chains: u64) -> Result<Restart, Failure> {
    node.kill()?;
    let started = Instant::now();
    node.start_again(options)?;
    let ready_seconds = started.elapsed().as_secs_f64();
    let filler = Filler::join(&node.socket(), block_bytes)?;
    filler.hit((0..chains).rev(), Tier::Dram)?;
    let dram_hit_seconds = started.elapsed().as_secs_f64();
    filler.hit(0..chains, Tier::Nvme)?;
    let nvme_hit_seconds = started.elapsed().as_secs_f64();
    let found = status(&node.connection())?;
    Ok(Restart {
        ready_seconds: millis(ready_seconds),
        dram_hit_seconds: millis(dram_hit_seconds),
        nvme_hit_seconds: millis(nvme_hit_seconds),
        restored_dram: found.restored_dram,
        restored_nvme: found.restored_nvme,
    })
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn millis(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

fn text(report: &Report) -> String {
    let (memory, filled) = (&report.memory, &report.filled);
    let middle = |of: fn(&Restart) -> f64| median(report.restarts.iter().map(of));
    pairs(&[
        ("records", format!("{}: {} in DRAM, {} on NVMe", filled.records, filled.dram, filled.nvme)),
        ("filled in", format!("{} s", report.fill_seconds)),
        (
            "memory per record",
            format!(
                "{} bytes of the daemon, {} of index; required {}",
                memory.bytes_per_record, memory.index_bytes_per_record, report.required.bytes_per_record
            ),
        ),
        ("  of the successor", format!("{} bytes, its baseline included", memory.successor_bytes_per_record)),
        ("killed and started", format!("{} times; medians:", report.restarts.len())),
        ("  ready", format!("{:.3} s", middle(|restart| restart.ready_seconds))),
        ("  hit in DRAM", format!("{:.3} s", middle(|restart| restart.dram_hit_seconds))),
        ("  hit on NVMe", format!("{:.3} s", middle(|restart| restart.nvme_hit_seconds))),
        ("slowest", format!("{:.3} s; required {} s", report.slowest_seconds, report.required.seconds)),
        ("load average", format!("{:.2}", report.load_average)),
    ])
}
