//! `kvd replay`: a trace of real requests, played by one or more engine processes, every loaded byte checked.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::{Exit, Failure, Outcome};
use super::output::Output;
use crate::config::{default_socket, rough};
use crate::machine::SystemMachine;

pub(super) mod payload;
pub(super) mod player;
pub(super) mod tally;
pub(super) mod trace;

use player::{Player, PlayerOptions};
use tally::{Report, Tally};
use trace::Trace;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd replay                                                     the built-in trace against the default socket
  kvd replay --trace conversation.jsonl --socket /run/kvd/kvd.sock --block-bytes 65536 --json
  kvd replay --engines 4 --limit-requests 2000                   four engine processes share the requests
  kvd replay --prefill-tokens-per-second 8000                    charge every miss; loads that would lose are not taken
  kvd replay --prefill-tokens-per-second 200000 --compute --prefetch   what prefetching hides while the engine computes";

/// `kvd replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// Trace in Mooncake's format, one JSON object per line; without it, the built-in conversation trace.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// The engine socket of the daemon.
    #[arg(long, env = "KVD_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Bytes of a block's payload, a multiple of 4096.
    #[arg(long, default_value_t = 65536, value_name = "N")]
    pub block_bytes: u32,
    /// Engine processes that share the requests.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub engines: u8,
    /// Play no more requests than this.
    #[arg(long, value_name = "N")]
    pub limit_requests: Option<usize>,
    /// How fast the simulated engine computes: charges every missed token, and tells the daemon's load-or-recompute gate.
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub prefill_tokens_per_second: f64,
    /// Charge misses, but keep the daemon from weighing a load against recomputing.
    #[arg(long)]
    pub no_gate: bool,
    /// Wait as long as the engine would compute the missed tokens, instead of only charging them: what is done ahead has that
    /// time.
    #[arg(long, requires = "prefill_tokens_per_second")]
    pub compute: bool,
    /// Announce each request's blocks one request ahead.
    #[arg(long)]
    pub prefetch: bool,
    /// Show a progress bar even where standard error is no terminal.
    #[arg(long)]
    pub progress: bool,
    /// Play only every so-many-th request: `I/N`. What the processes of `--engines` are started with.
    #[arg(long, hide = true, value_parser = share)]
    pub share: Option<(u8, u8)>,
}

fn share(text: &str) -> Result<(u8, u8), String> {
    let parsed = text.split_once('/').and_then(|(at, of)| Some((at.parse().ok()?, of.parse().ok()?)));
    parsed.filter(|(at, of): &(u8, u8)| at < of).ok_or_else(|| "expected I/N with I < N".to_owned())
}

/// Plays the trace and reports.
///
/// # Errors
/// The trace cannot be read, the daemon is not there, or an engine process failed.
pub fn run(args: &ReplayArgs, output: Output) -> Outcome {
    if args.block_bytes == 0 || !args.block_bytes.is_multiple_of(4096) {
        let failure = Failure::new(Exit::Usage, format!("--block-bytes {} is no multiple of 4096", args.block_bytes));
        return Err(failure.remedy("take 65536 for a quick run, or the block size of your engine"));
    }
    let trace = Trace::open(args.trace.as_deref(), args.limit_requests)?;
    if args.engines > 1 {
        return run_engines(args, output);
    }
    let (at, of) = args.share.unwrap_or((0, 1));
    let options = PlayerOptions {
        socket: args.socket.clone().unwrap_or_else(|| default_socket(&SystemMachine::default())),
        block_bytes: args.block_bytes,
        number: at,
        prefill_tokens_per_second: args.prefill_tokens_per_second,
        gate: !args.no_gate,
        prefetch: args.prefetch,
        compute: args.compute,
    };
    let mut player = Player::connect(&options)?;
    let requests: Vec<_> = trace.requests.iter().skip(at.into()).step_by(of.into()).collect();
    let bar = if args.progress {
        forced_bar(requests.len() as u64)
    } else {
        output.progress(requests.len() as u64, "requests")
    };
    let mut tally = Tally::default();
    let started = Instant::now();
    for (index, request) in requests.iter().enumerate() {
        player.play(request, requests.get(index + 1).copied(), &mut tally);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut report = tally.report(started.elapsed(), args.prefill_tokens_per_second);
    if args.share.is_some() {
        report.match_us_all = Some(tally.match_samples());
    }
    conclude(&report, output)
}

/// One process per engine, as on a real node; their reports are added up.
fn run_engines(args: &ReplayArgs, output: Output) -> Outcome {
    let program = std::env::current_exe()?;
    let started = Instant::now();
    let mut children = Vec::new();
    for number in 0..args.engines {
        let mut command = Command::new(&program);
        command.args(["replay", "--json", "--share", &format!("{number}/{}", args.engines)]);
        command.args(["--block-bytes", &args.block_bytes.to_string()]);
        command.args(["--prefill-tokens-per-second", &args.prefill_tokens_per_second.to_string()]);
        if let Some(trace) = &args.trace {
            command.arg("--trace").arg(trace);
        }
        if let Some(socket) = &args.socket {
            command.arg("--socket").arg(socket);
        }
        if let Some(limit) = args.limit_requests {
            command.args(["--limit-requests", &limit.to_string()]);
        }
        for (given, flag) in [(args.no_gate, "--no-gate"), (args.prefetch, "--prefetch"), (args.compute, "--compute")] {
            command.args(given.then_some(flag));
        }
        children.push(command.stdout(Stdio::piped()).spawn()?);
    }
    let mut total = Report::default();
    for child in children {
        let ended = child.wait_with_output()?;
        let part: Report = serde_json::from_slice(&ended.stdout).map_err(|error| {
            Failure::new(Exit::Failure, format!("an engine process ended with {} and no report: {error}", ended.status))
        })?;
        total.add(part);
    }
    total.finish(started.elapsed());
    conclude(&total, output)
}

/// A bar that shows up also where standard error is a pipe: `--progress` asked for it.
pub(super) fn forced_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(2));
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} eta {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message("requests")
}

fn conclude(report: &Report, output: Output) -> Outcome {
    output.show(report, show)?;
    Ok(if report.wrong_blocks == 0 { Exit::Ok } else { Exit::Failure })
}

fn show(report: &Report) -> String {
    let by_tier = &report.hit_by_tier;
    let misses: Vec<_> = report.misses.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    super::output::pairs(&[
        ("requests", report.requests.to_string()),
        ("blocks hit", format!("{} of {} ({:.1} %)", report.blocks_hit, report.blocks_asked, report.hit_rate * 100.0)),
        ("by tier", format!("dram {}, nvme {}, object {}", by_tier.dram, by_tier.nvme, by_tier.object)),
        ("misses", if misses.is_empty() { "none".into() } else { misses.join(", ") }),
        ("loaded", format!("{} at {:.2} GB/s", rough(report.bytes_loaded), report.load_gbps)),
        ("stored", format!("{} at {:.2} GB/s", rough(report.bytes_stored), report.store_gbps)),
        ("match", format!("p50 {} us, p99 {} us", report.match_us.p50, report.match_us.p99)),
        ("epochs seen", report.epochs_seen.to_string()),
        ("time", format!("{:.1} s, prefill charged {:.1} s", report.total_s, report.charged_prefill_s)),
        ("wrong blocks", report.wrong_blocks.to_string()),
    ])
}
