//! Which part of a block one rank holds.

use std::ops::Range;

use thiserror::Error;

/// The length of an encoded [`Shard`].
pub const SHARD_BYTES: usize = 12;

/// Which tokens of a block a rank holds: those at `position % of == index`. The whole block is `0 of 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interleave {
    index: u16,
    of: u16,
}

impl Interleave {
    /// All tokens.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// The tokens at `position % of == index`.
    pub const fn new(index: u16, of: u16) -> Result<Self, ShardError> {
        if of == 0 || index >= of {
            return Err(ShardError::Interleave { index, of });
        }
        Ok(Self { index, of })
    }

    /// Which of the classes.
    pub const fn index(self) -> u16 {
        self.index
    }

    /// How many classes there are.
    pub const fn of(self) -> u16 {
        self.of
    }
}

/// The (layer range, head range, token interleave) of a block that one rank holds. Ranges are never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shard {
    layers: Range<u16>,
    heads: Range<u16>,
    interleave: Interleave,
}

/// A description that is no shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ShardError {
    /// A range whose end does not lie behind its start.
    #[error("an empty range {start}..{end}")]
    Empty {
        /// First member.
        start: u16,
        /// First behind the members.
        end: u16,
    },
    /// A number that is no layer, head or class.
    #[error("{0} is beyond 65535")]
    Beyond(u32),
    /// A class beyond the number of classes.
    #[error("interleave {index} of {of}")]
    Interleave {
        /// Which class.
        index: u16,
        /// How many there are.
        of: u16,
    },
}

impl Shard {
    /// The shard of these layers, heads and tokens.
    pub fn new(layers: Range<u16>, heads: Range<u16>, interleave: Interleave) -> Result<Self, ShardError> {
        for range in [&layers, &heads] {
            if range.is_empty() {
                return Err(ShardError::Empty { start: range.start, end: range.end });
            }
        }
        Ok(Self { layers, heads, interleave })
    }

    /// All tokens of these layers and heads.
    pub fn whole(layers: u16, heads: u16) -> Result<Self, ShardError> {
        Self::new(0..layers, 0..heads, Interleave::WHOLE)
    }

    /// Its layers.
    pub fn layers(&self) -> Range<u16> {
        self.layers.clone()
    }

    /// Its heads.
    pub fn heads(&self) -> Range<u16> {
        self.heads.clone()
    }

    /// Its tokens.
    pub const fn interleave(&self) -> Interleave {
        self.interleave
    }

    /// Six little-endian `u16`: layers from and to, heads from and to, interleave index and count.
    pub fn to_bytes(&self) -> [u8; SHARD_BYTES] {
        let numbers = [
            self.layers.start,
            self.layers.end,
            self.heads.start,
            self.heads.end,
            self.interleave.index,
            self.interleave.of,
        ];
        let mut bytes = [0; SHARD_BYTES];
        for (pair, number) in bytes.chunks_exact_mut(2).zip(numbers) {
            pair.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The exact inverse of [`Shard::to_bytes`].
    pub fn from_bytes(bytes: &[u8; SHARD_BYTES]) -> Result<Self, ShardError> {
        let number = |at: usize| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
        Self::new(number(0)..number(1), number(2)..number(3), Interleave::new(number(4), number(5))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shard() -> impl Strategy<Value = Shard> {
        ((0u16..4, 1u16..4), (0u16..4, 1u16..4), 1u16..4).prop_flat_map(|((layer, layers), (head, heads), of)| {
            (0..of).prop_map(move |index| {
                let interleave = Interleave::new(index, of).unwrap();
                Shard::new(layer..layer + layers, head..head + heads, interleave).unwrap()
            })
        })
    }

    proptest! {
        #[test]
        fn bytes_round_trip(shard in shard()) {
            prop_assert_eq!(Shard::from_bytes(&shard.to_bytes()).unwrap(), shard);
        }

        #[test]
        fn any_bytes_are_decoded_exactly_or_refused(bytes in any::<[u8; SHARD_BYTES]>()) {
            if let Ok(shard) = Shard::from_bytes(&bytes) {
                prop_assert_eq!(shard.to_bytes(), bytes);
            }
        }
    }
}
