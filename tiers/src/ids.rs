//! Names of places, holders and moves, and what a slot table says about a slot.

use std::fmt;

use kvd_proto::{BlockKey, Shard, Time};

/// Bytes of a DRAM segment and of an NVMe zone.
pub const SEGMENT_BYTES: u32 = 64 << 20;
/// Bits of a slot's index within its segment or zone.
pub const SLOT_INDEX_BITS: u32 = 13;
/// Smallest slot: one sector of metadata, one of payload. It makes at most 2^13 slots of a segment.
pub const SLOT_BYTES_MIN: u32 = 8192;

const _: () = assert!(SEGMENT_BYTES / SLOT_BYTES_MIN == 1 << SLOT_INDEX_BITS);

/// A tenant. Stable across restarts: the shell derives it from the tenant's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u64);

/// A file of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

/// A slot of the arena: segment and index within it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u32);

impl SlotId {
    /// Slot `index` of `segment`.
    pub const fn new(segment: SegmentId, index: u32) -> Self {
        assert!(segment.0 < 1 << (32 - SLOT_INDEX_BITS) && index < 1 << SLOT_INDEX_BITS);
        Self(segment.0 << SLOT_INDEX_BITS | index)
    }

    /// Its segment.
    pub const fn segment(self) -> SegmentId {
        SegmentId(self.0 >> SLOT_INDEX_BITS)
    }

    /// Its index within the segment; the slot starts at `index * slot_bytes`.
    pub const fn index(self) -> u32 {
        self.0 & ((1 << SLOT_INDEX_BITS) - 1)
    }

    pub(crate) const fn raw(self) -> u32 {
        self.0
    }

    pub(crate) const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
}

impl fmt::Debug for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotId({}/{})", self.segment().0, self.index())
    }
}

/// An NVMe device, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u8);

/// A zone of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneId(pub u32);

/// A slot of a device: zone and index within it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NvmeSlot {
    device: DeviceId,
    slot: u32,
}

impl NvmeSlot {
    /// Slot `index` of `zone` of `device`.
    pub const fn new(device: DeviceId, zone: ZoneId, index: u32) -> Self {
        assert!(zone.0 < 1 << (32 - SLOT_INDEX_BITS) && index < 1 << SLOT_INDEX_BITS);
        Self { device, slot: zone.0 << SLOT_INDEX_BITS | index }
    }

    /// Its device.
    pub const fn device(self) -> DeviceId {
        self.device
    }

    /// Its zone.
    pub const fn zone(self) -> ZoneId {
        ZoneId(self.slot >> SLOT_INDEX_BITS)
    }

    /// Its index within the zone; the slot starts at `index * slot_bytes` of the zone's bytes.
    pub const fn index(self) -> u32 {
        self.slot & ((1 << SLOT_INDEX_BITS) - 1)
    }

    pub(crate) const fn raw(self) -> u32 {
        self.slot
    }

    pub(crate) const fn from_raw(device: DeviceId, slot: u32) -> Self {
        Self { device, slot }
    }
}

impl fmt::Debug for NvmeSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NvmeSlot({}:{}/{})", self.device.0, self.zone().0, self.index())
    }
}

/// Where a record lies in the object tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectPlace {
    /// The pack's number in this node's catalog.
    pub pack: u32,
    /// First byte of the record in the pack.
    pub offset: u32,
    /// Bytes of the record.
    pub bytes: u32,
}

/// A client process: a bit of every pin map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientSlot(u8);

impl ClientSlot {
    /// Client processes at a time.
    pub const COUNT: usize = 64;

    /// The client slot with this number, if there is one.
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Its bit in a pin map.
    pub const fn bit(self) -> u64 {
        1 << self.0
    }
}

/// What a session opened: namespace, group and shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u32);

/// A hold on a matched prefix, or on slots to fill. Never reused within an epoch; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A move that the ladder asked for. Never reused within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoveId(pub u64);

/// The shell's own name for a load that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// Nothing of worth; free to be filled.
    Vacant,
    /// A client or a tier is writing it.
    Filling,
    /// A sealed record.
    Resident,
}

/// What a slot table, of DRAM or NVMe, says about one slot: enough to adopt the record without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotEntry {
    /// What the slot is used for.
    pub state: SlotState,
    /// Changes before the slot's space is given to another record. The record's metadata names the same; an NVMe copy keeps
    /// the generation of the DRAM slot it was spilled from, and a fetched copy keeps it again.
    pub generation: u32,
    /// Whose it is. In DRAM the segment says it, and the table need not repeat it.
    pub tenant: TenantId,
    /// First 8 bytes of the namespace's digest, little-endian; the whole digest stands in the record's metadata.
    pub namespace_prefix: u64,
    /// Group of the namespace.
    pub group: u16,
    /// Which part of the block.
    pub shard: Shard,
    /// Which block.
    pub key: BlockKey,
    /// The block before it in the chain; `None` for a first block.
    pub parent_key: Option<BlockKey>,
    /// Place in the chain, from 0.
    pub position: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// The checksum of the record's metadata, which holds the checksums of its payload: the anchor of trust. 0 until sealed.
    pub meta_checksum: u64,
}

/// Where a record was found at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoredPlace {
    /// In the arena.
    Dram(SlotId),
    /// On a device.
    Nvme(NvmeSlot),
}

/// A resident record that a slot table names at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredRecord {
    /// Where.
    pub place: RestoredPlace,
    /// Bytes of its slot.
    pub slot_bytes: u32,
    /// What the table says. Its state is `Resident`.
    pub entry: SlotEntry,
}

/// A segment that was in use at the end of the last epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredSegment {
    /// Which.
    pub segment: SegmentId,
    /// Whose.
    pub tenant: TenantId,
    /// Bytes of its slots.
    pub slot_bytes: u32,
    /// Highest generation that any slot of it ever had, in whatever state.
    pub generation_max: u32,
}

/// A zone that was formatted at the end of the last epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredZone {
    /// Of which device.
    pub device: DeviceId,
    /// Which.
    pub zone: ZoneId,
    /// Bytes of its slots.
    pub slot_bytes: u32,
}

/// A slot that clients of an earlier epoch may still touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencedSlot {
    /// Which.
    pub slot: SlotId,
    /// Its pin map: one bit per [`ClientSlot`].
    pub clients: u64,
}

/// Whether generation `a` came after `b`, also where the count has wrapped between them.
pub(crate) fn newer(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

/// The earlier of two times, for deadlines that may be absent.
pub(crate) fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (found, None) | (None, found) => found,
    }
}
