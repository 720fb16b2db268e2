//! The arena as the ladder sees it: memory only, synchronous, cannot fail.

use crate::ids::{ClientSlot, SegmentId, SlotEntry, SlotId, TenantId};

/// The table of the arena. What is written here survives the daemon: a successor reads it.
///
/// Calls take effect in order. The ladder writes an entry before it tells anyone of the slot, and a pin before the reply
/// that grants it.
pub trait SlotTable {
    /// Replaces the entry of a slot; its pins stay.
    fn write(&mut self, slot: SlotId, entry: &SlotEntry);
    /// Says that `slot` holds nothing, at `generation`. Cheaper than a whole entry; its pins stay.
    fn vacate(&mut self, slot: SlotId, generation: u32);
    /// Marks the slot as held by a client process. Idempotent.
    fn pin(&mut self, slot: SlotId, client: ClientSlot);
    /// Takes the mark back. Idempotent.
    fn unpin(&mut self, slot: SlotId, client: ClientSlot);
    /// Gives a segment to a tenant, cut in slots of `slot_bytes`; its slot entries become vacant. The segment has no slot
    /// in use and none pinned. `false`: no memory can be had for it now, so nothing of it may be used.
    fn assign_segment(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool;
    /// Takes the segment's bytes away for good: it was another tenant's, and comes next to `assign_segment`.
    fn scrub(&mut self, segment: SegmentId);
}
