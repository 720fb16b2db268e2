//! Which part of a block one rank holds.

use std::ops::Range;

use thiserror::Error;

/// The length of an encoded [`Shard`].
pub const SHARD_BYTES: usize = 12;

/// Coverage across interleaves is decided token class by token class; more classes than this count as not covered.
const INTERLEAVE_CLASSES_MAX: u32 = 4096;

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

/// Whether the shards of `set` together hold everything that `ask` wants. Errs towards `false`, which is a miss.
pub fn covers(set: &[Shard], ask: &Shard) -> bool {
    if set.iter().any(|shard| shard == ask) {
        return true;
    }
    let classes =
        set.iter().try_fold(u32::from(ask.interleave.of), |all, shard| least_common_multiple(all, shard.interleave.of));
    let Some(classes) = classes else { return false };
    let layers = cuts(&ask.layers, set.iter().map(|shard| &shard.layers));
    let heads = cuts(&ask.heads, set.iter().map(|shard| &shard.heads));
    let step = usize::from(ask.interleave.of);
    (u32::from(ask.interleave.index)..classes).step_by(step).all(|class| {
        layers.windows(2).all(|layer| {
            heads.windows(2).all(|head| {
                set.iter().any(|shard| {
                    shard.layers.start <= layer[0]
                        && layer[1] <= shard.layers.end
                        && shard.heads.start <= head[0]
                        && head[1] <= shard.heads.end
                        && class % u32::from(shard.interleave.of) == u32::from(shard.interleave.index)
                })
            })
        })
    })
}

/// The borders of `ask` and those of the `others` that lie within it, ascending.
fn cuts<'a>(ask: &Range<u16>, others: impl Iterator<Item = &'a Range<u16>>) -> Vec<u16> {
    let mut borders: Vec<u16> =
        others.flat_map(|range| [range.start, range.end]).filter(|at| ask.contains(at)).collect();
    borders.extend([ask.start, ask.end]);
    borders.sort_unstable();
    borders.dedup();
    borders
}

fn least_common_multiple(a: u32, b: u16) -> Option<u32> {
    let b = u32::from(b);
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).checked_mul(b).filter(|&classes| classes <= INTERLEAVE_CLASSES_MAX)
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

    fn holds(shard: &Shard, layer: u16, head: u16, token: u16) -> bool {
        shard.layers.contains(&layer)
            && shard.heads.contains(&head)
            && token % shard.interleave.of == shard.interleave.index
    }

    proptest! {
        #[test]
        fn covers_equals_counting_cells(set in prop::collection::vec(shard(), 0..8), ask in shard()) {
            let plain = (0..8).all(|layer| (0..8).all(|head| (0..12).all(|token| {
                !holds(&ask, layer, head, token) || set.iter().any(|shard| holds(shard, layer, head, token))
            })));
            prop_assert_eq!(covers(&set, &ask), plain);
        }

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

    #[test]
    fn too_many_interleave_classes_are_a_miss() {
        let odd = |of| Shard::new(0..1, 0..1, Interleave::new(0, of).unwrap()).unwrap();
        assert!(!covers(&[odd(4093), odd(4091)], &odd(4079)));
    }
}
