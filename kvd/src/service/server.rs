//! The listeners of the admin API and their bounds.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::MESSAGE_BYTES_MAX;
use super::admin::{AdminService, Asks};
use super::health;
use super::proto::DESCRIPTORS;
use super::proto::admin_service_server::AdminServiceServer;
use crate::metrics::counters::Counters;

/// The longest a unary call may take, whatever the client allows.
const CALL_TIME_MAX: Duration = Duration::from_secs(30);
const CALLS_PER_CONNECTION_MAX: usize = 32;
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// A peer that is gone without a word is found out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Calls under way get this long when the daemon stops.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Why an address is not served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon serves it.
    #[error("another process serves {0}")]
    InUse(PathBuf),
    /// The operating system refused.
    #[error("cannot listen on {place}: {source}")]
    Io {
        /// Where.
        place: String,
        /// What it said.
        source: io::Error,
    },
}

/// Sockets that are bound, so that a start fails before anything is served. Needs a running tokio runtime.
#[derive(Debug)]
pub struct AdminListeners {
    unix: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
}

impl AdminListeners {
    /// Binds the admin socket (mode 0600, replacing one that nobody listens on) and the loopback address.
    ///
    /// # Errors
    /// The path is served by another process, or cannot be bound.
    pub async fn bind(path: &Path, listen: Option<SocketAddr>) -> Result<AdminListeners, BindError> {
        let failed = |place: String| move |source| BindError::Io { place, source };
        if BlockingUnixStream::connect(path).is_ok() {
            return Err(BindError::InUse(path.to_owned()));
        }
        // Bound under another name first: the socket has its name only once nobody else can open it.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let bound = PathBuf::from(name);
        let shown = || path.display().to_string();
        match fs::remove_file(&bound) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(shown())(error)),
            _ => {}
        }
        let unix = UnixListener::bind(&bound).map_err(failed(shown()))?;
        fs::set_permissions(&bound, Permissions::from_mode(0o600)).map_err(failed(shown()))?;
        fs::rename(&bound, path).map_err(failed(shown()))?;
        let tcp = match listen {
            Some(address) => Some(TcpListener::bind(address).await.map_err(failed(address.to_string()))?),
            None => None,
        };
        Ok(AdminListeners { unix, path: path.to_owned(), tcp })
    }
}

fn router<C: Asks>(
    service: Arc<AdminService<C>>,
    health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
) -> Router {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors are those that build.rs compiled");
    let admin = AdminServiceServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .trace_fn(crate::telemetry::call_span)
        .timeout(CALL_TIME_MAX)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .add_service(admin)
        .add_service(health)
        .add_service(reflection)
}

/// Serves until `stop` is ready, then gives calls under way two seconds to end.
///
/// # Errors
/// A listener broke.
pub async fn run<C: Asks>(
    listeners: AdminListeners,
    service: AdminService<C>,
    core: C,
    counters: Arc<Counters>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    health::announce(&reporter).await;
    let service = Arc::new(service);
    let (stopping, _) = tokio::sync::watch::channel(false);
    let stopped = || {
        let mut stopped = stopping.subscribe();
        async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        }
    };
    let unix = router(service.clone(), health_service.clone())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listeners.unix), stopped());
    let tcp = listeners.tcp.map(|tcp| {
        router(service, health_service).serve_with_incoming_shutdown(TcpListenerStream::new(tcp), stopped())
    });
    let watching = health::watch(reporter, core, counters);
    let stop = async {
        stop.await;
        stopping.send_replace(true);
        // A watch of the health never ends by itself.
        tokio::time::sleep(STOP_WAIT).await;
    };
    let serving = async {
        match tcp {
            Some(tcp) => tokio::try_join!(unix, tcp).map(|_| ()),
            None => unix.await,
        }
    };
    let result = tokio::select! {
        result = serving => result,
        () = watching => Ok(()),
        () = stop => Ok(()),
    };
    // Left behind, it would only be replaced at the next start.
    let _ = fs::remove_file(&listeners.path);
    result
}
