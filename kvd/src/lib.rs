//! kvd, the KV cache daemon of a GPU node: the process around the ladder of `kvd-tiers`.
//!
//! Engines join on a Unix socket and then speak through rings in shared memory; operators use the gRPC admin API, the
//! Prometheus endpoint and the command line of the same binary. This crate knows processes, sockets, configuration and
//! people; it decides nothing about blocks (that is the ladder) and moves no payload through gRPC.
//!
//! | module | is |
//! |---|---|
//! | [`config`] | the configuration: sources, checks, explanation, reload |
//! | [`core`](mod@core) | the core thread: the ladder and the shells that carry out its moves |
//! | [`session`] | the engines' Unix socket: handshake, descriptors, deaths |
//! | [`object`] | the object tier's side of the process: the store's client |
//! | [`machine`] | the facts of the host, behind a trait |
//! | [`doctor`] | checks of machine and configuration, with remedies |
//! | [`service`] | gRPC admin, health, reflection; the only home of `.proto` types beside the command line |
//! | [`metrics`] | Prometheus registry and endpoint |
//! | [`telemetry`] | logs and traces |
//! | [`cli`] | the command line |
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod core;
pub mod doctor;
pub mod machine;
pub mod metrics;
pub mod object;
pub mod service;
pub mod session;
pub mod telemetry;
