//! Engines that die, stop, hoard and leave children behind; daemons that stop. What is held must come back, and no slot
//! may be given away that somebody might still touch.
//!
//! Short counts by default; with `KVD_DEATHS` set, those of the acceptance (200 deaths, 100 engines stopped in the middle
//! of a copy, 20 stops of a daemon of 30 s each).

#![forbid(unsafe_code)]

mod daemon_stopped;
mod engine_killed;
mod engine_stopped;
mod hoard;
mod process;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

/// `full` with `KVD_DEATHS`, else `short`.
fn count<T>(short: T, full: T) -> T {
    if std::env::var_os("KVD_DEATHS").is_some() { full } else { short }
}

/// A generator for instants; its seed is printed and can be given as `KVD_DEATHS_SEED`.
fn generator(test: &str) -> SmallRng {
    let given = std::env::var("KVD_DEATHS_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = given.unwrap_or_else(kvd_tests::fresh_seed);
    println!("{test}: KVD_DEATHS_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}
