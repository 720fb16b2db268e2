//! Traces to an OpenTelemetry collector; the only module that knows OpenTelemetry.

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tonic::codegen::http::{HeaderMap, Request};
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::TelemetryError;

/// The road to the collector. The queue behind it is bounded: when the collector is away, spans are dropped.
#[derive(Debug)]
pub(super) struct Exporting {
    provider: SdkTracerProvider,
}

impl Exporting {
    /// Prepares the export; connects when the first spans go out. To be called within the runtime that will drive it.
    pub(super) fn start(endpoint: &str) -> Result<Exporting, TelemetryError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.map_err(|error| TelemetryError::Export(error.to_string()))?;
        let resource = Resource::builder().with_service_name("kvd").build();
        Ok(Exporting {
            provider: SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build(),
        })
    }

    /// Turns spans of tracing into OpenTelemetry's: kvd's only, for those of the export itself would make more of them.
    pub(super) fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let ours = |metadata: &Metadata<'_>| metadata.target().starts_with("kvd");
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("kvd")).with_filter(filter_fn(ours))
    }

    /// Sends what waits. Blocks for up to five seconds; the runtime must run meanwhile.
    pub(super) fn finish(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("the last traces did not reach the collector: {error}");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// The span of a call, child of the caller's where it sends W3C trace context.
pub(crate) fn call_span(request: &Request<()>) -> Span {
    let span = tracing::info_span!("admin", call = request.uri().path());
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // An error only says that nothing exports.
    let _ = span.set_parent(parent);
    span
}
