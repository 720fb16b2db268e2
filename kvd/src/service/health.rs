//! grpc.health.v1: `readiness` (and the empty name) says whether matches are served, `liveness` whether the core still
//! turns. Neither depends on a disk or a peer: a probe must not restart a daemon for a fault that a restart cannot mend.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::admin::Asks;
use crate::core::admin::{AdminCommand, AdminReply};
use crate::metrics::counters::Counters;

const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// The core beats many times a second even when idle; this is far beyond any pause of a healthy host.
const SILENCE_MAX: Duration = Duration::from_secs(10);

const READINESS: [&str; 3] = ["", "readiness", "kvd.admin.v1.AdminService"];
const LIVENESS: &str = "liveness";

/// Names the services before anybody can ask for them: not ready, but alive.
pub(super) async fn announce(reporter: &HealthReporter) {
    report(reporter, false, true).await;
}

async fn report(reporter: &HealthReporter, ready: bool, alive: bool) {
    let status = |well| if well { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in READINESS {
        reporter.set_service_status(service, status(ready)).await;
    }
    reporter.set_service_status(LIVENESS, status(alive)).await;
}

/// Keeps the statuses true until the future is dropped.
pub(super) async fn watch<C: Asks>(reporter: HealthReporter, core: C, counters: Arc<Counters>) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beat = (counters.heartbeat.get(), Instant::now());
    loop {
        ticks.tick().await;
        let now = counters.heartbeat.get();
        if now != beat.0 {
            beat = (now, Instant::now());
        }
        let alive = beat.1.elapsed() < SILENCE_MAX;
        let answer = timeout(ANSWER_WAIT, core.ask(AdminCommand::Status)).await;
        let ready = matches!(answer, Ok(Ok(AdminReply::Status(_))));
        report(&reporter, ready, alive).await;
    }
}
