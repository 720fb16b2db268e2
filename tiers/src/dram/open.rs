//! Opening an arena: a new one, or the one that the daemon before has left.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvd_nixl::sys::{Mapping, OfdLock, Pidfd, StartTime};
use kvd_proto::{Epoch, InstanceId};

use crate::ids::{
    ClientSlot, FencedSlot, RestoredPlace, RestoredRecord, RestoredSegment, SEGMENT_BYTES, SegmentId, SlotEntry,
    SlotId, SlotState, newer,
};

use super::arena::{Arena, ArenaError, MappedWords, segments_for};
use super::entry::{EntrySeal, Found, SegmentHeader, read_entry, read_segment, vacate_entry};
use super::files::{SegmentFiles, allocate};
use super::layout::{
    ClientEntry, FORMAT_VERSION, HEAD_BYTES, Superblock, TABLE_BYTES_PER_SLOT, block_word, pins_word, read_client,
    table_bytes,
};
use super::words::Words;

/// What an arena is opened with.
#[derive(Clone, Debug)]
pub struct ArenaOptions {
    /// The folder, on tmpfs or hugetlbfs. Made with mode 0700 if it is not there.
    pub folder: PathBuf,
    /// Bytes that all segments together may take; rounded down to whole segments, at least one.
    pub capacity_bytes: u64,
    /// The epoch is at least this; more where the arena has seen a later one.
    pub epoch_min: Epoch,
    /// Names the arena if a new one is made. Random.
    pub uuid: [u8; 16],
}

/// A process of an earlier epoch that may still touch slots. Its client slot stays taken until it rejoins or dies.
#[derive(Debug)]
pub struct Survivor {
    /// Its bit in the pin maps.
    pub client: ClientSlot,
    /// The engine that it is part of.
    pub instance: InstanceId,
    /// The epoch that it joined.
    pub epoch: Epoch,
    /// Readable when it has died; `None` where this daemon cannot see it (another pid namespace), so that only its
    /// rejoining ends the fence.
    pub process: Option<Pidfd>,
}

/// How an arena was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// There was an arena here and its table could be read.
    pub adopted: bool,
    /// Slots whose entry was half written or flipped: vacant now.
    pub torn: u64,
    /// Slots that a dead client was filling: vacant now.
    pub unfinished: u64,
    /// Segments that were in use and whose header is torn or whose file is gone or short.
    pub segments_lost: u32,
}

/// An open arena and what the daemon before has left in it.
#[derive(Debug)]
pub struct Opened {
    /// The arena.
    pub arena: Arena,
    /// How it was found.
    pub adoption: Adoption,
    /// Segments in use.
    pub segments: Vec<RestoredSegment>,
    /// The resident records, read as the iterator moves: two million of them need no memory. Not verified: that happens at
    /// the first read of each.
    pub records: RestoredRecords,
    /// Every slot that a survivor holds, whatever it holds it for: it may be read, but not given away.
    pub fenced: Vec<FencedSlot>,
    /// The processes that hold them, and those that hold nothing but have not said goodbye.
    pub survivors: Vec<Survivor>,
}

/// Resident records of an arena, segment by segment.
#[derive(Debug)]
pub struct RestoredRecords {
    words: MappedWords,
    uuid: [u8; 16],
    segments: std::vec::IntoIter<(SegmentId, SegmentHeader)>,
    current: Option<(SegmentId, SegmentHeader)>,
    index: u32,
}

impl Iterator for RestoredRecords {
    type Item = RestoredRecord;

    fn next(&mut self) -> Option<RestoredRecord> {
        loop {
            let (segment, header) = match self.current {
                Some((_, header)) if self.index >= header.slots() => {
                    self.current = None;
                    continue;
                }
                Some(current) => current,
                None => {
                    self.current = Some(self.segments.next()?);
                    self.index = 0;
                    continue;
                }
            };
            let slot = SlotId::new(segment, self.index);
            self.index += 1;
            let found = read_entry(&self.words, &EntrySeal { uuid: self.uuid, header }, slot);
            if let Found::Entry(entry @ SlotEntry { state: SlotState::Resident, .. }) = found {
                return Some(RestoredRecord { place: RestoredPlace::Dram(slot), slot_bytes: header.slot_bytes, entry });
            }
        }
    }
}

impl Arena {
    /// Opens the folder and takes over what is in it. Nothing is read but the table: 96 bytes per slot.
    pub fn open(options: &ArenaOptions) -> Result<Opened, ArenaError> {
        make_folder(&options.folder)?;
        let path = options.folder.join("table");
        let failed = |source: io::Error| ArenaError::File { path: path.clone(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        let lock = OfdLock::try_lock(file.as_fd()).map_err(failed)?;
        let lock = lock.ok_or_else(|| ArenaError::Locked { path: options.folder.clone() })?;
        let segments = segments_for(options.capacity_bytes);
        let files = Arc::new(SegmentFiles::new(&options.folder, segments));
        let (before, torn) = Superblock::read(&map_table(&file, &path, HEAD_BYTES as u64)?);
        if let Some(newer) = before.filter(|found| found.version > FORMAT_VERSION) {
            let (path, found, known) = (options.folder.clone(), newer.version, FORMAT_VERSION);
            return Err(ArenaError::NewerVersion { path, found, known });
        }
        let before = before.filter(fits);
        // Where nothing can be believed everything goes: new files, so that who still maps the old ones touches nothing of
        // ours.
        files.discard_from(if before.is_some() { segments } else { 0 }).map_err(failed)?;
        if before.is_none() {
            file.set_len(0).map_err(failed)?;
        }
        let words = map_table(&file, &path, table_bytes(segments))?;
        let superblock = next_superblock(options, segments, before.as_ref(), torn);
        let arena = Arena {
            folder: options.folder.clone(),
            table_file: file,
            words,
            superblock,
            headers: vec![None; segments as usize],
            files,
            failed: BTreeMap::new(),
            _lock: lock,
        };
        let opened = adopt(arena, before.as_ref()).map_err(failed)?;
        opened.arena.superblock.write(&opened.arena.words);
        Ok(opened)
    }
}

/// Whether the arena is laid out as this version lays it out. There is no older version; from version 2 on the one
/// before is converted here.
fn fits(found: &Superblock) -> bool {
    found.version == FORMAT_VERSION
        && found.segment_bytes == SEGMENT_BYTES
        && found.entry_bytes as usize == TABLE_BYTES_PER_SLOT
}

fn next_superblock(options: &ArenaOptions, segments: u32, before: Option<&Superblock>, torn: bool) -> Superblock {
    let before_epoch = before.map_or(0, |found| found.epoch.get());
    // A torn copy may have held the epoch after the one that can be read.
    let after = before_epoch.saturating_add(if torn { 2 } else { 1 });
    let epoch = options.epoch_min.get().max(after);
    // The copy that was read is the last to be written over: the epoch says which copy it goes to.
    let over_it = before.is_some() && epoch % 2 == before_epoch % 2;
    Superblock {
        version: FORMAT_VERSION,
        uuid: before.map_or(options.uuid, |found| found.uuid),
        epoch: Epoch::new(epoch.saturating_add(u64::from(over_it))),
        segment_bytes: SEGMENT_BYTES,
        segments,
        entry_bytes: TABLE_BYTES_PER_SLOT as u32,
        pid_namespace: pid_namespace(),
    }
}

/// Reads what the daemon before has left, and brings the table into order: slots without a record become vacant, dead
/// clients lose their pins.
fn adopt(mut arena: Arena, before: Option<&Superblock>) -> io::Result<Opened> {
    let mut adoption = Adoption { adopted: before.is_some(), ..Adoption::default() };
    let mut survivors = Vec::new();
    if let Some(before) = before {
        survivors = find_survivors(&arena, before.pid_namespace == arena.superblock.pid_namespace)?;

        adopt_segments(&mut arena, &mut adoption)?;
    }
    let alive = survivors.iter().fold(0, |bits, survivor: &Survivor| bits | survivor.client.bit());
    let mut fenced = Vec::new();
    let mut segments = Vec::new();
    let headers: Vec<_> = (0..arena.segments())
        .map(SegmentId)
        .filter_map(|segment| arena.header(segment).map(|header| (segment, *header)))
        .collect();
    for (segment, header) in &headers {
        let generation_max = sweep(&arena, *segment, *header, alive, &mut fenced, &mut adoption);
        segments.push(RestoredSegment {
            segment: *segment,
            tenant: header.tenant,
            slot_bytes: header.slot_bytes,
            generation_max,
        });
    }
    // Struck off only now: until here another kill must find them again, to clear what pins they still have.
    for client in (0..ClientSlot::COUNT as u8).filter_map(ClientSlot::new) {
        if alive & client.bit() == 0 && read_client(&arena.words, &arena.superblock.uuid, client).is_some() {
            arena.leave(client);
        }
    }
    let records = RestoredRecords {
        words: arena.words.clone(),
        uuid: arena.superblock.uuid,
        segments: headers.into_iter(),
        current: None,
        index: 0,
    };
    Ok(Opened { arena, adoption, segments, records, fenced, survivors })
}

/// The processes of the client table that still live. The others are struck off once their pins are gone; whether their
/// process was seen here at all does not matter then.
fn find_survivors(arena: &Arena, same_namespace: bool) -> io::Result<Vec<Survivor>> {
    let uuid = &arena.superblock.uuid;
    let mut survivors = Vec::new();
    for client in (0..ClientSlot::COUNT as u8).filter_map(ClientSlot::new) {
        let Some(entry) = read_client(&arena.words, uuid, client) else { continue };
        let process = match NonZeroU32::new(entry.pid).filter(|_| same_namespace) {
            None => None,
            Some(pid) => match living(pid, StartTime(entry.start_time))? {
                None => continue,
                alive => alive,
            },
        };
        let ClientEntry { instance, epoch, .. } = entry;
        survivors.push(Survivor { client, instance, epoch, process });
    }
    Ok(survivors)
}

fn living(pid: NonZeroU32, start_time: StartTime) -> io::Result<Option<Pidfd>> {
    let Some(process) = Pidfd::open(pid, start_time)? else { return Ok(None) };
    Ok((!process.is_dead()?).then_some(process))
}

/// Opens the files of all segments that are in use.
fn adopt_segments(arena: &mut Arena, adoption: &mut Adoption) -> io::Result<()> {
    for segment in (0..arena.segments()).map(SegmentId) {
        // Asked of the file: reading a hole through the mapping would allocate memory for it.
        let mut head = [0; 8];
        arena.table_file.read_exact_at(&mut head, block_word(segment) as u64 * 8)?;
        if head == [0; 8] {
            continue;
        }
        let header = read_segment(&arena.words, &arena.superblock.uuid, segment);
        arena.headers[segment.0 as usize] = header;
        if header.is_some_and(|header| header.assigned) && arena.files.adopt(segment).is_ok() {
            continue;
        }
        adoption.segments_lost += u32::from(header.is_none_or(|header| header.assigned));
        arena.give_up(segment);
    }
    Ok(())
}

/// Brings the entries of one segment into order; the highest generation that a slot of it ever had.
fn sweep(
    arena: &Arena,
    segment: SegmentId,
    header: SegmentHeader,
    alive: u64,
    fenced: &mut Vec<FencedSlot>,
    adoption: &mut Adoption,
) -> u32 {
    let place = EntrySeal { uuid: arena.superblock.uuid, header };
    let mut generation_max = 0;
    for slot in (0..header.slots()).map(|index| SlotId::new(segment, index)) {
        let pins = arena.words.load(pins_word(slot));
        if pins & !alive != 0 {
            arena.words.clear_bits(pins_word(slot), !alive);
        }
        if pins & alive != 0 {
            fenced.push(FencedSlot { slot, clients: pins & alive });
        }
        let generation = match read_entry(&arena.words, &place, slot) {
            Found::Entry(entry) => {
                if entry.state != SlotState::Resident {
                    vacate_entry(&arena.words, slot, entry.generation);
                    adoption.unfinished += u64::from(pins & alive == 0);
                }
                entry.generation
            }
            Found::Vacant { generation, torn } => {
                if torn {
                    vacate_entry(&arena.words, slot, generation);
                    adoption.torn += 1;
                }
                generation
            }
        };
        // 0 was given to nobody: the first one seen counts whatever it is.
        if generation_max == 0 || newer(generation, generation_max) {
            generation_max = generation;
        }
    }
    generation_max
}

/// Inode of this process's pid namespace: process ids of another one mean nothing here. 0 where it cannot be told.
fn pid_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino())
}

/// Brings the table file to `bytes`, its head allocated, and maps it.
fn map_table(file: &File, path: &Path, bytes: u64) -> Result<MappedWords, ArenaError> {
    let failed = |source: io::Error| ArenaError::File { path: path.to_path_buf(), source };
    let current = file.metadata().map_err(failed)?.len();
    if current < bytes || bytes > HEAD_BYTES as u64 {
        file.set_len(bytes).map_err(failed)?;
    }
    allocate(file, 0, HEAD_BYTES as u64).map_err(failed)?;
    let len = usize::try_from(bytes).expect("at most 32 000 segments");
    match Mapping::new(file.as_fd(), 0, len) {
        Ok(mapping) => Ok(MappedWords(Arc::new(mapping))),
        Err(source) => Err(ArenaError::Map { path: path.to_path_buf(), source }),
    }
}

fn make_folder(folder: &Path) -> Result<(), ArenaError> {
    let failed = |source: io::Error| ArenaError::File { path: folder.to_path_buf(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let found = std::fs::metadata(folder).map_err(failed)?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(ArenaError::Owner { path: folder.to_path_buf(), owner: found.uid() });
    }
    if found.mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}
