//! Logs to standard error, as text or JSON, with a level that changes while the daemon runs; traces to a collector.

use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::{Config, LogFormat};

pub(crate) use otlp::call_span;

mod otlp;

/// Why logs or traces are not set up, or not changed.
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
    /// The collector's address cannot be used.
    #[error("telemetry.otlp.endpoint: {0}")]
    Export(String),
    /// This process has set up its logs already.
    #[error("logs are set up already: {0}")]
    Twice(#[from] TryInitError),
    /// The logs are gone.
    #[error("the log level cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

/// Logs and traces of the running daemon.
#[derive(Clone, Debug)]
pub struct Telemetry {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    exporting: Option<Arc<otlp::Exporting>>,
}

fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(text).map_err(|source| TelemetryError::Filter { filter: text.to_owned(), source })
}

impl Telemetry {
    /// For a service in a process whose logs are not its own: levels are checked and go nowhere.
    pub const fn detached() -> Telemetry {
        Telemetry { filter: None, exporting: None }
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

    /// Sends the traces that wait.
    pub async fn finish(&self) {
        let Some(exporting) = self.exporting.clone() else { return };
        // A panic in there has been logged; there is nothing else to save.
        let _ = tokio::task::spawn_blocking(move || exporting.finish()).await;
    }
}

/// Sets up logs and traces of this process, once. Within a runtime, which the export of traces needs.
///
/// # Errors
/// The filter is none, the collector's address cannot be used, or it was done before.
pub fn init(config: &Config) -> Result<Telemetry, TelemetryError> {
    let (filter, handle) = reload::Layer::new(filter(&config.log.level)?);
    let exporting = config.telemetry.otlp.endpoint.as_deref().map(otlp::Exporting::start).transpose()?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter).with(exporting.as_ref().map(otlp::Exporting::layer));
    match config.log.format {
        LogFormat::Text => registry.with(lines.with_ansi(colours())).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(Telemetry { filter: Some(handle), exporting: exporting.map(Arc::new) })
}

fn colours() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
