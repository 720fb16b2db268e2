//! Bytes that derive from a block's id, so that every byte that comes back can be checked without keeping any.

use kvd_proto::BlockHash;

/// The engine's hash of the block with this id: ids of a trace are chained already, so any injective map will do.
pub(in crate::cli) fn block_hash(id: u64) -> BlockHash {
    let hash = blake3::hash(&id.to_le_bytes());
    BlockHash::new(hash.as_bytes()).expect("32 bytes are a hash")
}

/// The words of block `id`: an arithmetic progression with a start and an odd step of its own, so two blocks differ in
/// (almost) every word and one pass at memory speed makes or checks them.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Words {
    next: u64,
    step: u64,
}

impl Words {
    /// Those of block `id`.
    pub(in crate::cli) fn of(id: u64) -> Self {
        let hash = blake3::hash(&id.to_le_bytes());
        let (words, _) = hash.as_bytes().as_chunks::<8>();
        Self { next: u64::from_le_bytes(words[0]), step: u64::from_le_bytes(words[1]) | 1 }
    }

    /// Fills `bytes`, a multiple of 8.
    pub(in crate::cli) fn fill(self, bytes: &mut [u8]) {
        let Self { mut next, step } = self;
        let (words, _) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = next.to_le_bytes();
            next = next.wrapping_add(step);
        }
    }

    /// Whether `bytes` are these, all of them.
    pub(in crate::cli) fn are(self, bytes: &[u8]) -> bool {
        let Self { mut next, step } = self;
        let (words, rest) = bytes.as_chunks::<8>();
        let mut differing = 0;
        for word in words {
            differing |= u64::from_le_bytes(*word) ^ next;
            next = next.wrapping_add(step);
        }
        differing == 0 && rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_counts() {
        let mut bytes = vec![0; 512];
        Words::of(7).fill(&mut bytes);
        assert!(Words::of(7).are(&bytes));
        assert!(!Words::of(8).are(&bytes));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!Words::of(7).are(&bytes), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
