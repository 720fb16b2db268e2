//! `kvd bench join`: how soon an engine that starts beside a full arena moves its first block, and has all of it pinned.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use kvd_nixl::device::{Device, LaneOptions};
use serde::{Deserialize, Serialize};

use super::cpu::load_average;
use super::hbm::field::{Field, Fragments};
use super::node::{Node, NodeOptions, PIECE_BYTES};
use super::stats::rounded;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Output, table};

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench join                               GPU 0, an arena of 60 GiB: needs as much shared memory
  kvd bench join --gib 8 --json
  kvd bench join --twin --gib 1                on CPUs: shows that it works, and measures nothing of a GPU";

/// Seconds that an engine may take.
const FIRST_BLOCK_MAX: f64 = 2.0;
const ALL_PINNED_MAX: f64 = 10.0;
/// How much of the blocks lies on the device at a time while the arena is filled.
const FIELD_BYTES: u64 = 512 << 20;

/// `kvd bench join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// GPU to use, as the driver counts them.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    gpu: u32,
    /// Use the twin of a GPU, which works on CPUs: tries the bench where there is no GPU.
    #[arg(long, conflicts_with = "gpu")]
    twin: bool,
    /// The arena, which is full when the engines start.
    #[arg(long, default_value_t = 60, value_name = "GIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
    gib: u64,
    /// Be an engine with this number.
    #[arg(long, hide = true, requires = "socket")]
    engine: Option<u8>,
    /// Of the bench's daemon.
    #[arg(long, hide = true)]
    socket: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    device: String,
    arena_bytes: u64,
    required: Required,
    /// `None`: a twin measures nothing.
    within_required: Option<bool>,
    /// One engine by itself, then two at once.
    alone: Start,
    together: [Start; 2],
    load_average: f64,
}

#[derive(Debug, Serialize)]
struct Required {
    first_block_seconds_max: f64,
    all_pinned_seconds_max: f64,
}

/// One engine, in seconds since it began to join.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Start {
    joined: f64,
    first_block: f64,
    all_pinned: f64,
    segments: usize,
}

/// Measures, or is one of the engines.
pub(super) fn run(args: &JoinArgs, output: Output) -> Outcome {
    let device = || if args.twin { Ok(Device::twin()) } else { Device::cuda(args.gpu).map_err(failed) };
    if let (Some(number), Some(socket)) = (args.engine, &args.socket) {
        let started = start(socket, number, &device()?, rounds(args.gib << 30))?;
        serde_json::to_writer(std::io::stdout(), &started).map_err(failed)?;
        return Ok(Exit::Ok);
    }
    let arena_bytes = args.gib << 30;
    let dram_bytes = arena_bytes + 4 * PIECE_BYTES;
    let set = vec![format!("lease.bytes_max={dram_bytes}")];
    let node =
        Node::start(&NodeOptions { label: "node", dram_bytes, nvme_bytes: None, base: std::env::temp_dir(), set })?;
    fill(&node, &device()?, arena_bytes, output)?;
    let alone = Engine::launch(args, &node, 2)?.wait()?;
    let (one, other) = (Engine::launch(args, &node, 3)?, Engine::launch(args, &node, 4)?);
    let together = [one.wait()?, other.wait()?];
    let required = Required { first_block_seconds_max: FIRST_BLOCK_MAX, all_pinned_seconds_max: ALL_PINNED_MAX };
    let within = |start: &Start| start.first_block <= FIRST_BLOCK_MAX && start.all_pinned <= ALL_PINNED_MAX;
    let all_within = within(&alone) && together.iter().all(within);
    let report = Report {
        device: if args.twin { "twin".into() } else { format!("GPU {}", args.gpu) },
        arena_bytes,
        required,
        within_required: (!args.twin).then_some(all_within),
        alone,
        together,
        load_average: load_average(),
    };
    output.show(&report, text)?;
    if report.within_required == Some(false) {
        let remedy = "whatever else uses the GPU or memory counts here too: repeat it on a quiet machine";
        return Err(Failure::new(Exit::Failure, "an engine took longer than it may").remedy(remedy));
    }
    Ok(Exit::Ok)
}

/// Stores until no further round has room.
fn fill(node: &Node, device: &Device, arena_bytes: u64, output: Output) -> Result<(), Failure> {
    let field = Field::new(&node.socket(), 1, device, BLOCKS, FIELD_BYTES, &LaneOptions::default())?;
    let rounds = rounds(arena_bytes);
    let bar = output.progress(rounds.into(), "filling");
    for _ in 0..rounds {
        field.store(2)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// How often what lies on the device goes into the arena, none of which falls: of 32 blocks' space metadata take one's.
fn rounds(arena_bytes: u64) -> u32 {
    u32::try_from(arena_bytes / 32 * 31 / FIELD_BYTES).unwrap_or(u32::MAX).max(1)
}

/// Blocks of one piece.
const BLOCKS: Fragments = Fragments::BLOCK_FIRST;

/// A process, gone with the value.
struct Engine(Child);

impl Drop for Engine {
    fn drop(&mut self) {
        // It may be gone already; what counts is that it is.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Engine {
    fn launch(args: &JoinArgs, node: &Node, number: u8) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "join", "--engine", &number.to_string(), "--gib", &args.gib.to_string()]);
        command.arg("--socket").arg(node.socket());
        if args.twin {
            command.arg("--twin");
        } else {
            command.args(["--gpu", &args.gpu.to_string()]);
        }
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    fn wait(mut self) -> Result<Start, Failure> {
        let mut told = String::new();
        if let Some(mut output) = self.0.stdout.take() {
            output.read_to_string(&mut told)?;
        }
        let ended = self.0.wait()?;
        serde_json::from_str(&told).map_err(|_| failed(format!("an engine of the bench ended with {ended}")))
    }
}

/// One engine: its device is open before it joins, as an engine's is.
fn start(socket: &Path, number: u8, device: &Device, rounds: u32) -> Result<Start, Failure> {
    let room = device.allocate(1 << 20).map_err(failed)?;
    let started = Instant::now();
    let field = Field::new(socket, number, device, BLOCKS, 64 << 20, &LaneOptions::default())?;
    field.engine().pin_ahead(device)?;
    let joined = started.elapsed();
    field.load_first_of(1, rounds)?;
    let first_block = started.elapsed();
    let pinned = loop {
        let pinned = field.engine().pinned();
        if pinned.of > 0 && pinned.segments == pinned.of {
            break pinned;
        }
        if pinned.failed || started.elapsed() > Duration::from_secs(120) {
            return Err(failed(format!("the device pinned {} of {} segments", pinned.segments, pinned.of)));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let all_pinned = started.elapsed();
    drop(room);
    let seconds = |time: Duration| rounded(time.as_secs_f64());
    Ok(Start {
        joined: seconds(joined),
        first_block: seconds(first_block),
        all_pinned: seconds(all_pinned),
        segments: pinned.segments,
    })
}

fn text(report: &Report) -> String {
    let row = |name: &str, start: &Start| {
        let seconds = |time: f64| format!("{time:.3} s");
        vec![name.to_owned(), seconds(start.joined), seconds(start.first_block), seconds(start.all_pinned)]
    };
    let [one, other] = &report.together;
    let rows = [row("alone", &report.alone), row("one of two", one), row("the other", other)];
    let gib = report.arena_bytes >> 30;
    let starts = table(&["engine", "joined", "first block", "all pinned"], rows);
    format!("{starts}\n\n{gib} GiB, {} segments, on {}", report.alone.segments, report.device)
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}
