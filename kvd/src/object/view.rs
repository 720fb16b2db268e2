//! What an operator sees of the tier, put together from what its parts know. Waits for nothing: the core asks.

use std::sync::Arc;
use std::time::Instant;

use kvd_proto::{NamespaceDigest, Shard, Tier};
use kvd_tiers::ladder::ObjectStats;

use super::spending::Spent;
use super::store::{Op, StoreState};
use super::tier::Shared;
use crate::core::admin::{CostReply, ObjectTierReply, RequestsReply, StoreCondition, StoreSpeedReply};

/// Looks at the tier.
pub(crate) struct View {
    shared: Arc<Shared>,
}

impl View {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The shards that packs hold records of a group of, as far as this node has learned of them.
    pub(crate) fn shards(&self, namespace: &NamespaceDigest, group: u16) -> Vec<Shard> {
        self.shared.catalog.shards(&self.shared.realm(namespace), group)
    }

    /// The tier as it stands; `ladder` is what the core knows of it.
    pub(crate) fn reply(&self, ladder: &ObjectStats) -> ObjectTierReply {
        let Shared { options, store, .. } = &*self.shared;
        let now = Instant::now();
        let counters = self.shared.counters();
        let all = self.shared.all_counters();
        let counted = store.counters();
        let trouble = store.trouble();
        let outcomes = counted.outcomes().filter(|(_, _, count)| *count > 0);
        ObjectTierReply {
            url: options.url.to_string(),
            endpoint: options.endpoint.clone(),
            node: self.shared.node.to_string(),
            writable: options.writable,
            condition: match store.state() {
                StoreState::Up => StoreCondition::Up,
                StoreState::Trying => StoreCondition::Trying,
                StoreState::Down { .. } => StoreCondition::Down,
            },
            failing: trouble.as_ref().map(|(since, _)| now.saturating_duration_since(*since)),
            last_error: trouble.map(|(_, why)| why),
            reads: store.admits(Op::Get) && store.admits(Op::List),
            writes: options.writable && store.admits(Op::Put) && self.shared.sharing.is_ready(),
            share_bytes: options.share_bytes,
            own_bytes: counters.own_bytes.get(),
            own_packs: counters.own_packs.get(),
            own_records: counters.own_records.get(),
            known_packs: counters.packs.get(),
            known_records: counters.records.get(),
            nodes: counters.nodes.get(),
            buffered_bytes: counters.buffered_bytes.get(),
            waiting_records: u64::from(ladder.upload_queue) + u64::from(ladder.putting),
            fetching_records: u64::from(ladder.getting),
            requests: outcomes.map(|(op, outcome, count)| RequestsReply { op: op.label(), outcome, count }).collect(),
            bytes_up: counted.bytes_up.get(),
            bytes_down: counted.bytes_down.get(),
            retries: counted.retries.get(),
            retries_saved: counted.retries_saved.get(),
            hedges: counted.hedges.get(),
            hit_blocks: all.hits(Tier::Object).get(),
            loaded_records: counters.records_got.get(),
            missing_records: counters.records_missing.get(),
            corrupt_records: all.corrupt(Tier::Object).get(),
            packs_uploaded: counters.packs_put.get(),
            packs_given_up: counters.packs_dropped.get(),
            packs_evicted: counters.packs_evicted.get(),
            packs_expired: counters.packs_expired.get(),
            packs_idle: counters.packs_idle.get(),
            orphans_collected: counters.orphans_collected.get(),
            speed: self.speed(ladder),
            cost: self.cost(now),
        }
    }

    fn speed(&self, ladder: &ObjectStats) -> StoreSpeedReply {
        let measured = self.shared.store.speed();
        StoreSpeedReply {
            gate_bytes_per_second: ladder.read_bytes_per_second,
            gate_latency: ladder.read_latency,
            first_byte: measured.first_byte.unwrap_or_default(),
            first_byte_p95: measured.first_byte_p95.unwrap_or_default(),
            body_bytes_per_second: measured.bytes_per_second.unwrap_or(0),
        }
    }

    fn cost(&self, now: Instant) -> CostReply {
        let spent = Spent::of(self.shared.store.counters());
        let (window, day) = self.shared.spending.per_day(now, spent);
        CostReply {
            window,
            put_list_per_day: day.put_list,
            get_head_per_day: day.get_head,
            delete_per_day: day.delete,
            bytes_up_per_day: day.bytes_up,
            bytes_down_per_day: day.bytes_down,
            stored_bytes: self.shared.counters().own_bytes.get(),
        }
    }
}
