//! The home of `unsafe`: memory that other processes may write, descriptors, rings, copies.
//!
//! Everything here offers a safe type upward. No signature that leaves this module carries a raw pointer or a bare descriptor number,
//! and none hands out a reference to bytes that another process can change: such bytes are copied in or out, or are atomics.
#![expect(unsafe_code, reason = "this module is the workspace's home of unsafe; see STYLE.md section 7")]

mod memory;
mod raw;
mod region;

pub use memory::{Memory, MemoryError, MemoryExtent};
pub use region::{ForeignMemory, Region};
