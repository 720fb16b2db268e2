//! What the tests of whole processes share: a scratch folder, a daemon that can be killed, payloads derived from
//! their key, and honest skipping.

#![forbid(unsafe_code)]

mod daemon;
mod payload;
mod scratch;
mod skip;

pub use daemon::{Daemon, DaemonOptions};
pub use payload::{Payload, chain_hash};
pub use scratch::Scratch;
pub use skip::skip;
