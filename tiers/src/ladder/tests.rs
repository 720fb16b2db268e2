//! The ladder against a world of memory: scenarios, one per rule, and random events with every fault a shell can report.

mod random;
mod scenarios;
mod world;
