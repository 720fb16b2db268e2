//! The described layout of a group: its plane table.
//!
//! The payload of a record is layer-major: for each layer of the shard, for each plane that has this layer, for each head
//! of the shard (all heads where the plane is replicated), one **unit**. A layer range is contiguous and a head range is
//! one run per layer and plane. Two planes of different unit size, or a geometry that cannot be described, are checksummed
//! in pieces of [`OPAQUE_UNIT_BYTES`] instead of per unit.

use std::ops::Range;

use thiserror::Error;

use crate::Shard;

/// The checksummed piece where there are no equal units.
pub const OPAQUE_UNIT_BYTES: u32 = 64 * 1024;

/// What a group caches, which decides what a hit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// Keys and values of every token; a hit is a prefix.
    FullAttention,
    /// Compressed latents of every token.
    Mla,
    /// Only the trailing tokens count.
    SlidingWindow {
        /// How many.
        tokens: u32,
    },
    /// Recurrent state: only the last block counts.
    State,
    /// The index that a sparse attention selects with.
    Indexer,
}

/// The order of the bytes within a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnitOrder {
    /// token, then key or value, then dimension.
    TokenKvDim,
    /// key or value, then token, then dimension.
    KvTokenDim,
    /// Known to the engine only.
    Opaque,
}

/// Whether ranks split the heads of a plane or each hold them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharding {
    /// Each rank holds its range of heads.
    Sharded,
    /// Each rank holds every head.
    Replicated,
}

/// One array of a group: so many layers of so many heads of equal units.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Plane {
    /// The engine's name for it, at most 64 bytes.
    pub name: String,
    /// Layers `0..layers` of the group have this plane.
    pub layers: u16,
    /// Heads per layer.
    pub heads: u16,
    /// Bytes of one head of one layer for a whole block, scales included.
    pub unit_bytes: u32,
    /// The order within a unit.
    pub unit_order: UnitOrder,
    /// Elements per token of the key part.
    pub k_dim: u16,
    /// Elements per token of the value part.
    pub v_dim: u16,
    /// How many of the unit's bytes, at its end, are scales.
    pub scales_bytes: u32,
    /// Who holds which heads.
    pub sharding: Sharding,
}

/// One kind of cache of a model and its layout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupSpec {
    /// What it caches.
    pub kind: GroupKind,
    /// Its arrays, at most 16.
    pub planes: Vec<Plane>,
    /// What the planes cannot say, as the engine writes it, at most 4096 bytes. Makes the namespace another one.
    pub geometry: Option<Vec<u8>>,
}

/// The checksummed pieces of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    /// How many there are.
    pub count: u32,
    /// Bytes of each; the last may be shorter where pieces are not the layout's own units.
    pub unit_bytes: u32,
}

/// A shard that does not fit its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Layers or heads that no plane has.
    #[error("the shard reaches beyond the planes of its group")]
    Beyond,
    /// Units whose bytes do not divide among the interleaved ranks.
    #[error("units of {unit_bytes} bytes cannot be split among {of} interleaved ranks")]
    Interleave {
        /// Bytes of a whole unit.
        unit_bytes: u32,
        /// The ranks.
        of: u16,
    },
    /// A payload beyond 4 GiB.
    #[error("the payload of the shard exceeds 4 GiB")]
    Size,
}

impl GroupSpec {
    /// Bytes of the payload that `shard` holds of one block.
    pub fn record_bytes(&self, shard: &Shard) -> Result<u32, LayoutError> {
        let mut bytes = 0u64;
        let (layers, heads) = (shard.layers(), shard.heads());
        let most_layers = self.planes.iter().map(|plane| plane.layers).max().unwrap_or(0);
        let most_heads = self.planes.iter().map(|plane| plane.heads).max().unwrap_or(0);
        if layers.end > most_layers || heads.end > most_heads {
            return Err(LayoutError::Beyond);
        }
        for plane in &self.planes {
            // At most 2^32 units of less than 2^32 bytes each: only the sum can leave 64 bits.
            let plane_bytes = plane.units(shard) * u64::from(plane.unit_bytes_of(shard)?);
            bytes = bytes.checked_add(plane_bytes).ok_or(LayoutError::Size)?;
        }
        match u32::try_from(bytes) {
            Ok(0) => Err(LayoutError::Beyond),
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(LayoutError::Size),
        }
    }

    /// The checksummed pieces of that payload.
    pub fn units(&self, shard: &Shard) -> Result<Units, LayoutError> {
        let bytes = self.record_bytes(shard)?;
        let unit_bytes = match self.unit(shard) {
            Some(plane) => plane.unit_bytes_of(shard)?,
            None => OPAQUE_UNIT_BYTES,
        };
        Ok(Units { count: bytes.div_ceil(unit_bytes), unit_bytes })
    }

    /// Whether the checksummed pieces of this shard's records are the layout's own units.
    pub fn has_units(&self, shard: &Shard) -> bool {
        self.unit(shard).is_some()
    }

    /// The first unit of each layer in the records of a shard, and one past the last; `None` where they have no units.
    pub fn layer_units(&self, shard: &Shard) -> Option<Vec<u32>> {
        self.unit(shard)?;
        let (mut firsts, mut units) = (vec![0], 0u32);
        for layer in shard.layers() {
            let planes = self.planes.iter().filter(|plane| layer < plane.layers);
            let count: usize = planes.map(|plane| plane.heads_of(shard).len()).sum();
            units = units.checked_add(u32::try_from(count).ok()?)?;
            firsts.push(units);
        }
        Some(firsts)
    }

    /// A plane whose units all others have too.
    fn unit(&self, shard: &Shard) -> Option<&Plane> {
        let described =
            self.geometry.is_none() && self.planes.iter().all(|plane| plane.unit_order != UnitOrder::Opaque);
        let mut present = self.planes.iter().filter(|plane| described && plane.units(shard) > 0);
        present.next().filter(|first| present.all(|plane| plane.unit_bytes == first.unit_bytes))
    }
}

impl Plane {
    /// Units of this plane within `shard`.
    fn units(&self, shard: &Shard) -> u64 {
        let layers = shard.layers().end.min(self.layers).saturating_sub(shard.layers().start);
        u64::from(layers) * self.heads_of(shard).len() as u64
    }

    /// The heads that a shard has of this plane.
    pub(crate) fn heads_of(&self, shard: &Shard) -> Range<u16> {
        match self.sharding {
            Sharding::Sharded => shard.heads().start..shard.heads().end.min(self.heads),
            Sharding::Replicated => 0..self.heads,
        }
    }

    /// Bytes that one rank of the interleave holds of a unit.
    fn unit_bytes_of(&self, shard: &Shard) -> Result<u32, LayoutError> {
        let of = shard.interleave().of();
        if self.unit_bytes == 0 || !self.unit_bytes.is_multiple_of(u32::from(of)) {
            return Err(LayoutError::Interleave { unit_bytes: self.unit_bytes, of });
        }
        Ok(self.unit_bytes / u32::from(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interleave;

    fn plane(layers: u16, heads: u16, unit_bytes: u32, sharding: Sharding) -> Plane {
        Plane {
            name: "kv".into(),
            layers,
            heads,
            unit_bytes,
            unit_order: UnitOrder::TokenKvDim,
            k_dim: 128,
            v_dim: 128,
            scales_bytes: 0,
            sharding,
        }
    }

    fn group(planes: Vec<Plane>) -> GroupSpec {
        GroupSpec { kind: GroupKind::FullAttention, planes, geometry: None }
    }

    #[test]
    fn llama_8b_block_is_two_mebibytes() {
        // 16 tokens, K and V of 128 BF16 elements per head.
        let group = group(vec![plane(32, 8, 16 * 2 * 128 * 2, Sharding::Sharded)]);
        let whole = Shard::whole(32, 8).unwrap();
        assert_eq!(group.record_bytes(&whole), Ok(2 << 20));
        assert_eq!(group.units(&whole), Ok(Units { count: 256, unit_bytes: 8192 }));
        let rank = Shard::new(16..32, 2..4, Interleave::new(1, 2).unwrap()).unwrap();
        assert_eq!(group.units(&rank), Ok(Units { count: 32, unit_bytes: 4096 }));
        assert_eq!(group.layer_units(&rank), Some((0..=16).map(|layer| 2 * layer).collect()));
    }

    #[test]
    fn replicated_planes_count_whole_and_unequal_units_are_opaque() {
        let group = group(vec![plane(4, 8, 8192, Sharding::Sharded), plane(4, 1, 100_000, Sharding::Replicated)]);
        let rank = Shard::new(0..4, 6..8, Interleave::WHOLE).unwrap();
        assert_eq!(group.record_bytes(&rank), Ok(4 * (2 * 8192 + 100_000)));
        assert_eq!(group.units(&rank), Ok(Units { count: 8, unit_bytes: OPAQUE_UNIT_BYTES }));
    }

    #[test]
    fn payloads_beyond_all_bounds_are_refused() {
        let huge = || plane(u16::MAX, u16::MAX, u32::MAX, Sharding::Sharded);
        let whole = Shard::whole(u16::MAX, u16::MAX).unwrap();
        for planes in 1..=16 {
            let group = group((0..planes).map(|_| huge()).collect());
            assert_eq!(group.record_bytes(&whole), Err(LayoutError::Size));
            assert_eq!(group.units(&whole), Err(LayoutError::Size));
        }
    }

    #[test]
    fn shards_beyond_the_planes_are_refused() {
        let group = group(vec![plane(4, 8, 8192, Sharding::Sharded)]);
        assert_eq!(group.record_bytes(&Shard::whole(5, 8).unwrap()), Err(LayoutError::Beyond));
        assert_eq!(group.record_bytes(&Shard::whole(4, 9).unwrap()), Err(LayoutError::Beyond));
        let thirds = Shard::new(0..4, 0..8, Interleave::new(0, 3).unwrap()).unwrap();
        assert_eq!(group.record_bytes(&thirds), Err(LayoutError::Interleave { unit_bytes: 8192, of: 3 }));
    }
}
