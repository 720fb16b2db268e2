//! The same while the engine computes: what its products cost the moves, and the moves them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvd_nixl::device::{Device, Launch, Products};
use serde::Serialize;

use super::failed;
use crate::cli::bench::stats::{median, percentile, rounded};
use crate::cli::exit::Failure;

/// How long the engine computes alone, and at least beside moves; by turns, for an engine's own speed drifts by more than moves
/// cost it.
const TURN: Duration = Duration::from_millis(300);
const TURNS: usize = 5;
const WARM_UPS: usize = 4;

/// An engine's work.
struct Work {
    name: &'static str,
    rows: u16,
    /// Products of a step.
    count: u32,
    launch: Launch,
}

const WORKS: [Work; 3] = [
    // Some products of some milliseconds: a layer of a prefill.
    Work { name: "long", rows: 8192, count: 8, launch: Launch::OneByOne },
    // Many short ones: a decode, as engines make it, and as they would without graphs.
    Work { name: "short, a graph", rows: 1024, count: 200, launch: Launch::AsGraph },
    Work { name: "short, one by one", rows: 1024, count: 200, launch: Launch::OneByOne },
];

/// What one kind of steps and one way of moves cost each other.
#[derive(Debug, Serialize)]
pub(super) struct Busy {
    /// The engine's kernels.
    pub(super) kernels: &'static str,
    pub(super) matrix_rows: u16,
    pub(super) way: &'static str,
    pub(super) gb_per_second: f64,
    /// To the rate of the same while the engine computed nothing.
    pub(super) ratio: f64,
    /// Of the engine's steps per second, what it lost; the median of the turns.
    pub(super) engine_loss: f64,
    pub(super) engine_losses: Vec<f64>,
    pub(super) step_p99_ms: f64,
    /// Of the 99th percentile of its steps in all turns, what was added.
    pub(super) step_p99_growth: f64,
}

/// What goes on beside the engine.
pub(super) struct Moves<'a> {
    pub(super) way: &'static str,
    /// What one call moves, in gigabytes, and how fast while the engine computes nothing.
    pub(super) gigabytes: f64,
    pub(super) idle: f64,
    /// Moves it once; seconds.
    pub(super) once: &'a (dyn Fn() -> Result<f64, Failure> + Sync),
}

/// Steps of an engine.
struct Steps {
    per_second: f64,
    seconds: Vec<f64>,
}

/// Moves while the engine computes.
pub(super) fn beside(device: &Device, all: &[Moves<'_>]) -> Result<Vec<Busy>, Failure> {
    // Until every segment of the arena was used once: to pin it stops the whole GPU for some milliseconds, once.
    for moves in all.iter().cycle().take(WARM_UPS * all.len()) {
        (moves.once)()?;
    }
    let mut found = Vec::new();
    for work in &WORKS {
        let mut products = device.products(work.rows, work.count, work.launch).map_err(failed)?;
        for moves in all {
            found.push(cost(&mut products, work, moves)?);
        }
    }
    Ok(found)
}

/// The engine by itself and beside moves, by turns.
fn cost(products: &mut Products, work: &Work, moves: &Moves<'_>) -> Result<Busy, Failure> {
    let (mut losses, mut rates, mut alone, mut beside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let over = AtomicBool::new(false);
        let by_itself = compute(products, &over, TURN)?;
        let (steps, seconds) = std::thread::scope(|scope| {
            let moving = scope.spawn(|| {
                let done = move_for(moves, TURN);
                over.store(true, Ordering::Relaxed);
                done
            });
            let steps = compute(products, &over, Duration::MAX)?;
            let seconds = moving.join().map_err(|_| failed("a thread panicked"))??;
            Ok::<_, Failure>((steps, seconds))
        })?;
        losses.push(rounded(1.0 - steps.per_second / by_itself.per_second));
        rates.extend(seconds.iter().map(|seconds| moves.gigabytes / seconds));
        alone.extend(by_itself.seconds);
        beside.extend(steps.seconds);
    }
    let (rate, p99) = (median(rates), percentile(beside, 0.99));
    Ok(Busy {
        kernels: work.name,
        matrix_rows: work.rows,
        way: moves.way,
        gb_per_second: rounded(rate),
        ratio: rounded(rate / moves.idle),
        engine_loss: median(losses.iter().copied()),
        engine_losses: losses,
        step_p99_ms: rounded(p99 * 1e3),
        step_p99_growth: rounded(p99 / percentile(alone, 0.99) - 1.0),
    })
}

/// Moves again and again for so long; the seconds of each.
fn move_for(moves: &Moves<'_>, time: Duration) -> Result<Vec<f64>, Failure> {
    let (started, mut seconds) = (Instant::now(), Vec::new());
    while seconds.is_empty() || started.elapsed() < time {
        seconds.push((moves.once)()?);
    }
    Ok(seconds)
}

/// Computes for so long, or until it is over.
fn compute(products: &mut Products, over: &AtomicBool, time: Duration) -> Result<Steps, Failure> {
    let (started, mut seconds) = (Instant::now(), Vec::new());
    while !over.load(Ordering::Relaxed) && started.elapsed() < time {
        let step = Instant::now();
        products.step().map_err(failed)?;
        seconds.push(step.elapsed().as_secs_f64());
    }
    Ok(Steps { per_second: seconds.len() as f64 / started.elapsed().as_secs_f64(), seconds })
}
