//! One page of the journal: docs/formats/nvme.md, "Journal".

use crate::record::SECTOR_BYTES;
use crate::record::bytes::{all_zero, array, checked, put, seal, u16_at, u64_at};

use super::entry::ENTRY_BYTES;
use super::superblock::{Uuid, VERSION};

/// Entries of a page.
pub(super) const PAGE_ENTRIES: usize = 31;

const MAGIC: [u8; 8] = *b"KVDJRNL\n";

mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const COUNT: usize = 10;
    pub(super) const RESERVED: usize = 12;
    pub(super) const CHECKSUM: usize = 16;
    pub(super) const SEQUENCE: usize = 24;
    pub(super) const RESERVED_TOO: usize = 32;
    pub(super) const ENTRIES: usize = 64;
}

const _: () = assert!(at::ENTRIES + PAGE_ENTRIES * ENTRY_BYTES <= SECTOR_BYTES);

/// Writes the page of `sequence` with these entries, which carry the same sequence.
pub(super) fn encode(uuid: &Uuid, sequence: u64, entries: &[[u8; ENTRY_BYTES]], sector: &mut [u8]) {
    debug_assert!((1..=PAGE_ENTRIES).contains(&entries.len()));
    sector.fill(0);
    put(sector, at::MAGIC, &MAGIC);
    put(sector, at::VERSION, &VERSION.to_le_bytes());
    put(sector, at::COUNT, &(entries.len() as u16).to_le_bytes());
    put(sector, at::SEQUENCE, &sequence.to_le_bytes());
    for (index, entry) in entries.iter().enumerate() {
        put(sector, at::ENTRIES + index * ENTRY_BYTES, entry);
    }
    seal(uuid.seed(b"KVDJRNL1"), sector);
}

/// What stands at a place of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// Nothing of this formatting.
    Empty,
    /// Once a page, no longer whole. Its entries may still be.
    Damaged,
    /// A whole page.
    Whole { sequence: u64, count: usize },
}

/// Looks at the page in `sector`.
pub(super) fn read(uuid: &Uuid, sector: &[u8]) -> Page {
    if all_zero(sector) {
        return Page::Empty;
    }
    if checked(uuid.seed(b"KVDJRNL1"), sector).is_none() {
        return Page::Damaged;
    }
    let count = usize::from(u16_at(sector, at::COUNT));
    let zero = all_zero(&sector[at::RESERVED..at::CHECKSUM]) && all_zero(&sector[at::RESERVED_TOO..at::ENTRIES]);
    let ours = array::<8>(sector, at::MAGIC) == MAGIC && u16_at(sector, at::VERSION) == VERSION;
    if !zero || !ours || !(1..=PAGE_ENTRIES).contains(&count) {
        return Page::Damaged;
    }
    Page::Whole { sequence: u64_at(sector, at::SEQUENCE), count }
}

/// The places of the entries, whole page or not.
pub(super) fn entries(sector: &[u8]) -> impl Iterator<Item = &[u8; ENTRY_BYTES]> {
    sector[at::ENTRIES..].as_chunks().0.iter()
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Entry, sample};
    use super::super::geometry::Slot;
    use super::*;
    use crate::ids::ZoneId;

    #[test]
    fn every_flipped_bit_damages_the_page_and_at_most_one_entry() {
        let uuid = Uuid::new([5; 16]);
        let mut sector = [0; SECTOR_BYTES];
        let encoded = [0_u32, 1, 2].map(|index| {
            let slot = Slot::of(ZoneId(0), index);
            Entry { sequence: 77, slot, resident: Some(sample(slot)) }.encode(1)
        });
        encode(&uuid, 77, &encoded, &mut sector);
        assert_eq!(read(&uuid, &sector), Page::Whole { sequence: 77, count: 3 });
        assert_eq!(read(&Uuid::new([6; 16]), &sector), Page::Damaged);
        for bit in 0..SECTOR_BYTES * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&uuid, &sector), Page::Damaged, "bit {bit}");
            let whole = entries(&sector).filter(|bytes| Entry::decode(1, &bytes[..]).is_some()).count();
            assert!(whole >= 2, "bit {bit}");
            sector[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(read(&uuid, &[0; SECTOR_BYTES]), Page::Empty);
    }

    /// A checksum that is right says only that somebody meant what stands there: a later version, or a writer gone wrong.
    #[test]
    fn a_sealed_page_that_says_something_else_is_not_ours() {
        let uuid = Uuid::new([5; 16]);
        let slot = Slot::of(ZoneId(0), 0);
        let entry = Entry { sequence: 77, slot, resident: Some(sample(slot)) }.encode(1);
        let changes = [
            (at::MAGIC, b'X'),
            (at::VERSION, VERSION as u8 + 1),
            (at::COUNT, 0),
            (at::COUNT, PAGE_ENTRIES as u8 + 1),
            (at::RESERVED, 1),
            (at::CHECKSUM - 1, 1),
            (at::RESERVED_TOO, 1),
            (at::ENTRIES - 1, 1),
        ];
        for (place, value) in changes {
            let mut sector = [0; SECTOR_BYTES];
            encode(&uuid, 77, &[entry], &mut sector);
            sector[place] = value;
            seal(uuid.seed(b"KVDJRNL1"), &mut sector);
            assert_eq!(read(&uuid, &sector), Page::Damaged, "{value} at {place}");
        }
    }
}
