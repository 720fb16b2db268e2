//! Logs: to standard error, as text or JSON, with a level that changes while the daemon runs.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{Log, LogFormat};

/// Why logs are not set up, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error("`{filter}` is no log filter: {source}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// This process has set up its logs already.
    #[error("logs are set up already: {0}")]
    Twice(#[from] TryInitError),
    /// The logs are gone.
    #[error("the log level cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

/// Changes the level of the running daemon.
#[derive(Clone, Debug)]
pub struct LogControl {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(text).map_err(|source| TelemetryError::Filter { filter: text.to_owned(), source })
}

impl LogControl {
    /// For a service in a process whose logs are not its own: levels are checked and go nowhere.
    pub const fn detached() -> LogControl {
        LogControl { filter: None }
    }

    /// Takes over a new level.
    ///
    /// # Errors
    /// The filter is none; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), TelemetryError> {
        let filter = filter(level)?;
        match &self.filter {
            Some(handle) => Ok(handle.reload(filter)?),
            None => Ok(()),
        }
    }
}

/// Sets up the logs of this process, once.
///
/// # Errors
/// The filter is none, or it was done before.
pub fn init(log: &Log) -> Result<LogControl, TelemetryError> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let base = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => registry.with(base.with_ansi(colours())).try_init()?,
        LogFormat::Json => registry.with(base.json().flatten_event(true)).try_init()?,
    }
    Ok(LogControl { filter: Some(handle) })
}

fn colours() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
