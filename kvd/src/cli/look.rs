//! Commands that look and change nothing.

use clap::Args;
use kvd_proto::MissReason;

use super::admin::Admin;
use super::exit::{Exit, Failure, Outcome};
use super::output::{Output, bytes, pairs, seconds, table};
use super::{Connection, act};
use crate::service::proto::{self, DaemonState, Tier};

/// `kvd status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    /// Print the metrics in Prometheus text format instead.
    #[arg(long)]
    metrics: bool,
}

/// A long list.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    connection: Connection,
    /// Stop after so many.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    limit: usize,
}

/// `kvd explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    connection: Connection,
    /// Only in this namespace: its digest, or the beginning of it.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "DIGEST")]
    namespace: String,
    /// The block's hash in hexadecimal, as the engine names it.
    #[arg(value_parser = act::hash)]
    hash: String,
}

/// `kvd status`.
///
/// # Errors
/// The daemon does not answer.
pub fn status(args: &StatusArgs, output: Output) -> Outcome {
    if args.metrics {
        let reply = args
            .connection
            .run(async |mut admin: Admin| Ok(admin.get_metrics(proto::GetMetricsRequest {}).await?.into_inner()))?;
        output.show(&reply, |reply| reply.text.clone())?;
        return Ok(Exit::Ok);
    }
    let reply =
        args.connection.run(async |mut admin: Admin| Ok(admin.status(proto::StatusRequest {}).await?.into_inner()))?;
    output.show(&reply, status_text)?;
    Ok(if reply.state() == DaemonState::Serving { Exit::Ok } else { Exit::CheckFailed })
}

/// The status for people; `kvd top` shows it too.
pub(super) fn status_text(status: &proto::StatusResponse) -> String {
    let hits: u64 = status.hits.values().sum();
    let misses: u64 = status.misses.values().sum();
    let rate = if hits + misses == 0 {
        "nothing asked yet".to_owned()
    } else {
        format!("{:.1} % of {}", 100.0 * hits as f64 / (hits + misses) as f64, hits + misses)
    };
    let by = |counts: &std::collections::HashMap<String, u64>| {
        let mut counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
        counts.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        if counts.is_empty() {
            return "none".to_owned();
        }
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    let mut text = pairs(&[
        ("state", proto::plain_name(status.state().as_str_name(), "DAEMON_STATE_")),
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("epoch", status.epoch.to_string()),
        ("up", format!("{} (ready after {} ms)", seconds(status.uptime_seconds), status.start_milliseconds)),
        ("socket", status.socket.clone()),
        ("data", status.data_dir.clone()),
        (
            "blocks",
            format!(
                "{} in {} records; restored at start: dram {}, nvme {}",
                status.blocks, status.records, status.restored_dram, status.restored_nvme
            ),
        ),
        ("sessions", format!("{}, leases {}, moves {}", status.sessions, status.leases, status.moves)),
        ("hit rate", rate),
        ("hits", by(&status.hits)),
        ("misses", by(&status.misses)),
        ("index", bytes(status.index_bytes)),
    ]);
    text.push('\n');
    text.push_str(&tiers_text(&status.tiers));
    for remark in &status.remarks {
        text.push_str(&format!("\n! {remark}"));
    }
    text
}

/// Bytes per second; a dash where nothing was measured.
pub(super) fn rate(bytes_per_second: u64) -> String {
    if bytes_per_second == 0 { "-".to_owned() } else { format!("{}/s", bytes(bytes_per_second)) }
}

fn tier_name(tier: Tier) -> String {
    proto::plain_name(tier.as_str_name(), "TIER_")
}

pub(super) fn tiers_text(tiers: &[proto::TierStatus]) -> String {
    let rows = tiers.iter().map(|tier| {
        let share =
            if tier.capacity_bytes == 0 { 0.0 } else { 100.0 * tier.used_bytes as f64 / tier.capacity_bytes as f64 };
        vec![
            tier_name(tier.tier()),
            bytes(tier.capacity_bytes),
            bytes(tier.used_bytes),
            format!("{share:.1}%"),
            tier.records.to_string(),
            tier.held_records.to_string(),
            tier.evicted.to_string(),
            rate(tier.read_bytes_per_second),
            rate(tier.write_bytes_per_second),
        ]
    });
    table(&["tier", "capacity", "used", "use", "records", "held", "evicted", "read", "write"], rows)
}

/// `kvd devices`.
///
/// # Errors
/// The daemon does not answer.
pub fn devices(connection: &Connection, output: Output) -> Outcome {
    let reply = connection
        .run(async |mut admin: Admin| Ok(admin.list_devices(proto::ListDevicesRequest {}).await?.into_inner()))?;
    output.show(&reply, |reply| devices_text(&reply.devices))?;
    Ok(Exit::Ok)
}

pub(super) fn devices_text(devices: &[proto::DeviceStatus]) -> String {
    let rows = devices.iter().map(|device| {
        vec![
            device.device.to_string(),
            proto::plain_name(device.state().as_str_name(), "DEVICE_STATE_"),
            device.io.clone(),
            bytes(device.capacity_bytes),
            device.queued.to_string(),
            bytes(device.read_bytes),
            bytes(device.written_bytes),
            device.errors.to_string(),
            device.path.clone(),
            device.last_error.clone(),
        ]
    });
    table(&["device", "state", "io", "capacity", "queued", "read", "written", "errors", "path", "last error"], rows)
}

/// Fetches pages until the list or the limit ends. The two requests share only their fields, not a type.
macro_rules! pages {
    ($args:expr, $call:ident, $request:ident, $field:ident) => {{
        let limit = $args.limit;
        $args.connection.run(async |mut admin: Admin| {
            let mut all = Vec::new();
            let mut token = String::new();
            loop {
                let page_size = u32::try_from((limit - all.len()).min(1000)).unwrap_or(1000);
                let request = proto::$request { page_size, page_token: std::mem::take(&mut token) };
                let mut reply = admin.$call(request).await?.into_inner();
                all.append(&mut reply.$field);
                if reply.next_page_token.is_empty() || all.len() >= limit {
                    all.truncate(limit);
                    reply.$field = all;
                    return Ok(reply);
                }
                token = reply.next_page_token;
            }
        })?
    }};
}

/// `kvd sessions`.
///
/// # Errors
/// The daemon does not answer.
pub fn sessions(args: &ListArgs, output: Output) -> Outcome {
    let reply = pages!(args, list_sessions, ListSessionsRequest, sessions);
    output.show(&reply, |reply| {
        let rows = reply.sessions.iter().map(|session| {
            vec![
                session.session.to_string(),
                session.pid.to_string(),
                session.uid.to_string(),
                session.role.clone(),
                session.client.clone(),
                session.instance.clone(),
                seconds(session.connected_seconds),
                session.requests.to_string(),
                if session.attached { "attached" } else { "gone, process alive" }.to_owned(),
            ]
        });
        table(&["session", "pid", "uid", "role", "client", "instance", "connected", "requests", "socket"], rows)
    })?;
    Ok(Exit::Ok)
}

/// `kvd namespaces`.
///
/// # Errors
/// The daemon does not answer.
pub fn namespaces(args: &ListArgs, output: Output) -> Outcome {
    let reply = pages!(args, list_namespaces, ListNamespacesRequest, namespaces);
    output.show(&reply, |reply| {
        let rows = reply.namespaces.iter().map(|namespace| {
            vec![
                namespace.digest.clone(),
                if namespace.model.is_empty() {
                    "(not opened since start)".to_owned()
                } else {
                    namespace.model.clone()
                },
                namespace.block_tokens.to_string(),
                namespace.views.to_string(),
                namespace.records.to_string(),
            ]
        });
        table(&["namespace", "model", "block tokens", "views", "records"], rows)
    })?;
    Ok(Exit::Ok)
}

/// `kvd leases`.
///
/// # Errors
/// The daemon does not answer.
pub fn leases(args: &ListArgs, output: Output) -> Outcome {
    let reply = pages!(args, list_leases, ListLeasesRequest, leases);
    output.show(&reply, |reply| {
        let rows = reply.leases.iter().map(|lease| {
            vec![
                lease.lease.to_string(),
                if lease.fill { "fill" } else { "read" }.to_owned(),
                lease.blocks.to_string(),
                bytes(lease.bytes),
                seconds(lease.age_seconds),
                lease.client_slot.to_string(),
                lease.instance.clone(),
            ]
        });
        table(&["lease", "kind", "blocks", "bytes", "age", "client slot", "instance"], rows)
    })?;
    Ok(Exit::Ok)
}

/// `kvd explain`.
///
/// # Errors
/// The daemon does not answer, or the hash is none.
pub fn explain(args: &ExplainArgs, output: Output) -> Outcome {
    let request = proto::ExplainRequest { hash: args.hash.clone(), namespace: args.namespace.clone() };
    let reply = args.connection.run(async |mut admin: Admin| Ok(admin.explain(request).await?.into_inner()))?;
    if reply.explanations.is_empty() {
        return Err(Failure::new(Exit::NotFound, "no namespace is known, so there is nothing to look in")
            .remedy("open a view from an engine first; `kvd namespaces` lists what is known"));
    }
    output.show(&reply, |reply| reply.explanations.iter().map(explanation_text).collect::<Vec<_>>().join("\n"))?;
    let known = reply.explanations.iter().any(|explanation| explanation.matchable || !explanation.copies.is_empty());
    Ok(if known { Exit::Ok } else { Exit::NotFound })
}

fn explanation_text(explanation: &proto::Explanation) -> String {
    let verdict = if explanation.matchable {
        "hit".to_owned()
    } else {
        format!("miss: {} ({})", explanation.reason, meaning(&explanation.reason))
    };
    let mut text = pairs(&[
        ("verdict", verdict),
        ("namespace", format!("{}, group {}", explanation.namespace, explanation.group)),
        ("key", explanation.key.clone()),
        ("position", explanation.position.map_or("-".to_owned(), |position| position.to_string())),
    ]);
    for note in &explanation.notes {
        text.push_str(&format!("note  {note}\n"));
    }
    if !explanation.copies.is_empty() {
        let rows = explanation
            .copies
            .iter()
            .map(|copy| vec![tier_name(copy.tier()), copy.state.clone(), copy.place.clone(), copy.held.to_string()]);
        text.push_str(&table(&["tier", "state", "place", "held"], rows));
        text.push('\n');
    }
    text
}

/// What a reason means to an operator.
fn meaning(name: &str) -> &'static str {
    let Some(reason) = MissReason::ALL.into_iter().find(|reason| reason.as_str() == name) else {
        return "no reason known";
    };
    match reason {
        MissReason::Cold => "never stored here, or stored under another namespace",
        MissReason::Evicted => "fell to make room; more capacity or `kvd pin` would keep it",
        MissReason::Corrupt => "its bytes did not verify and were dropped; see `kvd devices`",
        MissReason::Timeout => "did not land before the deadline",
        MissReason::TierDown => "the tier that holds it does not answer; see `kvd devices`",
        MissReason::SlowerThanRecompute => "computing again is faster than loading; see gate.enabled",
        MissReason::Quota => "the instance holds as much as it may; see lease.bytes_max",
        MissReason::LeaseLost => "the lease was gone before the load",
        MissReason::Device => "the engine's device did not copy it; see the engine's log",
    }
}
