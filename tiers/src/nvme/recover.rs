//! Finds out what a device holds. Reads only; nothing that stands there can make it fail but a device of somebody else's.

use std::collections::HashMap;
use std::io;

use kvd_nixl::io::{FileId, Io, IoError};

use crate::ids::{DeviceId, RestoredPlace, RestoredRecord, RestoredZone, ZoneId};
use crate::record::bytes::all_zero;
use crate::record::{SECTOR_BYTES, slot_bytes};

use super::entry::{ENTRY_BYTES, Entry, sequence_of, slot_of};
use super::geometry::{Geometry, GeometryError, JOURNAL_AT, SUPERBLOCK_AT, Slot};
use super::journal::{EntryBytes, half_of, remember};
use super::page;
use super::superblock::{Copy, Identity, Superblock, identify};
use super::sweep::{STRETCH_BYTES, Stretch, Sweeper};
use super::zone::ZoneHeader;
use super::zones::Zones;

/// Why a device is not used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be read or written.
    #[error("the device cannot be read or written: {0}")]
    Io(#[from] IoError),
    /// The process lacks what it takes.
    #[error("no memory for reading the device: {0}")]
    Memory(#[from] io::Error),
    /// Something else stands there.
    #[error("it holds data that is not kvd's; kvd does not write over it. Choose another path, or wipe its first MiB")]
    Foreign,
    /// A newer version made it.
    #[error(
        "it was formatted by a newer kvd (format {found}, this program reads {known}). Run that version, or delete it"
    )]
    Newer {
        /// Version found.
        found: u16,
        /// Version of this program.
        known: u16,
    },
    /// It was larger once.
    #[error(
        "it has {bytes} bytes, but was formatted to {wanted}: truncated, or a partial copy. Restore its size, or delete it"
    )]
    Truncated {
        /// Bytes there.
        bytes: u64,
        /// Bytes that it was formatted to.
        wanted: u64,
    },
    /// It is too small, or asked to be of impossible sizes.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
}

/// What a device had when it was opened; shown one by one, so that nothing holds them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// A formatted zone. Its records follow.
    Zone(RestoredZone),
    /// A record of the zone shown last. Its bytes are not verified yet.
    Record(RestoredRecord),
}

/// Entries that stand in the journal only, for each half.
pub(super) type Pending = [HashMap<u32, EntryBytes>; 2];

/// What a used device holds.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) superblock: Superblock,
    pub(super) zones: Zones,
    pub(super) pending: Pending,
    /// Largest sequence seen anywhere.
    pub(super) sequence: u64,
    pub(super) records: u64,
    /// Journal pages that are not whole: torn, rotten, or of an earlier formatting.
    pub(super) pages_damaged: u64,
    /// Sectors that could not be read.
    pub(super) sectors_unreadable: u64,
}

/// What stands on a device.
#[derive(Debug)]
pub(super) enum Scan {
    Known(Box<Known>),
    /// To be formatted; with the reason, where there was something before.
    Format(Option<&'static str>),
}

/// Looks at the whole device of `bytes` bytes, and shows what it holds to `sink`.
pub(super) fn scan<I: Io>(
    sweeper: &mut Sweeper<'_, I>,
    bytes: u64,
    device: DeviceId,
    sink: &mut dyn FnMut(Restored),
) -> Result<Scan, OpenError> {
    let superblock = match identity(sweeper, bytes)? {
        Identity::Known(found) => found,
        Identity::Empty => return Ok(Scan::Format(None)),
        Identity::Lost(why) => return Ok(Scan::Format(Some(why))),
        Identity::Newer(found) => return Err(OpenError::Newer { found, known: super::superblock::VERSION }),
        Identity::Foreign => return Err(OpenError::Foreign),
    };
    let wanted = superblock.geometry.end();
    if wanted > bytes {
        return Err(OpenError::Truncated { bytes, wanted });
    }
    let mut known = Known {
        superblock,
        zones: Zones::new(superblock.uuid, superblock.geometry),
        pending: [HashMap::new(), HashMap::new()],
        sequence: superblock.sequence_floor,
        records: 0,
        pages_damaged: 0,
        sectors_unreadable: 0,
    };
    known.read_headers(sweeper);
    known.read_journal(sweeper);
    known.read_tables(sweeper, device, sink);
    Ok(Scan::Known(Box::new(known)))
}

/// How many zones the device has that stands in a file of `bytes` bytes; `None` where there is none that can be taken over.
/// Cheap: for whoever must know before the device is opened.
pub fn formatted_zones<I: Io>(io: &mut I, file: FileId, bytes: u64) -> Result<Option<u32>, OpenError> {
    match identity(&mut Sweeper::new(io, file)?, bytes)? {
        Identity::Known(found) => Ok(Some(found.geometry.zones())),
        Identity::Empty | Identity::Lost(_) | Identity::Newer(_) | Identity::Foreign => Ok(None),
    }
}

fn identity<I: Io>(sweeper: &mut Sweeper<'_, I>, bytes: u64) -> Result<Identity, OpenError> {
    let least = STRETCH_BYTES as u64;
    if bytes < least {
        return Err(GeometryError::TooSmall { capacity: bytes, least }.into());
    }
    let mut copies = [Copy::Foreign; 2];
    let mut failed = None;
    let places = (0..2).map(|copy| Stretch { offset: SUPERBLOCK_AT[copy as usize], len: SECTOR_BYTES, number: copy });
    sweeper.read(places, |stretch, found| match found {
        Ok(sector) => copies[stretch.number as usize] = Superblock::read(sector.try_into().expect("one sector")),
        Err(error) => failed = Some(error),
    });
    let mut zero = true;
    let known = |identity| matches!(identity, Identity::Known(_) | Identity::Newer(_));
    if !known(identify(copies, false)) {
        // Nothing is decided about a device that cannot be read.
        if let Some(error) = failed {
            return Err(error.into());
        }
        sweeper.read([Stretch { offset: 0, len: STRETCH_BYTES, number: 0 }], |_, found| {
            zero &= found.is_ok_and(all_zero);
        });
    }
    Ok(identify(copies, zero))
}

/// Cuts `len` bytes at `offset` in stretches.
fn stretches(offset: u64, len: u64) -> impl Iterator<Item = Stretch> {
    (0..len).step_by(STRETCH_BYTES).map(move |at| Stretch {
        offset: offset + at,
        len: usize::try_from(len - at).map_or(STRETCH_BYTES, |left| left.min(STRETCH_BYTES)),
        number: 0,
    })
}

impl Known {
    fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    fn read_headers<I: Io>(&mut self, sweeper: &mut Sweeper<'_, I>) {
        let start = self.geometry().headers_at();
        let len = u64::from(self.geometry().zones()) * SECTOR_BYTES as u64;
        let uuid = self.superblock.uuid;
        sweeper.read(stretches(start, len), |stretch, found| {
            let Ok(sectors) = found else {
                self.sectors_unreadable += 1;
                return;
            };
            let first = (stretch.offset - start) / SECTOR_BYTES as u64;
            for (zone, sector) in (first as u32..).zip(sectors.chunks_exact(SECTOR_BYTES)) {
                if let Some(header) = ZoneHeader::read(&uuid, ZoneId(zone), sector) {
                    self.sequence = self.sequence.max(header.generation);
                    self.zones.format(header);
                }
            }
        });
    }

    fn read_journal<I: Io>(&mut self, sweeper: &mut Sweeper<'_, I>) {
        let len = u64::from(self.geometry().journal_pages()) * SECTOR_BYTES as u64;
        sweeper.read(stretches(JOURNAL_AT, len), |_, found| match found {
            Ok(sectors) => sectors.chunks_exact(SECTOR_BYTES).for_each(|sector| self.read_page(sector)),
            Err(_) => self.sectors_unreadable += 1,
        });
    }

    fn read_page(&mut self, sector: &[u8]) {
        match page::read(&self.superblock.uuid, sector) {
            page::Page::Empty => return,
            page::Page::Damaged => self.pages_damaged += 1,
            page::Page::Whole { sequence, .. } => self.sequence = self.sequence.max(sequence),
        }
        // Entries prove themselves, so a torn page still gives what is whole in it.
        for bytes in page::entries(sector) {
            let slot = slot_of(bytes);
            let Some(seed) = self.zones.entry_seed(slot) else { continue };
            if Entry::decode(seed, bytes).is_some() {
                self.sequence = self.sequence.max(sequence_of(bytes));
                remember(&mut self.pending[half_of(&self.superblock.geometry, sequence_of(bytes))], bytes);
            }
        }
    }

    fn read_tables<I: Io>(&mut self, sweeper: &mut Sweeper<'_, I>, device: DeviceId, sink: &mut dyn FnMut(Restored)) {
        let geometry = self.geometry();
        let headers: Vec<ZoneHeader> = self.zones.headers().collect();
        for header in &headers {
            let zone = RestoredZone { device, zone: header.zone, slot_bytes: header.slot_bytes };
            sink(Restored::Zone(zone));
        }
        let places = headers.iter().map(|header| {
            let bytes = geometry.slots_per_zone(header.slot_bytes) as usize * ENTRY_BYTES;
            let len = bytes.next_multiple_of(SECTOR_BYTES);
            Stretch { offset: geometry.table_at(header.zone), len, number: header.zone.0 }
        });
        sweeper.read(places, |stretch, found| {
            let zone = ZoneId(stretch.number);
            let first = (stretch.offset - geometry.table_at(zone)) / ENTRY_BYTES as u64;
            self.sectors_unreadable += u64::from(found.is_err());
            let entries = stretch.len / ENTRY_BYTES;
            for index in 0..entries {
                let slot = Slot::of(zone, first as u32 + index as u32);
                let bytes = found.as_ref().ok().map(|table| &table[index * ENTRY_BYTES..(index + 1) * ENTRY_BYTES]);
                self.restore(slot, bytes, device, sink);
            }
        });
    }

    /// Decides what counts for a slot: the newest valid entry, in the table or in the journal.
    fn restore(&mut self, slot: Slot, table: Option<&[u8]>, device: DeviceId, sink: &mut dyn FnMut(Restored)) {
        let (Some(seed), Some(room)) = (self.zones.entry_seed(slot), self.zones.slot_bytes(slot)) else { return };
        let own = |entry: &Entry| entry.slot == slot;
        let mut newest = table.and_then(|bytes| Entry::decode(seed, bytes)).filter(own);
        for half in &mut self.pending {
            let Some(bytes) = half.get(&slot.number()) else { continue };
            match &newest {
                Some(found) if (found.sequence >= sequence_of(bytes)) != cfg!(kvd_bug = "journal_reversed") => {
                    half.remove(&slot.number());
                }
                _ => newest = Entry::decode(seed, bytes).filter(own),
            }
        }
        let Some(Entry { sequence, resident, .. }) = newest else { return };
        self.sequence = self.sequence.max(sequence);
        let Some(entry) = resident.filter(|entry| slot_bytes(SECTOR_BYTES, entry.payload_bytes) <= room as usize)
        else {
            return;
        };
        self.zones.occupy(slot);
        self.records += 1;
        let place = RestoredPlace::Nvme(slot.on(device));
        sink(Restored::Record(RestoredRecord { place, slot_bytes: room, entry }));
    }
}
