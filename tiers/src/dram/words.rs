//! The table as words: what a SIGKILL may leave behind, and how a reader knows.
//!
//! A killed process loses no store that it has executed, and its stores reach shared memory in program order (each is
//! a release store of one aligned 8-byte word). So the only states to fear are prefixes of a sequence of word stores.
//! [`seal`] orders them so that every prefix reads as the old content, the new content, or torn.

use kvd_nixl::ChecksumAlgorithm;

/// Memory made of aligned 8-byte words that are stored in program order.
pub(super) trait Words {
    /// The word at `index`.
    fn load(&self, index: usize) -> u64;
    /// Replaces the word at `index`, after every earlier store.
    fn store(&self, index: usize, value: u64);
    /// Sets bits of the word at `index` in one atomic step.
    fn set_bits(&self, index: usize, bits: u64);
    /// Clears bits of the word at `index` in one atomic step.
    fn clear_bits(&self, index: usize, bits: u64);
}

/// First word of an item whose writer has not finished. No item has it as its first word.
pub(super) const TORN: u64 = u64::MAX;

/// What [`unseal`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsealed<const N: usize> {
    /// Nothing was ever written here: all words are zero.
    Fresh,
    /// Half written, flipped, or from another place or time.
    Torn,
    /// As it was sealed.
    Whole([u64; N]),
}

/// Checksum of an item's words. Seeded, so that an item copied to another place or left from another time fails.
fn checksum(seed: u64, words: &[u64]) -> u64 {
    debug_assert!(words.len() <= ITEM_WORDS_MAX);
    let mut bytes = [0_u8; ITEM_WORDS_MAX * 8];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    ChecksumAlgorithm::Crc64Nvme.checksum(seed, &bytes[..words.len() * 8])
}

/// The largest item: a slot entry without its pins.
pub(super) const ITEM_WORDS_MAX: usize = 16;

/// Writes an item of `N` words at `at`; the last word is replaced by the checksum.
///
/// Order: torn mark, body, checksum, first word. Before the mark the old item is whole, after the last store the new
/// one is, in between the mark says torn whatever the checksum says.
pub(super) fn seal<const N: usize>(memory: &impl Words, at: usize, seed: u64, words: [u64; N]) {
    debug_assert!(words[0] != TORN);
    memory.store(at, TORN);
    for (index, word) in words.iter().enumerate().take(N - 1).skip(1) {
        memory.store(at + index, *word);
    }
    memory.store(at + N - 1, checksum(seed, &words[..N - 1]));
    memory.store(at, words[0]);
}

/// Reads an item of `N` words at `at`.
pub(super) fn unseal<const N: usize>(memory: &impl Words, at: usize, seed: u64) -> Unsealed<N> {
    let words: [u64; N] = std::array::from_fn(|index| memory.load(at + index));
    if words.iter().all(|word| *word == 0) {
        return Unsealed::Fresh;
    }
    if words[0] == TORN || words[N - 1] != checksum(seed, &words[..N - 1]) {
        return Unsealed::Torn;
    }
    Unsealed::Whole(words)
}

/// The two words of 16 opaque bytes.
pub(super) fn split(bytes: &[u8; 16]) -> [u64; 2] {
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| u64::from_le_bytes(half.try_into().expect("half of 16 bytes is 8")))
}

/// The inverse of [`split`].
pub(super) fn join(low: u64, high: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    bytes
}
