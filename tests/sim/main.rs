//! Goal: whatever engines, operators, disks and deaths do to the production ladder, slot table, mover and recovery, every
//! answer is the right bytes or a miss, in bounded time, and nothing leaks.
//!
//! Method: a world is drawn from a seed (virtual time, no threads, no files): the production [`kvd_tiers::ladder::Ladder`]
//! over a table and segments that survive the daemon, production devices over simulated disks, in half of the worlds an object
//! store that other nodes write to as well, engines that verify as the client library does, operators, faults and kills. After
//! every event the world is held against a plain map and the rules of `oracle.rs`.
//!
//! `KVD_SIM_SEEDS=n` runs so many seeds, `KVD_SIM_SEED=n` exactly that one, `KVD_SIM_FIRST=n` starts elsewhere.

mod acts;
mod blocks;
mod check;
mod config;
mod daemon;
mod disks;
mod engines;
mod operators;
mod oracle;
mod questions;
mod random;
mod regressions;
mod run;
mod store;
mod table;
mod tier;
mod trouble;
mod world;
