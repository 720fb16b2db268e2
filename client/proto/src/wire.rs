//! The bytes between an engine's process and the daemon.

pub mod ring;
pub mod session;
pub mod slab;
