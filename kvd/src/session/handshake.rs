//! What a client says about itself, checked. No socket here, and no ladder.

use kvd_proto::wire::session::{
    FEATURE_SEGMENTS, FEATURE_SHARDS, FEATURE_TOKEN_IDS, Hello, OpenView, RefusalCode, Role, VERSION, VERSION_MIN,
};
use kvd_proto::{Epoch, HASH_BYTES_MAX, InstanceId, Namespace, Shard, Sharding, UnitOrder};
use kvd_tiers::ClientSlot;

use crate::session::{Refusal, ViewRequest};

/// What this daemon can do beyond version 1 as such.
const FEATURES: [&str; 3] = [FEATURE_TOKEN_IDS, FEATURE_SHARDS, FEATURE_SEGMENTS];
const FEATURES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 64;

/// A Hello that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) version: u32,
    pub(super) features: Vec<String>,
    pub(super) instance: InstanceId,
    pub(super) role: &'static str,
    pub(super) client_name: String,
    pub(super) replaces: Option<(Epoch, ClientSlot)>,
}

fn protocol(message: &'static str) -> Refusal {
    Refusal::new(RefusalCode::Protocol, message, "use a kvd-client of this or the previous version")
}

/// Finds the newest version that both speak and the features that both know.
pub(super) fn greet(hello: &Hello) -> Result<Greeting, Refusal> {
    let version = hello.version_max.min(VERSION);
    if version < hello.version_min.max(VERSION_MIN) {
        let message = format!(
            "no common version: the client speaks {} to {}, the daemon {VERSION_MIN} to {VERSION}",
            hello.version_min, hello.version_max
        );
        return Err(Refusal::new(RefusalCode::Version, message, "upgrade the older of the two"));
    }
    if hello.features.len() > FEATURES_MAX {
        return Err(protocol("too many features"));
    }
    if hello.client_name.len() > NAME_BYTES_MAX || hello.client_name.contains(char::is_control) {
        return Err(protocol("the client's name is too long or not printable"));
    }
    let instance = <[u8; 16]>::try_from(hello.instance.as_slice());
    let instance = instance.map_err(|_| protocol("an instance id has 16 bytes"))?;
    let role = match hello.role() {
        Role::Unspecified | Role::Engine => "engine",
        Role::Scheduler => "scheduler",
        Role::Worker => "worker",
    };
    let replaces = match hello.last_epoch {
        0 => None,
        epoch => {
            let client = u8::try_from(hello.last_client_slot).ok().and_then(ClientSlot::new);
            Some((Epoch::new(epoch), client.ok_or_else(|| protocol("there is no such client slot"))?))
        }
    };
    Ok(Greeting {
        version,
        features: FEATURES
            .iter()
            .filter(|known| hello.features.iter().any(|f| f == *known))
            .map(|&f| f.into())
            .collect(),
        instance: InstanceId::new(instance),
        role,
        client_name: hello.client_name.clone(),
        replaces,
    })
}

/// Checks a view's description and derives its sizes.
pub(super) fn describe(view: &OpenView) -> Result<ViewRequest, Refusal> {
    let layout = |message: String| Refusal::new(RefusalCode::Layout, message, "correct the described layout");
    let namespace = Namespace::decode(&view.namespace).map_err(|error| layout(error.to_string()))?;
    let digest = namespace.digest().map_err(|error| layout(error.to_string()))?;
    let group = u16::try_from(view.group).ok();
    let spec = group.and_then(|group| namespace.groups.get(usize::from(group)));
    let (Some(group), Some(spec)) = (group, spec) else {
        return Err(layout(format!("the namespace has no group {}", view.group)));
    };
    let Some(range) = &view.shard else { return Err(layout("the view has no shard".into())) };
    let shard = Shard::try_from(range).map_err(|error| layout(error.to_string()))?;
    let payload_bytes = spec.record_bytes(&shard).map_err(|error| layout(error.to_string()))?;
    let units = spec.units(&shard).map_err(|error| layout(error.to_string()))?;
    let hash_bytes = view.hash_bytes as usize;
    if hash_bytes == 0 || hash_bytes > HASH_BYTES_MAX {
        return Err(layout(format!("a block hash has 1 to 32 bytes, not {hash_bytes}")));
    }
    let mut orders = spec.planes.iter().map(|plane| plane.unit_order);
    let first = orders.next().unwrap_or(UnitOrder::Opaque);
    Ok(ViewRequest {
        namespace: digest,
        model: namespace.model,
        group,
        shard,
        payload_bytes,
        unit_bytes: units.unit_bytes,
        units: units.count,
        replicated: spec.planes.iter().any(|plane| plane.sharding == Sharding::Replicated),
        unit_order: if orders.all(|order| order == first) { first } else { UnitOrder::Opaque },
        block_tokens: namespace.block_tokens,
        token_ids: view.token_ids,
        hash_bytes,
        prefill_tokens_per_second: rate(view.prefill_tokens_per_second),
    })
}

/// A measured rate; what cannot be one is unknown.
pub(super) fn rate(tokens_per_second: f64) -> f64 {
    if tokens_per_second.is_finite() && tokens_per_second > 0.0 { tokens_per_second } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvd_proto::{GroupKind, GroupSpec, Plane};

    fn hello(min: u32, max: u32) -> Hello {
        Hello { version_min: min, version_max: max, instance: vec![1; 16], ..Hello::default() }
    }

    #[test]
    fn versions_meet_or_are_refused_with_both_ranges() {
        assert_eq!(greet(&hello(1, 1)).unwrap().version, 1);
        assert_eq!(greet(&hello(1, 9)).unwrap().version, 1);
        assert_eq!(greet(&hello(0, 1)).unwrap().version, 1);
        let refusal = greet(&hello(2, 9)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Version);
        assert!(refusal.message.contains("2 to 9"));
        assert_eq!(greet(&hello(0, 0)).unwrap_err().code, RefusalCode::Version);
    }

    #[test]
    fn unknown_features_are_ignored_and_shared_ones_kept() {
        let mut hello = hello(1, 1);
        hello.features = vec!["from_the_future".into(), "token_ids".into()];
        assert_eq!(greet(&hello).unwrap().features, ["token_ids"]);
    }

    #[test]
    fn nonsense_is_refused() {
        let with = |change: fn(&mut Hello)| {
            let mut hello = hello(1, 1);
            change(&mut hello);
            greet(&hello).unwrap_err().code
        };
        assert_eq!(with(|hello| hello.instance.truncate(15)), RefusalCode::Protocol);
        assert_eq!(with(|hello| hello.client_name = "x".repeat(65)), RefusalCode::Protocol);
        assert_eq!(with(|hello| hello.features = vec![String::new(); 65]), RefusalCode::Protocol);
        assert_eq!(with(|hello| (hello.last_epoch, hello.last_client_slot) = (1, 64)), RefusalCode::Protocol);
    }

    fn open_view() -> OpenView {
        let plane = Plane {
            name: "kv".into(),
            layers: 2,
            heads: 4,
            unit_bytes: 8192,
            unit_order: UnitOrder::TokenKvDim,
            k_dim: 128,
            v_dim: 128,
            scales_bytes: 0,
            sharding: Sharding::Sharded,
        };
        let namespace = Namespace {
            model: "m".into(),
            weights_digest: [1; 32],
            kv_dtype: "bf16".into(),
            scale_scheme: String::new(),
            hash_algorithm: "sha256".into(),
            hash_seed: vec![],
            lora: None,
            block_tokens: 16,
            groups: vec![GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None }],
        };
        OpenView {
            namespace: namespace.encode().unwrap(),
            shard: Some((&Shard::whole(2, 4).unwrap()).into()),
            hash_bytes: 32,
            prefill_tokens_per_second: f64::NAN,
            ..OpenView::default()
        }
    }

    #[test]
    fn views_are_sized_from_their_planes() {
        let view = describe(&open_view()).unwrap();
        assert_eq!((view.payload_bytes, view.units, view.unit_bytes), (65536, 8, 8192));
        assert_eq!(view.prefill_tokens_per_second, 0.0);
    }

    #[test]
    fn impossible_views_are_refused() {
        let with = |change: fn(&mut OpenView)| {
            let mut view = open_view();
            change(&mut view);
            describe(&view).unwrap_err().code
        };
        assert_eq!(with(|view| view.group = 1), RefusalCode::Layout);
        assert_eq!(with(|view| view.group = u32::MAX), RefusalCode::Layout);
        assert_eq!(with(|view| view.shard = None), RefusalCode::Layout);
        assert_eq!(with(|view| view.shard.as_mut().unwrap().layer_end = 3), RefusalCode::Layout);
        assert_eq!(with(|view| view.shard.as_mut().unwrap().head_end = 1 << 20), RefusalCode::Layout);
        assert_eq!(with(|view| view.shard.as_mut().unwrap().interleave_of = 0), RefusalCode::Layout);
        assert_eq!(with(|view| view.hash_bytes = 33), RefusalCode::Layout);
        assert_eq!(with(|view| view.namespace.truncate(9)), RefusalCode::Layout);
    }
}
