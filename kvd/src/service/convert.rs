//! Plain replies of the core into messages, and back where an operator names something.

use kvd_proto::{BlockHash, Tier};
use tonic::Status;

use super::proto;
use super::refusal::bad_field;
use crate::config::{Loaded, effective};
use crate::core::admin::{
    CopyReply, DeviceReply, DeviceState, ExplainReply, LeaseReply, NamespaceReply, PAGE_ENTRIES_MAX, Page,
    SessionReply, TierReply,
};

pub(super) use object::object_tier;

mod object;

const PAGE_ENTRIES_DEFAULT: usize = 100;

pub(super) fn tier(tier: Tier) -> proto::Tier {
    match tier {
        Tier::Hbm => proto::Tier::Hbm,
        Tier::Dram => proto::Tier::Dram,
        Tier::Nvme => proto::Tier::Nvme,
        Tier::Object => proto::Tier::Object,
        Tier::Peer => proto::Tier::Peer,
    }
}

/// The tier of a request; `None` where none is named.
pub(super) fn asked_tier(value: i32) -> Result<Option<Tier>, Status> {
    match proto::Tier::try_from(value) {
        Ok(proto::Tier::Unspecified) => Ok(None),
        Ok(proto::Tier::Hbm) => Ok(Some(Tier::Hbm)),
        Ok(proto::Tier::Dram) => Ok(Some(Tier::Dram)),
        Ok(proto::Tier::Nvme) => Ok(Some(Tier::Nvme)),
        Ok(proto::Tier::Object) => Ok(Some(Tier::Object)),
        Ok(proto::Tier::Peer) => Ok(Some(Tier::Peer)),
        Err(_) => Err(bad_field("tier", format!("{value} is no tier"))),
    }
}

pub(super) fn hash(text: &str) -> Result<BlockHash, Status> {
    text.parse().map_err(|error| bad_field("hash", format!("`{text}`: {error}")))
}

pub(super) fn page(page_size: u32, page_token: &str) -> Result<Page, Status> {
    let offset = match page_token {
        "" => 0,
        text => {
            text.parse().map_err(|_| bad_field("page_token", format!("`{text}` was not given out by this service")))?
        }
    };
    let limit = match page_size {
        0 => PAGE_ENTRIES_DEFAULT,
        size => usize::try_from(size).unwrap_or(PAGE_ENTRIES_MAX).min(PAGE_ENTRIES_MAX),
    };
    Ok(Page { offset, limit })
}

/// The token of the page after `page`, of which `got` entries came.
pub(super) fn next_page(page: Page, got: usize, total: usize) -> String {
    let next = page.offset.saturating_add(got);
    if got == 0 || next >= total { String::new() } else { next.to_string() }
}

pub(super) fn tier_status(reply: TierReply) -> proto::TierStatus {
    proto::TierStatus {
        tier: tier(reply.tier).into(),
        capacity_bytes: reply.capacity_bytes,
        used_bytes: reply.used_bytes,
        records: reply.records,
        held_records: reply.held_records,
        evicted: reply.evicted,
        read_bytes_per_second: reply.read_bytes_per_second,
        write_bytes_per_second: reply.write_bytes_per_second,
    }
}

pub(super) fn device_status(reply: DeviceReply) -> proto::DeviceStatus {
    let state = match reply.state {
        DeviceState::Ok => proto::DeviceState::Ok,
        DeviceState::ReadOnly => proto::DeviceState::ReadOnly,
        DeviceState::Failed => proto::DeviceState::Failed,
    };
    proto::DeviceStatus {
        device: reply.device.into(),
        path: reply.path,
        state: state.into(),
        io: reply.io.to_owned(),
        capacity_bytes: reply.capacity_bytes,
        queued: reply.queued,
        read_bytes: reply.read_bytes,
        written_bytes: reply.written_bytes,
        errors: reply.errors,
        last_error: reply.last_error.unwrap_or_default(),
    }
}

pub(super) fn namespace_status(reply: NamespaceReply) -> proto::NamespaceStatus {
    proto::NamespaceStatus {
        digest: reply.digest.to_string(),
        model: reply.model,
        block_tokens: reply.block_tokens,
        views: reply.views,
        records: reply.records,
    }
}

pub(super) fn session_status(reply: SessionReply) -> proto::SessionStatus {
    proto::SessionStatus {
        session: reply.session,
        client_slot: reply.client_slot.into(),
        instance: reply.instance.to_string(),
        client: reply.client_name,
        pid: reply.pid,
        uid: reply.uid,
        role: reply.role.to_owned(),
        version: reply.version,
        connected_seconds: reply.connected.as_secs(),
        requests: reply.requests,
        attached: reply.attached,
    }
}

pub(super) fn lease_status(reply: LeaseReply) -> proto::LeaseStatus {
    proto::LeaseStatus {
        lease: reply.lease,
        instance: reply.instance.to_string(),
        client_slot: reply.client_slot.into(),
        fill: reply.fill,
        blocks: reply.blocks,
        bytes: reply.bytes,
        age_seconds: reply.age.as_secs(),
    }
}

pub(super) fn explanation(reply: ExplainReply) -> proto::Explanation {
    let copy = |copy: CopyReply| proto::Copy {
        tier: tier(copy.tier).into(),
        state: copy.state,
        place: copy.place,
        held: copy.held,
    };
    proto::Explanation {
        namespace: reply.namespace.to_string(),
        group: reply.group.into(),
        key: reply.key.to_string(),
        matchable: reply.matchable,
        reason: reply.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        position: reply.position,
        copies: reply.copies.into_iter().map(copy).collect(),
        notes: reply.notes,
    }
}

/// The configuration in force as messages; `kvd config show` prints the same without a daemon.
pub fn config_values(loaded: &Loaded) -> Vec<proto::ConfigValue> {
    let values = effective(loaded).into_iter();
    values
        .map(|value| proto::ConfigValue { key: value.key, value: value.value, origin: value.origin.to_string() })
        .collect()
}
