//! `kvd bench nvme`: a plain loop over the product's I/O (`raw`), the NVMe tier's device with real records, and fio, in turn on
//! one file.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::cpu::load_average;
use super::stats::{median, rounded};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Output, table};
use disk::Disk;
use load::Burners;
use records::Records;

mod disk;
mod fio;
mod load;
mod made;
mod raw;
mod records;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench nvme --path /var/lib/kvd           a file of 2 GiB there, removed afterwards; some three minutes
  kvd bench nvme --loaded --json               with a thread spinning on every core, under fio too
  kvd bench nvme --path /dev/nvme1n1 --yes     a whole device: what it holds is lost

Ends with 1, after the report, when a figure is not as required; without fio nothing is judged.";

/// Bytes of an operation and operations at a time.
const SHAPES: [(u32, u32); 3] = [(64 << 10, 32), (256 << 10, 16), (1 << 20, 8)];

/// `kvd bench nvme`.
#[derive(Debug, Args)]
pub struct NvmeArgs {
    /// Folder on the disk to measure, or a file or block device to overwrite.
    #[arg(long, value_name = "FILE_OR_DIR", default_value_os_t = std::env::temp_dir())]
    path: PathBuf,
    /// Rounds of each case, in which fio, raw and records follow each other; medians are told.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=99))]
    pairs: u32,
    /// How long each run lasts.
    #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = clap::value_parser!(u64).range(50..=60_000))]
    milliseconds: u64,
    /// Keep every core busy meanwhile.
    #[arg(long)]
    loaded: bool,
    /// Overwrite an existing file or device without a question.
    #[arg(long)]
    yes: bool,
}

/// One case of one run.
#[derive(Clone, Copy, Debug)]
struct Shape {
    block_bytes: u32,
    queue_depth: u32,
    write: bool,
    limit: Duration,
}

/// What one run of one side came to.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    gb_per_second: f64,
    cpu_seconds_per_gb: f64,
}

impl Run {
    fn of(bytes: f64, seconds: f64, cpu_seconds: f64) -> Run {
        let gigabytes = bytes / 1e9;
        Run { gb_per_second: rounded(gigabytes / seconds), cpu_seconds_per_gb: rounded(cpu_seconds / gigabytes) }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    /// Whether the file is read and written around the page cache.
    direct: bool,
    /// What fio says of itself; without it there is nothing to compare with.
    fio: Option<String>,
    pairs: u32,
    milliseconds: u64,
    loaded: bool,
    required: Required,
    /// `None`: there was no fio.
    within_required: Option<bool>,
    cases: Vec<Case>,
    load_average_before: f64,
    load_average: f64,
}

/// Least ratio to fio and most processor time, which is not judged where other threads take the caches.
#[derive(Clone, Copy, Debug, Serialize)]
struct Required {
    raw_ratio: f64,
    raw_cpu_seconds_per_gb: Option<f64>,
    record_ratio: f64,
    record_cpu_seconds_per_gb: Option<f64>,
}

impl Required {
    const QUIET: Required = Required {
        raw_ratio: 0.95,
        raw_cpu_seconds_per_gb: Some(0.1),
        record_ratio: 0.9,
        record_cpu_seconds_per_gb: Some(0.2),
    };
    const LOADED: Required =
        Required { raw_ratio: 0.9, raw_cpu_seconds_per_gb: None, record_ratio: 0.9, record_cpu_seconds_per_gb: None };
}

#[derive(Debug, Serialize)]
struct Case {
    op: &'static str,
    block_bytes: u32,
    queue_depth: u32,
    fio: Option<Side>,
    raw: Side,
    record: Side,
}

/// Medians of one side.
#[derive(Debug, Serialize)]
struct Side {
    gb_per_second: f64,
    cpu_seconds_per_gb: f64,
    /// Median over the rounds of this side's speed to fio's in the same round.
    ratio: Option<f64>,
    runs: Vec<Run>,
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

/// Measures.
pub(super) fn run(args: &NvmeArgs, output: Output) -> Outcome {
    let before = load_average();
    let disk = Disk::new(&args.path, args.yes, output)?;
    let fio = fio::version();
    let bar = output.progress(SHAPES.len() as u64 * 2 * u64::from(args.pairs), "reading and writing");
    let burners = args.loaded.then(Burners::start).transpose()?;
    let mut cases = Vec::new();
    for (block_bytes, queue_depth) in SHAPES {
        let shape = Shape { block_bytes, queue_depth, write: true, limit: Duration::from_millis(args.milliseconds) };
        let mut records = Records::open(&disk, shape)?;
        cases.push(case(&disk, &mut records, shape, args.pairs, fio.is_some(), &|| bar.inc(1))?);
        // The writes of the others went over the records.
        records.fill()?;
        cases.push(case(&disk, &mut records, Shape { write: false, ..shape }, args.pairs, fio.is_some(), &|| {
            bar.inc(1)
        })?);
        records.vacate()?;
    }
    drop(burners);
    bar.finish_and_clear();
    let required = if args.loaded { Required::LOADED } else { Required::QUIET };
    let report = Report {
        file: disk.path.clone(),
        direct: disk.prepared.file.is_direct(),
        within_required: fio.is_some().then(|| cases.iter().all(|case| within(case, required))),
        fio,
        pairs: args.pairs,
        milliseconds: args.milliseconds,
        loaded: args.loaded,
        required,
        cases,
        load_average_before: before,
        load_average: load_average(),
    };
    output.show(&report, text)?;
    // Without fio there is nothing to judge by.
    if report.within_required == Some(false) { Err(not_within(&report)) } else { Ok(Exit::Ok) }
}

fn not_within(report: &Report) -> Failure {
    let required = report.required;
    let outside = report.cases.iter().filter(|case| !within(case, required));
    let outside: Vec<_> = outside.map(|case| format!("{} {} KiB", case.op, case.block_bytes >> 10)).collect();
    let most = |seconds: Option<f64>| seconds.map_or_else(String::new, |most| format!(" in at most {most} CPU s/GB"));
    let (raw, record) = (most(required.raw_cpu_seconds_per_gb), most(required.record_cpu_seconds_per_gb));
    failed(format!(
        "not as required: {}; of fio's speed, raw must reach {}{raw}, records {}{record}",
        outside.join(", "),
        required.raw_ratio,
        required.record_ratio
    ))
    .remedy("whatever else uses cores or disk counts here too: repeat it on a quiet machine, with more --pairs")
}

fn case(
    disk: &Disk,
    records: &mut Records,
    shape: Shape,
    pairs: u32,
    with_fio: bool,
    step: &dyn Fn(),
) -> Result<Case, Failure> {
    let (mut fios, mut raws, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..pairs {
        // Who goes first changes, so that a disk that grows slower or faster does so for everybody.
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 if with_fio => fios.push(fio::run(disk, shape)?),
                0 => {}
                1 => raws.push(raw::run(disk, shape)?),
                _ => ours.push(records.run(shape)?),
            }
        }
        step();
    }
    Ok(Case {
        op: if shape.write { "write" } else { "read" },
        block_bytes: shape.block_bytes,
        queue_depth: shape.queue_depth,
        raw: side(raws, &fios),
        record: side(ours, &fios),
        fio: with_fio.then(|| side(fios, &[])),
    })
}

fn side(runs: Vec<Run>, fios: &[Run]) -> Side {
    let ratios = runs.iter().zip(fios).map(|(ours, fio)| ours.gb_per_second / fio.gb_per_second);
    Side {
        gb_per_second: median(runs.iter().map(|run| run.gb_per_second)),
        cpu_seconds_per_gb: median(runs.iter().map(|run| run.cpu_seconds_per_gb)),
        ratio: (!fios.is_empty()).then(|| rounded(median(ratios))),
        runs,
    }
}

fn within(case: &Case, required: Required) -> bool {
    let good = |side: &Side, ratio: f64, cpu: Option<f64>| {
        side.ratio.is_some_and(|found| found >= ratio) && cpu.is_none_or(|most| side.cpu_seconds_per_gb <= most)
    };
    good(&case.raw, required.raw_ratio, required.raw_cpu_seconds_per_gb)
        && good(&case.record, required.record_ratio, required.record_cpu_seconds_per_gb)
}

fn text(report: &Report) -> String {
    let rows = report.cases.iter().flat_map(|case| {
        let sides = [("fio", case.fio.as_ref()), ("raw", Some(&case.raw)), ("record", Some(&case.record))];
        sides.into_iter().filter_map(|(name, side)| side.map(|side| (name, side))).map(|(name, side)| {
            vec![
                format!("{} {} KiB", case.op, case.block_bytes >> 10),
                case.queue_depth.to_string(),
                name.to_owned(),
                format!("{:.2}", side.gb_per_second),
                format!("{:.3}", side.cpu_seconds_per_gb),
                side.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}")),
            ]
        })
    });
    let head = ["case", "depth", "side", "GB/s", "CPU s/GB", "of fio"];
    let fio = report.fio.as_ref().map_or_else(
        || "fio is not installed: nothing to compare with (apt-get install fio)".to_owned(),
        |version| format!("{version}, libaio; medians of {} rounds", report.pairs),
    );
    let cores = if report.loaded { "every core busy" } else { "cores left alone" };
    format!(
        "{}\n\n{fio}; {cores}; load average {:.2}, before {:.2}\n",
        table(&head, rows),
        report.load_average,
        report.load_average_before
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_rounds_and_of_their_ratios() {
        let run = |gb_per_second| Run { gb_per_second, cpu_seconds_per_gb: 0.05 };
        let fios = [run(1.0), run(2.0), run(4.0)];
        let ours = side(vec![run(1.0), run(1.0), run(4.0)], &fios);
        assert_eq!((ours.gb_per_second, ours.ratio), (1.0, Some(1.0)));
        let slow = side(vec![run(0.9), run(1.8), run(3.6)], &fios);
        let case = |raw, record| Case { op: "read", block_bytes: 1, queue_depth: 1, fio: None, raw, record };
        let fair = case(ours, slow);
        assert!(within(&fair, Required::QUIET));
        assert!(!within(&case(fair.record, fair.raw), Required::QUIET));
    }
}
