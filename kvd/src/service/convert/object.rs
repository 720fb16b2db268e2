//! The object tier into its message.

use crate::core::admin::{CostReply, ObjectTierReply, RequestsReply, StoreCondition, StoreSpeedReply};
use crate::service::proto;

pub(in crate::service) fn object_tier(reply: ObjectTierReply) -> proto::GetObjectTierResponse {
    let condition = match reply.condition {
        StoreCondition::Up => proto::StoreCondition::Up,
        StoreCondition::Trying => proto::StoreCondition::Trying,
        StoreCondition::Down => proto::StoreCondition::Down,
    };
    proto::GetObjectTierResponse {
        condition: condition.into(),
        failing_seconds: reply.failing.unwrap_or_default().as_secs(),
        last_error: reply.last_error.unwrap_or_default(),
        reads: reply.reads,
        writes: reply.writes,
        url: reply.url,
        endpoint: reply.endpoint.unwrap_or_default(),
        node: reply.node,
        writable: reply.writable,
        share_bytes: reply.share_bytes,
        own_bytes: reply.own_bytes,
        own_packs: reply.own_packs,
        own_records: reply.own_records,
        known_packs: reply.known_packs,
        known_records: reply.known_records,
        nodes: reply.nodes,
        buffered_bytes: reply.buffered_bytes,
        waiting_records: reply.waiting_records,
        fetching_records: reply.fetching_records,
        requests: reply.requests.into_iter().map(requests).collect(),
        bytes_up: reply.bytes_up,
        bytes_down: reply.bytes_down,
        retries: reply.retries,
        retries_saved: reply.retries_saved,
        hedges: reply.hedges,
        hit_blocks: reply.hit_blocks,
        loaded_records: reply.loaded_records,
        missing_records: reply.missing_records,
        corrupt_records: reply.corrupt_records,
        packs_uploaded: reply.packs_uploaded,
        packs_given_up: reply.packs_given_up,
        packs_evicted: reply.packs_evicted,
        packs_expired: reply.packs_expired,
        packs_idle: reply.packs_idle,
        orphans_collected: reply.orphans_collected,
        speed: Some(speed(reply.speed)),
        cost: Some(cost(reply.cost)),
    }
}

fn requests(reply: RequestsReply) -> proto::StoreRequests {
    proto::StoreRequests { op: reply.op.to_owned(), outcome: reply.outcome.to_owned(), count: reply.count }
}

fn speed(reply: StoreSpeedReply) -> proto::StoreSpeed {
    proto::StoreSpeed {
        gate_bytes_per_second: reply.gate_bytes_per_second,
        gate_latency_seconds: reply.gate_latency.as_secs_f64(),
        first_byte_seconds: reply.first_byte.as_secs_f64(),
        first_byte_p95_seconds: reply.first_byte_p95.as_secs_f64(),
        body_bytes_per_second: reply.body_bytes_per_second,
    }
}

fn cost(reply: CostReply) -> proto::StoreCost {
    proto::StoreCost {
        window_seconds: reply.window.as_secs_f64(),
        put_list_per_day: reply.put_list_per_day,
        get_head_per_day: reply.get_head_per_day,
        delete_per_day: reply.delete_per_day,
        bytes_up_per_day: reply.bytes_up_per_day,
        bytes_down_per_day: reply.bytes_down_per_day,
        stored_bytes: reply.stored_bytes,
    }
}
