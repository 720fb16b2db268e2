//! How fast a copy with checksums is, next to the raw non-temporal copy: the limit of the last hop.
//!
//! Engine memory (private) to a DRAM tier segment (shared), 1 GiB each, so that every byte comes from and goes to memory. Each round
//! runs all variants in turn; a ratio is the median over rounds of variant / raw copy of the same round.
//!
//! `cargo run -p kvd-benches --bin checksum -- [ROUNDS]` prints one JSON object.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::sys::copy::{Axis, StridedRun, Units, checksum_units, copy, copy_checksum, gather_checksum};
use kvd_nixl::sys::{Mapping, Memory, MemoryExtent, Region, memfd_sealed};
use serde_json::json;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// Four times the last-level cache of the machine that the results folder knows.
const SIDE_BYTES: usize = 1 << 30;
/// What is copied with one call.
const RECORD_BYTES: usize = 1 << 20;

#[derive(Clone, Copy)]
enum Work {
    Copy,
    CopyChecksum(ChecksumAlgorithm, usize),
    ChecksumOnly(ChecksumAlgorithm, usize),
    /// Fragments of this many bytes, as an engine has them that keeps heads inside tokens.
    Gather(usize),
}

impl Work {
    fn name(self) -> String {
        match self {
            Self::Copy => "raw_copy".into(),
            Self::CopyChecksum(algorithm, unit) => format!("copy_{algorithm:?}_{}k", unit >> 10).to_lowercase(),
            Self::ChecksumOnly(algorithm, unit) => format!("verify_{algorithm:?}_{}k", unit >> 10).to_lowercase(),
            Self::Gather(fragment) => format!("gather_{fragment}b_xxh3_64k"),
        }
    }

    fn run(self, source: &MemoryExtent, target: &MemoryExtent, sums: &mut [u64]) -> Result<()> {
        let units = |algorithm, unit_bytes| Units { unit_bytes, algorithm, seed: 7 };
        match self {
            Self::Copy => copy(source, target)?,
            Self::CopyChecksum(algorithm, unit) => {
                copy_checksum(source, target, &units(algorithm, unit), &mut sums[..RECORD_BYTES / unit])?;
            }
            Self::ChecksumOnly(algorithm, unit) => {
                checksum_units(source, &units(algorithm, unit), &mut sums[..RECORD_BYTES / unit])?;
            }
            Self::Gather(fragment_bytes) => {
                let heads = Axis { count: 8, stride: fragment_bytes };
                let tokens = Axis { count: RECORD_BYTES / fragment_bytes / 8, stride: 8 * fragment_bytes };
                let run = StridedRun { offset: 0, fragment_bytes, axes: [Axis::ONE, heads, tokens] };
                let units = units(ChecksumAlgorithm::Xxh3, 64 << 10);
                gather_checksum(source, &[run], target, &units, &mut sums[..RECORD_BYTES >> 16])?;
            }
        }
        Ok(())
    }
}

/// GB/s over both sides' full length, shared among threads.
fn measure(work: Work, threads: usize, source: &MemoryExtent, target: &MemoryExtent) -> Result<f64> {
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let share = SIDE_BYTES / threads;
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || -> Result<()> {
                    let mut sums = vec![0; RECORD_BYTES >> 12];
                    for offset in (thread * share..(thread + 1) * share).step_by(RECORD_BYTES) {
                        let (from, to) = (source.part(offset, RECORD_BYTES)?, target.part(offset, RECORD_BYTES)?);
                        work.run(&from, &to, &mut sums)?;
                    }
                    std::hint::black_box(sums);
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a bench thread does not panic"))
    })?;
    Ok(SIDE_BYTES as f64 / 1e9 / started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(7), |text| text.parse()).context("ROUNDS is a number")?;
    let engine = Arc::new(Region::new(SIDE_BYTES)?);
    let noise: Vec<u8> =
        (0..RECORD_BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    for offset in (0..SIDE_BYTES).step_by(RECORD_BYTES) {
        engine.write(offset, &noise)?;
    }
    let segment = Mapping::new(memfd_sealed("kvd-bench", SIDE_BYTES as u64)?.as_fd(), 0, SIDE_BYTES)?;
    segment.populate()?;
    let (source, target) = (MemoryExtent::whole(engine), MemoryExtent::whole(Arc::new(segment)));

    let mut works = vec![Work::Copy];
    for unit in [64 << 10, 4 << 10] {
        for algorithm in [ChecksumAlgorithm::Xxh3, ChecksumAlgorithm::Crc64Nvme] {
            works.extend([Work::CopyChecksum(algorithm, unit), Work::ChecksumOnly(algorithm, unit)]);
        }
    }
    works.extend([256, 1024, 4096].map(Work::Gather));
    let mut results = Vec::new();
    for threads in [1, 2] {
        let mut figures = vec![Vec::new(); works.len()];
        for _ in 0..rounds {
            for (work, figures) in works.iter().zip(&mut figures) {
                figures.push(measure(*work, threads, &source, &target)?);
            }
        }
        for (work, figure) in works.iter().zip(&figures) {
            let ratios = figure.iter().zip(&figures[0]).map(|(one, raw)| one / raw).collect();
            let (gbps, ratio) = (median(figure.clone()), median(ratios));
            results.push(json!({
                "threads": threads, "work": work.name(), "gbps": (gbps * 100.0).round() / 100.0,
                "of_raw_copy": (ratio * 1000.0).round() / 1000.0,
            }));
        }
    }
    println!("{}", json!({ "bench": "checksum", "rounds": rounds, "side_bytes": SIDE_BYTES, "results": results }));
    Ok(())
}
