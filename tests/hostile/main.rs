//! Hostile clients against a real daemon: mutated frames, ring entries and slabs, slow and silent peers, floods of
//! connections and descriptors, a segment that is cut short under everybody.
//!
//! Goal: the daemon lives, its memory and descriptors are bounded, and no other session is harmed. Method: an honest
//! engine stores and reads all the while and compares every byte; before and after, the daemon's anonymous memory and its
//! descriptors are counted. 20 000 mutations by default, 10^6 with `KVD_HOSTILE` set. A run prints its seed and runs again
//! with `KVD_HOSTILE_SEED`.

#![forbid(unsafe_code)]

#[path = "../fuzz/decoders.rs"]
mod decoders;
mod decoding;
mod floods;
mod frames;
mod mutate;
mod node;
mod peer;
mod rings;
mod slow;
mod truncated;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

/// `full` with `KVD_HOSTILE`, else `short`.
fn count<T>(short: T, full: T) -> T {
    if std::env::var_os("KVD_HOSTILE").is_some() { full } else { short }
}

/// A generator whose seed is printed and can be given as `KVD_HOSTILE_SEED`.
fn generator(test: &str) -> SmallRng {
    let given = std::env::var("KVD_HOSTILE_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = given.unwrap_or_else(kvd_tests::fresh_seed);
    println!("{test}: KVD_HOSTILE_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}
