//! Traces reach a collector, as children of the caller's span where one is sent. One test, for a process has one subscriber.

use std::sync::{Arc, Mutex};

use kvd::config::{Sources, load};
use kvd::machine::SystemMachine;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.requests.lock().expect("no panic").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn spans_of_kvd_reach_the_collector_before_the_end() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let service = TraceServiceServer::new(collector.clone());
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let endpoint = format!("telemetry.otlp.endpoint=http://{address}");
    let sources = Sources { assignments: vec![endpoint, "log.level=debug".into()], ..Sources::default() };
    let loaded = load(&sources, &SystemMachine::default()).expect("a good configuration");
    let telemetry = kvd::telemetry::init(&loaded.config).expect("the first of this process");
    tracing::info_span!(target: "kvd::test", "work", blocks = 3)
        .in_scope(|| tracing::info!(target: "kvd::test", "done"));
    tracing::info_span!(target: "other", "not ours").in_scope(|| ());
    telemetry.finish().await;

    let requests = collector.requests.lock().expect("no panic");
    let resources: Vec<_> = requests.iter().flat_map(|request| &request.resource_spans).collect();
    let named = resources.iter().any(|spans| format!("{:?}", spans.resource).contains("StringValue(\"kvd\")"));
    assert!(named, "{resources:?}");
    let spans = resources.iter().flat_map(|spans| &spans.scope_spans).flat_map(|scope| &scope.spans);
    let names: Vec<_> = spans.map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["work"]);
}
