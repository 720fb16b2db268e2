//! The engine's own hash of a block.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The longest hash in bytes; every engine known today uses at most this (SHA-256).
pub const HASH_BYTES_MAX: usize = 32;

/// The engine's chained hash of a block: opaque, 1 to 32 bytes. Two hashes of different length are different.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash {
    bytes: [u8; HASH_BYTES_MAX],
    len: u8,
}

/// Bytes or text that are no block hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BlockHashError {
    /// No bytes, or more than 32.
    #[error("a block hash has 1 to 32 bytes, not {0}")]
    Length(usize),
    /// The bytes behind the hash must be zero.
    #[error("the padding behind a {0}-byte block hash is not zero")]
    Padding(usize),
    /// Text that is not an even number of hexadecimal digits.
    #[error("a block hash is written in pairs of hexadecimal digits")]
    Digits,
}

impl BlockHash {
    /// The hash with these bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, BlockHashError> {
        if bytes.is_empty() || bytes.len() > HASH_BYTES_MAX {
            return Err(BlockHashError::Length(bytes.len()));
        }
        let mut padded = [0; HASH_BYTES_MAX];
        padded[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { bytes: padded, len: bytes.len() as u8 })
    }

    /// The hash of `len` bytes at the front of a slab entry. The rest of the entry must be zero.
    pub fn from_padded(padded: &[u8; HASH_BYTES_MAX], len: usize) -> Result<Self, BlockHashError> {
        if len == 0 || len > HASH_BYTES_MAX {
            return Err(BlockHashError::Length(len));
        }
        if padded[len..].iter().any(|&byte| byte != 0) {
            return Err(BlockHashError::Padding(len));
        }
        Ok(Self { bytes: *padded, len: len as u8 })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// Its bytes, zeros behind.
    #[inline]
    pub const fn padded(&self) -> [u8; HASH_BYTES_MAX] {
        self.bytes
    }

    /// Its length in bytes, 1 to 32.
    #[expect(clippy::len_without_is_empty, reason = "a hash is never empty")]
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHash({self})")
    }
}

impl FromStr for BlockHash {
    type Err = BlockHashError;

    fn from_str(text: &str) -> Result<Self, BlockHashError> {
        let digits = text.as_bytes();
        if digits.len() > 2 * HASH_BYTES_MAX {
            return Err(BlockHashError::Length(digits.len() / 2));
        }
        if !digits.len().is_multiple_of(2) {
            return Err(BlockHashError::Digits);
        }
        let mut bytes = [0; HASH_BYTES_MAX];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Self::new(&bytes[..digits.len() / 2])
    }
}

fn hex_digit(digit: u8) -> Result<u8, BlockHashError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(BlockHashError::Digits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_padding_round_trip(bytes in prop::collection::vec(any::<u8>(), 1..=32)) {
            let hash = BlockHash::new(&bytes).unwrap();
            prop_assert_eq!(hash.as_bytes(), &bytes[..]);
            prop_assert_eq!(hash.to_string().parse::<BlockHash>().unwrap(), hash);
            prop_assert_eq!(BlockHash::from_padded(&hash.padded(), bytes.len()).unwrap(), hash);
        }

        #[test]
        fn any_text_is_decoded_or_refused(text in ".{0,80}") {
            if let Ok(hash) = text.parse::<BlockHash>() {
                prop_assert_eq!(hash.to_string(), text.to_lowercase());
            }
        }
    }

    #[test]
    fn lengths_and_padding_are_checked() {
        assert_eq!(BlockHash::new(&[]), Err(BlockHashError::Length(0)));
        assert_eq!(BlockHash::new(&[1; 33]), Err(BlockHashError::Length(33)));
        assert_eq!(BlockHash::from_padded(&[1; 32], 31), Err(BlockHashError::Padding(31)));
        assert_eq!(BlockHash::from_padded(&[1; 32], 0), Err(BlockHashError::Length(0)));
        assert_ne!(BlockHash::new(&[1, 0]).unwrap(), BlockHash::new(&[1]).unwrap());
    }
}
