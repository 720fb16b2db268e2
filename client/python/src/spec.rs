//! What an engine describes: the namespace of its blocks, and the part of them that one rank holds.

use kvd_client::{GroupKind, GroupSpec, Interleave, Sharding, UnitOrder};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::refused;

/// One array of a group: so many layers of so many heads of equal units.
#[pyclass(frozen, from_py_object)]
#[derive(Clone)]
pub(crate) struct Plane(kvd_client::Plane);

#[pymethods]
impl Plane {
    #[new]
    #[pyo3(signature = (name, *, layers, heads, unit_bytes, unit_order="token_kv_dim", k_dim=0, v_dim=0, scales_bytes=0, replicated=false))]
    #[expect(clippy::too_many_arguments, reason = "each has a name in Python")]
    fn new(
        name: String,
        layers: u16,
        heads: u16,
        unit_bytes: u32,
        unit_order: &str,
        k_dim: u16,
        v_dim: u16,
        scales_bytes: u32,
        replicated: bool,
    ) -> PyResult<Self> {
        let unit_order = match unit_order {
            "token_kv_dim" => UnitOrder::TokenKvDim,
            "kv_token_dim" => UnitOrder::KvTokenDim,
            "opaque" => UnitOrder::Opaque,
            other => return Err(unknown("unit_order", other, "token_kv_dim, kv_token_dim or opaque")),
        };
        let sharding = if replicated { Sharding::Replicated } else { Sharding::Sharded };
        Ok(Self(kvd_client::Plane {
            name,
            layers,
            heads,
            unit_bytes,
            unit_order,
            k_dim,
            v_dim,
            scales_bytes,
            sharding,
        }))
    }
}

/// One kind of cache of a model and its layout.
#[pyclass(frozen, from_py_object)]
#[derive(Clone)]
pub(crate) struct Group(pub(crate) GroupSpec);

#[pymethods]
impl Group {
    #[new]
    #[pyo3(signature = (planes, *, kind="full_attention", window_tokens=0, geometry=None))]
    fn new(planes: Vec<Plane>, kind: &str, window_tokens: u32, geometry: Option<Vec<u8>>) -> PyResult<Self> {
        let kind = match kind {
            "full_attention" => GroupKind::FullAttention,
            "mla" => GroupKind::Mla,
            "sliding_window" => GroupKind::SlidingWindow { tokens: window_tokens },
            "state" => GroupKind::State,
            "indexer" => GroupKind::Indexer,
            other => return Err(unknown("kind", other, "full_attention, mla, sliding_window, state or indexer")),
        };
        Ok(Self(GroupSpec { kind, planes: planes.into_iter().map(|plane| plane.0).collect(), geometry }))
    }

    /// Bytes of the payload that a shard holds of one block.
    fn record_bytes(&self, shard: &Shard) -> PyResult<u32> {
        self.0.record_bytes(&shard.0).map_err(refused)
    }
}

/// Everything that must agree before two blocks may be exchanged.
#[pyclass(frozen, from_py_object)]
#[derive(Clone)]
pub(crate) struct Namespace(pub(crate) kvd_client::Namespace);

#[pymethods]
impl Namespace {
    #[new]
    #[pyo3(signature = (model, *, weights_digest, kv_dtype, hash_algorithm, block_tokens, groups, hash_seed=vec![], scale_scheme=String::new(), lora=None))]
    #[expect(clippy::too_many_arguments, reason = "each has a name in Python")]
    fn new(
        model: String,
        weights_digest: [u8; 32],
        kv_dtype: String,
        hash_algorithm: String,
        block_tokens: u32,
        groups: Vec<Group>,
        hash_seed: Vec<u8>,
        scale_scheme: String,
        lora: Option<String>,
    ) -> PyResult<Self> {
        let groups = groups.into_iter().map(|group| group.0).collect();
        let namespace = kvd_client::Namespace {
            model,
            weights_digest,
            kv_dtype,
            scale_scheme,
            hash_algorithm,
            hash_seed,
            lora,
            block_tokens,
            groups,
        };
        // What breaks a bound is told here and not when the daemon is first asked.
        namespace.digest().map_err(refused)?;
        Ok(Self(namespace))
    }

    /// Its name on the daemon: 64 hexadecimal digits, as `kvd tiers` shows them.
    #[getter]
    fn digest(&self) -> PyResult<String> {
        self.0.digest().map(|digest| digest.to_string()).map_err(refused)
    }
}

/// The layers, heads and tokens of a block that one rank holds: half-open ranges, and every how many-th token.
#[pyclass(frozen, from_py_object)]
#[derive(Clone)]
pub(crate) struct Shard(pub(crate) kvd_client::Shard);

#[pymethods]
impl Shard {
    #[new]
    #[pyo3(signature = (layers, heads, *, interleave=(0, 1)))]
    fn new(layers: (u16, u16), heads: (u16, u16), interleave: (u16, u16)) -> PyResult<Self> {
        let interleave = Interleave::new(interleave.0, interleave.1).map_err(refused)?;
        kvd_client::Shard::new(layers.0..layers.1, heads.0..heads.1, interleave).map(Self).map_err(refused)
    }
}

pub(crate) fn unknown(what: &str, given: &str, known: &str) -> PyErr {
    PyValueError::new_err(format!("{what} is {known}, not {given:?}"))
}
