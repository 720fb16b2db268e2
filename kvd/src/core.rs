//! The core: one thread that owns the ladder, and the shells that carry out what it decides.
//!
//! ```text
//!  engines ==rings==> core thread (Ladder) <--commands-- admin service, CLI
//!                      |   ^        ^
//!                moves |   | done   | joined, left, died
//!                      v   |        |
//!               device threads   sessions thread
//! ```
//!
//! The core thread takes no lock and waits for nobody: every neighbour speaks to it through a bounded channel and a
//! doorbell. It is the only place where a decision of the ladder meets a clock.

pub mod admin;
pub(crate) mod clock;
mod epoch;
mod handle;
mod device;
mod client;
mod verify;
mod options;

pub use handle::CoreHandle;
pub use options::{DramOptions, IoChoice, NvmeOptions, PolicyChoice, ServeOptions, TenantOptions};
