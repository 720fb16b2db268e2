//! `kvd serve`: the daemon in the foreground.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kvd_tiers::dram::ArenaError;
use kvd_tiers::nvme::FileError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::ConfigSources;
use super::exit::{Exit, Failure, Outcome};
use crate::config::{self, Config, Loaded};
use crate::core::{DataDirError, DeviceError, Running, ServeError, serve};
use crate::machine::SystemMachine;
use crate::metrics::{Metrics, MetricsFacts, serve_http};
use crate::service::{self, AdminListeners, AdminService, BindError, LiveConfig};
use crate::session::ListenError;
use crate::telemetry;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd serve
  kvd serve --config /etc/kvd.toml
  kvd serve --set data_dir=/var/lib/kvd --set tiers.dram.capacity=64GiB
  KVD__LOG__LEVEL=debug kvd serve

SIGHUP reads the configuration again, SIGTERM and SIGINT stop the daemon; a second one ends it at once.";

/// How often the daemon looks whether its threads still run.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A stop that takes longer is broken off: moves have 10 s to end, then the devices are flushed. Supervisors kill after 30 s.
const STOP_MAX: Duration = Duration::from_secs(20);

/// `kvd serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    sources: ConfigSources,
}

/// Serves until a signal.
///
/// # Errors
/// The configuration is refused, the daemon cannot start, or one of its threads ended.
pub fn run(args: &ServeArgs) -> Outcome {
    let sources = args.sources.sources();
    let machine = SystemMachine::default();
    let loaded = config::load(&sources, &machine)?;
    let remarks = loaded.checked(&machine)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let telemetry = {
        let _within = runtime.enter();
        telemetry::init(&loaded.config).map_err(failed)?
    };
    for remark in &remarks {
        tracing::warn!("{remark}");
    }
    raise_open_files();
    let options = loaded.config.serve_options().map_err(failed)?;
    let running = tracing::info_span!("start").in_scope(|| serve(&options)).map_err(not_started)?;
    let live = Arc::new(LiveConfig::new(sources, loaded.clone(), remarks, telemetry.clone()));
    let served = runtime.block_on(async {
        let served = administer(&running, &loaded, &live).await;
        telemetry.finish().await;
        served
    });
    // Calls under way end with the runtime; then nobody asks a core that is going down.
    drop(runtime);
    let stopped = stop(running);
    match &stopped {
        Ok(()) => tracing::info!("stopped"),
        Err(failure) => tracing::warn!("{failure}"),
    }
    // Why it stopped says more than how.
    served.and(stopped).map(|()| Exit::Ok)
}

/// Waits for the end of the daemon, but not for ever: a disk that hangs would hold it up, and a second signal means now.
fn stop(running: Running) -> Result<(), Failure> {
    let (end, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("kvd-stop".into()).spawn(move || {
        running.stop();
        let _ = end.send(());
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let why = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        std::io::Result::Ok(tokio::select! {
            _ = ended => None,
            _ = terminate.recv() => Some("a second SIGTERM came"),
            _ = interrupt.recv() => Some("a second SIGINT came"),
            () = tokio::time::sleep(STOP_MAX) => Some("a device does not come to its end"),
        })
    })?;
    match why {
        None => Ok(()),
        Some(why) => Err(Failure::new(Exit::Failure, format!("ended without waiting: {why}"))
            .remedy("what lies in DRAM is adopted by the next daemon; what was on its way to NVMe is stored again")),
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

/// Every session takes a few descriptors: what may be had is had.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn not_started(error: ServeError) -> Failure {
    let code = match &error {
        ServeError::DataDir(DataDirError::InUse(_))
        | ServeError::Listen(ListenError::InUse(_))
        | ServeError::Arena(ArenaError::Locked { .. })
        | ServeError::Device(DeviceError::File(FileError::Locked { .. })) => Exit::AlreadyRunning,
        ServeError::Options(_) => Exit::Usage,
        ServeError::DataDir(_)
        | ServeError::Listen(_)
        | ServeError::Device(_)
        | ServeError::Arena(_)
        | ServeError::Object(_)
        | ServeError::System { .. } => Exit::Failure,
    };
    let failure = Failure::new(code, error.to_string());
    match code {
        Exit::AlreadyRunning => {
            failure.remedy("stop the other daemon, or give this one its own: --set data_dir=... --set socket=...")
        }
        _ => failure.remedy("`kvd doctor` with the same arguments looks for the cause"),
    }
}

/// Everything beside the data path, until a signal stops it.
async fn administer(running: &Running, loaded: &Loaded, live: &Arc<LiveConfig>) -> Result<(), Failure> {
    let config = &loaded.config;
    let listeners = AdminListeners::bind(&config.admin.socket, config.admin.listen).await.map_err(not_bound)?;
    let handle = running.handle();
    let metrics = Arc::new(Metrics::new(Arc::clone(handle.counters()), facts(config, handle.epoch().get())));
    if let Some(address) = config.metrics.listen {
        let listener = TcpListener::bind(address).await;
        let listener = listener
            .map_err(|source| not_bound(BindError::Io { place: format!("metrics.listen {address}"), source }))?;
        tokio::spawn(serve_http(listener, Arc::clone(&metrics)));
    }
    let admin = AdminService::new(handle.clone(), Arc::clone(handle.counters()), metrics, Arc::clone(live));
    tracing::info!(
        epoch = handle.epoch().get(),
        socket = %config.socket.display(),
        admin = %config.admin.socket.display(),
        dram = %config.tiers.dram.capacity,
        nvme = %config.tiers.nvme.capacity,
        "serving"
    );
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut serving =
        std::pin::pin!(service::run(listeners, admin, handle.clone(), Arc::clone(handle.counters()), async {
            let _ = stopped.await;
        }));
    tokio::select! {
        // Before the stop this is a listener that broke.
        served = &mut serving => served.map_err(failed),
        watched = watch(running, live) => {
            let _ = stop.send(());
            serving.await.map_err(failed)?;
            watched
        }
    }
}

fn not_bound(error: BindError) -> Failure {
    let code = if matches!(error, BindError::InUse(_)) { Exit::AlreadyRunning } else { Exit::Failure };
    Failure::new(code, error.to_string()).remedy("choose another address, or stop what uses this one")
}

fn facts(config: &Config, epoch: u64) -> MetricsFacts {
    let nvme = &config.tiers.nvme;
    let paths: &[_] = if nvme.enabled { &nvme.paths } else { &[] };
    let devices = paths.iter().map(|path| path.display().to_string()).collect();
    MetricsFacts { version: env!("CARGO_PKG_VERSION").to_owned(), epoch, devices }
}

/// Waits for the signal that stops the daemon; SIGHUP reloads.
async fn watch(running: &Running, live: &LiveConfig) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            _ = hangup.recv() => {
                match live.reload(running.handle()).await {
                    Ok(reload) => tracing::info!(applied = ?reload.applied, needs_restart = ?reload.needs_restart, "configuration reloaded"),
                    Err(error) => tracing::error!("configuration not reloaded, the daemon goes on as it was: {error}"),
                }
                continue;
            }
            _ = looks.tick() => {
                if running.is_broken() {
                    return Err(Failure::new(Exit::Failure, "a thread of the daemon ended by itself")
                        .remedy("the log above says why; a supervisor should start the daemon again"));
                }
                continue;
            }
        }
        return Ok(());
    }
}
