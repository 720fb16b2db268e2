//! Places in files, and what can happen to them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvd_nixl::io::Seeded;
use kvd_proto::BlockHash;

const MAGIC: &[u8] = b"KVDREC\r\n";
const GENERATION_AT: usize = 32;
const HASH_AT: usize = 120;
const HASH_LENGTH_AT: usize = 184;
/// Bytes read at a time in a search.
const PIECE: usize = 4 << 20;

/// An open file of the daemon's.
#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    file: Arc<File>,
}

impl Bytes {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path);
        Self { file: Arc::new(file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))) }
    }

    pub(crate) fn len(&self) -> u64 {
        self.file.metadata().expect("an open file has a length").len()
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).expect("within the file");
        bytes
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).expect("the file can be written");
    }

    /// Every eight bytes as a number.
    pub(crate) fn number(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at, 8).try_into().expect("eight bytes"))
    }

    /// Flips one bit, counted from byte `at` on; the same again undoes it.
    pub(crate) fn flip(&self, at: u64, bit: usize) {
        self.change(at, &Change::bit(bit));
    }

    /// Makes a change relative to byte `at`; the same again undoes it.
    pub(crate) fn change(&self, at: u64, change: &Change) {
        let at = at + change.at as u64;
        let mut bytes = self.read(at, change.mask.len());
        bytes.iter_mut().zip(&change.mask).for_each(|(byte, mask)| *byte ^= mask);
        self.write(at, &bytes);
    }
}

/// What is done to some bytes: they are xored with a mask that is not zero.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    at: usize,
    mask: Vec<u8>,
}

impl Change {
    pub(crate) fn bit(bit: usize) -> Self {
        Self { at: bit / 8, mask: vec![1 << (bit % 8)] }
    }

    /// A bit, some bits nearby or a run of other bytes, anywhere in `len` bytes from `from` on.
    pub(crate) fn random(random: &mut Seeded, from: usize, len: usize) -> Self {
        let run = match random.below(4) {
            0 | 1 => return Self::bit((from + random.below(len as u64) as usize) * 8 + random.below(8) as usize),
            2 => 8,
            _ => 1 + random.below(64.min(len as u64)) as usize,
        };
        let mut mask: Vec<u8> = (0..run).map(|_| random.bits() as u8).collect();
        mask[0] |= 1;
        Self { at: from + random.below((len - run + 1) as u64) as usize, mask }
    }
}

/// Where a record stands.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) file: Bytes,
    pub(crate) at: u64,
    /// Of the arena; 0 on a device.
    pub(crate) segment: u32,
    generation: u32,
}

impl Spot {
    pub(crate) fn change(&self, change: &Change) {
        self.file.change(self.at, change);
    }

    pub(crate) fn read(&self, len: usize) -> Vec<u8> {
        self.file.read(self.at, len)
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        self.file.write(self.at, bytes);
    }
}

/// The youngest image of each record in `file` from `from` on, found by the hash in it. All slots have `slot_bytes`.
pub(crate) fn records(file: &Bytes, segment: u32, from: u64, slot_bytes: usize, found: &mut HashMap<BlockHash, Spot>) {
    let piece = PIECE / slot_bytes * slot_bytes;
    let end = file.len();
    let mut at = from;
    while at < end {
        let bytes = file.read(at, piece.min((end - at) as usize));
        for (slot, record) in bytes.chunks_exact(slot_bytes).enumerate() {
            let Some(hash) = hash_of(record) else { continue };
            let number = record[GENERATION_AT..GENERATION_AT + 4].try_into().expect("four bytes");
            let generation = u32::from_le_bytes(number);
            let spot = Spot { file: file.clone(), at: at + (slot * slot_bytes) as u64, segment, generation };
            let youngest = found.entry(hash).or_insert_with(|| spot.clone());
            if youngest.generation < generation {
                *youngest = spot;
            }
        }
        at += piece as u64;
    }
}

fn hash_of(record: &[u8]) -> Option<BlockHash> {
    let len = usize::from(record[HASH_LENGTH_AT]);
    (record.starts_with(MAGIC) && (1..=32).contains(&len))
        .then(|| BlockHash::new(&record[HASH_AT..HASH_AT + len]).expect("a hash of a good length"))
}

/// The arena's segment files with their numbers.
pub(crate) fn segments(folder: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(folder).expect("the arena's folder").flatten().map(|entry| entry.path());
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix("seg-")?.parse().ok();
    entries.filter_map(|path| Some((number(&path)?, path))).collect()
}
