//! The admin API over its real socket, with a core that answers from a script.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kvd::config::{Sources, load};
use kvd::core::admin::{
    AdminCommand, AdminError, AdminReply, ChangedReply, DeviceReply, DeviceState, NamespaceReply, ScrubReply,
    StatusReply,
};
use kvd::machine::SystemMachine;
use kvd::metrics::{Metrics, MetricsFacts};
use kvd::service::proto::admin_service_client::AdminServiceClient;
use kvd::service::proto::{self, DaemonState};
use kvd::service::{AdminListeners, AdminService, Asks, LiveConfig, run};
use kvd_proto::{Epoch, NamespaceDigest};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

/// A core by script; it remembers what it was asked.
#[derive(Clone, Default)]
struct Script {
    asked: Arc<Mutex<Vec<AdminCommand>>>,
    scrubs: Arc<AtomicU64>,
    device_failed: Arc<AtomicU64>,
    stopping: Arc<AtomicU64>,
}

fn digest(n: u8) -> NamespaceDigest {
    NamespaceDigest::new([n; 32])
}

impl Asks for Script {
    async fn ask(&self, command: AdminCommand) -> Result<AdminReply, AdminError> {
        self.asked.lock().expect("no panic").push(command.clone());
        Ok(match command {
            AdminCommand::Status if self.stopping.load(Ordering::SeqCst) != 0 => return Err(AdminError::Stopping),
            AdminCommand::Status => AdminReply::Status(StatusReply {
                store_purges: 0,
                store_purges_failed: 0,
                epoch: Epoch::new(7),
                uptime: Duration::from_secs(90),
                start_took: Duration::from_millis(12),
                blocks: 5,
                records: 6,
                dram_only: 0,
                drains: 0,
                drain_left: 0,
                sessions: 1,
                leases: 2,
                moves: 0,
                purges: 0,
                draining: false,
                restored_dram: 3,
                restored_nvme: 4,
                index_bytes: 1024,
            }),
            AdminCommand::Tiers => AdminReply::Tiers(Vec::new()),
            AdminCommand::ObjectTier | AdminCommand::ScrubObject(_) => {
                return Err(AdminError::NotFound("object tier in this daemon"));
            }
            AdminCommand::Devices => AdminReply::Devices(vec![DeviceReply {
                device: 0,
                path: "/mnt/nvme0".into(),
                io: "uring",
                state: if self.device_failed.load(Ordering::SeqCst) == 0 {
                    DeviceState::Ok
                } else {
                    DeviceState::ReadOnly
                },
                capacity_bytes: 1 << 30,
                queued: 0,
                read_bytes: 1,
                written_bytes: 2,
                errors: 3,
                last_error: Some("write: No space left on device".into()),
            }]),
            AdminCommand::Namespaces(page) => {
                let all: Vec<_> = (0..250u8).map(digest).collect();
                let one =
                    |digest| NamespaceReply { digest, model: String::new(), block_tokens: 16, views: 0, records: 1 };
                AdminReply::Namespaces {
                    total: all.len(),
                    namespaces: all.into_iter().skip(page.offset).take(page.limit).map(one).collect(),
                }
            }
            AdminCommand::Pin(selection) => {
                AdminReply::Changed(ChangedReply { blocks: selection.hashes.len() as u64, skipped: 0 })
            }
            AdminCommand::Purge { .. } => AdminReply::Changed(ChangedReply { blocks: 9, skipped: 1 }),
            AdminCommand::Holdings { .. } => AdminReply::Holdings(3),
            AdminCommand::Drain => return Err(AdminError::Busy),
            AdminCommand::Scrub | AdminCommand::ScrubProgress => {
                // At once behind the third look somebody starts another run.
                let look = self.scrubs.fetch_add(1, Ordering::SeqCst);
                let verified = (look.saturating_sub(1) * 10).min(20);
                AdminReply::Scrub(ScrubReply {
                    running: true,
                    runs: u64::from(look >= 3),
                    verified,
                    corrupt: u64::from(look >= 3),
                    remaining: 20 - verified,
                })
            }
            AdminCommand::SetConfig(settings) => AdminReply::Settings(settings),
            other => panic!("not in the script: {other:?}"),
        })
    }
}

struct Served {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    file: PathBuf,
    script: Script,
    channel: Channel,
}

impl Served {
    async fn start() -> Served {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, file) = (folder.path().join("kvd.sock.admin"), folder.path().join("kvd.toml"));
        std::fs::write(&file, "[gate]\nenabled = true\n").expect("written");
        let data_dir = format!("data_dir={}", folder.path().display());
        let sources = Sources { file: Some(file.clone()), environment: Vec::new(), assignments: vec![data_dir] };
        let loaded = load(&sources, &SystemMachine::default()).expect("a good configuration");
        let log = kvd::telemetry::Telemetry::detached();
        let script = Script::default();
        let counters = Arc::default();
        let facts = MetricsFacts { version: "1".into(), epoch: 7, devices: vec!["/mnt/nvme0".into()] };
        let metrics = Arc::new(Metrics::new(Arc::clone(&counters), facts));
        let live = Arc::new(LiveConfig::new(sources, loaded, Vec::new(), log));
        let service = AdminService::new(script.clone(), Arc::clone(&counters), metrics, live);
        let listeners = AdminListeners::bind(&socket, None).await.expect("bound");
        tokio::spawn(run(listeners, service, script.clone(), counters, std::future::pending()));
        let target = socket.clone();
        let connector = tower::service_fn(move |_| {
            let target = target.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(target).await?)) }
        });
        let channel =
            Endpoint::from_static("http://kvd.local").connect_with_connector(connector).await.expect("connected");
        Served { _folder: folder, socket, file, script, channel }
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_status_tells_of_a_bad_device() {
    let served = Served::start().await;
    let mode = std::fs::metadata(&served.socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = served.admin().status(proto::StatusRequest {}).await.expect("answered").into_inner();
    assert_eq!((status.state(), status.epoch, status.remarks.len()), (DaemonState::Serving, 7, 0));
    assert_eq!(status.misses.len(), kvd_proto::MissReason::ALL.len());
    served.script.device_failed.store(1, Ordering::SeqCst);
    let status = served.admin().status(proto::StatusRequest {}).await.expect("answered").into_inner();
    assert_eq!(status.state(), DaemonState::Degraded);
    assert!(status.remarks[0].contains("/mnt/nvme0) is read_only: write: No space left"), "{:?}", status.remarks);
    assert!(AdminListeners::bind(&served.socket, None).await.is_err(), "a second daemon does not take the socket");
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let served = Served::start().await;
    let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = proto::ListNamespacesRequest { page_size: 0, page_token: token };
        let reply = served.admin().list_namespaces(request).await.expect("answered").into_inner();
        assert_eq!(reply.total, 250);
        seen.extend(reply.namespaces.into_iter().map(|namespace| namespace.digest));
        token = reply.next_page_token;
        pages += 1;
        if token.is_empty() {
            break;
        }
    }
    seen.dedup();
    assert_eq!((seen.len(), pages), (250, 3));
    let wrong = proto::ListNamespacesRequest { page_size: 0, page_token: "x".into() };
    assert_eq!(refused(served.admin().list_namespaces(wrong).await).code(), Code::InvalidArgument);
    let none = refused(served.admin().get_object_tier(proto::GetObjectTierRequest {}).await);
    assert_eq!(none.get_error_details().error_info().map(|info| info.reason.as_str()), Some("NO_OBJECT_TIER"));
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> Status {
    result.expect_err("refused")
}

#[tokio::test]
async fn blocks_are_named_by_hash_and_by_the_beginning_of_a_namespace() {
    let served = Served::start().await;
    let pin = |namespace: &str, hashes: &[&str]| {
        let selection = proto::Selection {
            namespace: namespace.into(),
            hashes: hashes.iter().map(|hash| hash.to_string()).collect(),
        };
        let mut admin = served.admin();
        async move { admin.pin(proto::PinRequest { selection: Some(selection) }).await }
    };
    assert_eq!(pin("0909", &["00ff", "01"]).await.expect("pinned").into_inner().blocks, 2);
    let asked = served.script.asked.lock().expect("no panic").clone();
    let pinned = asked
        .iter()
        .find_map(|command| if let AdminCommand::Pin(selection) = command { Some(selection.namespace) } else { None });
    assert_eq!(pinned, Some(Some(digest(9))));
    assert_eq!(refused(pin("0", &["00ff"]).await).code(), Code::InvalidArgument, "it names many");
    let missing = refused(pin("ffff", &["00ff"]).await);
    let details = missing.get_error_details();
    let info = details.error_info().expect("details");
    assert_eq!(
        (missing.code(), info.domain.as_str(), info.reason.as_str()),
        (Code::NotFound, "kvd", "NAMESPACE_NOT_FOUND")
    );
    assert_eq!(refused(pin("", &[]).await).code(), Code::InvalidArgument);
    assert_eq!(refused(pin("", &["zz"]).await).code(), Code::InvalidArgument);
}

#[tokio::test]
async fn long_work_reports_until_it_is_finished() {
    let served = Served::start().await;
    let mut scrub = served.admin().scrub(proto::ScrubRequest::default()).await.expect("started").into_inner();
    let mut steps = Vec::new();
    while let Some(step) = scrub.message().await.expect("a step") {
        steps.push(step.progress.expect("progress"));
    }
    let dones: Vec<_> = steps.iter().map(|step| (step.done, step.total, step.corrupt, step.finished)).collect();
    assert_eq!(dones, [(0, 20, 0, false), (10, 20, 0, false), (20, 20, 1, true)]);
    let nvme = proto::ScrubRequest { tier: proto::Tier::Nvme.into(), ..Default::default() };
    assert_eq!(refused(served.admin().scrub(nvme).await).code(), Code::InvalidArgument, "it goes with DRAM");
    let object = |bytes_per_second_max| {
        let tier = proto::Tier::Object.into();
        proto::ScrubRequest { tier, bytes_per_second_max, ..Default::default() }
    };
    assert_eq!(refused(served.admin().scrub(object(1)).await).code(), Code::InvalidArgument, "that takes for ever");
    let none = refused(served.admin().scrub(object(0)).await);
    assert_eq!(none.code(), Code::NotFound, "there is no such tier: {none}");
    let everything = proto::PurgeRequest { target: Some(proto::purge_request::Target::Everything(true)) };
    let mut purge = served.admin().purge(everything).await.expect("started").into_inner();
    let done = purge.message().await.expect("a step").and_then(|step| step.progress).expect("progress");
    assert_eq!((done.done, done.skipped, done.finished), (9, 1, true));
    assert_eq!(refused(served.admin().purge(proto::PurgeRequest { target: None }).await).code(), Code::InvalidArgument);
    let tenant = |name: &str| proto::PurgeRequest { target: Some(proto::purge_request::Target::Tenant(name.into())) };
    assert_eq!(refused(served.admin().purge(tenant("other")).await).code(), Code::NotFound);
    let mut purge = served.admin().purge(tenant("default")).await.expect("started").into_inner();
    assert!(purge.message().await.expect("a step").and_then(|step| step.progress).expect("progress").finished);
    let busy = refused(served.admin().drain(proto::DrainRequest {}).await);
    assert_eq!(busy.code(), Code::ResourceExhausted);
    assert!(busy.get_error_details().retry_info().is_some());
}

#[tokio::test]
async fn a_reload_is_taken_whole_or_not_at_all() {
    let served = Served::start().await;
    std::fs::write(&served.file, "policy = \"lru\"\n[gate]\nenabled = false\n").expect("written");
    let reload = served.admin().reload_config(proto::ReloadConfigRequest {}).await.expect("taken").into_inner();
    assert_eq!((reload.applied, reload.needs_restart), (vec!["gate.enabled".to_owned()], vec!["policy".to_owned()]));
    std::fs::write(&served.file, "[gate]\nenabled = true\n[lease]\nidel = \"1s\"\n").expect("written");
    let error = refused(served.admin().reload_config(proto::ReloadConfigRequest {}).await);
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("kvd.toml:4:1: unknown key `lease.idel`"), "{}", error.message());
    let values = served.admin().get_config(proto::GetConfigRequest {}).await.expect("answered").into_inner().values;
    let gate = values.iter().find(|value| value.key == "gate.enabled").expect("listed");
    assert!(gate.value == "false" && gate.origin.ends_with("kvd.toml:3:1"), "{gate:?}");
}

#[tokio::test]
async fn health_follows_the_core_and_metrics_are_there() {
    let served = Served::start().await;
    let mut health = HealthClient::new(served.channel.clone());
    let mut watch =
        health.watch(HealthCheckRequest { service: "readiness".into() }).await.expect("watched").into_inner();
    served.script.stopping.store(1, Ordering::SeqCst);
    let serving = tonic_health::ServingStatus::Serving as i32;
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let next = tokio::time::timeout_at(end, watch.message())
            .await
            .expect("told in time")
            .expect("a status")
            .expect("a status");
        if next.status != serving && next.status != 0 {
            break;
        }
    }
    let alive = health.check(HealthCheckRequest { service: "liveness".into() }).await.expect("answered").into_inner();
    assert_eq!(alive.status, serving);
    let text = served.admin().get_metrics(proto::GetMetricsRequest {}).await.expect("answered").into_inner().text;
    assert!(text.contains("kvd_block_misses_total{reason=\"cold\"} 0"));
}
