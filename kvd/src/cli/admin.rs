//! The way from a command to the daemon: the admin socket, and what its refusals mean for a person.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::Connection;
use super::exit::{Exit, Failure};
use crate::config::{admin_socket_of, default_socket};
use crate::machine::SystemMachine;
use crate::service::MESSAGE_BYTES_MAX;
use crate::service::proto::admin_service_client::AdminServiceClient;

const ANSWER_WAIT: Duration = Duration::from_secs(10);
const WORK_WAIT: Duration = Duration::from_secs(3600);

/// A connected client.
pub type Admin = AdminServiceClient<Channel>;

impl Connection {
    /// The engine socket.
    pub fn engine_socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| default_socket(&SystemMachine::default()))
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| admin_socket_of(&self.engine_socket()))
    }

    /// Connects, and asks one thing.
    ///
    /// # Errors
    /// Nobody answers, the answer is a refusal, or it takes too long.
    pub fn run<T, F>(&self, work: impl FnOnce(Admin) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.run_within(self.timeout.unwrap_or(ANSWER_WAIT), work)
    }

    /// Connects, and follows work that may take an hour.
    ///
    /// # Errors
    /// As of [`Connection::run`].
    pub fn run_long<T, F>(&self, work: impl FnOnce(Admin) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.run_within(self.timeout.unwrap_or(WORK_WAIT), work)
    }

    fn run_within<T, F>(&self, wait: Duration, work: impl FnOnce(Admin) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = self.admin_socket();
        let late = || {
            let message = format!("no answer from {} within {}", path.display(), humantime::format_duration(wait));
            Failure::new(Exit::Unavailable, message)
                .remedy("give more time with --timeout, or look at the daemon's log")
        };
        runtime.block_on(async {
            let whole = async {
                let channel = connect(&path, wait).await?;
                let client = AdminServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                work(client).await.map_err(|status| refusal(&status, &path))
            };
            tokio::time::timeout(wait, whole).await.map_err(|_| late())?
        })
    }
}

async fn connect(path: &Path, timeout: Duration) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_static("http://kvd.local").connect_timeout(timeout);
    let target = path.to_owned();
    // Connected by hand first: the transport would hide which of the three it was behind one message.
    let stream = tokio::net::UnixStream::connect(&target).await.map_err(|error| unreachable_socket(path, &error))?;
    let mut first = Some(stream);
    let connector = tower::service_fn(move |_| {
        let (first, target) = (first.take(), target.clone());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => tokio::net::UnixStream::connect(target).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        Failure::new(Exit::Unavailable, format!("{} does not speak gRPC: {error}", path.display()))
            .remedy("give the admin socket with --admin-socket, or the engine socket with --socket")
    })
}

fn unreachable_socket(path: &Path, error: &std::io::Error) -> Failure {
    let shown = path.display();
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(Exit::Unavailable, format!("no daemon: {shown} does not exist"))
            .remedy(
                "is kvd running? start it with `kvd serve`, or say where it listens with --socket PATH or KVD_SOCKET",
            ),
        std::io::ErrorKind::ConnectionRefused => {
            Failure::new(Exit::Unavailable, format!("no daemon: nobody listens on {shown}"))
                .remedy("kvd has ended there without cleaning up; start it again with `kvd serve`")
        }
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(Exit::Denied, format!("{shown} may not be used by this user"))
                .remedy("run this as the user that runs kvd; the admin socket is for its owner only")
        }
        _ => Failure::new(Exit::Unavailable, format!("cannot connect to {shown}: {error}")),
    }
}

fn refusal(status: &Status, path: &Path) -> Failure {
    let code = match status.code() {
        Code::NotFound => Exit::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted => Exit::Unavailable,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        _ => Exit::Failure,
    };
    let details = status.get_error_details();
    let remedy = details.error_info().and_then(|info| info.metadata.get("remedy").cloned());
    let message = match status.code() {
        Code::Unavailable if status.message().contains("transport") => {
            format!("the daemon at {} went away", path.display())
        }
        _ => status.message().to_owned(),
    };
    let failure = Failure::new(code, message);
    match remedy {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}
