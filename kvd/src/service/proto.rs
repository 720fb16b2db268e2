//! The generated types of kvd.admin.v1, and how their enums are named in JSON.

use serde::Serializer;

pub use generated::*;

#[expect(missing_docs, clippy::all, reason = "generated from admin.proto, which has the documentation")]
mod generated {
    tonic::include_proto!("kvd.admin.v1");
}

/// The file descriptor set, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/admin.descriptors"));

/// `TIER_DRAM` without its prefix, in lower case.
pub fn plain_name(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

macro_rules! name_in_json {
    ($($function:ident, $type:ident, $prefix:literal;)*) => {$(
        pub(super) fn $function<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
            let value = $type::try_from(*value).unwrap_or_default();
            serializer.serialize_str(&plain_name(value.as_str_name(), $prefix))
        }
    )*};
}
name_in_json! {
    daemon_state_name, DaemonState, "DAEMON_STATE_";
    tier_name, Tier, "TIER_";
    device_state_name, DeviceState, "DEVICE_STATE_";
    store_condition_name, StoreCondition, "STORE_CONDITION_";
}
