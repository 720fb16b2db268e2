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
mod client;
mod clients;
pub(crate) mod clock;
mod device;
mod epoch;
mod handle;
mod moves;
mod namespaces;
mod operate;
mod options;
mod predecessor;
mod preparer;
mod questions;
mod requests;
mod run;
mod serve;
mod sleeper;
mod state;
mod verify;

pub use device::DeviceError;
pub use epoch::DataDirError;
pub use handle::CoreHandle;
pub use options::{
    DramOptions, IoChoice, NvmeOptions, ObjectLimit, ObjectOptions, PolicyChoice, ServeOptions, TenantOptions,
};
pub use serve::{Running, ServeError, Stopper, serve};
