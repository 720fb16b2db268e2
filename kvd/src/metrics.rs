//! What the daemon measures, for Prometheus.
//!
//! The work counts into [`counters::Counters`]; [`Metrics`] turns them into text when somebody asks, so that a scrape
//! costs the data path nothing. Every series stands from the start with its zero.

pub mod counters;
mod endpoint;
pub mod object;
mod registry;

pub use endpoint::serve_http;
pub use registry::{Metrics, MetricsFacts, reference_markdown};
