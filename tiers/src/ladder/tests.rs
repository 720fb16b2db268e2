//! The ladder against a world of memory: scenarios, one per rule, and random events with every fault a shell can report.

mod chains;
mod common;
mod holders;
mod limits;
mod random;
mod remote;
mod reports;
mod restart;
mod tiers;
mod turns;
mod world;
