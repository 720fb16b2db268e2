//! Transfers: what their user is promised.
//!
//! Goal: holds, deadlines, cancellation, statuses and notifications hold over slow and failing storage. Method: a
//! simulated disk that moves only when the test says so, below a real driver thread.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "agent/copies.rs"]
mod copies;
#[path = "agent/storage.rs"]
mod storage;
#[path = "agent/support.rs"]
mod support;
