//! The canonical encoding of a namespace, version 1. All numbers little-endian; `text` and `bytes` are a `u16` length and
//! so many bytes.
//!
//! ```text
//! "kvdns" 5 B, version u8 = 1
//! model text, weights_digest 32 B, kv_dtype text, scale_scheme text, hash_algorithm text, hash_seed bytes
//! lora: u8 0 | u8 1, text
//! block_tokens u32, groups u16, then per group:
//!   kind u8 (1 full attention, 2 MLA, 3 sliding window + tokens u32, 4 state, 5 indexer)
//!   geometry: u8 0 | u8 1, bytes
//!   planes u16, then per plane:
//!     name text, layers u16, heads u16, unit_bytes u32, unit_order u8 (1 token-kv-dim, 2 kv-token-dim, 3 opaque),
//!     k_dim u16, v_dim u16, scales_bytes u32, sharding u8 (1 sharded, 2 replicated)
//! ```

use crate::codec::{Reader, Short};
use crate::{GroupKind, GroupSpec, NAMESPACE_BYTES_MAX, Namespace, NamespaceError, Plane, Sharding, UnitOrder};

const MAGIC: &[u8; 6] = b"kvdns\x01";
const GROUPS_MAX: usize = 32;
const PLANES_MAX: usize = 16;
const GEOMETRY_BYTES_MAX: usize = 4096;
const BLOCK_TOKENS_MAX: u32 = 65536;

impl From<Short> for NamespaceError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// What a text or byte field may hold.
#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    min: usize,
    max: usize,
}

const MODEL: Field = Field { name: "model", min: 1, max: 256 };
const KV_DTYPE: Field = Field { name: "kv_dtype", min: 1, max: 64 };
const SCALE_SCHEME: Field = Field { name: "scale_scheme", min: 0, max: 64 };
const HASH_ALGORITHM: Field = Field { name: "hash_algorithm", min: 1, max: 64 };
const HASH_SEED: Field = Field { name: "hash_seed", min: 0, max: 64 };
const LORA: Field = Field { name: "lora", min: 1, max: 256 };
const GEOMETRY: Field = Field { name: "geometry", min: 0, max: GEOMETRY_BYTES_MAX };
const PLANE_NAME: Field = Field { name: "plane.name", min: 1, max: 64 };

pub(super) fn encode(namespace: &Namespace) -> Result<Vec<u8>, NamespaceError> {
    let mut out = MAGIC.to_vec();
    put(&mut out, MODEL, namespace.model.as_bytes())?;
    out.extend(namespace.weights_digest);
    put(&mut out, KV_DTYPE, namespace.kv_dtype.as_bytes())?;
    put(&mut out, SCALE_SCHEME, namespace.scale_scheme.as_bytes())?;
    put(&mut out, HASH_ALGORITHM, namespace.hash_algorithm.as_bytes())?;
    put(&mut out, HASH_SEED, &namespace.hash_seed)?;
    put_option(&mut out, LORA, namespace.lora.as_ref().map(String::as_bytes))?;
    check("block_tokens", (1..=BLOCK_TOKENS_MAX).contains(&namespace.block_tokens))?;
    out.extend(namespace.block_tokens.to_le_bytes());
    check("groups", (1..=GROUPS_MAX).contains(&namespace.groups.len()))?;
    out.extend((namespace.groups.len() as u16).to_le_bytes());
    for group in &namespace.groups {
        put_group(&mut out, group)?;
    }
    check("size", out.len() <= NAMESPACE_BYTES_MAX)?;
    Ok(out)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Namespace, NamespaceError> {
    check("size", bytes.len() <= NAMESPACE_BYTES_MAX)?;
    let mut from = Reader::new(bytes);
    if from.array::<6>().ok().as_ref() != Some(MAGIC) {
        return Err(NamespaceError::Version);
    }
    let model = take_text(&mut from, MODEL)?;
    let weights_digest = from.array()?;
    let kv_dtype = take_text(&mut from, KV_DTYPE)?;
    let scale_scheme = take_text(&mut from, SCALE_SCHEME)?;
    let hash_algorithm = take_text(&mut from, HASH_ALGORITHM)?;
    let hash_seed = take(&mut from, HASH_SEED)?.to_vec();
    let lora = if take_flag(&mut from, LORA.name)? { Some(take_text(&mut from, LORA)?) } else { None };
    let block_tokens = from.u32()?;
    check("block_tokens", (1..=BLOCK_TOKENS_MAX).contains(&block_tokens))?;
    let count = usize::from(from.u16()?);
    check("groups", (1..=GROUPS_MAX).contains(&count))?;
    let groups = (0..count).map(|_| take_group(&mut from)).collect::<Result<_, _>>()?;
    if !from.is_empty() {
        return Err(NamespaceError::Trailing);
    }
    Ok(Namespace {
        model,
        weights_digest,
        kv_dtype,
        scale_scheme,
        hash_algorithm,
        hash_seed,
        lora,
        block_tokens,
        groups,
    })
}

fn put_group(out: &mut Vec<u8>, group: &GroupSpec) -> Result<(), NamespaceError> {
    match group.kind {
        GroupKind::FullAttention => out.push(1),
        GroupKind::Mla => out.push(2),
        GroupKind::SlidingWindow { tokens } => {
            out.push(3);
            out.extend(tokens.to_le_bytes());
        }
        GroupKind::State => out.push(4),
        GroupKind::Indexer => out.push(5),
    }
    put_option(out, GEOMETRY, group.geometry.as_deref())?;
    check("planes", (1..=PLANES_MAX).contains(&group.planes.len()))?;
    out.extend((group.planes.len() as u16).to_le_bytes());
    for plane in &group.planes {
        check_plane(plane)?;
        put(out, PLANE_NAME, plane.name.as_bytes())?;
        out.extend(plane.layers.to_le_bytes());
        out.extend(plane.heads.to_le_bytes());
        out.extend(plane.unit_bytes.to_le_bytes());
        out.push(match plane.unit_order {
            UnitOrder::TokenKvDim => 1,
            UnitOrder::KvTokenDim => 2,
            UnitOrder::Opaque => 3,
        });
        out.extend(plane.k_dim.to_le_bytes());
        out.extend(plane.v_dim.to_le_bytes());
        out.extend(plane.scales_bytes.to_le_bytes());
        out.push(match plane.sharding {
            Sharding::Sharded => 1,
            Sharding::Replicated => 2,
        });
    }
    Ok(())
}

fn take_group(from: &mut Reader<'_>) -> Result<GroupSpec, NamespaceError> {
    let kind = match from.u8()? {
        1 => GroupKind::FullAttention,
        2 => GroupKind::Mla,
        3 => GroupKind::SlidingWindow { tokens: from.u32()? },
        4 => GroupKind::State,
        5 => GroupKind::Indexer,
        _ => return Err(NamespaceError::Code("kind")),
    };
    let geometry = if take_flag(from, GEOMETRY.name)? { Some(take(from, GEOMETRY)?.to_vec()) } else { None };
    let count = usize::from(from.u16()?);
    check("planes", (1..=PLANES_MAX).contains(&count))?;
    let planes = (0..count).map(|_| take_plane(from)).collect::<Result<_, _>>()?;
    Ok(GroupSpec { kind, planes, geometry })
}

fn take_plane(from: &mut Reader<'_>) -> Result<Plane, NamespaceError> {
    let plane = Plane {
        name: take_text(from, PLANE_NAME)?,
        layers: from.u16()?,
        heads: from.u16()?,
        unit_bytes: from.u32()?,
        unit_order: match from.u8()? {
            1 => UnitOrder::TokenKvDim,
            2 => UnitOrder::KvTokenDim,
            3 => UnitOrder::Opaque,
            _ => return Err(NamespaceError::Code("unit_order")),
        },
        k_dim: from.u16()?,
        v_dim: from.u16()?,
        scales_bytes: from.u32()?,
        sharding: match from.u8()? {
            1 => Sharding::Sharded,
            2 => Sharding::Replicated,
            _ => return Err(NamespaceError::Code("sharding")),
        },
    };
    check_plane(&plane)?;
    Ok(plane)
}

fn check_plane(plane: &Plane) -> Result<(), NamespaceError> {
    check("plane.layers", plane.layers > 0)?;
    check("plane.heads", plane.heads > 0)?;
    check("plane.unit_bytes", plane.unit_bytes > 0)?;
    check("plane.scales_bytes", plane.scales_bytes <= plane.unit_bytes)
}

fn check(field: &'static str, holds: bool) -> Result<(), NamespaceError> {
    if holds { Ok(()) } else { Err(NamespaceError::Bounds(field)) }
}

fn put(out: &mut Vec<u8>, field: Field, bytes: &[u8]) -> Result<(), NamespaceError> {
    check(field.name, (field.min..=field.max).contains(&bytes.len()))?;
    out.extend((bytes.len() as u16).to_le_bytes());
    out.extend(bytes);
    Ok(())
}

fn put_option(out: &mut Vec<u8>, field: Field, bytes: Option<&[u8]>) -> Result<(), NamespaceError> {
    out.push(u8::from(bytes.is_some()));
    bytes.map_or(Ok(()), |bytes| put(out, field, bytes))
}

fn take<'a>(from: &mut Reader<'a>, field: Field) -> Result<&'a [u8], NamespaceError> {
    let len = usize::from(from.u16()?);
    check(field.name, (field.min..=field.max).contains(&len))?;
    Ok(from.take(len)?)
}

fn take_text(from: &mut Reader<'_>, field: Field) -> Result<String, NamespaceError> {
    let bytes = take(from, field)?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| NamespaceError::Bounds(field.name))
}

fn take_flag(from: &mut Reader<'_>, field: &'static str) -> Result<bool, NamespaceError> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(NamespaceError::Code(field)),
    }
}

#[cfg(test)]
mod tests;
