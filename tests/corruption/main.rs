//! Bytes at rest that change behind a live daemon's back, and that none of them is served.
//!
//! Goal: whatever happens to a record's bytes, to an entry or to a header, a load ends with the right bytes (another copy)
//! or without them (a counted miss). Method: a real daemon, its arena segments and its NVMe file written through plain file
//! descriptors of this process, loads by an engine that knows every byte. What is read while the daemon lives (records) is
//! flipped under it; what is read at a start (tables, journal, headers, superblocks) is flipped before one. There, many
//! records share a start: bit n of record n's entry.
//!
//! `KVD_CORRUPTION=1` takes every bit and 10^6 random payload changes; otherwise large structures are sampled and there
//! are 20 000 changes. `KVD_CORRUPTION_SEED` repeats the changes of a run. All bits of all structures are flipped at the
//! level of the library, in every run, by `tiers/tests/storage/damage.rs` and the tests in `tiers/src/dram`.

#![forbid(unsafe_code)]

mod change;
mod device;
mod images;
mod node;
mod records;
mod tables;

use kvd_nixl::io::Seeded;

/// The long form.
fn full() -> bool {
    std::env::var("KVD_CORRUPTION").is_ok_and(|value| value == "1")
}

/// Bits of a structure of `bytes` bytes: all of them in the long form, else every `step`th. An odd step meets every place
/// within a byte.
fn bits(bytes: usize, step: usize) -> impl Iterator<Item = usize> {
    (0..bytes * 8).step_by(if full() { 1 } else { step })
}

/// Chance, whose seed is printed and can be given as `KVD_CORRUPTION_SEED`.
fn chance(test: &str) -> Seeded {
    let given = std::env::var("KVD_CORRUPTION_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(kvd_tests::fresh_seed);
    println!("{test}: KVD_CORRUPTION_SEED={seed}");
    Seeded::new(seed)
}
