//! The lists that travel in a slab beside a request. All numbers little-endian. The side that reads copies the slab out
//! once and decodes its own copy: the peer may write while we read.
//!
//! ```text
//! hashes     count x 32 B, zeros behind each hash
//! offer in   parent 32 B (counts if FLAG_PARENT) | hashes | if FLAG_TOKENS: count x block_tokens x u32
//! Landed     0 status u8 | 1 reason u8 | 2 tier u8 | 3 zero u8 | 4 segment u32 | 8 offset u64 | 16 slot_bytes u32
//!           20 generation u32 | 24 meta_checksum u64 | 32 seed u64 | 40 zero 8 B
//! Granted    0 status u8 | 1 reason u8 | 2 zero u16 | 4 segment u32 | 8 offset u64 | 16 slot_bytes u32
//!           20 generation u32 | 24 seed u64 | 32 index u32 | 36 zero u32
//! commit in  count x (index u32 | units u32 | units x checksum u64)
//! ```

use crate::codec::Reader;
use crate::wire::ring::{EntryError, optional};
use crate::{BlockHash, BlockHashError, HASH_BYTES_MAX, MissReason, Tier};

/// Bytes of an encoded [`Landed`].
pub const LANDED_BYTES: usize = 48;
/// Bytes of an encoded [`Granted`].
pub const GRANTED_BYTES: usize = 40;

/// What became of one block of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LandedStatus {
    /// It lies in the arena at the place given.
    Landed = 1,
    /// It does not, for the reason given.
    Missed = 2,
}

/// One block of a load. Where it missed, the place is all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landed {
    /// What became of it.
    pub status: LandedStatus,
    /// Why it missed.
    pub reason: Option<MissReason>,
    /// Where it came from.
    pub tier: Option<Tier>,
    /// The arena segment.
    pub segment: u32,
    /// Of its slot within the segment; metadata first, then the payload.
    pub offset: u64,
    /// Of its slot.
    pub slot_bytes: u32,
    /// Of its slot; the metadata names the same.
    pub generation: u32,
    /// The metadata's own checksum.
    pub meta_checksum: u64,
    /// Of its unit checksums.
    pub seed: u64,
}

/// What became of one block of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GrantedStatus {
    /// A slot to fill.
    Granted = 1,
    /// It is already here.
    Present = 2,
    /// Another writer is filling it.
    InFlight = 3,
    /// Not wanted, for the reason given.
    Refused = 4,
}

impl GrantedStatus {
    const ALL: [Self; 4] = [Self::Granted, Self::Present, Self::InFlight, Self::Refused];
}

/// One block of an offer. Where nothing was granted, the place is all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// What became of it.
    pub status: GrantedStatus,
    /// Why it was refused.
    pub reason: Option<MissReason>,
    /// The arena segment.
    pub segment: u32,
    /// Of its slot within the segment; the payload starts behind the view's metadata bytes.
    pub offset: u64,
    /// Of its slot.
    pub slot_bytes: u32,
    /// Of its slot.
    pub generation: u32,
    /// Of its unit checksums.
    pub seed: u64,
    /// Names the grant within its fill lease; a commit repeats it.
    pub index: u32,
}

impl Landed {
    /// A block that missed.
    pub const fn missed(reason: MissReason) -> Self {
        Self {
            status: LandedStatus::Missed,
            reason: Some(reason),
            tier: None,
            segment: 0,
            offset: 0,
            slot_bytes: 0,
            generation: 0,
            meta_checksum: 0,
            seed: 0,
        }
    }

    /// Its 48 bytes.
    pub fn encode(&self) -> [u8; LANDED_BYTES] {
        let mut out = [0; LANDED_BYTES];
        out[0] = self.status as u8;
        out[1] = self.reason.map_or(0, MissReason::code);
        out[2] = self.tier.map_or(0, Tier::code);
        out[4..8].copy_from_slice(&self.segment.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.slot_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.generation.to_le_bytes());
        out[24..32].copy_from_slice(&self.meta_checksum.to_le_bytes());
        out[32..40].copy_from_slice(&self.seed.to_le_bytes());
        out
    }

    /// The exact inverse of [`Landed::encode`].
    pub fn decode(bytes: &[u8; LANDED_BYTES]) -> Result<Self, EntryError> {
        const WHOLE: &str = "a landed entry has 48 bytes";
        let mut from = Reader::new(bytes);
        let status = match from.u8().expect(WHOLE) {
            1 => LandedStatus::Landed,
            2 => LandedStatus::Missed,
            _ => return Err(EntryError::Code("landed status")),
        };
        let reason = optional(from.u8().expect(WHOLE), MissReason::from_code, "reason")?;
        let tier = optional(from.u8().expect(WHOLE), Tier::from_code, "tier")?;
        let zero = from.u8().expect(WHOLE);
        let landed = Self {
            status,
            reason,
            tier,
            segment: from.u32().expect(WHOLE),
            offset: from.u64().expect(WHOLE),
            slot_bytes: from.u32().expect(WHOLE),
            generation: from.u32().expect(WHOLE),
            meta_checksum: from.u64().expect(WHOLE),
            seed: from.u64().expect(WHOLE),
        };
        if zero != 0 || from.u64().expect(WHOLE) != 0 {
            return Err(EntryError::Reserved);
        }
        Ok(landed)
    }
}

impl Granted {
    /// A block for which there is no slot.
    pub const fn without_slot(status: GrantedStatus, reason: Option<MissReason>) -> Self {
        Self { status, reason, segment: 0, offset: 0, slot_bytes: 0, generation: 0, seed: 0, index: 0 }
    }

    /// Its 40 bytes.
    pub fn encode(&self) -> [u8; GRANTED_BYTES] {
        let mut out = [0; GRANTED_BYTES];
        out[0] = self.status as u8;
        out[1] = self.reason.map_or(0, MissReason::code);
        out[4..8].copy_from_slice(&self.segment.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.slot_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.generation.to_le_bytes());
        out[24..32].copy_from_slice(&self.seed.to_le_bytes());
        out[32..36].copy_from_slice(&self.index.to_le_bytes());
        out
    }

    /// The exact inverse of [`Granted::encode`].
    pub fn decode(bytes: &[u8; GRANTED_BYTES]) -> Result<Self, EntryError> {
        const WHOLE: &str = "a granted entry has 40 bytes";
        let mut from = Reader::new(bytes);
        let code = from.u8().expect(WHOLE);
        let status = GrantedStatus::ALL.into_iter().find(|status| *status as u8 == code);
        let status = status.ok_or(EntryError::Code("granted status"))?;
        let reason = optional(from.u8().expect(WHOLE), MissReason::from_code, "reason")?;
        let zero = from.u16().expect(WHOLE);
        let granted = Self {
            status,
            reason,
            segment: from.u32().expect(WHOLE),
            offset: from.u64().expect(WHOLE),
            slot_bytes: from.u32().expect(WHOLE),
            generation: from.u32().expect(WHOLE),
            seed: from.u64().expect(WHOLE),
            index: from.u32().expect(WHOLE),
        };
        if zero != 0 || from.u32().expect(WHOLE) != 0 {
            return Err(EntryError::Reserved);
        }
        Ok(granted)
    }
}

/// Appends a hash to a list of hashes.
pub fn put_hash(out: &mut Vec<u8>, hash: &BlockHash) {
    out.extend(hash.padded());
}

/// The hash of `len` bytes at position `at` of a list; `None` where the list ends before it.
pub fn hash_at(list: &[u8], at: usize, len: usize) -> Option<Result<BlockHash, BlockHashError>> {
    let start = at.checked_mul(HASH_BYTES_MAX)?;
    let padded = list.get(start..)?.first_chunk::<HASH_BYTES_MAX>()?;
    Some(BlockHash::from_padded(padded, len))
}

/// Bytes of an offer's slab for so many blocks of so many token ids; `None` beyond `usize`.
pub fn offer_bytes(count: u32, tokens_per_block: u32) -> Option<usize> {
    let tokens = usize::try_from(tokens_per_block).ok()?.checked_mul(4)?;
    let count = usize::try_from(count).ok()?;
    count.checked_mul(tokens.checked_add(HASH_BYTES_MAX)?)?.checked_add(HASH_BYTES_MAX)
}

/// Appends one entry of a commit.
pub fn put_commit(out: &mut Vec<u8>, index: u32, checksums: &[u64]) {
    out.extend(index.to_le_bytes());
    out.extend((checksums.len() as u32).to_le_bytes());
    checksums.iter().for_each(|checksum| out.extend(checksum.to_le_bytes()));
}

/// One entry of a commit: the grant that was filled and the checksum of each unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitEntry<'a> {
    /// The grant, as [`Granted::index`] named it.
    pub index: u32,
    checksums: &'a [u8],
}

impl<'a> CommitEntry<'a> {
    /// The checksums as they stand in the slab: little-endian, one after the other.
    pub const fn checksum_bytes(&self) -> &'a [u8] {
        self.checksums
    }

    /// How many units it names.
    pub fn units(&self) -> usize {
        self.checksums.len() / 8
    }

    /// The checksum of each unit.
    pub fn checksums(&self) -> impl Iterator<Item = u64> {
        let (chunks, _) = self.checksums.as_chunks::<8>();
        chunks.iter().map(|chunk| u64::from_le_bytes(*chunk))
    }
}

/// The entries of a commit. Ends at the first entry that does not fit the bytes.
#[derive(Debug, Clone, Copy)]
pub struct CommitEntries<'a>(Reader<'a>);

impl<'a> CommitEntries<'a> {
    /// Reads entries from the front of `slab`; the request says how many to take.
    pub const fn new(slab: &'a [u8]) -> Self {
        Self(Reader::new(slab))
    }
}

impl<'a> Iterator for CommitEntries<'a> {
    type Item = CommitEntry<'a>;

    fn next(&mut self) -> Option<CommitEntry<'a>> {
        let index = self.0.u32().ok()?;
        let units = usize::try_from(self.0.u32().ok()?).ok()?;
        let checksums = self.0.take(units.checked_mul(8)?).ok()?;
        Some(CommitEntry { index, checksums })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn landed_decodes_exactly_or_is_refused(mut bytes in any::<[u8; LANDED_BYTES]>(), codes in (0u8..4, 0u8..10, 0u8..7)) {
            (bytes[0], bytes[1], bytes[2]) = codes;
            bytes[3] = 0;
            bytes[40..].fill(0);
            match Landed::decode(&bytes) {
                Ok(landed) => prop_assert_eq!(landed.encode(), bytes),
                Err(_) => prop_assert!(codes.0 == 0 || codes.0 == 3 || codes.1 == 9 || codes.2 == 6),
            }
            bytes[40] = 1;
            prop_assert!(Landed::decode(&bytes).is_err());
        }

        #[test]
        fn granted_decodes_exactly_or_is_refused(mut bytes in any::<[u8; GRANTED_BYTES]>(), codes in (0u8..6, 0u8..10)) {
            (bytes[0], bytes[1]) = codes;
            bytes[2..4].fill(0);
            bytes[36..].fill(0);
            match Granted::decode(&bytes) {
                Ok(granted) => prop_assert_eq!(granted.encode(), bytes),
                Err(_) => prop_assert!(codes.0 == 0 || codes.0 == 5 || codes.1 == 9),
            }
            bytes[2] = 1;
            prop_assert!(Granted::decode(&bytes).is_err());
        }

        #[test]
        fn commit_entries_round_trip(entries in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u64>(), 0..5)), 0..5)) {
            let mut slab = Vec::new();
            entries.iter().for_each(|(index, checksums)| put_commit(&mut slab, *index, checksums));
            let back: Vec<_> = CommitEntries::new(&slab).map(|entry| (entry.index, entry.checksums().collect())).collect();
            prop_assert_eq!(back, entries);
        }

        #[test]
        fn arbitrary_slabs_never_panic(slab in prop::collection::vec(any::<u8>(), 0..200), at in any::<usize>(), len in 0usize..40) {
            prop_assert!(CommitEntries::new(&slab).count() <= slab.len() / 8);
            let _ = hash_at(&slab, at, len);
            let _ = hash_at(&slab, at % 8, len);
        }
    }

    #[test]
    fn offers_are_sized_without_overflow() {
        assert_eq!(offer_bytes(2, 16), Some(32 + 2 * 32 + 2 * 16 * 4));
        assert!(offer_bytes(u32::MAX, u32::MAX).is_none_or(|bytes| bytes > 1 << 40));
    }
}
