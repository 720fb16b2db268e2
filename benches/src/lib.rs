//! Benches.

pub mod cache_sim;
pub mod traces;
