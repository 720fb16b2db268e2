//! Little-endian fields at fixed offsets, and the checksum of a whole sector.

use kvd_nixl::sys::ChecksumAlgorithm;

/// The `N` bytes at `at`. Offsets are constants of a format inside a buffer of fixed size.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes is an array of N bytes")
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

pub(crate) fn all_zero(bytes: &[u8]) -> bool {
    // Whole lines at a time, without a branch per byte: every record's padding goes through here.
    bytes.chunks(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Where the checksum stands in every checksummed structure of whole sectors.
const CHECKSUM_AT: usize = 16;
const AFTER_CHECKSUM: usize = 24;

/// CRC-64/NVME over all of `bytes` but the checksum's own place: over what is before it, then, seeded with that, what is after.
pub(crate) fn checksum_around(seed: u64, bytes: &[u8]) -> u64 {
    let head = ChecksumAlgorithm::Crc64Nvme.checksum(seed, &bytes[..CHECKSUM_AT]);
    ChecksumAlgorithm::Crc64Nvme.checksum(head, &bytes[AFTER_CHECKSUM..])
}

/// Writes the checksum of `bytes` into them and returns it.
pub(crate) fn seal(seed: u64, bytes: &mut [u8]) -> u64 {
    let checksum = checksum_around(seed, bytes);
    put(bytes, CHECKSUM_AT, &checksum.to_le_bytes());
    checksum
}

/// The checksum that stands in `bytes`, if it is right.
pub(crate) fn checked(seed: u64, bytes: &[u8]) -> Option<u64> {
    let stored = u64_at(bytes, CHECKSUM_AT);
    (stored == checksum_around(seed, bytes)).then_some(stored)
}
