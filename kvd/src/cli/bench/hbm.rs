//! `kvd bench hbm`: blocks between a GPU's memory and the DRAM tier, in this process as in an engine's, beside the bus.

use bytesize::ByteSize;
use clap::Args;
use kvd_nixl::device::{Device, LaneOptions, Way};
use serde::Serialize;

use super::cpu::load_average;
use super::node::{Node, NodeOptions, PIECE_BYTES, purge};
use super::stats::{median, rounded};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Output, table};
use bus::Bus;
use busy::{Busy, Moves};
use field::{ByLayers, Field, Fragments};

mod bus;
mod busy;
pub(super) mod field;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench hbm                                GPU 0: needs 8 GiB of its memory and 20 GiB of shared memory for a minute
  kvd bench hbm --fragment-bytes 8KiB --json
  kvd bench hbm --twin --mib 64 --rounds 1     on CPUs: shows that it works, and measures nothing";

/// `kvd bench hbm`.
#[derive(Debug, Args)]
pub struct HbmArgs {
    /// GPU to use, as the driver counts them.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    gpu: u32,
    /// Use the twin of a GPU, which works on CPUs: tries the bench where there is no GPU.
    #[arg(long, conflicts_with = "gpu")]
    twin: bool,
    /// Blocks on the GPU, and as much again of the DRAM tier; twice that for both ways at once. By default what 32 thousand tokens of a
    /// model with eight billion parameters take; of less the beginning and the end of a request are a larger part.
    #[arg(long, default_value_t = 4096, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=65536))]
    mib: u64,
    /// Timed rounds of each case; medians are told.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Longest runs of a block's bytes that lie side by side: 8KiB, 16KiB, 64KiB, 256KiB, or 2MiB for all of it.
    #[arg(long, default_values = ["8KiB", "16KiB", "64KiB", "256KiB", "2MiB"], value_delimiter = ',', value_name = "SIZE")]
    fragment_bytes: Vec<ByteSize>,
    /// The same while the engine makes matrix products, large and small ones; needs libcublas.so.
    #[arg(long, conflicts_with = "twin")]
    busy: bool,
    /// Let gathers and scatters wait behind the engine's kernels instead of going before those that have not begun.
    #[arg(long)]
    patient: bool,
    /// Chains that are stored, or loaded, at a time: requests of an engine overlap. Two begin and end together.
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=16))]
    requests: u8,
    /// Multiprocessors that gather and scatter.
    #[arg(long, default_value_t = LaneOptions::default().multiprocessors, value_name = "COUNT")]
    multiprocessors: u32,
    /// Chunks under way at a time.
    #[arg(long, default_value_t = LaneOptions::default().chunks as u8, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(2..=64))]
    chunks: u8,
    /// Staging memory of one chunk.
    #[arg(long, default_value_t = ByteSize::b(LaneOptions::default().chunk_bytes as u64), value_name = "SIZE")]
    chunk_bytes: ByteSize,
}

#[derive(Debug, Serialize)]
struct Report {
    device: String,
    working_set_bytes: u64,
    rounds: u32,
    requests: u8,
    multiprocessors: u32,
    chunks: u8,
    chunk_bytes: u64,
    required: Required,
    /// `None`: a twin measures nothing.
    within_required: Option<bool>,
    /// One contiguous copy between pinned memory and the GPU's.
    limit: Limit,
    cases: Vec<Case>,
    load_average: f64,
}

#[derive(Debug, Serialize)]
struct Required {
    block_first_ratio: f64,
    scattered_ratio: f64,
    both_ratio: f64,
    /// To the rate of the idle engine, what the engine may lose, and by what its slowest steps may grow.
    busy_ratio: f64,
    engine_loss_max: f64,
    step_p99_growth_max: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Limit {
    to_host_gb_per_second: f64,
    to_device_gb_per_second: f64,
    /// Both ways at once, together.
    both_gb_per_second: f64,
}

/// One layout.
#[derive(Debug, Serialize)]
struct Case {
    fragment_bytes: u64,
    block_bytes: usize,
    store: Side,
    load: Side,
    both: Side,
    by_layers: ByLayers,
    /// A copy for each fragment, as simple connectors make them.
    copy_loop: Peer,
    /// One call of the driver's batch function.
    copy_batch: Option<Peer>,
    busy: Vec<Busy>,
}

#[derive(Debug, Serialize)]
struct Side {
    gb_per_second: f64,
    /// To the limit in the same round; the median.
    ratio: f64,
    ratios: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Peer {
    to_host_gb_per_second: f64,
    to_device_gb_per_second: f64,
}

/// Measures.
pub(super) fn run(args: &HbmArgs, output: Output) -> Outcome {
    let fragments = args.fragment_bytes.iter().map(|bytes| Fragments::of(bytes.0)).collect::<Result<Vec<_>, _>>()?;
    let device = if args.twin { Device::twin() } else { Device::cuda(args.gpu).map_err(failed)? };
    let bytes = args.mib << 20;
    // Two fields, and an eighth more for metadata and what does not fill a segment.
    let dram_bytes = (2 * bytes + bytes / 4).next_multiple_of(PIECE_BYTES) + 4 * PIECE_BYTES;
    let set = vec![format!("lease.bytes_max={dram_bytes}")];
    let node =
        Node::start(&NodeOptions { label: "node", dram_bytes, nvme_bytes: None, base: std::env::temp_dir(), set })?;
    let bus = Bus::new(&device)?;
    let bar = output.progress(fragments.len() as u64 * u64::from(args.rounds + 1), "moving");
    let mut limits = Vec::new();
    let mut cases = Vec::new();
    for fragments in fragments {
        cases.push(case(&node, &device, &bus, fragments, args, &mut limits, &|| bar.inc(1))?);
    }
    bar.finish_and_clear();
    let of = |pick: fn(&Limit) -> f64| rounded(median(limits.iter().map(pick)));
    let required = Required {
        block_first_ratio: 0.97,
        scattered_ratio: 0.93,
        both_ratio: 0.9,
        busy_ratio: 0.9,
        engine_loss_max: 0.03,
        step_p99_growth_max: 0.1,
    };
    let report = Report {
        device: if args.twin { "twin".into() } else { format!("GPU {}", args.gpu) },
        working_set_bytes: bytes,
        rounds: args.rounds,
        requests: args.requests,
        multiprocessors: args.multiprocessors,
        chunks: args.chunks,
        chunk_bytes: args.chunk_bytes.0,
        within_required: (!args.twin).then(|| cases.iter().all(|case| case.is_within(&required))),
        required,
        limit: Limit {
            to_host_gb_per_second: of(|limit| limit.to_host_gb_per_second),
            to_device_gb_per_second: of(|limit| limit.to_device_gb_per_second),
            both_gb_per_second: of(|limit| limit.both_gb_per_second),
        },
        cases,
        load_average: load_average(),
    };
    output.show(&report, text)?;
    if report.within_required == Some(false) { Err(not_within(&report)) } else { Ok(Exit::Ok) }
}

fn not_within(report: &Report) -> Failure {
    let outside = report.cases.iter().filter(|case| !case.is_within(&report.required));
    let outside: Vec<String> = outside.map(|case| ByteSize::b(case.fragment_bytes).to_string()).collect();
    let remedy = "whatever else uses the GPU, the bus or memory counts here too: repeat it on a quiet machine";
    Failure::new(Exit::Failure, format!("not as required: fragments of {}", outside.join(", "))).remedy(remedy)
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

fn case(
    node: &Node,
    device: &Device,
    bus: &Bus,
    fragments: Fragments,
    args: &HbmArgs,
    limits: &mut Vec<Limit>,
    step: &dyn Fn(),
) -> Result<Case, Failure> {
    let options = LaneOptions {
        multiprocessors: args.multiprocessors,
        urgent: !args.patient,
        chunk_bytes: args.chunk_bytes.0 as usize,
        chunks: args.chunks.into(),
        ..LaneOptions::default()
    };
    let (socket, requests) = (node.socket(), usize::from(args.requests));
    let field = |number| Field::new(&socket, number, device, fragments, args.mib << 20, &options);
    let (field, other) = (field(1)?, field(2)?);
    let gigabytes = field.bytes() as f64 / 1e9;
    let (mut stores, mut loads, mut boths) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        purge(&node.connection())?;
        let limit = bus.limit(device)?;
        let store = gigabytes / field.store(requests)?;
        let load = gigabytes / field.load(requests)?;
        let both = 2.0 * gigabytes / together(|| other.store(requests), || field.load(requests))?;
        if round == 0 {
            field.spoil()?;
            field.load(requests)?;
            field.check()?;
        } else {
            stores.push((store, limit.to_host_gb_per_second));
            loads.push((load, limit.to_device_gb_per_second));
            boths.push((both, limit.both_gb_per_second));
            limits.push(limit);
        }
        step();
    }
    let peer = |batched| -> Result<Peer, Failure> {
        let rate = |way| field.copies(device, way, batched);
        Ok(Peer {
            to_host_gb_per_second: rounded(rate(Way::ToHost)?),
            to_device_gb_per_second: rounded(rate(Way::ToDevice)?),
        })
    };
    let (store, load) = (side(&stores), side(&loads));
    let busy = if args.busy {
        let (storing, loading) = (|| field.store(requests), || field.load(requests));
        let (out, back) = (|| bus.copy(device, Way::ToHost), || bus.copy(device, Way::ToDevice));
        let limit = |pick: fn(&Limit) -> f64| median(limits.iter().map(pick));
        // Plain copies as well: what the bus itself costs an engine whose launches go over it.
        let all = [
            Moves { way: "store", gigabytes, idle: store.gb_per_second, once: &storing },
            Moves {
                way: "copy to host",
                gigabytes: Bus::gigabytes(),
                idle: limit(|limit| limit.to_host_gb_per_second),
                once: &out,
            },
            Moves { way: "load", gigabytes, idle: load.gb_per_second, once: &loading },
            Moves {
                way: "copy to device",
                gigabytes: Bus::gigabytes(),
                idle: limit(|limit| limit.to_device_gb_per_second),
                once: &back,
            },
        ];
        busy::beside(device, &all)?
    } else {
        Vec::new()
    };
    Ok(Case {
        fragment_bytes: fragments.bytes(),
        block_bytes: fragments.shape().block_bytes(),
        store,
        load,
        both: side(&boths),
        by_layers: field.by_layers(args.rounds)?,
        copy_loop: peer(false)?,
        // A driver that has no such function is no failure of ours.
        copy_batch: peer(true).ok(),
        busy,
    })
}

/// Seconds until both are done.
fn together(
    one: impl FnOnce() -> Result<f64, Failure> + Send,
    other: impl FnOnce() -> Result<f64, Failure>,
) -> Result<f64, Failure> {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other()?;
        Ok(one.join().map_err(|_| failed("a thread panicked"))??.max(other))
    })
}

fn side(rounds: &[(f64, f64)]) -> Side {
    let ratios: Vec<f64> = rounds.iter().map(|(ours, limit)| rounded(ours / limit)).collect();
    Side {
        gb_per_second: rounded(median(rounds.iter().map(|(ours, _)| *ours))),
        ratio: median(ratios.iter().copied()),
        ratios,
    }
}

impl Case {
    fn is_within(&self, required: &Required) -> bool {
        let block_first = self.fragment_bytes == self.block_bytes as u64;
        let one_way = if block_first { required.block_first_ratio } else { required.scattered_ratio };
        let idle = self.store.ratio >= one_way && self.load.ratio >= one_way && self.both.ratio >= required.both_ratio;
        let mut ours = self.busy.iter().filter(|busy| !busy.way.starts_with("copy"));
        idle && ours.all(|busy| {
            busy.ratio >= required.busy_ratio
                && busy.engine_loss <= required.engine_loss_max
                && busy.step_p99_growth <= required.step_p99_growth_max
        })
    }
}

fn text(report: &Report) -> String {
    let rows = report.cases.iter().flat_map(|case| {
        let fragment = ByteSize::b(case.fragment_bytes).to_string();
        let batch = case.copy_batch.as_ref();
        let sides = [
            (
                "store",
                &case.store,
                Some(case.copy_loop.to_host_gb_per_second),
                batch.map(|peer| peer.to_host_gb_per_second),
            ),
            (
                "load",
                &case.load,
                Some(case.copy_loop.to_device_gb_per_second),
                batch.map(|peer| peer.to_device_gb_per_second),
            ),
            ("both", &case.both, None, None),
        ];
        let told = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        sides.map(|(way, side, one_by_one, batch)| {
            let rate = format!("{:.1}", side.gb_per_second);
            vec![fragment.clone(), way.into(), rate, format!("{:.3}", side.ratio), told(one_by_one), told(batch)]
        })
    });
    let head = ["fragment", "way", "GB/s", "ratio", "copy loop", "copy batch"];
    let Limit { to_host_gb_per_second, to_device_gb_per_second, both_gb_per_second } = report.limit;
    let (layers, busy) = (layers_text(report), busy_text(report));
    format!(
        "{}\n\n{layers}{busy}\n\ncontiguous pinned copies: {to_host_gb_per_second:.1} GB/s to the host, {to_device_gb_per_second:.1} to the device, \
         {both_gb_per_second:.1} both ways; medians of {} rounds; load average {:.2}\n",
        table(&head, rows),
        report.rounds,
        report.load_average
    )
}

fn layers_text(report: &Report) -> String {
    let rows = report.cases.iter().map(|case| {
        let ByLayers { blocks, layers, at_once_ms, first_layer_ms, last_layer_ms } = &case.by_layers;
        let ms = |ms: &f64| format!("{ms:.2} ms");
        let fragment = ByteSize::b(case.fragment_bytes).to_string();
        vec![fragment, format!("{blocks} x {layers}"), ms(at_once_ms), ms(first_layer_ms), ms(last_layer_ms)]
    });
    table(&["fragment", "blocks x layers", "loaded at once", "first layer", "last layer"], rows)
}

fn busy_text(report: &Report) -> String {
    let rows = report.cases.iter().flat_map(|case| {
        let fragment = ByteSize::b(case.fragment_bytes).to_string();
        case.busy.iter().map(move |busy| {
            vec![
                fragment.clone(),
                busy.way.into(),
                busy.kernels.into(),
                format!("{:.1}", busy.gb_per_second),
                format!("{:.3}", busy.ratio),
                format!("{:.1} %", 100.0 * busy.engine_loss),
                format!("{:.2} ms", busy.step_p99_ms),
                format!("{:+.1} %", 100.0 * busy.step_p99_growth),
            ]
        })
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let head = ["fragment", "way", "rows", "GB/s", "to idle", "engine loses", "step p99", "p99 grows"];
    if rows.is_empty() { String::new() } else { format!("\n\n{}", table(&head, rows)) }
}
