//! The gRPC face of the daemon: admin v1, health v1 and reflection. The only home of `.proto` types beside the command line.
//!
//! A call is decoded, asked of the core as a plain [`AdminCommand`](crate::core::admin::AdminCommand), and encoded.
//! Nothing here decides anything, and no payload of a block passes through.

pub mod proto;

mod admin;
mod convert;
mod health;
mod live;
mod refusal;
mod server;
mod work;

pub use admin::{AdminService, Asks};
pub use convert::config_values;
pub use live::{LiveConfig, ReloadError};
pub use server::{AdminListeners, BindError, run};

/// The longest message either side takes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
