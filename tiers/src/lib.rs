//! Blocks: identity to place. The ladder takes every decision (no I/O), policies rank, tiers keep records.
//!
//! This crate knows no session, no engine and no socket; it moves bytes only through `kvd-nixl`.

#![forbid(unsafe_code)]

pub mod dram;
mod ids;
pub mod ladder;
pub mod nvme;
pub mod object;
pub mod policy;
pub mod record;

pub use ids::{
    ClientSlot, DeviceId, FencedSlot, LeaseId, MoveId, NvmeSlot, ObjectPlace, RequestId, RestoredPlace, RestoredRecord,
    RestoredSegment, RestoredZone, SEGMENT_BYTES, SLOT_BYTES_MIN, SLOT_INDEX_BITS, SegmentId, SlotEntry, SlotId,
    SlotState, TenantId, ViewId, ZoneId,
};
