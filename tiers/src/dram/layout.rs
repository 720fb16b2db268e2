//! Where things stand in the `table` file, and the words of each item: docs/formats/arena.md in code.

use kvd_proto::{Epoch, InstanceId};

use crate::ids::{ClientSlot, SEGMENT_BYTES, SLOT_BYTES_MIN, SLOT_INDEX_BITS, SegmentId, SlotId};

use super::words::{Unsealed, Words, join, seal, split, unseal};

/// Slots that a segment can have at most.
const SLOTS_PER_SEGMENT_MAX: u32 = 1 << SLOT_INDEX_BITS;
/// Bytes of the table per slot, pins and checksum included: all that a DRAM slot costs beside its own bytes.
pub const TABLE_BYTES_PER_SLOT: usize = ENTRY_WORDS * 8;

/// Version written here. Version 1 is the first; from version 2 on the one before is read as well.
pub(super) const FORMAT_VERSION: u32 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"KVDARENA");

/// Words of a slot entry that its checksum covers, with the checksum.
pub(super) const SEALED_WORDS: usize = 11;
/// Words of a slot entry: the sealed ones and the pins.
pub(super) const ENTRY_WORDS: usize = 12;
const PINS_WORD: usize = 11;

const SUPERBLOCK_WORDS: usize = 10;
const CLIENT_WORDS: usize = 8;
pub(super) const SEGMENT_WORDS: usize = 8;

/// The word of a slot entry whose upper half repeats the generation: readable also where the rest is torn.
pub(super) const GENERATION_WORD: usize = 8;

/// Two copies of the superblock, written in turn.
const SUPERBLOCK_AT: [usize; 2] = [0, 4096];
const CLIENTS_AT: usize = 8192;
/// Bytes before the first segment's block.
pub(super) const HEAD_BYTES: usize = 16384;
/// From the start of a segment's block to its first slot entry.
const ENTRIES_AT: usize = 128;
/// Address space of the table per segment; memory is taken for the slots that the segment has.
pub(super) const BLOCK_BYTES: usize =
    (ENTRIES_AT + SLOTS_PER_SEGMENT_MAX as usize * TABLE_BYTES_PER_SLOT).next_multiple_of(4096);

const _: () = assert!(TABLE_BYTES_PER_SLOT == 96);
const _: () = assert!(BLOCK_BYTES == 790_528);
const _: () = assert!(SEGMENT_BYTES / SLOT_BYTES_MIN <= SLOTS_PER_SEGMENT_MAX);
const _: () = assert!(CLIENTS_AT + ClientSlot::COUNT * CLIENT_WORDS * 8 <= HEAD_BYTES);
const _: () = assert!(SEGMENT_WORDS * 8 <= ENTRIES_AT);

const SUPERBLOCK_SEED: u64 = 0x5355_5045_5242_4c4b;

/// Length of a table file for `segments` segments.
pub(super) fn table_bytes(segments: u32) -> u64 {
    HEAD_BYTES as u64 + u64::from(segments) * BLOCK_BYTES as u64
}

/// Range of the table file that a segment of `slots` slots uses: (offset, length).
pub(super) fn block_range(segment: SegmentId, slots: u32) -> (u64, u64) {
    let used = ENTRIES_AT + slots as usize * TABLE_BYTES_PER_SLOT;
    (table_bytes(segment.0), used.next_multiple_of(4096) as u64)
}

/// First word of a segment's block: its header.
pub(super) fn block_word(segment: SegmentId) -> usize {
    (HEAD_BYTES + segment.0 as usize * BLOCK_BYTES) / 8
}

/// First word of a slot entry.
pub(super) fn entry_word(slot: SlotId) -> usize {
    block_word(slot.segment()) + ENTRIES_AT / 8 + slot.index() as usize * ENTRY_WORDS
}

/// Word of a slot's pin map.
pub(super) fn pins_word(slot: SlotId) -> usize {
    entry_word(slot) + PINS_WORD
}

/// What the arena says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) version: u32,
    pub(super) uuid: [u8; 16],
    pub(super) epoch: Epoch,
    pub(super) segment_bytes: u32,
    pub(super) segments: u32,
    pub(super) entry_bytes: u32,
    /// Inode of the pid namespace in which the client table's process ids mean something.
    pub(super) pid_namespace: u64,
}

impl Superblock {
    pub(super) fn write(&self, memory: &impl Words) {
        let [low, high] = split(&self.uuid);
        let words: [u64; SUPERBLOCK_WORDS] = [
            MAGIC,
            u64::from(self.version),
            low,
            high,
            self.epoch.get(),
            u64::from(self.segment_bytes),
            u64::from(self.segments),
            u64::from(self.entry_bytes),
            self.pid_namespace,
            0,
        ];
        let copy = SUPERBLOCK_AT[usize::from(self.epoch.get() % 2 == 1)];
        seal(memory, copy / 8, SUPERBLOCK_SEED, words);
    }

    /// The newer of the two copies that are whole, and whether a copy is torn.
    pub(super) fn read(memory: &impl Words) -> (Option<Self>, bool) {
        let copies = SUPERBLOCK_AT.map(|at| unseal::<SUPERBLOCK_WORDS>(memory, at / 8, SUPERBLOCK_SEED));
        let newest = copies.iter().filter_map(Self::decode).max_by_key(|found| found.epoch);
        (newest, copies.iter().any(|copy| matches!(copy, Unsealed::Torn)))
    }

    fn decode(copy: &Unsealed<SUPERBLOCK_WORDS>) -> Option<Self> {
        let Unsealed::Whole(words) = copy else { return None };
        (words[0] == MAGIC).then(|| Self {
            version: low32(words[1]),
            uuid: join(words[2], words[3]),
            epoch: Epoch::new(words[4]),
            segment_bytes: low32(words[5]),
            segments: low32(words[6]),
            entry_bytes: low32(words[7]),
            pid_namespace: words[8],
        })
    }
}

/// An engine process that has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientEntry {
    /// Process id as the daemon sees it; 0 when it cannot be seen.
    pub(super) pid: u32,
    /// Start time of the process, as in `/proc/PID/stat`.
    pub(super) start_time: u64,
    pub(super) instance: InstanceId,
    /// Epoch of the daemon that it joined.
    pub(super) epoch: Epoch,
}

fn client_seed(uuid: &[u8; 16]) -> u64 {
    split(uuid)[0] ^ 0x434c_4945_4e54
}

/// Writes or clears the entry of client slot `slot`.
pub(super) fn write_client(memory: &impl Words, uuid: &[u8; 16], slot: ClientSlot, entry: Option<&ClientEntry>) {
    let mut words = [0_u64; CLIENT_WORDS];
    if let Some(entry) = entry {
        let [low, high] = split(entry.instance.as_bytes());
        words = [1, u64::from(entry.pid), entry.start_time, low, high, entry.epoch.get(), u64::from(slot.get()), 0];
    }
    seal(memory, client_word(slot), client_seed(uuid), words);
}

/// The entry of client slot `slot`; a torn one reads as none (the join or the end was not finished).
pub(super) fn read_client(memory: &impl Words, uuid: &[u8; 16], slot: ClientSlot) -> Option<ClientEntry> {
    let found = unseal::<CLIENT_WORDS>(memory, client_word(slot), client_seed(uuid));
    let Unsealed::Whole(words) = found else { return None };
    (words[0] == 1 && words[6] == u64::from(slot.get())).then(|| ClientEntry {
        pid: low32(words[1]),
        start_time: words[2],
        instance: InstanceId::new(join(words[3], words[4])),
        epoch: Epoch::new(words[5]),
    })
}

fn client_word(slot: ClientSlot) -> usize {
    CLIENTS_AT / 8 + usize::from(slot.get()) * CLIENT_WORDS
}

pub(super) fn low32(word: u64) -> u32 {
    (word & u64::from(u32::MAX)) as u32
}
