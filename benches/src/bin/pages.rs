//! What huge pages under an arena segment cost and save: bringing a segment in, mapping it once more as each engine does,
//! pinning it, and reading it.
//!
//! Each round makes a fresh memfd of a segment's size for either kind of pages, and who goes first changes. Told are medians of
//! five rounds. `cargo run -p kvd-benches --bin pages [-- --json]`; docs/decisions/0008-huge-pages.md.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use kvd_nixl::io::{Io, UringIo, UringOptions};
use kvd_nixl::sys::{Mapping, Memory, memfd_sealed};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

const SEGMENT_BYTES: usize = kvd_tiers::SEGMENT_BYTES as usize;
const BLOCK_BYTES: usize = 64 << 10;
const ROUNDS: usize = 5;

#[derive(Clone, Copy, PartialEq)]
enum Pages {
    Small,
    Huge,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    rounds: usize,
    segment_bytes: usize,
    block_bytes: usize,
    kernel: Option<String>,
    /// Where it is not `never`, `deny` or `advise`, the small pages may be huge as well.
    shmem_enabled: Option<String>,
    small: Side,
    huge: Side,
}

/// Medians of one kind of pages.
#[derive(Serialize)]
struct Side {
    bring_in_ms: f64,
    map_again_ms: f64,
    /// `None`: there is no io_uring here, or it refused.
    pin_ms: Option<f64>,
    read_ms: f64,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Run {
    /// Populate, and collapse where pages are to be huge.
    bring_in_ms: f64,
    /// Why the kernel did not make them huge, where it was asked to: the rest of the run is of small ones.
    refused: Option<String>,
    /// Populate another mapping of the same file.
    map_again_ms: f64,
    pin_ms: Option<f64>,
    /// Every block once, in random order.
    read_ms: f64,
}

fn millis(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

fn measure(pages: Pages, ring: Option<&mut UringIo>, order: &[usize]) -> Result<Run> {
    let file = memfd_sealed("kvd-bench-pages", SEGMENT_BYTES as u64)?;
    let segment = Mapping::new(file.as_fd(), 0, SEGMENT_BYTES)?;
    let started = Instant::now();
    segment.populate()?;
    let collapsed = if pages == Pages::Huge { segment.collapse() } else { Ok(()) };
    let bring_in_ms = millis(started);

    let again = Mapping::new(file.as_fd(), 0, SEGMENT_BYTES)?;
    let started = Instant::now();
    again.populate()?;
    let map_again_ms = millis(started);

    let again: Arc<dyn Memory> = Arc::new(again);
    let pin_ms = ring.and_then(|ring| {
        let started = Instant::now();
        let pinned = ring.register_memory(&again);
        let took = millis(started);
        ring.unregister_memory(&again);
        pinned.then_some(took)
    });

    let mut block = vec![0; BLOCK_BYTES];
    let started = Instant::now();
    for index in order {
        again.read(index * BLOCK_BYTES, &mut block)?;
        std::hint::black_box(&mut block);
    }
    let read_ms = millis(started);
    let refused = collapsed.err().map(|error| error.to_string());
    Ok(Run { bring_in_ms, refused, map_again_ms, pin_ms, read_ms })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn side(runs: Vec<Run>) -> Side {
    let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    Side {
        bring_in_ms: of(|run| run.bring_in_ms),
        map_again_ms: of(|run| run.map_again_ms),
        pin_ms: runs.iter().map(|run| run.pin_ms).collect::<Option<Vec<f64>>>().map(median),
        read_ms: of(|run| run.read_ms),
        runs,
    }
}

/// The blocks of a segment, shuffled.
fn shuffled() -> Vec<usize> {
    let mut order: Vec<usize> = (0..SEGMENT_BYTES / BLOCK_BYTES).collect();
    let mut random = SmallRng::seed_from_u64(1);
    for place in (1..order.len()).rev() {
        order.swap(place, random.random_range(0..=place));
    }
    order
}

fn show(report: &Report) {
    let told = |found: &Option<String>| found.clone().unwrap_or_else(|| "unknown".to_owned());
    println!("{} MiB, medians of {} rounds", report.segment_bytes >> 20, report.rounds);
    println!("kernel {}, shmem_enabled = {}", told(&report.kernel), told(&report.shmem_enabled));
    println!();
    println!("| | small pages | huge pages |");
    println!("|---|---|---|");
    let row = |name: &str, figure: fn(&Side) -> Option<f64>| {
        let cell = |side| figure(side).map_or_else(|| "refused".to_owned(), |millis| format!("{millis:.2} ms"));
        println!("| {name} | {} | {} |", cell(&report.small), cell(&report.huge));
    };
    row("populate, and collapse", |side| Some(side.bring_in_ms));
    row("populate another mapping of the file (each engine does)", |side| Some(side.map_again_ms));
    row("pin it (io_uring's registered buffers)", |side| side.pin_ms);
    row("read it once, blocks of 64 KiB in random order", |side| Some(side.read_ms));
    let refused: Vec<&String> = report.huge.runs.iter().filter_map(|run| run.refused.as_ref()).collect();
    if let Some(error) = refused.first() {
        println!();
        println!("{} of {} times the kernel made no huge pages: {error}", refused.len(), report.rounds);
    }
}

fn main() -> Result<()> {
    let json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(other) => bail!("{other} is not known here; only --json is"),
    };
    let mut ring = match UringIo::new(UringOptions { depth: 8, memories: 4 }) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("nothing is pinned: {error}");
            None
        }
    };
    let order = shuffled();
    let (mut small, mut huge) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let turns = if round % 2 == 0 { [Pages::Small, Pages::Huge] } else { [Pages::Huge, Pages::Small] };
        for pages in turns {
            let run = measure(pages, ring.as_mut(), &order)?;
            match pages {
                Pages::Small => small.push(run),
                Pages::Huge => huge.push(run),
            }
        }
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned());
    // Like `always within_size advise [never] deny force`.
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").ok();
    let report = Report {
        bench: "pages",
        rounds: ROUNDS,
        segment_bytes: SEGMENT_BYTES,
        block_bytes: BLOCK_BYTES,
        kernel,
        shmem_enabled: enabled.and_then(|text| text.split(['[', ']']).nth(1).map(str::to_owned)),
        small: side(small),
        huge: side(huge),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show(&report);
    }
    Ok(())
}
