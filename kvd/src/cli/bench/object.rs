//! `kvd bench object`: blocks that one daemon uploads in packs and another loads from the store, beside a plain signed client
//! that moves as many bytes through the same HTTP stack, with as many requests at a time.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;

use super::cpu::load_average;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::Output;
use crate::object::options::StoreUrl;
use crate::object::request_threads;
use bucket::Bucket;
use interrupt::Interrupt;
use plan::Plan;
use report::{Case, REQUIRED, Report, not_within, summary, text};
use round::Bench;

mod bucket;
mod engines;
mod interrupt;
mod pace;
mod pair;
mod plain;
mod plan;
mod report;
mod round;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench object --url s3://bucket/prefix                       credentials of the environment
  kvd bench object --url s3://kvd --endpoint http://127.0.0.1:8333 --credentials-file /etc/kvd/s3-credentials --json
  kvd bench object --url s3://bucket --bytes 4GiB --record-bytes 1MiB --rounds 9

Needs five times --bytes of memory. Writes below a prefix of its own, which is deleted at the end, SIGINT (Ctrl-C) and
SIGTERM included; those end it with 130. Ends with 1, after the report, when a figure is not as required.";

/// Engines that store and load at the same time.
const ENGINES: usize = 4;

/// `kvd bench object`.
#[derive(Debug, Args)]
pub struct ObjectArgs {
    /// The bucket, as tiers.object.url: s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.
    #[arg(long, value_name = "URL")]
    url: StoreUrl,
    /// The server that speaks S3, where it is not AWS, as tiers.object.endpoint.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Credentials for S3, as tiers.object.credentials_file; without it those of the environment.
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// Authorities to trust beside the system's, as tiers.object.ca_file.
    #[arg(long, alias = "ca", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Bytes that each side writes and reads in a round.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    bytes: ByteSize,
    /// Payloads of records; multiples of 64KiB.
    #[arg(long, default_values = ["256KiB", "1MiB", "4MiB"], value_delimiter = ',', value_name = "SIZE")]
    record_bytes: Vec<ByteSize>,
    /// Rounds of each case, in which both sides follow each other; medians are told. One more warms up.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Bytes of a pack, as tiers.object.pack_bytes; as many whole records as go in.
    #[arg(long, default_value = "64MiB", value_name = "SIZE")]
    pack_bytes: ByteSize,
    /// Threads of the plain client; as many as cores, unless given.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=256))]
    plain_threads: Option<u16>,
}

/// Measures.
pub(super) fn run(args: &ObjectArgs, output: Output) -> Outcome {
    let interrupt = Interrupt::watch()?;
    let outcome = measure(args, output, &interrupt);
    interrupt.end();
    outcome
}

fn measure(args: &ObjectArgs, output: Output, interrupt: &Interrupt) -> Outcome {
    let cores = std::thread::available_parallelism()?.get();
    let plain_threads = args.plain_threads.map_or(cores, usize::from);
    let bucket = Bucket::open(args, plain_threads, interrupt.clone())?;
    let requests_max = bucket.options.requests_max;
    let plans = args.record_bytes.iter().map(|bytes| Plan::new(args, *bytes, requests_max));
    let plans = plans.collect::<Result<Vec<_>, Failure>>()?;
    let bar = output.progress(plans.len() as u64 * u64::from(args.rounds + 1), "to the store and back");
    let cases = plans.iter().map(|plan| case(&bucket, plan, args.rounds, interrupt, &|| bar.inc(1)));
    let cases = cases.collect::<Result<Vec<_>, Failure>>()?;
    bar.finish_and_clear();
    let report = Report {
        url: args.url.to_string(),
        endpoint: args.endpoint.clone(),
        rounds: args.rounds,
        cores,
        engines: ENGINES,
        request_threads: request_threads(),
        plain_threads,
        required: REQUIRED,
        within_required: cases.iter().all(|case| case.within_required),
        cases,
        load_average: load_average(),
    };
    drop(bucket);
    output.show(&report, text)?;
    if report.within_required { Ok(Exit::Ok) } else { Err(not_within(&report)) }
}

fn case(bucket: &Bucket, plan: &Plan, rounds: u32, interrupt: &Interrupt, step: &dyn Fn()) -> Result<Case, Failure> {
    let bench = Bench::start(bucket, plan, interrupt)?;
    let mut done = Vec::new();
    for round in 0..=rounds {
        let found = bench.round(round)?;
        // The first one warms up: connections, memory, the server.
        done.extend((round > 0).then_some(found));
        step();
    }
    Ok(summary(plan, &done))
}
