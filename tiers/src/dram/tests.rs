//! What a kill or a flipped bit leaves of the table, and what the next daemon makes of a folder.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use kvd_nixl::sys::{Mapping, Memory, StartTime, sigbus};
use kvd_proto::{BlockKey, Epoch, InstanceId, Interleave, Shard};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::entry::{
    EntrySeal, Found, SegmentHeader, read_entry, read_segment, vacate_entry, write_entry, write_segment,
};
use super::layout::{ClientEntry, Superblock, block_word, entry_word, pins_word, read_client, write_client};
use super::words::Words;
use super::*;
use crate::ids::{
    ClientSlot, FencedSlot, RestoredPlace, RestoredRecord, SEGMENT_BYTES, SegmentId, SlotEntry, SlotId, SlotState,
    TenantId,
};
use crate::ladder::SlotTable;

const UUID: [u8; 16] = *b"0123456789abcdef";
const TENANT: TenantId = TenantId(0x7e4a);
const HEADER: SegmentHeader = SegmentHeader { assigned: true, slot_bytes: 8192, tenant: TENANT, generation: 3 };
const PLACE: EntrySeal = EntrySeal { uuid: UUID, header: HEADER };

/// A table in plain memory that remembers every store.
#[derive(Default)]
struct Recorder {
    words: RefCell<Vec<u64>>,
    log: RefCell<Vec<(usize, u64)>>,
}

impl Recorder {
    fn new() -> Self {
        Self { words: RefCell::new(vec![0; block_word(SegmentId(1))]), log: RefCell::default() }
    }

    fn at(words: Vec<u64>) -> Self {
        Self { words: RefCell::new(words), log: RefCell::default() }
    }

    fn flip(&self, bit: usize) {
        self.words.borrow_mut()[bit / 64] ^= 1 << (bit % 64);
    }
}

impl Words for Recorder {
    fn load(&self, index: usize) -> u64 {
        self.words.borrow()[index]
    }

    fn store(&self, index: usize, value: u64) {
        self.words.borrow_mut()[index] = value;
        self.log.borrow_mut().push((index, value));
    }

    fn set_bits(&self, index: usize, bits: u64) {
        self.store(index, self.load(index) | bits);
    }

    fn clear_bits(&self, index: usize, bits: u64) {
        self.store(index, self.load(index) & !bits);
    }
}

fn slot(index: u32) -> SlotId {
    SlotId::new(SegmentId(0), index)
}

fn entry(state: SlotState, generation: u32, seed: u8) -> SlotEntry {
    SlotEntry {
        state,
        generation,
        tenant: TENANT,
        namespace_prefix: u64::from(seed) << 40 | 7,
        group: u16::from(seed),
        shard: Shard::new(0..32, 0..8, Interleave::WHOLE).unwrap(),
        key: BlockKey::new([seed; 16]),
        parent_key: (seed % 2 == 1).then(|| BlockKey::new([seed.wrapping_add(1); 16])),
        position: u32::from(seed) + 5,
        payload_bytes: 4096,
        meta_checksum: u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

fn client_entry() -> ClientEntry {
    ClientEntry { pid: 4711, start_time: 99, instance: InstanceId::new([6; 16]), epoch: Epoch::new(4) }
}

/// Goal: a SIGKILL at any store leaves each slot as it was, as it shall be, or vacant. Method: random life of eight
/// slots; each operation's stores are replayed one by one onto the image before it.
#[test]
fn a_kill_at_any_store_leaves_old_new_or_vacant() {
    (0..4).for_each(kill_at_any_store);
}

fn kill_at_any_store(seed: u64) {
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let memory = Recorder::new();
    for step in 0..500_u32 {
        let slot = slot(random.random_range(0..8));
        let before: Vec<Found> = (0..8).map(|index| read_entry(&memory, &PLACE, self::slot(index))).collect();
        let image = memory.words.borrow().clone();
        memory.log.borrow_mut().clear();
        match random.random_range(0..5) {
            0 => vacate_entry(&memory, slot, step),
            1 => memory.set_bits(pins_word(slot), 1 << random.random_range(0..64)),
            2 => write_entry(&memory, &PLACE, slot, &entry(SlotState::Filling, step, random.random())),
            _ => write_entry(&memory, &PLACE, slot, &entry(SlotState::Resident, step, random.random())),
        }
        let after = read_entry(&memory, &PLACE, slot);
        let log = memory.log.borrow().clone();
        let partial = Recorder::at(image);
        for (count, (index, value)) in log.iter().enumerate() {
            for other in 0..8 {
                let found = read_entry(&partial, &PLACE, self::slot(other));
                let old = &before[other as usize];
                let vacant = matches!(found, Found::Vacant { .. }) && self::slot(other) == slot;
                assert!(found == *old || vacant, "step {step}, {count} stores: {old:?} became {found:?}");
            }
            partial.words.borrow_mut()[*index] = *value;
        }
        assert_eq!(read_entry(&partial, &PLACE, slot), after);
    }
}

#[test]
fn a_torn_entry_still_tells_its_generation() {
    let memory = Recorder::new();
    write_entry(&memory, &PLACE, slot(0), &entry(SlotState::Resident, 41, 1));
    let image = memory.words.borrow().clone();
    memory.log.borrow_mut().clear();
    write_entry(&memory, &PLACE, slot(0), &entry(SlotState::Filling, 42, 2));
    let partial = Recorder::at(image);
    for (index, value) in memory.log.borrow().iter() {
        partial.words.borrow_mut()[*index] = *value;
        match read_entry(&partial, &PLACE, slot(0)) {
            Found::Vacant { generation, torn } => assert!(torn && (41..=42).contains(&generation)),
            Found::Entry(entry) => assert_eq!(entry.generation, 42),
        }
    }
}

/// Every bit of one entry of each state, of a client, a segment header and both superblocks.
#[test]
fn no_flipped_bit_makes_a_wrong_item() {
    for state in [SlotState::Vacant, SlotState::Filling, SlotState::Resident] {
        let memory = Recorder::new();
        write_entry(&memory, &PLACE, slot(0), &entry(SlotState::Resident, 8, 3));
        write_entry(&memory, &PLACE, slot(0), &entry(state, 9, 3));
        let clean = read_entry(&memory, &PLACE, slot(0));
        for bit in entry_word(slot(0)) * 64..entry_word(slot(1)) * 64 {
            memory.flip(bit);
            let found = read_entry(&memory, &PLACE, slot(0));
            assert!(found == clean || matches!(found, Found::Vacant { .. }), "{state:?}, bit {bit}: {found:?}");
            let pins = bit / 64 == pins_word(slot(0));
            assert!(state == SlotState::Vacant || pins || found != clean, "{state:?}, bit {bit} unnoticed");
            memory.flip(bit);
        }
    }
    let memory = Recorder::new();
    let client = ClientSlot::new(5).unwrap();
    write_client(&memory, &UUID, client, Some(&client_entry()));
    write_segment(&memory, &UUID, SegmentId(0), &HEADER);
    superblock(6).write(&memory);
    superblock(7).write(&memory);
    let used: Vec<usize> = (0..memory.words.borrow().len()).filter(|word| memory.load(*word) != 0).collect();
    for bit in used.into_iter().flat_map(|word| word * 64..(word + 1) * 64) {
        memory.flip(bit);
        assert!(read_client(&memory, &UUID, client).is_none_or(|found| found == client_entry()));
        assert!(read_segment(&memory, &UUID, SegmentId(0)).is_none_or(|found| found == HEADER));
        let (found, torn) = Superblock::read(&memory);
        assert!(found == Some(superblock(7)) || (found == Some(superblock(6)) && torn));
        memory.flip(bit);
    }
}

fn superblock(epoch: u64) -> Superblock {
    Superblock {
        version: 1,
        uuid: UUID,
        epoch: Epoch::new(epoch),
        segment_bytes: SEGMENT_BYTES,
        segments: 1,
        entry_bytes: TABLE_BYTES_PER_SLOT as u32,
        pid_namespace: 11,
    }
}

#[test]
fn items_of_another_place_time_or_arena_are_nothing() {
    let memory = Recorder::new();
    write_entry(&memory, &PLACE, slot(0), &entry(SlotState::Resident, 1, 1));
    for word in 0..12 {
        memory.store(entry_word(slot(1)) + word, memory.load(entry_word(slot(0)) + word));
    }
    assert!(matches!(read_entry(&memory, &PLACE, slot(1)), Found::Vacant { .. }));
    let later = EntrySeal { header: SegmentHeader { generation: 4, ..HEADER }, ..PLACE };
    assert!(matches!(read_entry(&memory, &later, slot(0)), Found::Vacant { .. }));
    let foreign = EntrySeal { uuid: [9; 16], ..PLACE };
    assert!(matches!(read_entry(&memory, &foreign, slot(0)), Found::Vacant { .. }));
}

/// The bytes of one item of each kind, as docs/formats/arena.md has them.
#[test]
fn the_format_is_the_golden_one() {
    let memory = Recorder::new();
    superblock(6).write(&memory);
    write_client(&memory, &UUID, ClientSlot::new(5).unwrap(), Some(&client_entry()));
    write_segment(&memory, &UUID, SegmentId(0), &HEADER);
    write_entry(&memory, &PLACE, slot(1), &entry(SlotState::Resident, 9, 3));
    memory.set_bits(pins_word(slot(1)), 1 << 5);
    vacate_entry(&memory, slot(2), 77);
    let words = memory.words.borrow();
    let lines = words.iter().enumerate().filter(|(_, word)| **word != 0);
    let text: String = lines.map(|(index, word)| format!("{:06x} {:016x}\n", index * 8, word)).collect();
    assert_eq!(text, include_str!("golden/table-v1.txt"), "the table's format changed:\n{text}");
}

fn open_in(folder: &std::path::Path, segments: u64) -> Result<Opened, ArenaError> {
    sigbus::install().unwrap();
    let options = ArenaOptions {
        folder: folder.join("arena"),
        capacity_bytes: segments * u64::from(SEGMENT_BYTES),
        epoch_min: Epoch::new(1),
        uuid: UUID,
    };
    // A test beside this one may be starting a process: until it has become another program, it holds our lock as well.
    let mut tries = 0;
    loop {
        match Arena::open(&options) {
            Err(ArenaError::Locked { .. }) if tries < 200 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            opened => return opened,
        }
    }
}

fn memory_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Else the arena hangs on a single copy from then on.
#[test]
fn a_torn_superblock_is_the_one_that_is_written_next() {
    let folder = memory_folder();
    drop(open_in(folder.path(), 1).unwrap());
    let mut arena = open_in(folder.path(), 1).unwrap().arena;
    for _ in 0..4 {
        let checksum = [0, 4096][(arena.epoch().get() % 2) as usize] / 8 + 9;
        arena.words.store(checksum, !arena.words.load(checksum));
        drop(arena);
        let opened = open_in(folder.path(), 1).unwrap();
        assert!(opened.adoption.adopted, "the copy before does");
        arena = opened.arena;
        assert_eq!(Superblock::read(&arena.words), (Some(arena.superblock), false), "both are whole again");
    }
}

fn child() -> (Child, ClientProcess) {
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let StartTime(start_time) = StartTime::of(NonZeroU32::new(child.id()).unwrap()).unwrap().unwrap();
    let process = ClientProcess { pid: child.id(), start_time, instance: InstanceId::new([child.id() as u8; 16]) };
    (child, process)
}

/// Dropping an arena writes nothing, so that it stands for SIGKILL and SIGTERM alike.
#[test]
fn the_next_daemon_adopts_records_and_fences_what_survivors_hold() {
    let folder = memory_folder();
    let mut opened = open_in(folder.path(), 2).unwrap();
    assert_eq!((opened.adoption, opened.arena.epoch()), (Adoption::default(), Epoch::new(1)));
    let (mut dead, dead_process) = child();
    let (mut alive, alive_process) = child();
    let [one, two] = [1, 2].map(|number| ClientSlot::new(number).unwrap());
    let arena = &mut opened.arena;
    arena.join(one, &dead_process);
    arena.join(two, &alive_process);
    arena.assign_segment(SegmentId(0), TENANT, 8192);
    for index in 0..4 {
        arena.pin(slot(index), [one, two][index as usize % 2]);
        let state = if index < 2 { SlotState::Resident } else { SlotState::Filling };
        arena.write(slot(index), &entry(state, 10 + index, index as u8));
    }
    arena.write(slot(4), &entry(SlotState::Resident, 3, 4));
    arena.vacate(slot(4), 20);
    arena.files().get(SegmentId(0)).unwrap().memory().write(100, b"kept").unwrap();
    assert!(matches!(open_in(folder.path(), 2), Err(ArenaError::Locked { .. })));
    dead.kill().unwrap();
    dead.wait().unwrap();
    drop(opened);

    let mut opened = open_in(folder.path(), 2).unwrap();
    assert_eq!(opened.arena.epoch(), Epoch::new(2));
    assert_eq!(opened.adoption, Adoption { adopted: true, unfinished: 1, ..Adoption::default() });
    let found: Vec<RestoredRecord> = opened.records.by_ref().collect();
    let expected = [0, 1].map(|index| RestoredRecord {
        place: RestoredPlace::Dram(slot(index)),
        slot_bytes: 8192,
        entry: entry(SlotState::Resident, 10 + index, index as u8),
    });
    assert_eq!(found, expected);
    assert_eq!(opened.segments.len(), 1);
    assert_eq!((opened.segments[0].tenant, opened.segments[0].generation_max), (TENANT, 20));
    let fenced = [1, 3].map(|index| FencedSlot { slot: slot(index), clients: two.bit() });
    assert_eq!(opened.fenced, fenced);
    let [survivor] = &opened.survivors[..] else { panic!("{:?}", opened.survivors) };
    assert_eq!((survivor.client, survivor.instance), (two, alive_process.instance));
    assert!(!survivor.process.as_ref().unwrap().is_dead().unwrap());
    let mut bytes = [0; 4];
    opened.arena.files().get(SegmentId(0)).unwrap().memory().read(100, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");

    alive.kill().unwrap();
    alive.wait().unwrap();
    drop(opened);
    let opened = open_in(folder.path(), 2).unwrap();
    assert!(opened.survivors.is_empty() && opened.fenced.is_empty());
    assert_eq!(opened.arena.pins(slot(3)), 0);
    assert_eq!(opened.records.count(), 2);
}

#[test]
fn a_segment_that_changes_tenant_is_another_file_and_the_old_one_is_emptied() {
    let folder = memory_folder();
    let mut arena = open_in(folder.path(), 1).unwrap().arena;
    let segment = SegmentId(0);
    arena.files().prepare(segment).unwrap();
    arena.assign_segment(segment, TENANT, 16384);
    let before = arena.files().get(segment).unwrap();
    let engine = Mapping::new(before.as_fd(), 0, SEGMENT_BYTES as usize).unwrap();
    engine.write(0, b"secret").unwrap();
    arena.assign_segment(segment, TENANT, 8192);
    let mut bytes = [0; 6];
    arena.files().get(segment).unwrap().memory().read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"secret", "the same tenant keeps the file");

    arena.assign_segment(segment, TenantId(2), 8192);
    let after = arena.files().get(segment).unwrap();
    after.memory().read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 6]);
    after.memory().write(0, b"others").unwrap();
    engine.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 6], "the old tenant sees nothing of the new one");
    assert_eq!(arena.assignment(segment), Some((TenantId(2), 8192)));
}

#[test]
fn a_segment_cut_short_is_lost_and_can_be_used_again() {
    let folder = memory_folder();
    let mut arena = open_in(folder.path(), 2).unwrap().arena;
    for number in 0..2 {
        arena.assign_segment(SegmentId(number), TENANT, 8192);
        arena.write(SlotId::new(SegmentId(number), 0), &entry(SlotState::Resident, 1, 1));
    }
    assert_eq!(arena.lost().count(), 0);
    let file = std::fs::File::options().write(true).open(folder.path().join("arena/seg-00001")).unwrap();
    file.set_len(4096).unwrap();
    let open = arena.files().get(SegmentId(1)).unwrap();
    open.memory().read(8192, &mut [0; 1]).unwrap();
    assert_eq!(arena.lost().collect::<Vec<_>>(), [SegmentId(1)]);
    arena.give_up(SegmentId(1));
    assert_eq!((arena.lost().count(), arena.assignment(SegmentId(1))), (0, None));
    arena.assign_segment(SegmentId(1), TENANT, 8192);
    assert_eq!(arena.lost().count(), 0);
    drop(arena);

    let file = std::fs::File::options().write(true).open(folder.path().join("arena/seg-00000")).unwrap();
    file.set_len(4096).unwrap();
    let opened = open_in(folder.path(), 2).unwrap();
    assert_eq!((opened.adoption.segments_lost, opened.segments.len()), (1, 1));
    assert_eq!(opened.records.count(), 0);
}

#[test]
fn capacity_may_change_and_a_smaller_arena_gives_memory_back() {
    let folder = memory_folder();
    let mut arena = open_in(folder.path(), 3).unwrap().arena;
    for number in [0, 2] {
        arena.assign_segment(SegmentId(number), TENANT, 8192);
        arena.write(SlotId::new(SegmentId(number), 1), &entry(SlotState::Resident, 1, 1));
    }
    drop(arena);
    let opened = open_in(folder.path(), 1).unwrap();
    assert_eq!(opened.records.count(), 1);
    assert!(!folder.path().join("arena/seg-00002").exists());
    drop(opened.arena);
    assert_eq!(open_in(folder.path(), 3).unwrap().records.count(), 1);
}

#[test]
fn a_newer_format_is_refused_and_an_unreadable_one_starts_anew() {
    let folder = memory_folder();
    let mut arena = open_in(folder.path(), 1).unwrap().arena;
    arena.assign_segment(SegmentId(0), TENANT, 8192);
    arena.write(slot(0), &entry(SlotState::Resident, 1, 1));
    Superblock { version: 2, epoch: Epoch::new(2), ..arena.superblock }.write(&arena.words);
    drop(arena);
    let refused = open_in(folder.path(), 1).unwrap_err();
    assert!(matches!(refused, ArenaError::NewerVersion { found: 2, known: 1, .. }), "{refused}");

    let table = std::fs::File::options().write(true).open(folder.path().join("arena/table")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&table, &[7; 8192], 0).unwrap();
    let opened = open_in(folder.path(), 1).unwrap();
    assert_eq!((opened.adoption.adopted, opened.records.count()), (false, 0));
    assert!(!folder.path().join("arena/seg-00000").exists());
}
