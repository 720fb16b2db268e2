//! The unit checksums of a record, out of its metadata in the slot.

use kvd_nixl::sys::{ChecksumAlgorithm, MemoryExtent};
use kvd_proto::record::{HEADER_BYTES, MAGIC, SEED, at};

/// What the daemon says of a record, and what the view says of all of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) meta_checksum: u64,
    pub(crate) generation: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) unit_bytes: u32,
    pub(crate) units: u32,
}

/// Reads the metadata into `scratch`, checks it against `expected`, and puts the unit checksums into `checksums`.
///
/// The checksum that the daemon keeps beside the slot covers every byte of the metadata, the record's identity too: what
/// matches it is the record that the daemon means.
pub(crate) fn read_checksums(
    metadata: &MemoryExtent,
    expected: &Expected,
    scratch: &mut Vec<u8>,
    checksums: &mut Vec<u64>,
) -> Option<ChecksumAlgorithm> {
    scratch.resize(metadata.len(), 0);
    metadata.read(0, scratch).ok()?;
    let bytes = &scratch[..];
    let end = HEADER_BYTES.checked_add((expected.units as usize).checked_mul(8)?)?;
    if bytes.len() < end || bytes.first_chunk() != Some(&MAGIC) {
        return None;
    }
    let head = ChecksumAlgorithm::Crc64Nvme.checksum(SEED, &bytes[..at::META_CHECKSUM]);
    let found = ChecksumAlgorithm::Crc64Nvme.checksum(head, &bytes[at::META_CHECKSUM + 8..]);
    let same = found == expected.meta_checksum
        && u64_at(bytes, at::META_CHECKSUM) == found
        && u64_at(bytes, at::PAYLOAD_BYTES) == u64::from(expected.payload_bytes)
        && u32_at(bytes, at::GENERATION) == expected.generation
        && u32_at(bytes, at::UNIT_BYTES) == expected.unit_bytes
        && u32_at(bytes, at::UNIT_COUNT) == expected.units;
    if !same {
        return None;
    }
    checksums.clear();
    checksums.extend(bytes[HEADER_BYTES..end].chunks_exact(8).map(|chunk| u64_at(chunk, 0)));
    ChecksumAlgorithm::from_id(bytes[at::ALGORITHM])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4 bytes"))
}
