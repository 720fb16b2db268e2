//! `kvd demo`: what kvd is for, in one command. Serves with the defaults from a folder of its own, replays the built-in
//! production trace as an engine, kills the daemon twice with SIGKILL - the second time its memory and its disk are lost as
//! well - restarts it, and shows what survived.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Failure, Outcome};
use super::output::{Output, table};
use super::replay::forced_bar;
use super::replay::player::{Player, PlayerOptions};
use super::replay::tally::{Report, Tally};
use super::replay::trace::Trace;
use crate::config::rough;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd demo
  kvd demo --block-bytes 4096 --limit-requests 2000

SIGINT (Ctrl-C) and SIGTERM end it at once, with 130; nothing of it is left behind.";

/// How long a daemon may take until it is ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// How it ends when it was interrupted: what shells say of SIGINT.
const INTERRUPTED: i32 = 130;

/// `kvd demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Bytes of a block's payload, a multiple of 4096.
    #[arg(long, default_value_t = 65536, value_name = "N")]
    block_bytes: u32,
    /// Play no more requests than this.
    #[arg(long, value_name = "N")]
    limit_requests: Option<usize>,
}

/// What `kvd demo --json` prints.
#[derive(Debug, Serialize)]
struct Shown {
    before_kill: Report,
    after_kill: Report,
    /// After the second kill, with which the arena and the NVMe file went: what is hit then comes from the object tier.
    after_loss: Report,
    restart_ms: u64,
    restart_after_loss_ms: u64,
    wrong_blocks: u64,
}

/// Of the requests, how many are played before the first kill and before the second.
const KILLS_AT: [f64; 2] = [0.4, 0.7];

/// A daemon of the demo's own; killed with the value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that was killed already answers with an error, and that is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What must be gone when the demo ends.
struct Props {
    daemon: Option<Daemon>,
    dram: TempDir,
    folder: TempDir,
}

/// Where the demo plays: the daemon and its folders, gone with the value or with SIGINT and SIGTERM.
struct Stage {
    folder: PathBuf,
    dram: PathBuf,
    /// Guards the only owner of processes and folders; no other lock is held above it. A signal takes the owner out and
    /// ends the process without ever giving the lock back, so nothing is made any more once it was cleared away.
    props: Arc<Mutex<Option<Props>>>,
}

impl Stage {
    /// Makes the folders.
    fn set() -> Result<Self, Failure> {
        let props = Arc::new(Mutex::new(None));
        clear_on_signals(Arc::clone(&props))?;
        let mut locked = lock(&props);
        let folder = tempfile::Builder::new().prefix("kvd-demo-").tempdir()?;
        let tmpfs = Path::new("/dev/shm");
        let home = if tmpfs.is_dir() { tmpfs } else { folder.path() };
        let dram = tempfile::Builder::new().prefix("kvd-demo-").tempdir_in(home)?;
        let paths = (folder.path().to_owned(), dram.path().to_owned());
        *locked = Some(Props { daemon: None, dram, folder });
        drop(locked);
        Ok(Self { folder: paths.0, dram: paths.1, props })
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("kvd.sock")
    }

    fn with_daemon<T>(&self, act: impl FnOnce(&mut Option<Daemon>) -> T) -> T {
        let mut props = lock(&self.props);
        let props = props.as_mut().expect("taken with this value, or by a signal that keeps the lock");
        act(&mut props.daemon)
    }

    /// Starts the daemon and waits until it serves.
    fn start_daemon(&self) -> Result<(), Failure> {
        let log = File::options().create(true).append(true).open(self.folder.join("kvd.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve");
        command.arg("--set").arg(format!("data_dir={}", self.folder.display()));
        command.arg("--set").arg(format!("socket={}", self.socket().display()));
        command.arg("--set").arg(format!("tiers.dram.path={}", self.dram.display()));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.with_daemon(|daemon| command.spawn().map(|child| *daemon = Some(Daemon(child))))?;
        let until = Instant::now() + READY_MAX;
        while UnixStream::connect(self.socket()).is_err() {
            if self.daemon_ended()? || Instant::now() > until {
                let said = std::fs::read_to_string(self.folder.join("kvd.log")).unwrap_or_default();
                return Err(Failure::new(Exit::Failure, format!("the daemon did not come up:\n{said}"))
                    .remedy("`kvd doctor` says what is wrong with this machine"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn daemon_ended(&self) -> io::Result<bool> {
        self.with_daemon(|daemon| match daemon {
            Some(daemon) => daemon.0.try_wait().map(|status| status.is_some()),
            None => Ok(true),
        })
    }

    /// SIGKILL.
    fn kill_daemon(&self) {
        self.with_daemon(|daemon| drop(daemon.take()));
    }

    /// What a node loses with its memory and its disk.
    fn lose_node(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.dram)? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        std::fs::remove_file(self.folder.join("nvme.kvd"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        clear(&mut lock(&self.props));
    }
}

fn lock(props: &Mutex<Option<Props>>) -> MutexGuard<'_, Option<Props>> {
    // What was left half done by a panic is a process or a folder that must go all the same.
    props.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clear(props: &mut Option<Props>) {
    let Some(Props { daemon, dram, folder }) = props.take() else { return };
    drop(daemon);
    for folder in [dram, folder] {
        let path = folder.path().to_owned();
        if let Err(error) = folder.close() {
            eprintln!("kvd: {} is left behind: {error}", path.display());
        }
    }
}

/// From now on SIGINT and SIGTERM clear the stage and end the process.
fn clear_on_signals(props: Arc<Mutex<Option<Props>>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _within = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let watch = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let mut props = lock(&props);
        clear(&mut props);
        eprintln!("\nkvd: interrupted; the demo's daemon and its folders are gone");
        std::process::exit(INTERRUPTED)
    };
    thread::Builder::new().name("kvd-signals".into()).spawn(watch)?;
    Ok(())
}

/// Runs the demo.
///
/// # Errors
/// The daemon does not come up on this machine.
pub fn run(args: &DemoArgs, output: Output) -> Outcome {
    let trace = Trace::open(None, args.limit_requests)?;
    let stage = Stage::set()?;
    stage.start_daemon()?;
    let (folder, dram) = (stage.folder.display(), stage.dram.display());
    eprintln!("kvd serves in {folder} and {dram}; replaying {} requests", trace.requests.len());
    let options = PlayerOptions {
        socket: stage.socket(),
        block_bytes: args.block_bytes,
        number: 0,
        prefill_tokens_per_second: 0.0,
        gate: false,
        prefetch: false,
        compute: false,
    };
    let mut player = Player::connect(&options)?;
    let kills = KILLS_AT.map(|share| (trace.requests.len() as f64 * share) as u64);
    let bar = forced_bar(trace.requests.len() as u64);
    let played = AtomicU64::new(0);
    let mut acts = [Tally::default(), Tally::default(), Tally::default()];
    let started = Instant::now();
    let mut ends = Vec::new();
    let mut epoch = player.epoch();
    let restarts = thread::scope(|scope| {
        // The kills come from the side, while the engine is in the middle of whatever it does then.
        let killer = scope.spawn(|| {
            kills
                .into_iter()
                .enumerate()
                .map(|(number, at)| {
                    // Relaxed: only a count, nothing is read under it.
                    while played.load(Ordering::Relaxed) < at {
                        thread::sleep(Duration::from_micros(500));
                    }
                    stage.kill_daemon();
                    if number > 0 {
                        stage.lose_node()?;
                    }
                    let again = Instant::now();
                    stage.start_daemon().map(|()| again.elapsed())
                })
                .collect::<Result<Vec<_>, Failure>>()
        });
        for (index, request) in trace.requests.iter().enumerate() {
            player.play(request, trace.requests.get(index + 1), &mut acts[ends.len()]);
            if player.epoch() != epoch && ends.len() < KILLS_AT.len() {
                epoch = player.epoch();
                ends.push(started.elapsed());
                let lost = if ends.len() > 1 { ", memory and disk lost" } else { "" };
                bar.suspend(|| {
                    eprintln!("SIGKILL after {index} requests{lost}; restarted, the engine has joined again")
                });
            }
            bar.inc(1);
            // Relaxed: see above.
            played.fetch_add(1, Ordering::Relaxed);
        }
        killer.join().expect("the killer does not panic")
    });
    bar.finish_and_clear();
    let restarts = restarts?;
    ends.resize(KILLS_AT.len(), started.elapsed());
    let [before, after, loss] = acts;
    let before_kill = before.report(ends[0], 0.0);
    let after_kill = after.report(ends[1] - ends[0], 0.0);
    let after_loss = loss.report(started.elapsed() - ends[1], 0.0);
    let wrong_blocks = before_kill.wrong_blocks + after_kill.wrong_blocks + after_loss.wrong_blocks;
    let millis = |at: usize| restarts.get(at).map_or(0, |took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    let (restart_ms, restart_after_loss_ms) = (millis(0), millis(1));
    let shown = Shown { before_kill, after_kill, after_loss, restart_ms, restart_after_loss_ms, wrong_blocks };
    output.show(&shown, show)?;
    Ok(if wrong_blocks == 0 { Exit::Ok } else { Exit::Failure })
}

fn show(shown: &Shown) -> String {
    let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 * 100.0 / of as f64 };
    let of_tier = |r: &Report, hits: u64| format!("{hits} ({:.1} %)", share(hits, r.blocks_asked));
    let row = |name: &str, value: &dyn Fn(&Report) -> String| {
        let acts = [&shown.before_kill, &shown.after_kill, &shown.after_loss];
        std::iter::once(name.to_owned()).chain(acts.map(value)).collect::<Vec<_>>()
    };
    let rows = [
        row("requests", &|r| r.requests.to_string()),
        row("blocks asked", &|r| r.blocks_asked.to_string()),
        row("hits", &|r| format!("{} ({:.1} %)", r.blocks_hit, r.hit_rate * 100.0)),
        row("  from dram", &|r| of_tier(r, r.hit_by_tier.dram)),
        row("  from nvme", &|r| of_tier(r, r.hit_by_tier.nvme)),
        row("  from object", &|r| of_tier(r, r.hit_by_tier.object)),
        row("loaded", &|r| format!("{} at {:.2} GB/s", rough(r.bytes_loaded), r.load_gbps)),
        row("stored", &|r| format!("{} at {:.2} GB/s", rough(r.bytes_stored), r.store_gbps)),
        row("match p50 / p99", &|r| format!("{} / {} us", r.match_us.p50, r.match_us.p99)),
        row("wrong blocks", &|r| r.wrong_blocks.to_string()),
    ];
    let text = table(&["", "before SIGKILL", "after", "memory and disk lost"], rows);
    format!(
        "{text}\nready again {} ms after the kill, {} ms after the loss of memory and disk; wrong blocks: {}",
        shown.restart_ms, shown.restart_after_loss_ms, shown.wrong_blocks
    )
}
