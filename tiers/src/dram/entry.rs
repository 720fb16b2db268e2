//! Slot entries and segment headers: what the table says about the arena's bytes.

use kvd_proto::{BlockKey, SHARD_BYTES, Shard};

use crate::ids::{SEGMENT_BYTES, SLOT_BYTES_MIN, SegmentId, SlotEntry, SlotId, SlotState, TenantId};

use super::layout::{GENERATION_WORD, SEALED_WORDS, SEGMENT_WORDS, block_word, entry_word, low32};
use super::words::{Unsealed, Words, join, seal, split, unseal};

const VACANT: u8 = 1;
const FILLING: u8 = 2;
const RESIDENT: u8 = 3;

/// To whom a segment belongs and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// `false`: its slots mean nothing; tenant and generation still tell who had it last.
    pub(super) assigned: bool,
    pub(super) slot_bytes: u32,
    pub(super) tenant: TenantId,
    pub(super) generation: u32,
}

impl SegmentHeader {
    /// Slots of the segment.
    pub(super) fn slots(&self) -> u32 {
        SEGMENT_BYTES / self.slot_bytes
    }
}

/// Whether a segment can be cut in slots of so many bytes.
pub(super) fn is_slot_bytes(slot_bytes: u32) -> bool {
    slot_bytes.is_multiple_of(4096) && (SLOT_BYTES_MIN..=SEGMENT_BYTES).contains(&slot_bytes)
}

fn segment_seed(uuid: &[u8; 16]) -> u64 {
    split(uuid)[0] ^ 0x0053_4547_4d45_4e54
}

/// Writes the header of a segment.
pub(super) fn write_segment(memory: &impl Words, uuid: &[u8; 16], segment: SegmentId, header: &SegmentHeader) {
    let state = if header.assigned { 1 } else { 2 };
    let (slot_bytes, generation) = (u64::from(header.slot_bytes), u64::from(header.generation));
    let words: [u64; SEGMENT_WORDS] = [state, slot_bytes, header.tenant.0, generation, u64::from(segment.0), 0, 0, 0];
    seal(memory, block_word(segment), segment_seed(uuid), words);
}

/// Reads the header of a segment; `None` when it was never written or is torn.
pub(super) fn read_segment(memory: &impl Words, uuid: &[u8; 16], segment: SegmentId) -> Option<SegmentHeader> {
    let found = unseal::<SEGMENT_WORDS>(memory, block_word(segment), segment_seed(uuid));
    let Unsealed::Whole(words) = found else { return None };
    let header = SegmentHeader {
        assigned: words[0] == 1,
        slot_bytes: low32(words[1]),
        tenant: TenantId(words[2]),
        generation: low32(words[3]),
    };
    let fits = words[4] == u64::from(segment.0) && (!header.assigned || is_slot_bytes(header.slot_bytes));
    fits.then_some(header)
}

/// Entries are sealed for one slot of one assignment of a segment in one arena: a new assignment voids all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntrySeal {
    pub(super) uuid: [u8; 16],
    pub(super) header: SegmentHeader,
}

impl EntrySeal {
    fn seed(&self, slot: SlotId) -> u64 {
        split(&self.uuid)[1] ^ u64::from(slot.raw()).rotate_left(32) ^ u64::from(self.header.generation)
    }
}

/// What a slot's words say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing of worth stands here.
    Vacant {
        /// The last generation written, as far as it can be read.
        generation: u32,
        /// An entry was half written, or flipped.
        torn: bool,
    },
    /// As it was written, `Filling` or `Resident`.
    Entry(SlotEntry),
}

/// Writes the entry of a slot. Pins are left alone.
pub(super) fn write_entry(memory: &impl Words, place: &EntrySeal, slot: SlotId, entry: &SlotEntry) {
    let state = match entry.state {
        SlotState::Vacant => return vacate_entry(memory, slot, entry.generation),
        SlotState::Filling => FILLING,
        SlotState::Resident => RESIDENT,
    };
    let [key_low, key_high] = split(entry.key.as_bytes());
    let [parent_low, parent_high] = entry.parent_key.map_or([0, 0], |parent| split(parent.as_bytes()));
    let mut shard = [0; 16];
    shard[..SHARD_BYTES].copy_from_slice(&entry.shard.to_bytes());
    shard[SHARD_BYTES..].copy_from_slice(&entry.generation.to_le_bytes());
    let [shard_low, shard_high] = split(&shard);
    let head = u64::from(state)
        | u64::from(entry.parent_key.is_some()) << 8
        | u64::from(entry.group) << 16
        | u64::from(entry.generation) << 32;
    let words: [u64; SEALED_WORDS] = [
        head,
        key_low,
        key_high,
        parent_low,
        parent_high,
        u64::from(entry.position) | u64::from(entry.payload_bytes) << 32,
        entry.namespace_prefix,
        shard_low,
        shard_high,
        entry.meta_checksum,
        0,
    ];
    seal(memory, entry_word(slot), place.seed(slot), words);
}

/// Says that a slot holds nothing: from the first store on the old entry is gone. The others see to it that no flipped
/// bit brings it back.
pub(super) fn vacate_entry(memory: &impl Words, slot: SlotId, generation: u32) {
    let at = entry_word(slot);
    let generation = u64::from(generation) << 32;
    memory.store(at, u64::from(VACANT) | generation);
    memory.store(at + SEALED_WORDS - 1, 0);
    memory.store(at + GENERATION_WORD, generation);
}

/// Reads the entry of a slot.
pub(super) fn read_entry(memory: &impl Words, place: &EntrySeal, slot: SlotId) -> Found {
    let at = entry_word(slot);
    let generation = (memory.load(at + GENERATION_WORD) >> 32) as u32;
    match unseal::<SEALED_WORDS>(memory, at, place.seed(slot)) {
        Unsealed::Fresh => Found::Vacant { generation, torn: false },
        Unsealed::Torn => {
            let head = memory.load(at);
            match head.to_le_bytes()[0] == VACANT {
                true => Found::Vacant { generation: generation.max((head >> 32) as u32), torn: false },
                false => Found::Vacant { generation, torn: true },
            }
        }
        Unsealed::Whole(words) => {
            decode(&words, place.header.tenant).map_or(Found::Vacant { generation, torn: true }, Found::Entry)
        }
    }
}

fn decode(words: &[u64; SEALED_WORDS], tenant: TenantId) -> Option<SlotEntry> {
    let [state, parent, group_low, group_high, ..] = words[0].to_le_bytes();
    let state = match state {
        FILLING => SlotState::Filling,
        RESIDENT => SlotState::Resident,
        _ => return None,
    };
    let shard = join(words[7], words[8]);
    let shard = Shard::from_bytes(shard.first_chunk().expect("12 of 16 bytes")).ok()?;
    Some(SlotEntry {
        state,
        generation: (words[0] >> 32) as u32,
        tenant,
        namespace_prefix: words[6],
        group: u16::from_le_bytes([group_low, group_high]),
        shard,
        key: BlockKey::new(join(words[1], words[2])),
        parent_key: (parent == 1).then(|| BlockKey::new(join(words[3], words[4]))),
        position: low32(words[5]),
        payload_bytes: (words[5] >> 32) as u32,
        meta_checksum: words[9],
    })
}
