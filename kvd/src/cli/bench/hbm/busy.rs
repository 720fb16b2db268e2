//! The same while the engine computes: what its products cost the moves, and the moves them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvd_nixl::device::{Device, Products};
use serde::Serialize;

use super::failed;
use crate::cli::bench::stats::{median, percentile, rounded};
use crate::cli::exit::Failure;

/// How long the engine computes alone, and at least beside moves.
const ALONE: Duration = Duration::from_millis(1500);
const WARM_UPS: usize = 4;
/// A step of some ten products of some milliseconds, or of many short ones: a layer of a prefill, or of a decode.
const STEPS: [(u16, u32); 2] = [(8192, 8), (1024, 200)];

/// What one kind of steps and one way of moves cost each other.
#[derive(Debug, Serialize)]
pub(super) struct Busy {
    pub(super) matrix_rows: u16,
    pub(super) way: &'static str,
    pub(super) gb_per_second: f64,
    /// To the rate of the same while the engine computed nothing.
    pub(super) ratio: f64,
    /// Of the engine's steps per second, what it lost.
    pub(super) engine_loss: f64,
    pub(super) step_p99_ms: f64,
    /// Of the 99th percentile of its steps, what was added.
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
    p99: f64,
}

/// Moves while the engine computes.
pub(super) fn beside(device: &Device, all: &[Moves<'_>]) -> Result<Vec<Busy>, Failure> {
    let mut found = Vec::new();
    // Until every segment of the arena was used once: to pin it stops the whole GPU for some milliseconds, once.
    for moves in all.iter().cycle().take(WARM_UPS * all.len()) {
        (moves.once)()?;
    }
    for (rows, count) in STEPS {
        let mut products = device.products(rows).map_err(failed)?;
        // The first ones choose and load kernels.
        products.step(count).map_err(failed)?;
        for moves in all {
            let over = AtomicBool::new(false);
            let alone = compute(&mut products, count, &over, ALONE)?;
            let (steps, rate) = std::thread::scope(|scope| {
                let moving = scope.spawn(|| {
                    let done = move_for(moves, ALONE);
                    over.store(true, Ordering::Relaxed);
                    done
                });
                let steps = compute(&mut products, count, &over, Duration::MAX)?;
                let seconds = moving.join().map_err(|_| failed("a thread panicked"))??;
                Ok::<_, Failure>((steps, moves.gigabytes / seconds))
            })?;
            found.push(Busy {
                matrix_rows: rows,
                way: moves.way,
                gb_per_second: rounded(rate),
                ratio: rounded(rate / moves.idle),
                engine_loss: rounded(1.0 - steps.per_second / alone.per_second),
                step_p99_ms: rounded(steps.p99 * 1e3),
                step_p99_growth: rounded(steps.p99 / alone.p99 - 1.0),
            });
        }
    }
    Ok(found)
}

/// Moves again and again for so long; the median of the seconds.
fn move_for(moves: &Moves<'_>, time: Duration) -> Result<f64, Failure> {
    let (started, mut seconds) = (Instant::now(), Vec::new());
    while seconds.is_empty() || started.elapsed() < time {
        seconds.push((moves.once)()?);
    }
    Ok(median(seconds))
}

/// Computes for so long, or until it is over.
fn compute(products: &mut Products, count: u32, over: &AtomicBool, time: Duration) -> Result<Steps, Failure> {
    let (started, mut seconds) = (Instant::now(), Vec::new());
    while !over.load(Ordering::Relaxed) && started.elapsed() < time {
        let step = Instant::now();
        products.step(count).map_err(failed)?;
        seconds.push(step.elapsed().as_secs_f64());
    }
    let per_second = seconds.len() as f64 / started.elapsed().as_secs_f64();
    Ok(Steps { per_second, p99: percentile(seconds, 0.99) })
}
