//! What a start reads: tables, journal, headers and superblocks, changed while no daemon runs (and, of the arena's table,
//! under one).

use kvd_tests::chain_hash;

use crate::change::Bytes;
use crate::node::{DeviceFile, Node};
use crate::{bits, full};

const BLOCK: usize = 4096;
const SECTOR: usize = 4096;

/// `docs/formats/arena.md`: where the block of segment 0 begins, its entries in it, and their sizes.
const SEGMENT_HEADER_AT: u64 = 16384;
const SLOT_ENTRIES_AT: u64 = SEGMENT_HEADER_AT + 128;
const SEGMENT_BLOCK: u64 = 790_528;
const SLOT_ENTRY: usize = 96;
const SEALED: usize = 88;

/// `docs/formats/nvme.md`.
const ENTRY: usize = 128;
const PAGE_HEADER: usize = 64;

/// Where the arena's table has the entry of each of these chains.
fn table_entries(node: &Node, chains: u64) -> Vec<u64> {
    let found = node.in_dram();
    let entry = |chain| {
        let spot = &found[&chain_hash(chain, 0)];
        let (block, index) = (u64::from(spot.segment) * SEGMENT_BLOCK, spot.at / node.slot_bytes() as u64);
        SLOT_ENTRIES_AT + block + index * SLOT_ENTRY as u64
    };
    (0..chains).map(entry).collect()
}

/// Loads everything; says how many records were right. Those that are not must be misses.
fn right(node: &Node, chains: impl Iterator<Item = u64>) -> usize {
    let right = |chain: &u64| {
        let checked = node.check(*chain);
        if checked.right == 0 {
            println!("chain {chain}: {checked:?}");
        }
        checked.right == 1
    };
    chains.filter(right).count()
}

/// Bit n of the entry of record n, under the daemon and then before a start.
fn slot_entries(test: &str, nvme: bool) {
    const BITS: usize = SLOT_ENTRY * 8;
    let mut node = Node::new(test, nvme, BLOCK);
    let (damaged, all) = (BITS as u64, BITS as u64 + 64);
    (0..all).for_each(|chain| node.store(chain));
    if nvme {
        node.drain();
    }
    let (entries, table) = (table_entries(&node, all), node.table());
    let damage = || (0..BITS).for_each(|bit| table.flip(entries[bit], bit));
    damage();
    assert_eq!(right(&node, 0..all), all as usize, "a daemon does not believe what it wrote down before");
    node.kill();
    node.start();
    let pins = BITS - SEALED * 8;
    let expected = if nvme { BITS } else { pins };
    assert_eq!(right(&node, 0..damaged), expected, "entries are whole or do not count; pins of nobody do not matter");
    assert_eq!(right(&node, damaged..all), 64, "nobody touched them");
    (0..damaged).for_each(|chain| node.restore(chain));
    assert_eq!(right(&node, 0..all), all as usize, "stored again");
}

#[test]
fn no_bit_of_a_slot_entry_may_change() {
    slot_entries("slot-entry", false);
}

#[test]
fn a_copy_on_the_device_takes_the_place_of_a_bad_slot_entry() {
    slot_entries("slot-entry-below", true);
}

/// Entries of vacant slots: what was written there once must not come back.
#[test]
fn no_bit_makes_a_vacant_slot_a_record() {
    const BITS: usize = SLOT_ENTRY * 8;
    let mut node = Node::new("vacant", false, BLOCK);
    (0..BITS as u64).for_each(|chain| node.store(chain));
    let (entries, table) = (table_entries(&node, BITS as u64), node.table());
    node.purge();
    (0..BITS).for_each(|bit| table.flip(entries[bit], bit));
    node.kill();
    node.start();
    assert_eq!(right(&node, 0..BITS as u64), 0, "purged");
    (0..BITS as u64).for_each(|chain| node.store(chain));
    assert_eq!(right(&node, 0..BITS as u64), BITS);
}

/// Flips, one start each, bits of something in the arena's table, and has it loaded. What was flipped stays so until a start writes it again.
fn arena_heads(test: &str, places: &[(u64, usize, usize)], nobody_lost: bool) {
    const RECORDS: u64 = 32;
    let mut node = Node::new(test, false, BLOCK);
    (0..RECORDS).for_each(|chain| node.store(chain));
    for (at, bytes, step) in places {
        for bit in bits(*bytes, *step) {
            node.kill();
            node.table().flip(*at, bit);
            node.start();
            let found = right(&node, 0..RECORDS);
            assert!(found == RECORDS as usize || !nobody_lost && found == 0, "byte {at}, bit {bit}: {found}");
            (0..RECORDS).for_each(|chain| node.restore(chain));
            assert_eq!(right(&node, 0..RECORDS), RECORDS as usize, "byte {at}, bit {bit}: stored again");
        }
    }
}

#[test]
fn an_arena_superblock_has_a_second_copy() {
    arena_heads("arena-super", &[(0, 80, 29), (4096, 80, 29)], true);
}

#[test]
fn a_segment_whose_header_changed_is_given_up() {
    arena_heads("segment-header", &[(SEGMENT_HEADER_AT, 64, 23)], false);
}

/// Every place where the device has the entry of a record: in its table and in pages of the journal.
fn device_entries(node: &Node, device: &DeviceFile, chains: u64) -> Vec<Vec<u64>> {
    let found = node.on_device();
    let slots: Vec<_> =
        (0..chains).map(|chain| device.slot(found[&chain_hash(chain, 0)].at, node.slot_bytes())).collect();
    let mut places: Vec<Vec<u64>> = slots.iter().map(|slot| vec![device.entry_at(*slot)]).collect();
    let number = |slot: &(u64, u64)| slot.0 << 13 | slot.1;
    let by_number: std::collections::HashMap<_, _> = slots.iter().map(number).zip(0_usize..).collect();
    for page in 0..device.journal_pages {
        let at = DeviceFile::JOURNAL_AT + page * SECTOR as u64;
        let bytes = device.file.read(at, SECTOR);
        for (index, entry) in bytes[64..64 + 31 * ENTRY].chunks_exact(ENTRY).enumerate() {
            let slot = u32::from_le_bytes(entry[68..72].try_into().expect("four bytes"));
            if entry.iter().any(|byte| *byte != 0)
                && let Some(chain) = by_number.get(&u64::from(slot))
            {
                places[*chain].push(at + (64 + index * ENTRY) as u64);
            }
        }
    }
    places
}

#[test]
fn no_bit_of_a_device_entry_may_change() {
    const BITS: usize = ENTRY * 8;
    let mut node = Node::new("device-entry", true, BLOCK);
    let (damaged, all) = (BITS as u64, BITS as u64 + 64);
    (0..all).for_each(|chain| node.store(chain));
    node.drain();
    node.kill();
    node.lose_dram();
    let device = node.device();
    let places = device_entries(&node, &device, all);
    assert!(places.iter().all(|places| places.len() >= 2), "each entry stands in the journal");
    for (bit, places) in (0..BITS).zip(&places) {
        places.iter().for_each(|at| device.file.flip(*at, bit));
    }
    node.start();
    assert_eq!(right(&node, 0..damaged), 0, "an entry is whole or does not count");
    assert_eq!(right(&node, damaged..all), 64, "nobody touched them");
    (0..damaged).for_each(|chain| node.store(chain));
    node.only_on_device();
    assert_eq!(right(&node, 0..all), all as usize, "stored again");
}

/// One bit of every page: of its header, of an entry, or of the rest behind its entries. Entries prove themselves, so a page
/// whose header or rest changed costs nothing, and one with a changed entry costs that entry, unless the table has it too.
#[test]
fn a_journal_page_that_changed_costs_the_entry_that_changed_and_no_other() {
    const RECORDS: u64 = 2048;
    let mut node = Node::new("journal", true, BLOCK);
    (0..RECORDS).for_each(|chain| node.store(chain));
    node.drain();
    node.kill();
    node.lose_dram();
    let seen = |report: &serde_json::Value| {
        ["records", "bad_records", "journal_pages_incomplete"].map(|name| report[name].as_u64().expect(name))
    };
    assert_eq!(seen(&node.fsck()), [RECORDS, 0, 0], "whole so far");
    let device = node.device();
    let written = |at: &u64| {
        let entry = device.file.read(*at, ENTRY);
        entry.iter().any(|byte| *byte != 0).then_some((*at, entry))
    };
    let entries: Vec<Vec<(u64, Vec<u8>)>> = device_entries(&node, &device, RECORDS)
        .iter()
        .map(|places| places.iter().filter_map(written).collect())
        .collect();
    let page_at = |page| DeviceFile::JOURNAL_AT + page * SECTOR as u64;
    let used: Vec<u64> = (0..device.journal_pages).filter(|page| device.file.number(page_at(*page)) != 0).collect();
    assert!(used.len() >= 64, "{} pages", used.len());
    let mut entries_changed = 0;
    for (n, page) in used.iter().enumerate() {
        let count = device.file.number(page_at(*page) + 8) >> 16 & 0xFFFF;
        let end = PAGE_HEADER + count as usize * ENTRY;
        let (from, to) = [(0, PAGE_HEADER), (PAGE_HEADER, end), (end, SECTOR)][n % 3];
        entries_changed += usize::from(n % 3 == 1);
        // An odd step as long as this meets every field of headers and of entries, in early and late ones.
        device.file.flip(page_at(*page), from * 8 + n * 40_503 % ((to - from) * 8));
    }
    let whole = |(at, entry): &(u64, Vec<u8>)| device.file.read(*at, ENTRY) == *entry;
    let expected: Vec<bool> = entries.iter().map(|places| places.iter().any(whole)).collect();
    let lost = expected.iter().filter(|whole| !**whole).count();
    assert!((1..=entries_changed).contains(&lost), "{entries_changed} entries changed, of {lost} no other copy");
    let left = RECORDS - lost as u64;
    assert_eq!(seen(&node.fsck()), [left, 0, used.len() as u64], "every damaged page is noticed");
    node.start();
    for (chain, expected) in (0..RECORDS).zip(&expected) {
        let checked = node.check(chain);
        assert_eq!(checked.right, u32::from(*expected), "chain {chain}: {checked:?}");
    }
    println!("journal: {} pages damaged, {left} of {RECORDS} records found", used.len());
    (0..RECORDS).for_each(|chain| node.restore(chain));
    node.only_on_device();
    assert_eq!(right(&node, 0..RECORDS), RECORDS as usize, "stored again");
}

#[test]
fn a_zone_whose_header_changed_has_no_records() {
    let mut node = Node::new("zone", true, BLOCK);
    (0..64).for_each(|chain| node.store(chain));
    node.only_on_device();
    let device = node.device();
    let zones: std::collections::BTreeSet<_> =
        node.on_device().values().map(|spot| device.slot(spot.at, node.slot_bytes()).0).collect();
    // All that means anything in one form, and the reserved rest in steps.
    for bit in bits(36, 53).chain((288..SECTOR * 8).step_by(if full() { 101 } else { 6007 })) {
        let flip = |device: &Bytes, headers: u64| {
            zones.iter().for_each(|zone| device.flip(headers + zone * SECTOR as u64, bit));
        };
        node.kill();
        node.lose_dram();
        flip(&device.file, device.headers_at);
        node.start();
        assert_eq!(right(&node, 0..64), 0, "bit {bit}");
        node.kill();
        node.lose_dram();
        flip(&device.file, device.headers_at);
        node.start();
        assert_eq!(right(&node, 0..64), 64, "bit {bit} put back");
    }
}

#[test]
fn a_superblock_has_a_second_copy_and_foreign_content_is_not_written_over() {
    let mut node = Node::new("super", true, BLOCK);
    (0..32).for_each(|chain| node.store(chain));
    node.only_on_device();
    for (copy, at) in DeviceFile::SUPERBLOCKS.into_iter().enumerate() {
        // All that means anything in one form, and the reserved rest in steps.
        for bit in bits(80, 53).chain((640..SECTOR * 8).step_by(if full() { 101 } else { 15_101 })) {
            node.kill();
            node.lose_dram();
            node.raw_device().flip(at, bit);
            node.start();
            assert_eq!(right(&node, 0..32), 32, "copy {copy}, bit {bit}");
        }
    }
    for bit in [3, 70, 200, 400, 30_000] {
        node.kill();
        node.lose_dram();
        let file = node.raw_device();
        DeviceFile::SUPERBLOCKS.iter().for_each(|at| file.flip(*at, bit));
        match node.start_or_refuse() {
            Ok(()) => {
                assert!(bit >= 64, "without our magic it is no device of ours");
                assert_eq!(right(&node, 0..32), 0, "bit {bit}: the directory is gone");
                (0..32).for_each(|chain| node.store(chain));
                node.only_on_device();
                assert_eq!(right(&node, 0..32), 32, "bit {bit}: stored again");
            }
            Err(log) => {
                assert!(bit < 80, "bit {bit}: refused:\n{log}");
                assert!(log.contains("nvme.kvd"), "the refusal names the file: {log}");
                DeviceFile::SUPERBLOCKS.iter().for_each(|at| file.flip(*at, bit));
                node.start();
                assert_eq!(right(&node, 0..32), 32, "put back");
            }
        }
    }
}
