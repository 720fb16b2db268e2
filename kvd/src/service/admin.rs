//! The calls of kvd.admin.v1.

use std::sync::Arc;

use kvd_proto::{MissReason, NamespaceDigest, Tier};
use tonic::{Code, Request, Response, Status};

use super::convert;
use super::live::{LiveConfig, ReloadError};
use super::proto::{self, Progress};
use super::refusal::{bad_field, of_core, refusal, wrong_reply};
use super::work::{self, Reports, stream};
use crate::config::TENANT_NAME;
use crate::core::CoreHandle;
use crate::core::admin::{
    AdminCommand, AdminError, AdminReply, ChangedReply, DeviceState, ObjectTierReply, PAGE_ENTRIES_MAX, Page,
    Selection, StoreCondition,
};
use crate::metrics::Metrics;
use crate::metrics::counters::Counters;

const SELECTION_HASHES_MAX: usize = 4096;

/// Whoever answers admin commands: the core, or a test.
pub trait Asks: Clone + Send + Sync + 'static {
    /// Asks one thing.
    fn ask(&self, command: AdminCommand) -> impl Future<Output = Result<AdminReply, AdminError>> + Send;
}

impl Asks for CoreHandle {
    async fn ask(&self, command: AdminCommand) -> Result<AdminReply, AdminError> {
        CoreHandle::ask(self, command).await
    }
}

/// The service over a core.
#[derive(Debug)]
pub struct AdminService<C> {
    core: C,
    counters: Arc<Counters>,
    metrics: Arc<Metrics>,
    live: Arc<LiveConfig>,
}

/// Asks the core and takes the reply apart, or fails with what it was instead.
macro_rules! ask {
    ($core:expr, $command:expr, $reply:pat => $value:expr) => {
        match $core.ask($command).await.map_err(of_core)? {
            $reply => $value,
            _ => return Err(wrong_reply()),
        }
    };
}

impl<C: Asks> AdminService<C> {
    /// Serves what `core` answers.
    pub fn new(core: C, counters: Arc<Counters>, metrics: Arc<Metrics>, live: Arc<LiveConfig>) -> AdminService<C> {
        AdminService { core, counters, metrics, live }
    }

    /// The namespace that a digest or the beginning of one names; `None` where nothing is named.
    async fn namespace(&self, text: &str) -> Result<Option<NamespaceDigest>, Status> {
        let text = text.to_lowercase();
        if text.is_empty() {
            return Ok(None);
        }
        let mut found = None;
        let mut offset = 0;
        loop {
            let page = Page { offset, limit: PAGE_ENTRIES_MAX };
            let (total, namespaces) = ask!(self.core, AdminCommand::Namespaces(page), AdminReply::Namespaces { total, namespaces } => (total, namespaces));
            let got = namespaces.len();
            for namespace in namespaces.into_iter().filter(|namespace| namespace.digest.to_string().starts_with(&text))
            {
                if found.replace(namespace.digest).is_some() {
                    return Err(bad_field(
                        "namespace",
                        format!("`{text}` is the beginning of more than one: give more of it"),
                    ));
                }
            }
            offset += got;
            if got == 0 || offset >= total {
                break;
            }
        }
        found.map(Some).ok_or_else(|| {
            refusal(
                Code::NotFound,
                "NAMESPACE_NOT_FOUND",
                format!("no namespace begins with `{text}`"),
                Some("`kvd namespaces` lists what is known"),
            )
        })
    }

    async fn selection(&self, selection: Option<proto::Selection>) -> Result<Selection, Status> {
        let selection = selection.ok_or_else(|| bad_field("selection", "is missing".into()))?;
        if selection.hashes.is_empty() || selection.hashes.len() > SELECTION_HASHES_MAX {
            return Err(bad_field(
                "selection.hashes",
                format!("{} hashes: 1 to {SELECTION_HASHES_MAX} are taken", selection.hashes.len()),
            ));
        }
        let hashes = selection.hashes.iter().map(|text| convert::hash(text)).collect::<Result<_, _>>()?;
        Ok(Selection { namespace: self.namespace(&selection.namespace).await?, hashes })
    }

    async fn change(&self, command: AdminCommand) -> Result<ChangedReply, Status> {
        Ok(ask!(self.core, command, AdminReply::Changed(changed) => changed))
    }

    /// `None` where there is no such tier.
    async fn object_tier(&self) -> Result<Option<ObjectTierReply>, Status> {
        match self.core.ask(AdminCommand::ObjectTier).await {
            Ok(AdminReply::ObjectTier(tier)) => Ok(Some(*tier)),
            Ok(_) => Err(wrong_reply()),
            Err(AdminError::NotFound(_)) => Ok(None),
            Err(error) => Err(of_core(error)),
        }
    }

    async fn tiers(&self) -> Result<Vec<proto::TierStatus>, Status> {
        let tiers = ask!(self.core, AdminCommand::Tiers, AdminReply::Tiers(tiers) => tiers);
        Ok(tiers.into_iter().map(convert::tier_status).collect())
    }
}

#[tonic::async_trait]
impl<C: Asks> proto::admin_service_server::AdminService for AdminService<C> {
    type PurgeStream = Reports<proto::PurgeResponse>;
    type DrainStream = Reports<proto::DrainResponse>;
    type ScrubStream = Reports<proto::ScrubResponse>;

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        let status = ask!(self.core, AdminCommand::Status, AdminReply::Status(status) => status);
        let devices = ask!(self.core, AdminCommand::Devices, AdminReply::Devices(devices) => devices);
        let config = self.live.loaded().await.config;
        let mut remarks = Vec::new();
        for device in devices.iter().filter(|device| device.state != DeviceState::Ok) {
            let error = device.last_error.as_deref().unwrap_or("no error recorded");
            remarks.push(format!("device {} ({}) is {}: {error}", device.device, device.path, device.state.as_str()));
        }
        let object = self.object_tier().await?;
        if let Some(tier) = object.filter(|tier| tier.condition != StoreCondition::Up) {
            let error = tier.last_error.as_deref().unwrap_or("no error recorded");
            remarks.push(format!("the object tier's store {} does not answer: {error}", tier.url));
        }
        let state = if remarks.is_empty() { proto::DaemonState::Serving } else { proto::DaemonState::Degraded };
        remarks.extend(self.live.remarks().await);
        let hits = [Tier::Dram, Tier::Nvme, Tier::Object]
            .map(|tier| (tier.as_str().to_owned(), self.counters.hits(tier).get()));
        let misses =
            MissReason::ALL.into_iter().map(|reason| (reason.as_str().to_owned(), self.counters.misses(reason).get()));
        Ok(Response::new(proto::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.into(),
            epoch: status.epoch.get(),
            uptime_seconds: status.uptime.as_secs(),
            start_milliseconds: u64::try_from(status.start_took.as_millis()).unwrap_or(u64::MAX),
            pid: std::process::id(),
            data_dir: config.data_dir.display().to_string(),
            socket: config.socket.display().to_string(),
            blocks: status.blocks,
            records: status.records,
            sessions: status.sessions,
            leases: status.leases,
            moves: status.moves,
            restored_dram: status.restored_dram,
            restored_nvme: status.restored_nvme,
            index_bytes: status.index_bytes,
            tiers: self.tiers().await?,
            hits: hits.into(),
            misses: misses.collect(),
            remarks,
        }))
    }

    async fn list_tiers(
        &self,
        _: Request<proto::ListTiersRequest>,
    ) -> Result<Response<proto::ListTiersResponse>, Status> {
        Ok(Response::new(proto::ListTiersResponse { tiers: self.tiers().await? }))
    }

    async fn get_object_tier(
        &self,
        _: Request<proto::GetObjectTierRequest>,
    ) -> Result<Response<proto::GetObjectTierResponse>, Status> {
        match self.object_tier().await? {
            Some(tier) => Ok(Response::new(convert::object_tier(tier))),
            None => Err(refusal(
                Code::NotFound,
                "NO_OBJECT_TIER",
                "this daemon has no object tier",
                Some("set tiers.object.enabled = true and tiers.object.url, and start it again"),
            )),
        }
    }

    async fn list_devices(
        &self,
        _: Request<proto::ListDevicesRequest>,
    ) -> Result<Response<proto::ListDevicesResponse>, Status> {
        let devices = ask!(self.core, AdminCommand::Devices, AdminReply::Devices(devices) => devices);
        Ok(Response::new(proto::ListDevicesResponse {
            devices: devices.into_iter().map(convert::device_status).collect(),
        }))
    }

    async fn list_namespaces(
        &self,
        request: Request<proto::ListNamespacesRequest>,
    ) -> Result<Response<proto::ListNamespacesResponse>, Status> {
        let request = request.into_inner();
        let page = convert::page(request.page_size, &request.page_token)?;
        let (total, namespaces) = ask!(self.core, AdminCommand::Namespaces(page), AdminReply::Namespaces { total, namespaces } => (total, namespaces));
        Ok(Response::new(proto::ListNamespacesResponse {
            next_page_token: convert::next_page(page, namespaces.len(), total),
            total: total as u64,
            namespaces: namespaces.into_iter().map(convert::namespace_status).collect(),
        }))
    }

    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<proto::ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let page = convert::page(request.page_size, &request.page_token)?;
        let (total, sessions) = ask!(self.core, AdminCommand::Sessions(page), AdminReply::Sessions { total, sessions } => (total, sessions));
        Ok(Response::new(proto::ListSessionsResponse {
            next_page_token: convert::next_page(page, sessions.len(), total),
            total: total as u64,
            sessions: sessions.into_iter().map(convert::session_status).collect(),
        }))
    }

    async fn list_leases(
        &self,
        request: Request<proto::ListLeasesRequest>,
    ) -> Result<Response<proto::ListLeasesResponse>, Status> {
        let request = request.into_inner();
        let page = convert::page(request.page_size, &request.page_token)?;
        let (total, leases) =
            ask!(self.core, AdminCommand::Leases(page), AdminReply::Leases { total, leases } => (total, leases));
        Ok(Response::new(proto::ListLeasesResponse {
            next_page_token: convert::next_page(page, leases.len(), total),
            total: total as u64,
            leases: leases.into_iter().map(convert::lease_status).collect(),
        }))
    }

    async fn pin(&self, request: Request<proto::PinRequest>) -> Result<Response<proto::PinResponse>, Status> {
        let selection = self.selection(request.into_inner().selection).await?;
        let ChangedReply { blocks, skipped } = self.change(AdminCommand::Pin(selection)).await?;
        Ok(Response::new(proto::PinResponse { blocks, skipped }))
    }

    async fn unpin(&self, request: Request<proto::UnpinRequest>) -> Result<Response<proto::UnpinResponse>, Status> {
        let selection = self.selection(request.into_inner().selection).await?;
        let ChangedReply { blocks, skipped } = self.change(AdminCommand::Unpin(selection)).await?;
        Ok(Response::new(proto::UnpinResponse { blocks, skipped }))
    }

    async fn evict(&self, request: Request<proto::EvictRequest>) -> Result<Response<proto::EvictResponse>, Status> {
        let request = request.into_inner();
        let tier = convert::asked_tier(request.tier)?;
        let selection = self.selection(request.selection).await?;
        let ChangedReply { blocks, skipped } = self.change(AdminCommand::Evict { selection, tier }).await?;
        Ok(Response::new(proto::EvictResponse { blocks, skipped }))
    }

    async fn purge(&self, request: Request<proto::PurgeRequest>) -> Result<Response<Self::PurgeStream>, Status> {
        let namespace = match request.into_inner().target {
            Some(proto::purge_request::Target::Everything(true)) => None,
            Some(proto::purge_request::Target::Tenant(name)) if name == TENANT_NAME => None,
            Some(proto::purge_request::Target::Tenant(name)) => {
                let message = format!("no tenant `{name}` is served here");
                let remedy = format!("a daemon serves one tenant, `{TENANT_NAME}`");
                return Err(refusal(Code::NotFound, "TENANT_NOT_FOUND", message, Some(&remedy)));
            }
            Some(proto::purge_request::Target::Namespace(text)) if !text.is_empty() => self.namespace(&text).await?,
            _ => return Err(bad_field("target", "name a namespace, or set everything".into())),
        };
        let failed = ask!(self.core, AdminCommand::Status, AdminReply::Status(status) => status).store_purges_failed;
        let ChangedReply { blocks, skipped } = self.change(AdminCommand::Purge { namespace }).await?;
        tracing::warn!(
            blocks,
            skipped,
            namespace = namespace.map(|digest| digest.to_string()),
            "purged by an operator"
        );
        let core = self.core.clone();
        let step = move || {
            let core = core.clone();
            async move {
                let status = ask!(core, AdminCommand::Status, AdminReply::Status(status) => status);
                let held = ask!(core, AdminCommand::Holdings { namespace }, AdminReply::Holdings(held) => held);
                if status.store_purges_failed > failed {
                    return Err(Status::unavailable(
                        "the store of the object tier could not be purged: what it holds of this can still be loaded. \
                         `kvd doctor` asks the store; then purge again",
                    ));
                }
                let finished = status.purges == 0 && status.store_purges == 0;
                // Behind a purge that has ended engines store again.
                let left = if finished { 0 } else { held.min(blocks) };
                let progress = Progress { done: blocks - left, total: blocks, skipped, corrupt: 0, finished };
                Ok(proto::PurgeResponse { progress: Some(progress) })
            }
        };
        Ok(Response::new(stream(step)))
    }

    async fn prefetch(
        &self,
        request: Request<proto::PrefetchRequest>,
    ) -> Result<Response<proto::PrefetchResponse>, Status> {
        let selection = self.selection(request.into_inner().selection).await?;
        let ChangedReply { blocks, skipped } = self.change(AdminCommand::Prefetch(selection)).await?;
        Ok(Response::new(proto::PrefetchResponse { blocks, skipped }))
    }

    async fn drain(&self, _: Request<proto::DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let before = ask!(self.core, AdminCommand::Status, AdminReply::Status(status) => status).drains;
        let ChangedReply { blocks: records, .. } = self.change(AdminCommand::Drain).await?;
        let core = self.core.clone();
        let step = move || {
            let core = core.clone();
            async move {
                let status = ask!(core, AdminCommand::Status, AdminReply::Status(status) => status);
                // Nothing is stored until it ends, but at once behind it.
                let finished = status.drains > before;
                let left = if finished { status.drain_left } else { status.dram_only }.min(records);
                let skipped = if finished { left } else { 0 };
                let progress = Progress { done: records - left, total: records, skipped, corrupt: 0, finished };
                Ok(proto::DrainResponse { progress: Some(progress) })
            }
        };
        Ok(Response::new(stream(step)))
    }

    async fn scrub(&self, request: Request<proto::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        Ok(Response::new(work::scrub(self.core.clone(), request.into_inner()).await?))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        let request = request.into_inner();
        let hash = convert::hash(&request.hash)?;
        let namespace = self.namespace(&request.namespace).await?;
        let explanations = ask!(self.core, AdminCommand::Explain { hash, namespace }, AdminReply::Explain(explanations) => explanations);
        Ok(Response::new(proto::ExplainResponse {
            explanations: explanations.into_iter().map(convert::explanation).collect(),
        }))
    }

    async fn get_config(
        &self,
        _: Request<proto::GetConfigRequest>,
    ) -> Result<Response<proto::GetConfigResponse>, Status> {
        Ok(Response::new(proto::GetConfigResponse { values: convert::config_values(&self.live.loaded().await) }))
    }

    async fn reload_config(
        &self,
        _: Request<proto::ReloadConfigRequest>,
    ) -> Result<Response<proto::ReloadConfigResponse>, Status> {
        match self.live.reload(&self.core).await {
            Ok(reload) => {
                tracing::info!(applied = ?reload.applied, needs_restart = ?reload.needs_restart, "configuration reloaded by an operator");
                Ok(Response::new(proto::ReloadConfigResponse {
                    applied: reload.applied,
                    needs_restart: reload.needs_restart,
                }))
            }
            Err(ReloadError::Core(error)) => Err(of_core(error)),
            Err(error) => Err(refusal(
                Code::FailedPrecondition,
                "CONFIG_REFUSED",
                error.to_string(),
                Some("correct it; the daemon goes on as it was"),
            )),
        }
    }

    async fn get_metrics(
        &self,
        _: Request<proto::GetMetricsRequest>,
    ) -> Result<Response<proto::GetMetricsResponse>, Status> {
        Ok(Response::new(proto::GetMetricsResponse { text: self.metrics.text() }))
    }
}
