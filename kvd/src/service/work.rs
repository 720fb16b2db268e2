//! Long work: told of again and again until it is finished, by streams of `Progress`.

use std::pin::Pin;
use std::time::Duration;

use kvd_proto::Tier;
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::admin::Asks;
use super::convert;
use super::proto::{self, Progress};
use super::refusal::{bad_field, of_core, refusal, wrong_reply};
use crate::core::admin::{AdminCommand, AdminReply, ObjectScrub, ObjectScrubReply, ScrubReply, ScrubbedPacks};
use crate::object::inspecting::BYTES_PER_SECOND_MIN;

/// It is looked at this often.
const INTERVAL: Duration = Duration::from_millis(200);
/// The longest a stream may take.
const TIME_MAX: Duration = Duration::from_secs(3600);
/// A scrub of a store reads so much a second where nobody says how much: half a gigabit, which engines hardly notice.
const SCRUB_BYTES_PER_SECOND: u64 = 64 << 20;

pub(super) type Reports<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A message that tells how far work is.
pub(super) trait Report {
    fn is_finished(&self) -> bool;
}

macro_rules! reports {
    ($($message:ident),*) => {$(
        impl Report for proto::$message {
            fn is_finished(&self) -> bool {
                self.progress.as_ref().is_none_or(|progress| progress.finished)
            }
        }
    )*};
}
reports!(PurgeResponse, DrainResponse, ScrubResponse);

/// Sends what `step` reports until it is finished, fails, takes too long or nobody listens.
pub(super) fn stream<T, F, W>(mut step: W) -> Reports<T>
where
    T: Report + Send + 'static,
    F: Future<Output = Result<T, Status>> + Send,
    W: FnMut() -> F + Send + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let end = Instant::now() + TIME_MAX;
        loop {
            let report = match step().await {
                _ if Instant::now() > end => Err(refusal(
                    Code::DeadlineExceeded,
                    "TOO_LONG",
                    "the work goes on, but is no longer reported",
                    None,
                )),
                report => report,
            };
            let last = report.as_ref().map_or(true, Report::is_finished);
            if sender.send(report).await.is_err() || last {
                return;
            }
            sleep(INTERVAL).await;
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Scrubs DRAM and NVMe, or the object tier.
pub(super) async fn scrub<C: Asks>(
    core: C,
    request: proto::ScrubRequest,
) -> Result<Reports<proto::ScrubResponse>, Status> {
    match convert::asked_tier(request.tier)? {
        None => scrub_local(core).await,
        Some(Tier::Object) => scrub_object(core, request).await,
        Some(Tier::Hbm | Tier::Dram | Tier::Nvme | Tier::Peer) => {
            Err(bad_field("tier", "name object, or no tier for DRAM and NVMe".into()))
        }
    }
}

async fn scrub_local<C: Asks>(core: C) -> Result<Reports<proto::ScrubResponse>, Status> {
    let first = asked_local(&core, AdminCommand::Scrub).await?;
    Ok(stream(move || {
        let core = core.clone();
        async move {
            let now = asked_local(&core, AdminCommand::ScrubProgress).await?;
            // Another run may have begun behind ours.
            let finished = !now.running || now.runs > first.runs;
            let remaining = if finished { 0 } else { now.remaining };
            let done = now.verified.saturating_sub(first.verified);
            let corrupt = now.corrupt.saturating_sub(first.corrupt);
            let progress = Progress { done, total: done + remaining, skipped: 0, corrupt, finished };
            Ok(proto::ScrubResponse { progress: Some(progress), ..Default::default() })
        }
    }))
}

async fn asked_local<C: Asks>(core: &C, command: AdminCommand) -> Result<ScrubReply, Status> {
    match core.ask(command).await.map_err(of_core)? {
        AdminReply::Scrub(reply) => Ok(reply),
        _ => Err(wrong_reply()),
    }
}

async fn asked_object<C: Asks>(core: &C, command: AdminCommand) -> Result<ObjectScrubReply, Status> {
    match core.ask(command).await.map_err(of_core)? {
        AdminReply::ScrubObject(reply) => Ok(reply),
        _ => Err(wrong_reply()),
    }
}

async fn scrub_object<C: Asks>(core: C, request: proto::ScrubRequest) -> Result<Reports<proto::ScrubResponse>, Status> {
    let bytes_per_second_max = match request.bytes_per_second_max {
        0 => SCRUB_BYTES_PER_SECOND,
        rate if rate < BYTES_PER_SECOND_MIN => {
            let why = format!("{rate} bytes a second: at least {BYTES_PER_SECOND_MIN} are read");
            return Err(bad_field("bytes_per_second_max", why));
        }
        rate => rate,
    };
    let packs = if request.all_nodes { ScrubbedPacks::Known } else { ScrubbedPacks::Own };
    let wanted = ObjectScrub { packs, bytes_per_second_max };
    let first = asked_object(&core, AdminCommand::ScrubObject(wanted)).await?;
    Ok(stream(move || {
        let core = core.clone();
        async move {
            let now = asked_object(&core, AdminCommand::ScrubObjectProgress).await?;
            if now.failed > first.failed {
                return Err(refusal(
                    Code::Unavailable,
                    "STORE_UNREACHABLE",
                    "the store of the object tier cannot be read: the scrub ended half way",
                    Some("`kvd tiers object` tells why; then scrub again"),
                ));
            }
            let finished = now.runs > first.runs;
            let remaining = if finished { 0 } else { now.remaining };
            let done = now.verified.saturating_sub(first.verified);
            let corrupt = now.corrupt.saturating_sub(first.corrupt);
            Ok(proto::ScrubResponse {
                progress: Some(Progress { done, total: done + remaining, skipped: 0, corrupt, finished }),
                damaged_packs: now.damaged_packs.saturating_sub(first.damaged_packs),
                bytes: now.bytes.saturating_sub(first.bytes),
            })
        }
    }))
}
