//! Checksums: which there are, how they are seeded, and the hashers that take a unit in pieces.

use super::lanes::Lanes;
use super::raw;
use std::hash::Hasher as _;
use twox_hash::XxHash3_64;

/// How bytes are checked. The id stands in formats; a removed algorithm's id is never given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChecksumAlgorithm {
    /// CRC-64/NVME of the seed (8 bytes, little-endian) followed by the bytes.
    ///
    /// For headers and tables: every change of up to 64 neighbouring bits is found for certain.
    Crc64Nvme,
    /// XXH3-64 of the bytes with this seed.
    ///
    /// For units of payload: it runs inside the registers of the copy loop, and on a GPU, which has no carry-less multiply but
    /// plenty of 32-bit ones, all stripes of a 1 KiB block are independent sums.
    Xxh3,
}

impl ChecksumAlgorithm {
    /// The number that stands in formats.
    pub const fn id(self) -> u8 {
        match self {
            Self::Crc64Nvme => 1,
            Self::Xxh3 => 2,
        }
    }

    /// The algorithm with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Crc64Nvme),
            2 => Some(Self::Xxh3),
            _ => None,
        }
    }

    /// The checksum of bytes in private memory.
    pub fn checksum(self, seed: u64, bytes: &[u8]) -> u64 {
        match self {
            Self::Crc64Nvme => {
                let mut digest = seeded_crc(seed);
                digest.update(bytes);
                digest.finalize()
            }
            Self::Xxh3 => XxHash3_64::oneshot_with_seed(seed, bytes),
        }
    }
}

fn seeded_crc(seed: u64) -> crc_fast::Digest {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&seed.to_le_bytes());
    digest
}

/// The seed of unit number `unit` in a record whose seed is `seed`.
///
/// One record never gives two units the same seed: the step is odd and the mixing (SplitMix64) is a bijection. So units that
/// changed places fail, and units of another record fail but for one chance in 2^64.
pub const fn unit_seed(seed: u64, unit: u32) -> u64 {
    let mut mixed = seed.wrapping_add((unit as u64 + 1).wrapping_mul(UNIT_STEP));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

const UNIT_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The seed under which unit `first + n` of a record counts as unit `n`: for a part of a record that is copied by itself.
pub const fn seed_from_unit(seed: u64, first: u32) -> u64 {
    seed.wrapping_add((first as u64).wrapping_mul(UNIT_STEP))
}

/// Bytes that pass through private memory at once: half of a first-level cache, so that the hasher finds them there.
const STAGE_BYTES: usize = 8 << 10;

/// Private memory between a source that may change and whoever must see the bytes twice (hash and store). Made when it is needed
/// first: most records pass through vector registers, and 8 KiB more to clear and to move would cost a small one a tenth.
#[derive(Default)]
pub(super) struct Stage(Option<Box<[u8; STAGE_BYTES]>>);

/// The checksum of one unit, fed in pieces, storing them on the way if asked to.
pub(super) enum UnitHasher {
    /// XXH3 in vector registers.
    Lanes(Lanes),
    /// XXH3 of any length on any machine.
    Xxh3(Box<XxHash3_64>),
    /// CRC.
    Crc64Nvme(crc_fast::Digest),
}

impl UnitHasher {
    /// For a unit of `len` bytes. `whole_stripes`: every piece will be a multiple of 64 bytes, but perhaps the last
    /// one of a unit that is none itself.
    #[inline(always)]
    pub(super) fn new(algorithm: ChecksumAlgorithm, seed: u64, len: usize, whole_stripes: bool) -> Self {
        match algorithm {
            ChecksumAlgorithm::Crc64Nvme => Self::Crc64Nvme(seeded_crc(seed)),
            ChecksumAlgorithm::Xxh3 => match Lanes::new(seed, len) {
                Some(lanes) if whole_stripes => Self::Lanes(lanes),
                _ => Self::Xxh3(Box::new(XxHash3_64::with_seed(seed))),
            },
        }
    }

    /// Takes `len` bytes at `from`, each read exactly once, and stores the very same bytes at `to` unless that is null.
    ///
    /// # Safety
    /// `from` must be valid for reads and `to`, unless null, for writes of `len` bytes; they must not overlap. `len` must be a
    /// multiple of 64 if `new` was told so of it, and all pieces together must not exceed the length given there.
    pub(super) unsafe fn take(&mut self, to: *mut u8, from: *const u8, len: usize, stage: &mut Stage) {
        let update: &mut dyn FnMut(&[u8]) = match self {
            Self::Lanes(lanes) => {
                // SAFETY: the caller's promises are those that Lanes asks for.
                unsafe { lanes.take(to, from, len) };
                return;
            }
            Self::Xxh3(hasher) => &mut |bytes| hasher.write(bytes),
            Self::Crc64Nvme(digest) => &mut |bytes| digest.update(bytes),
        };
        let stage = stage.0.get_or_insert_with(|| Box::new([0; STAGE_BYTES]));
        for done in (0..len).step_by(STAGE_BYTES) {
            let bytes = STAGE_BYTES.min(len - done);
            // SAFETY: done < len, inside the range that the caller vouches for; the stage is ours and large enough.
            unsafe { raw::copy_bytes(stage.as_mut_ptr(), from.wrapping_add(done), bytes) };
            update(&stage[..bytes]);
            if !to.is_null() {
                // SAFETY: done < len, inside the range that the caller vouches for; the stage is ours and large enough.
                unsafe { raw::copy_bytes(to.wrapping_add(done), stage.as_ptr(), bytes) };
            }
        }
    }

    /// The checksum, after all bytes of the unit.
    pub(super) fn finish(&self) -> u64 {
        match self {
            Self::Lanes(lanes) => lanes.finish(),
            Self::Xxh3(hasher) => hasher.finish(),
            Self::Crc64Nvme(digest) => digest.finalize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_pinned() {
        for algorithm in [ChecksumAlgorithm::Crc64Nvme, ChecksumAlgorithm::Xxh3] {
            assert_eq!(ChecksumAlgorithm::from_id(algorithm.id()), Some(algorithm));
        }
        assert_eq!((ChecksumAlgorithm::Crc64Nvme.id(), ChecksumAlgorithm::Xxh3.id()), (1, 2));
        assert_eq!(ChecksumAlgorithm::from_id(0), None);
        assert_eq!(ChecksumAlgorithm::from_id(3), None);
    }

    #[test]
    #[cfg(not(miri))]
    fn known_answers() {
        // CRC-64/NVME of "123456789" is 0xae8b14860a799888; seeded, the seed's bytes come first.
        let seed = u64::from_le_bytes(*b"12345678");
        assert_eq!(ChecksumAlgorithm::Crc64Nvme.checksum(seed, b"9"), 0xae8b_1486_0a79_9888);
        // XXH3-64 of no bytes with seed 0.
        assert_eq!(ChecksumAlgorithm::Xxh3.checksum(0, b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn unit_seeds_differ() {
        let mut seeds: Vec<u64> =
            (0..1000).flat_map(|unit| [0, 1, u64::MAX].map(|seed| unit_seed(seed, unit))).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 3000);
        assert_eq!(unit_seed(seed_from_unit(5, 70), 3), unit_seed(5, 73));
    }
}
