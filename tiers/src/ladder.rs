//! The ladder: every decision about which block lies where, and nothing else.
//!
//! Sans-IO and deterministic: calls and outcomes come in with the time, moves and replies are polled out.

mod moves;
mod port;

pub use moves::{
    CommitError, DeviceFault, Explained, ExplainedRecord, Filling, JoinError, LoadEnd, LoadState, Matched, Move,
    Outcome, Reply, VerifyPlace,
};
pub use port::SlotTable;
