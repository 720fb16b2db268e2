//! What the tests of whole processes share: a scratch folder, a daemon that can be killed, payloads derived from
//! their key, and honest skipping.

#![forbid(unsafe_code)]

mod ask;
mod daemon;
mod disk;
mod engine;
mod payload;
mod scratch;
mod seed;
mod skip;

pub use ask::{ask, ask_serving};
pub use daemon::{Daemon, DaemonOptions};
pub use disk::{SmallDisk, system};
pub use engine::{Checked, TestEngine, plain_namespace};
pub use payload::{Payload, chain_hash};
pub use scratch::Scratch;
pub use seed::fresh_seed;
pub use skip::skip;
