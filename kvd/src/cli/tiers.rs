//! `kvd tiers`: all of them in a table, or one of them in full.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Connection;
use super::admin::Admin;
use super::exit::{Exit, Outcome};
use super::look::{rate, tiers_text};
use super::output::{Output, bytes, pairs, seconds, table};
use crate::service::proto::{self, StoreCondition};

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd tiers
  kvd tiers --json
  kvd tiers object                             the store, what is kept there, what a day of it costs
  kvd tiers object --json | jq .cost";

/// `kvd tiers`.
#[derive(Debug, Args)]
pub struct TiersArgs {
    #[command(flatten)]
    connection: Connection,
    /// Show this tier in full.
    tier: Option<TierInFull>,
}

/// A tier that has more to tell than a line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TierInFull {
    Object,
}

/// Runs it.
///
/// # Errors
/// The daemon does not answer, or has no such tier.
pub fn run(args: &TiersArgs, output: Output) -> Outcome {
    match args.tier {
        None => {
            let request = proto::ListTiersRequest {};
            let reply =
                args.connection.run(async |mut admin: Admin| Ok(admin.list_tiers(request).await?.into_inner()))?;
            output.show(&reply, |reply| tiers_text(&reply.tiers))?;
        }
        Some(TierInFull::Object) => {
            let request = proto::GetObjectTierRequest {};
            let reply =
                args.connection.run(async |mut admin: Admin| Ok(admin.get_object_tier(request).await?.into_inner()))?;
            output.show(&reply, object_text)?;
        }
    }
    Ok(Exit::Ok)
}

fn object_text(tier: &proto::GetObjectTierResponse) -> String {
    let used = if tier.share_bytes == 0 { 0.0 } else { 100.0 * tier.own_bytes as f64 / tier.share_bytes as f64 };
    let mut text = pairs(&[
        ("state", state(tier)),
        (
            "store",
            if tier.endpoint.is_empty() { tier.url.clone() } else { format!("{} at {}", tier.url, tier.endpoint) },
        ),
        ("node", if tier.writable { tier.node.clone() } else { format!("{}, which only reads", tier.node) }),
        (
            "share",
            format!(
                "{} of {} ({used:.1} %) in {} packs with {} records",
                bytes(tier.own_bytes),
                bytes(tier.share_bytes),
                tier.own_packs,
                tier.own_records
            ),
        ),
        (
            "known",
            format!("{} packs with about {} records; {} nodes write", tier.known_packs, tier.known_records, tier.nodes),
        ),
        ("waiting", format!("{} in packs, {} records to be packed", bytes(tier.buffered_bytes), tier.waiting_records)),
        (
            "packs",
            format!(
                "{} uploaded, {} given up; deleted: {} for room, {} by age, {} idle, {} orphans",
                tier.packs_uploaded,
                tier.packs_given_up,
                tier.packs_evicted,
                tier.packs_expired,
                tier.packs_idle,
                tier.orphans_collected
            ),
        ),
        (
            "served",
            format!(
                "{} blocks matched; {} records loaded, {} on their way, {} gone, {} corrupt",
                tier.hit_blocks, tier.loaded_records, tier.fetching_records, tier.missing_records, tier.corrupt_records
            ),
        ),
        ("moved", format!("{} up, {} down", bytes(tier.bytes_up), bytes(tier.bytes_down))),
        (
            "again",
            format!(
                "{} retries, {} more had no budget; {} slow reads asked for twice",
                tier.retries, tier.retries_saved, tier.hedges
            ),
        ),
    ]);
    text.push_str(&tier.speed.as_ref().map(speed).unwrap_or_default());
    text.push_str(&tier.cost.as_ref().map(cost).unwrap_or_default());
    if !tier.requests.is_empty() {
        let rows =
            tier.requests.iter().map(|asked| vec![asked.op.clone(), asked.outcome.clone(), asked.count.to_string()]);
        text.push('\n');
        text.push_str(&table(&["request", "outcome", "count"], rows));
    }
    text
}

fn state(tier: &proto::GetObjectTierResponse) -> String {
    let name = proto::plain_name(tier.condition().as_str_name(), "STORE_CONDITION_");
    let open = match (tier.reads, tier.writes) {
        (true, true) => "reads and writes",
        (true, false) => "only reads",
        (false, true) => "only writes",
        (false, false) => "neither reads nor writes",
    };
    match tier.condition() {
        StoreCondition::Unspecified | StoreCondition::Up => format!("{name}: {open}"),
        StoreCondition::Trying | StoreCondition::Down => {
            format!("{name}: {open}, for {}: {}", seconds(tier.failing_seconds), tier.last_error)
        }
    }
}

fn time(seconds: f64) -> String {
    if seconds <= 0.0 { "-".to_owned() } else { format!("{:.1} ms", seconds * 1000.0) }
}

fn speed(speed: &proto::StoreSpeed) -> String {
    pairs(&[(
        "speed  ",
        format!(
            "the gate reckons with {} and {} a record; first byte {}, 95 of 100 within {}; one body {}",
            rate(speed.gate_bytes_per_second),
            time(speed.gate_latency_seconds),
            time(speed.first_byte_seconds),
            time(speed.first_byte_p95_seconds),
            rate(speed.body_bytes_per_second)
        ),
    )])
}

fn cost(cost: &proto::StoreCost) -> String {
    let window = Duration::from_secs(cost.window_seconds as u64);
    pairs(&[(
        "cost   ",
        format!(
            "a day: {} PUT and LIST, {} GET and HEAD, {} DELETE, {} up, {} down; {} are kept (by the last {})",
            cost.put_list_per_day,
            cost.get_head_per_day,
            cost.delete_per_day,
            bytes(cost.bytes_up_per_day),
            bytes(cost.bytes_down_per_day),
            bytes(cost.stored_bytes),
            humantime::format_duration(window)
        ),
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_in_trouble_says_what_it_is_and_what_still_goes() {
        let tier = proto::GetObjectTierResponse {
            condition: StoreCondition::Down.into(),
            failing_seconds: 61,
            last_error: "status 403: AccessDenied".into(),
            reads: true,
            url: "s3://bucket/kv".into(),
            node: "00ff".into(),
            share_bytes: 200,
            own_bytes: 50,
            cost: Some(proto::StoreCost { window_seconds: 7200.4, put_list_per_day: 12, ..Default::default() }),
            speed: Some(proto::StoreSpeed { gate_latency_seconds: 0.0123, ..Default::default() }),
            requests: vec![proto::StoreRequests { op: "put".into(), outcome: "denied".into(), count: 3 }],
            ..Default::default()
        };
        let text = object_text(&tier);
        for line in [
            "state    down: only reads, for 1m 1s: status 403: AccessDenied\n",
            "node     00ff, which only reads\n",
            "(25.0 %) in 0 packs",
            "speed    the gate reckons with - and 12.3 ms a record; first byte -,",
            "cost     a day: 12 PUT and LIST, 0 GET and HEAD,",
            "(by the last 2h)\n",
            "put      denied",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
