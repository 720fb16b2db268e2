//! The life of a slot of the arena, as types: `Vacant -> Filling -> Sealed -> Resident`.
//!
//! Each step consumes one guard and returns the next, and only the step writes the table: a slot cannot be published
//! before it was sealed, nor filled twice. A guard that is not carried on must be given back to the space it came from.

use crate::ids::{SlotEntry, SlotId, SlotState};

use super::port::SlotTable;

/// Space that nobody uses.
#[must_use = "a vacant slot is given back or filled"]
#[derive(Debug)]
pub(super) struct Vacant {
    slot: SlotId,
}

/// Space that a client or a move is writing.
#[must_use = "a slot under way is sealed or given back"]
#[derive(Debug)]
pub(super) struct FillingSlot {
    slot: SlotId,
}

/// A whole record that nobody can find yet.
#[must_use = "a sealed slot is published or given back"]
#[derive(Debug)]
pub(super) struct SealedSlot {
    slot: SlotId,
}

impl Vacant {
    /// Only the space itself makes these.
    pub(super) fn new(slot: SlotId) -> Self {
        Self { slot }
    }

    pub(super) fn slot(&self) -> SlotId {
        self.slot
    }

    /// The table says what will come, before anyone may write.
    pub(super) fn fill<T: SlotTable>(self, table: &mut T, entry: &SlotEntry) -> FillingSlot {
        debug_assert!(entry.state == SlotState::Filling);
        table.write(self.slot, entry);
        FillingSlot { slot: self.slot }
    }
}

impl FillingSlot {
    pub(super) fn slot(&self) -> SlotId {
        self.slot
    }

    /// The bytes are whole: a client committed them, or a move verified them.
    pub(super) fn seal(self) -> SealedSlot {
        SealedSlot { slot: self.slot }
    }

    /// Nothing came of it. The generation changes before the space is anyone else's.
    pub(super) fn give_back<T: SlotTable>(self, table: &mut T, generation: u32) -> Vacant {
        table.vacate(self.slot, if cfg!(kvd_bug = "generation_kept") { 0 } else { generation });
        Vacant { slot: self.slot }
    }
}

impl SealedSlot {
    /// From here on it survives the daemon.
    pub(super) fn publish<T: SlotTable>(self, table: &mut T, entry: &SlotEntry) -> SlotId {
        debug_assert!(entry.state == SlotState::Resident);
        table.write(self.slot, entry);
        self.slot
    }
}
