//! Bytes: memory sections, extents, transfers and the backends that move them.
//!
//! This crate knows no block, no hash and no tier. `sys` is the only home of `unsafe` in the workspace; it offers safe types upward.
#![deny(unsafe_code)]

pub mod agent;
pub mod device;
pub mod io;
pub mod sys;

pub use sys::{ChecksumAlgorithm, unit_seed};
