//! What a device is asked and what it answers.

use std::time::Duration;

use kvd_nixl::io::IoError;
use kvd_nixl::sys::MemoryExtent;
use rustix::io::Errno;

use crate::ids::{MoveId, NvmeSlot, SlotEntry, ZoneId};
use crate::ladder::{DeviceFault, Outcome};
use crate::record::Mismatch;

/// One thing to do. Each is answered by exactly one [`Finished`].
#[derive(Clone, Debug)]
pub enum Command {
    /// Record to a vacant slot. Done: verified before it left, landed, and its entry is in the journal.
    Write {
        /// Whose answer.
        id: MoveId,
        /// Where to.
        slot: NvmeSlot,
        /// What the table shall say, and what the record must be.
        entry: SlotEntry,
        /// The whole record, as it lies in its DRAM slot; starts at a sector, whole sectors.
        memory: MemoryExtent,
    },
    /// Slot to memory. Done: the record in memory is the one expected, every unit of it.
    Read {
        /// Whose answer.
        id: MoveId,
        /// Where from.
        slot: NvmeSlot,
        /// What must be found.
        expect: SlotEntry,
        /// Room for the whole record; starts at a sector, whole sectors.
        memory: MemoryExtent,
    },
    /// As `Read`, into memory of the device's own.
    Verify {
        /// Whose answer.
        id: MoveId,
        /// Which slot.
        slot: NvmeSlot,
        /// What must be found.
        expect: SlotEntry,
    },
    /// The slot's record is no longer wanted. Done: journaled, the slot may be written again.
    Vacate {
        /// Whose answer.
        id: MoveId,
        /// Which slot.
        slot: NvmeSlot,
    },
    /// Cuts a zone without records in slots of another size.
    FormatZone {
        /// Whose answer.
        id: MoveId,
        /// Which zone.
        zone: ZoneId,
        /// Bytes of its slots.
        slot_bytes: u32,
    },
    /// Reads one sector: does the device answer?
    Probe {
        /// Whose answer.
        id: MoveId,
    },
    /// Makes durable whatever was asked before.
    Flush {
        /// Whose answer.
        id: MoveId,
    },
}

impl Command {
    /// Whose answer it wants.
    pub const fn id(&self) -> MoveId {
        match self {
            Self::Write { id, .. }
            | Self::Read { id, .. }
            | Self::Verify { id, .. }
            | Self::Vacate { id, .. }
            | Self::FormatZone { id, .. }
            | Self::Probe { id }
            | Self::Flush { id } => *id,
        }
    }
}

/// The device has as much to do as it may; the command comes back.
#[derive(Debug, thiserror::Error)]
#[error("the device's queue is full")]
pub struct Full(pub Command);

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Of which.
    pub id: MoveId,
    /// How.
    pub result: Result<Moved, Failure>,
}

/// What a command moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Moved {
    /// Bytes of the record.
    pub bytes: u64,
    /// From the start of its I/O to the answer.
    pub took: Duration,
}

/// Why a command was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The record at the source is not the one expected.
    #[error("corrupt: {0}")]
    Corrupt(#[from] Mismatch),
    /// The device failed.
    #[error("device: {0}")]
    Io(#[from] IoError),
    /// The command makes no sense on this device as it is now. Nothing was done.
    #[error("refused: {0}")]
    Refused(&'static str),
}

impl Finished {
    /// The answer in the ladder's words.
    pub fn outcome(&self) -> Outcome {
        match &self.result {
            Ok(Moved { bytes, took }) => Outcome::Done { bytes: *bytes, took: *took },
            Err(Failure::Corrupt(_)) => Outcome::Corrupt,
            Err(Failure::Io(_)) if cfg!(kvd_bug = "error_dropped") => Outcome::Done { bytes: 0, took: Duration::ZERO },
            Err(Failure::Io(error)) => Outcome::Failed(fault(error)),
            Err(Failure::Refused(_)) => Outcome::Failed(DeviceFault::Io),
        }
    }
}

fn fault(error: &IoError) -> DeviceFault {
    match error.errno().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => DeviceFault::NoSpace,
        // A block device that was made read-only under us says EPERM.
        Some(Errno::ROFS | Errno::PERM) => DeviceFault::ReadOnly,
        Some(Errno::NXIO | Errno::NODEV | Errno::NOENT | Errno::STALE) => DeviceFault::Gone,
        _ => DeviceFault::Io,
    }
}
