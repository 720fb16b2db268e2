//! What is told, and what is required of it.

use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use super::bucket::failed;
use super::plan::Plan;
use super::round::Round;
use crate::cli::bench::stats::{median, rounded};
use crate::cli::exit::Failure;
use crate::cli::output::table;

pub(super) const REQUIRED: Required =
    Required { put_ratio: 0.9, get_ratio: 0.9, puts_per_gib: 40.0, gets_beyond_runs: 1 };

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) url: String,
    pub(super) endpoint: Option<String>,
    pub(super) rounds: u32,
    pub(super) cores: usize,
    pub(super) engines: usize,
    /// Of one daemon, for requests; those of the plain client.
    pub(super) request_threads: usize,
    pub(super) plain_threads: usize,
    pub(super) required: Required,
    pub(super) within_required: bool,
    pub(super) cases: Vec<Case>,
    pub(super) load_average: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Required {
    pub(super) put_ratio: f64,
    pub(super) get_ratio: f64,
    pub(super) puts_per_gib: f64,
    pub(super) gets_beyond_runs: u64,
}

/// One size of records.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) record_bytes: usize,
    /// Stored by the engines in a round.
    pub(super) payload_bytes: u64,
    pub(super) packs: usize,
    /// Records of a pack, and of a chain.
    pub(super) pack_records: usize,
    pub(super) pack_bytes: u64,
    pub(super) put: Way,
    /// Of the daemon, for each GiB of payload; the round with the most.
    pub(super) puts_per_gib: f64,
    pub(super) get: Way,
    /// Requests of the daemon, those of `hedges` among them, and pieces of packs that need one each; the round in which the
    /// former exceed the latter most.
    pub(super) gets: u64,
    pub(super) contiguous_runs: u64,
    /// Reads that were asked for twice, in all rounds.
    pub(super) hedges: u64,
    pub(super) within_required: bool,
}

/// One direction.
#[derive(Debug, Serialize)]
pub(super) struct Way {
    pub(super) requests_at_once: usize,
    /// Medians.
    pub(super) kvd: Speed,
    pub(super) plain: Speed,
    /// Median over the rounds of kvd's speed to the plain client's in the same round.
    pub(super) ratio: f64,
    pub(super) ratios: Vec<f64>,
}

/// What one side did in one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Speed {
    pub(super) gb_per_second: f64,
    pub(super) cpu_seconds_per_gb: f64,
}

impl Speed {
    pub(super) fn of(bytes: u64, seconds: f64, cpu: Duration) -> Speed {
        let gigabytes = bytes as f64 / 1e9;
        Speed {
            gb_per_second: rounded(gigabytes / seconds),
            cpu_seconds_per_gb: rounded(cpu.as_secs_f64() / gigabytes),
        }
    }
}

pub(super) fn summary(plan: &Plan, rounds: &[Round]) -> Case {
    let payload_bytes = plan.payload_bytes();
    let gib = payload_bytes as f64 / f64::from(1 << 30);
    let worst = rounds.iter().max_by_key(|round| round.gets as i64 - round.runs as i64);
    let (gets, contiguous_runs) = worst.map_or((0, 0), |round| (round.gets, round.runs));
    let put = way(plan.put_requests, rounds.iter().map(|round| round.put).collect());
    let get = way(plan.get_requests, rounds.iter().map(|round| round.get).collect());
    let puts_per_gib = rounded(rounds.iter().map(|round| round.puts as f64 / gib).fold(0.0, f64::max));
    Case {
        record_bytes: plan.shape.block_bytes(),
        payload_bytes,
        packs: plan.packs,
        pack_records: plan.pack_records,
        pack_bytes: plan.pack_bytes,
        within_required: put.ratio >= REQUIRED.put_ratio
            && get.ratio >= REQUIRED.get_ratio
            && puts_per_gib <= REQUIRED.puts_per_gib
            && gets <= contiguous_runs + REQUIRED.gets_beyond_runs,
        put,
        puts_per_gib,
        get,
        gets,
        contiguous_runs,
        hedges: rounds.iter().map(|round| round.hedges).sum(),
    }
}

fn way(requests_at_once: usize, rounds: Vec<[Speed; 2]>) -> Way {
    let ratios = rounds.iter().map(|[kvd, plain]| rounded(kvd.gb_per_second / plain.gb_per_second));
    let ratios: Vec<f64> = ratios.collect();
    let side = |which: usize| Speed {
        gb_per_second: median(rounds.iter().map(|round| round[which].gb_per_second)),
        cpu_seconds_per_gb: median(rounds.iter().map(|round| round[which].cpu_seconds_per_gb)),
    };
    Way { requests_at_once, kvd: side(0), plain: side(1), ratio: median(ratios.iter().copied()), ratios }
}

pub(super) fn not_within(report: &Report) -> Failure {
    let outside = report.cases.iter().filter(|case| !case.within_required);
    let outside: Vec<_> = outside.map(|case| ByteSize(case.record_bytes as u64).to_string()).collect();
    let Required { put_ratio, get_ratio, puts_per_gib, gets_beyond_runs } = REQUIRED;
    failed(format!(
        "not as required: records of {}; of the plain client's speed {put_ratio} to the store and {get_ratio} back, \
         at most {puts_per_gib} PUTs for each GiB, and GETs for at most {gets_beyond_runs} more than there are contiguous runs",
        outside.join(", ")
    ))
    .remedy("whatever else uses cores, network or store counts here too: repeat it on quiet machines, with more --rounds")
}

pub(super) fn text(report: &Report) -> String {
    let rows = report.cases.iter().flat_map(|case| {
        let put = format!("{:.1} PUTs/GiB", case.puts_per_gib);
        let get = format!("{} GETs, {} runs", case.gets, case.contiguous_runs);
        [("put", &case.put, put), ("get", &case.get, get)].map(|(what, way, requests)| {
            vec![
                what.to_owned(),
                format!("{} KiB", case.record_bytes >> 10),
                way.requests_at_once.to_string(),
                format!("{:.2}", way.kvd.gb_per_second),
                format!("{:.2}", way.plain.gb_per_second),
                format!("{:.3}", way.ratio),
                format!("{:.2}", way.kvd.cpu_seconds_per_gb),
                format!("{:.2}", way.plain.cpu_seconds_per_gb),
                requests,
            ]
        })
    });
    let head = ["way", "record", "at once", "GB/s", "plain GB/s", "ratio", "CPU s/GB", "plain CPU s/GB", "requests"];
    format!(
        "{}\n\nrequired ratios {} and {}; medians of {} rounds; {} cores, of which {} threads of kvd and {} of the plain \
         client for requests; load average {:.2}\n",
        table(&head, rows),
        report.required.put_ratio,
        report.required.get_ratio,
        report.rounds,
        report.cores,
        report.request_threads,
        report.plain_threads,
        report.load_average
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_rounds() {
        let speed = |gb_per_second| Speed { gb_per_second, cpu_seconds_per_gb: 1.0 };
        let way = way(2, vec![[speed(1.0), speed(2.0)], [speed(3.0), speed(3.0)], [speed(8.0), speed(4.0)]]);
        assert_eq!((way.kvd.gb_per_second, way.plain.gb_per_second, way.ratio), (3.0, 3.0, 1.0));
    }
}
