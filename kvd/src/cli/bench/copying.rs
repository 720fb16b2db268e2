//! `kvd bench copy`: blocks between an engine's memory and the DRAM tier, against raw non-temporal copies of the same bytes.

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::cpu::load_average;
use super::engine::Shape;
use super::node::{Node, NodeOptions, PIECE_BYTES, purge};
use super::stats::{median, rounded};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Output, table};
use hand::{Hand, Kind, together};

mod hand;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench copy                               needs 4 GiB of memory for two minutes
  kvd bench copy --rounds 9 --json
  kvd bench copy --mib 2048                    a larger working set, for caches beyond 500 MB";

/// vLLM on CPUs: 128 tokens, 8 heads, 2 * 128 elements of bf16 for key and value.
const VLLM_CPU: Shape = Shape { layers: 4, heads: 8, unit_bytes: 64 << 10, block_tokens: 128 };
const RATIO_MIN: f64 = 0.85;

/// `kvd bench copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Working set; far beyond the last-level cache, or the cache is measured.
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=65536))]
    mib: u64,
    /// Timed rounds of each case; medians are told.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Threads that copy, each with a session of its own.
    #[arg(long, default_values_t = [1, 2], value_delimiter = ',', value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=32))]
    threads: Vec<u8>,
    /// Contiguous blocks; multiples of 64KiB.
    #[arg(long, default_values = ["64KiB", "256KiB", "1MiB", "4MiB"], value_delimiter = ',', value_name = "SIZE")]
    block_bytes: Vec<ByteSize>,
}

#[derive(Debug, Serialize)]
struct Report {
    working_set_bytes: u64,
    rounds: u32,
    required_ratio: f64,
    /// Of the contiguous cases.
    lowest_ratio: f64,
    within_required: bool,
    cases: Vec<Case>,
    load_average: f64,
}

/// One layout, block size and number of threads.
#[derive(Debug, Serialize)]
struct Case {
    layout: &'static str,
    block_bytes: usize,
    threads: u8,
    store: Side,
    load: Side,
}

#[derive(Debug, Serialize)]
struct Side {
    gb_per_second: f64,
    /// Non-temporal copies of the same pieces between the same kinds of memory, without checksums.
    raw_gb_per_second: f64,
    /// Median over the rounds.
    ratio: f64,
    ratios: Vec<f64>,
}

/// Measures.
pub(super) fn run(args: &CopyArgs, output: Output) -> Outcome {
    let contiguous = args.block_bytes.iter().map(|bytes| Ok((Kind::Contiguous, shape(*bytes)?)));
    let shapes = contiguous.chain([Ok((Kind::VllmCpu, VLLM_CPU))]).collect::<Result<Vec<_>, Failure>>()?;
    let bytes = args.mib << 20;
    // A quarter more than the payload: metadata, and what does not fill a segment.
    let dram_bytes = (bytes + bytes / 4).next_multiple_of(PIECE_BYTES) + 4 * PIECE_BYTES;
    let set = vec![format!("lease.bytes_max={dram_bytes}")];
    let node =
        Node::start(&NodeOptions { label: "node", dram_bytes, nvme_bytes: None, base: std::env::temp_dir(), set })?;
    let bar = output.progress((shapes.len() * args.threads.len()) as u64 * u64::from(args.rounds + 1), "copying");
    let mut cases = Vec::new();
    for (kind, shape) in shapes {
        for &threads in &args.threads {
            cases.push(case(&node, kind, shape, threads, args, &|| bar.inc(1))?);
        }
    }
    bar.finish_and_clear();
    let contiguous = cases.iter().filter(|case| case.layout == Kind::Contiguous.name());
    let lowest_ratio = contiguous.flat_map(|case| [case.store.ratio, case.load.ratio]).fold(f64::INFINITY, f64::min);
    let report = Report {
        working_set_bytes: bytes,
        rounds: args.rounds,
        required_ratio: RATIO_MIN,
        lowest_ratio,
        within_required: lowest_ratio >= RATIO_MIN,
        cases,
        load_average: load_average(),
    };
    output.show(&report, text)?;
    Ok(Exit::Ok)
}

/// A contiguous block of so many bytes.
fn shape(block_bytes: ByteSize) -> Result<Shape, Failure> {
    let wrong = || {
        Failure::new(Exit::Usage, format!("--block-bytes {block_bytes}: no multiple of 64KiB that a block may have"))
    };
    Shape::layered(block_bytes).ok_or_else(wrong)
}

fn case(node: &Node, kind: Kind, shape: Shape, threads: u8, args: &CopyArgs, step: &dyn Fn()) -> Result<Case, Failure> {
    let bytes = (args.mib << 20) as usize / usize::from(threads);
    let socket = node.socket();
    let hands = (0..threads).map(|number| Hand::new(&socket, number + 1, kind, shape, bytes));
    let mut hands = hands.collect::<Result<Vec<_>, Failure>>()?;
    let gigabytes = hands.iter().map(|hand| hand.bytes() as f64).sum::<f64>() / 1e9;
    let (mut stores, mut loads) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        purge(&node.connection())?;
        let store = gigabytes / together(&mut hands, Hand::store)?;
        let raw_store = gigabytes / together(&mut hands, Hand::raw_store)?;
        if round == 0 {
            hands.iter().try_for_each(Hand::spoil)?;
        }
        let load = gigabytes / together(&mut hands, Hand::load)?;
        if round == 0 {
            hands.iter().try_for_each(Hand::check)?;
        }
        let raw_load = gigabytes / together(&mut hands, Hand::raw_load)?;
        // The first round warms up: pages, segments, caches.
        if round > 0 {
            stores.push((store, raw_store));
            loads.push((load, raw_load));
        }
        step();
    }
    Ok(Case {
        layout: kind.name(),
        block_bytes: shape.block_bytes(),
        threads,
        store: side(&stores),
        load: side(&loads),
    })
}

fn side(rounds: &[(f64, f64)]) -> Side {
    let ratios: Vec<f64> = rounds.iter().map(|(ours, raw)| rounded(ours / raw)).collect();
    Side {
        gb_per_second: rounded(median(rounds.iter().map(|(ours, _)| *ours))),
        raw_gb_per_second: rounded(median(rounds.iter().map(|(_, raw)| *raw))),
        ratio: median(ratios.iter().copied()),
        ratios,
    }
}

fn text(report: &Report) -> String {
    let rows = report.cases.iter().flat_map(|case| {
        [("store", &case.store), ("load", &case.load)].map(|(what, side)| {
            vec![
                case.layout.to_owned(),
                format!("{} KiB", case.block_bytes >> 10),
                case.threads.to_string(),
                what.to_owned(),
                format!("{:.2}", side.gb_per_second),
                format!("{:.2}", side.raw_gb_per_second),
                format!("{:.3}", side.ratio),
            ]
        })
    });
    let head = ["layout", "block", "threads", "way", "GB/s", "raw GB/s", "ratio"];
    format!(
        "{}\n\nlowest ratio of contiguous blocks {:.3}, required {}; medians of {} rounds; load average {:.2}\n",
        table(&head, rows),
        report.lowest_ratio,
        report.required_ratio,
        report.rounds,
        report.load_average
    )
}
