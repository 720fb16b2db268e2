//! `kvd bench ranks`: what ranks of one tensor parallel size wrote, read by ranks of the others, each rank a process.

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

use super::cpu::load_average;
use super::node::{Node, NodeOptions, PIECE_BYTES};
use super::stats::{median, rounded};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Output, table};
use crew::Crew;

mod crew;
mod rank;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench ranks                              GPU 0: up to eight processes on it; needs 6 GiB of shared memory
  kvd bench ranks --gpus 0,1 --json            ranks by turns on two GPUs
  kvd bench ranks --twin --mib 64 --rounds 1   on CPUs: shows that it works, and measures nothing";

/// To the rate of ranks that read what their own size wrote.
const REQUIRED_RATIO: f64 = 0.85;

/// `kvd bench ranks`.
#[derive(Debug, Args)]
pub struct RanksArgs {
    /// GPUs on which ranks are put by turns, as the driver counts them.
    #[arg(long, default_value = "0", value_delimiter = ',', value_name = "NUMBERS")]
    gpus: Vec<u32>,
    /// Use twins of GPUs, which work on CPUs: tries the bench where there is no GPU.
    #[arg(long, conflicts_with = "gpus")]
    twin: bool,
    /// Bytes of blocks that the ranks of each size write together.
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=65536))]
    mib: u64,
    /// Timed rounds of each case; medians are told.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Tensor parallel sizes: ranks that split eight heads.
    #[arg(long, default_value = "1,2,4,8", value_delimiter = ',', value_name = "SIZES", value_parser = size)]
    sizes: Vec<u16>,
    /// Be the rank of such a size on a GPU (`RANK/SIZE`).
    #[arg(long, hide = true, requires = "socket", value_parser = place)]
    rank: Option<(u16, u16)>,
    /// Of the bench's daemon.
    #[arg(long, hide = true)]
    socket: Option<PathBuf>,
    /// The engine whose rank it is; without it all ranks of a size are one.
    #[arg(long, hide = true)]
    instance: Option<u8>,
}

fn size(text: &str) -> Result<u16, String> {
    let size = text.parse().ok().filter(|size| [1, 2, 4, 8].contains(size));
    size.ok_or_else(|| "a size is 1, 2, 4 or 8".to_owned())
}

fn place(text: &str) -> Result<(u16, u16), String> {
    let place = text.split_once('/').and_then(|(rank, of)| Some((rank.parse().ok()?, size(of).ok()?)));
    place.filter(|(rank, of)| rank < of).ok_or_else(|| "a place is RANK/SIZE".to_owned())
}

#[derive(Debug, Serialize)]
struct Report {
    device: String,
    working_set_bytes: u64,
    rounds: u32,
    required_ratio: f64,
    /// `None`: a twin measures nothing.
    within_required: Option<bool>,
    /// Units that came back with other bytes than were stored. Must be 0.
    wrong_units: u64,
    cases: Vec<Case>,
    load_average: f64,
}

/// What one size wrote and another one reads.
#[derive(Debug, Serialize)]
struct Case {
    wrote: u16,
    reads: u16,
    /// Of all ranks together, from the order to the last one's end.
    gb_per_second: f64,
    /// To what the reading size has of its own records in the same round; the median.
    ratio: f64,
    ratios: Vec<f64>,
}

/// Measures, or is one of the ranks.
pub(super) fn run(args: &RanksArgs, output: Output) -> Outcome {
    if let (Some((rank, of)), Some(socket)) = (args.rank, &args.socket) {
        let gpu = (!args.twin).then(|| args.gpus[usize::from(rank) % args.gpus.len()]);
        let instance = args.instance.unwrap_or(of as u8);
        return rank::serve(socket, instance, (rank, of), gpu, args.mib << 20);
    }
    let bytes = args.mib << 20;
    // All that is written stays; more for metadata and what does not fill a segment.
    let written = bytes * args.sizes.len() as u64;
    let dram_bytes = (written + written / 4).next_multiple_of(PIECE_BYTES) + 16 * PIECE_BYTES;
    // Each rank of the largest size holds all of what the smallest one wrote while it takes its part, with its metadata.
    let ranks = u64::from(args.sizes.iter().copied().max().unwrap_or(1));
    let set = vec![format!("lease.bytes_max={}", dram_bytes + bytes * ranks)];
    let node =
        Node::start(&NodeOptions { label: "node", dram_bytes, nvme_bytes: None, base: std::env::temp_dir(), set })?;
    let steps = args.sizes.len() * (1 + args.sizes.len() * (args.rounds as usize + 1));
    let bar = output.progress(steps as u64, "moving");
    for size in &args.sizes {
        Crew::start(&node, *size, args)?.order(&format!("store {size}"))?;
        bar.inc(1);
    }
    let (mut cases, mut wrong_units) = (Vec::new(), 0);
    for reads in &args.sizes {
        let mut crew = Crew::start(&node, *reads, args)?;
        let mut rates: Vec<Vec<f64>> = vec![Vec::new(); args.sizes.len()];
        for round in 0..=args.rounds {
            for (wrote, rates) in args.sizes.iter().zip(&mut rates) {
                // The first round maps and pins what the others use, and looks at every byte.
                if round == 0 {
                    crew.order("spoil")?;
                }
                let started = Instant::now();
                crew.order(&format!("load {wrote}"))?;
                let seconds = started.elapsed().as_secs_f64();
                if round == 0 {
                    wrong_units += crew.order("check")?;
                } else {
                    rates.push(bytes as f64 / 1e9 / seconds);
                }
                bar.inc(1);
            }
        }
        let own = args.sizes.iter().position(|size| size == reads).map(|at| rates[at].clone()).unwrap_or_default();
        cases.extend(args.sizes.iter().zip(&rates).map(|(wrote, rates)| {
            let ratios: Vec<f64> = rates.iter().zip(&own).map(|(rate, own)| rounded(rate / own)).collect();
            let ratio = median(ratios.iter().copied());
            Case { wrote: *wrote, reads: *reads, gb_per_second: rounded(median(rates.clone())), ratio, ratios }
        }));
    }
    bar.finish_and_clear();
    let gpus = args.gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let report = Report {
        device: if args.twin { "twins".into() } else { format!("GPU {gpus}") },
        working_set_bytes: bytes,
        rounds: args.rounds,
        required_ratio: REQUIRED_RATIO,
        within_required: (!args.twin).then(|| cases.iter().all(|case| case.ratio >= REQUIRED_RATIO)),
        wrong_units,
        cases,
        load_average: load_average(),
    };
    output.show(&report, text)?;
    if wrong_units > 0 {
        return Err(Failure::new(Exit::CheckFailed, format!("{wrong_units} units came back with wrong bytes")));
    }
    if report.within_required == Some(false) {
        let remedy = "whatever else uses the GPU, the bus or memory counts here too: repeat it on a quiet machine";
        let message = format!("some sizes read others' blocks at less than {REQUIRED_RATIO} of their own");
        return Err(Failure::new(Exit::Failure, message).remedy(remedy));
    }
    Ok(Exit::Ok)
}

fn text(report: &Report) -> String {
    let rows = report.cases.iter().map(|case| {
        let rate = format!("{:.1}", case.gb_per_second);
        vec![case.wrote.to_string(), case.reads.to_string(), rate, format!("{:.3}", case.ratio)]
    });
    let cases = table(&["wrote", "reads", "GB/s", "to its own"], rows);
    let set = ByteSize::b(report.working_set_bytes);
    format!("{cases}\n\n{set} on {}; wrong units: {}", report.device, report.wrong_units)
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}
