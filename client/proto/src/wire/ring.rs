//! The entries of the rings in a session's shared memory: 64 bytes each, all numbers little-endian.
//!
//! ```text
//! Request     0 op u8 | 1 flags u8 | 2 view u16 | 4 slab u16 | 6 zero u16 | 8 first u32 | 12 count u32 | 16 token u64
//!            24 lease u64 | 32 deadline_us u32 | 36 zero u32 | 40 arg u64 | 48 zero 16 B
//! Completion  0 token u64 | 8 status u8 | 9 reason u8 (0 none) | 10 tier u8 (0 none) | 11 zero u8 | 12 count u32
//!            16 lease u64 | 24 epoch u64 | 32 arg u64 | 40 zero 24 B
//! ```

use thiserror::Error;

use crate::codec::Reader;
use crate::{Epoch, MissReason, Tier};

/// Bytes of a ring entry.
pub const ENTRY_BYTES: usize = 64;
/// Entries of each ring.
pub const RING_ENTRIES: u32 = 256;
/// Slabs of a session.
pub const SLABS: u16 = 16;
/// Bytes of a slab.
pub const SLAB_BYTES: u32 = 256 * 1024;
/// Blocks of one call; a call is also bounded by what fits its slab.
pub const BLOCKS_PER_CALL_MAX: u32 = 4096;

/// The flag of [`Op::Offer`]: the slab's parent hash counts.
pub const FLAG_PARENT: u8 = 1;
/// The flag of [`Op::Offer`]: token ids follow the hashes.
pub const FLAG_TOKENS: u8 = 2;
/// The flag of [`Op::Match`]: take a lease on what is found.
pub const FLAG_LEASE: u8 = 4;
/// The flag of [`Op::Match`]: only tell how much is there. Nothing is held, no hit or miss is counted, and what falls next stays so.
pub const FLAG_PROBE: u8 = 8;
const FLAGS_KNOWN: u8 = FLAG_PARENT | FLAG_TOKENS | FLAG_LEASE | FLAG_PROBE;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// The longest covered prefix of the hashes in the slab.
    Match = 1,
    /// Bring blocks of a lease into DRAM.
    Load = 2,
    /// Ask for slots to fill.
    Offer = 3,
    /// Slots are filled: seal and publish them.
    Commit = 4,
    /// Give a lease back.
    Release = 5,
    /// Bring blocks towards DRAM without a lease.
    Prefetch = 6,
    /// The client's own checksum of a landed block failed.
    Corrupt = 7,
    /// Give up the grants of a fill lease that are not committed.
    Abandon = 8,
}

impl Op {
    /// Every operation, in the order of their codes.
    pub const ALL: [Self; 8] = [
        Self::Match,
        Self::Load,
        Self::Offer,
        Self::Commit,
        Self::Release,
        Self::Prefetch,
        Self::Corrupt,
        Self::Abandon,
    ];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Load => "load",
            Self::Offer => "offer",
            Self::Commit => "commit",
            Self::Release => "release",
            Self::Prefetch => "prefetch",
            Self::Corrupt => "corrupt",
            Self::Abandon => "abandon",
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u8 == code)
    }
}

/// One request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub op: Op,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// The view that it concerns.
    pub view: u16,
    /// The slab with its lists; it is the daemon's until the last completion.
    pub slab: u16,
    /// First block concerned: a position of the lease, or of the chain for [`Op::Offer`].
    pub first: u32,
    /// Blocks concerned.
    pub count: u32,
    /// Comes back in the completions.
    pub token: u64,
    /// The lease concerned, 0 for none.
    pub lease: u64,
    /// Microseconds from receipt after which the client no longer waits; 0 means the daemon's default.
    pub deadline_us: u32,
    /// Depends on the operation.
    pub arg: u64,
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Done; the last completion of its request.
    Ok = 1,
    /// Progress; more follow.
    Partial = 2,
    /// Not done, for the reason given; the last completion.
    Refused = 3,
    /// The request makes no sense; the last completion.
    BadRequest = 4,
}

impl Status {
    const ALL: [Self; 4] = [Self::Ok, Self::Partial, Self::Refused, Self::BadRequest];
}

/// One answer of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The request's token.
    pub token: u64,
    /// How it went.
    pub status: Status,
    /// Why the first block that is missing is missing.
    pub reason: Option<MissReason>,
    /// The slowest tier among the blocks found.
    pub tier: Option<Tier>,
    /// Blocks matched, landed or granted.
    pub count: u32,
    /// The lease taken, 0 for none.
    pub lease: u64,
    /// The daemon's epoch.
    pub epoch: Epoch,
    /// Depends on the operation; for [`Op::Match`] the estimated load time in microseconds.
    pub arg: u64,
}

/// An entry that no honest peer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryError {
    /// A code that is not known.
    #[error("a ring entry with an unknown {0}")]
    Code(&'static str),
    /// Bytes that must be zero are not.
    #[error("a ring entry with nonzero reserved bytes")]
    Reserved,
}

impl Request {
    /// Its 64 bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[0] = self.op as u8;
        out[1] = self.flags;
        out[2..4].copy_from_slice(&self.view.to_le_bytes());
        out[4..6].copy_from_slice(&self.slab.to_le_bytes());
        out[8..12].copy_from_slice(&self.first.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.token.to_le_bytes());
        out[24..32].copy_from_slice(&self.lease.to_le_bytes());
        out[32..36].copy_from_slice(&self.deadline_us.to_le_bytes());
        out[40..48].copy_from_slice(&self.arg.to_le_bytes());
        out
    }

    /// The exact inverse of [`Request::encode`].
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, EntryError> {
        const WHOLE: &str = "an entry has 64 bytes";
        let mut from = Reader::new(bytes);
        let op = Op::from_code(from.u8().expect(WHOLE)).ok_or(EntryError::Code("op"))?;
        let flags = from.u8().expect(WHOLE);
        if flags & !FLAGS_KNOWN != 0 {
            return Err(EntryError::Code("flags"));
        }
        let view = from.u16().expect(WHOLE);
        let slab = from.u16().expect(WHOLE);
        let zero = u32::from(from.u16().expect(WHOLE));
        let first = from.u32().expect(WHOLE);
        let count = from.u32().expect(WHOLE);
        let token = from.u64().expect(WHOLE);
        let lease = from.u64().expect(WHOLE);
        let deadline_us = from.u32().expect(WHOLE);
        let zero = zero | from.u32().expect(WHOLE);
        let arg = from.u64().expect(WHOLE);
        if zero != 0 || from.array::<16>().expect(WHOLE) != [0; 16] {
            return Err(EntryError::Reserved);
        }
        Ok(Self { op, flags, view, slab, first, count, token, lease, deadline_us, arg })
    }
}

impl Completion {
    /// Its 64 bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[..8].copy_from_slice(&self.token.to_le_bytes());
        out[8] = self.status as u8;
        out[9] = self.reason.map_or(0, MissReason::code);
        out[10] = self.tier.map_or(0, Tier::code);
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.lease.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.get().to_le_bytes());
        out[32..40].copy_from_slice(&self.arg.to_le_bytes());
        out
    }

    /// The exact inverse of [`Completion::encode`].
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, EntryError> {
        const WHOLE: &str = "an entry has 64 bytes";
        let mut from = Reader::new(bytes);
        let token = from.u64().expect(WHOLE);
        let code = from.u8().expect(WHOLE);
        let status = Status::ALL.into_iter().find(|status| *status as u8 == code).ok_or(EntryError::Code("status"))?;
        let reason = optional(from.u8().expect(WHOLE), MissReason::from_code, "reason")?;
        let tier = optional(from.u8().expect(WHOLE), Tier::from_code, "tier")?;
        let zero = from.u8().expect(WHOLE);
        let count = from.u32().expect(WHOLE);
        let lease = from.u64().expect(WHOLE);
        let epoch = Epoch::new(from.u64().expect(WHOLE));
        let arg = from.u64().expect(WHOLE);
        if zero != 0 || from.array::<24>().expect(WHOLE) != [0; 24] {
            return Err(EntryError::Reserved);
        }
        Ok(Self { token, status, reason, tier, count, lease, epoch, arg })
    }
}

/// 0 is none; any other byte must be known.
pub(super) fn optional<T>(
    code: u8,
    known: impl Fn(u8) -> Option<T>,
    what: &'static str,
) -> Result<Option<T>, EntryError> {
    match code {
        0 => Ok(None),
        code => known(code).map(Some).ok_or(EntryError::Code(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Most random entries are refused at their first byte, so these are steered towards valid ones.
        #[test]
        fn entries_decode_exactly_or_are_refused(mut bytes in any::<[u8; ENTRY_BYTES]>(), op in 0u8..10, calm in any::<bool>()) {
            bytes[0] = op;
            if calm {
                bytes[1] &= FLAGS_KNOWN;
                bytes[6..8].fill(0);
                bytes[36..40].fill(0);
                bytes[48..].fill(0);
            }
            match Request::decode(&bytes) {
                Ok(request) => prop_assert_eq!(request.encode(), bytes),
                Err(_) => prop_assert!(!calm || op == 0 || op == 9),
            }
        }

        #[test]
        fn completions_decode_exactly_or_are_refused(mut bytes in any::<[u8; ENTRY_BYTES]>(), codes in (0u8..6, 0u8..10, 0u8..7), calm in any::<bool>()) {
            (bytes[8], bytes[9], bytes[10]) = codes;
            if calm {
                bytes[11] = 0;
                bytes[40..].fill(0);
            }
            match Completion::decode(&bytes) {
                Ok(completion) => prop_assert_eq!(completion.encode(), bytes),
                Err(_) => prop_assert!(!calm || codes.0 == 0 || codes.0 == 5 || codes.1 == 9 || codes.2 == 6),
            }
        }
    }
}
