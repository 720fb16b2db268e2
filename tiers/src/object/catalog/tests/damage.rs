//! Goal: whatever happens to the files, the catalog opens, tells nothing that it was not told, and is whole again once
//! it was told all again. Method: break a copy of a good one, file by file and kind by kind of damage.

use std::fs;
use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::CatalogError;
use super::*;

const PACKS: u32 = 160;
const RECORDS: u64 = 64;
/// All that is learned stays in the log: learning anew is quick.
const QUICK: CatalogOptions = CatalogOptions { memtable_bytes: 8 << 20, ..OPTIONS };

fn open_quick(folder: &Path) -> (Catalog, Opened) {
    Catalog::open(folder, QUICK).unwrap()
}

fn blocks(number: u32) -> std::ops::Range<u64> {
    u64::from(number) * RECORDS..(u64::from(number) + 1) * RECORDS
}

fn learn_all(catalog: &Catalog) -> Vec<PackIndex> {
    (1..=PACKS).map(|number| add(catalog, number, blocks(number))).collect()
}

/// A catalog with several tables and a log, closed.
fn good(folder: &Path) -> Vec<PackIndex> {
    let (catalog, _) = open(folder);
    let learned = learn_all(&catalog);
    catalog.db.flush().unwrap();
    compact(&catalog);
    for number in PACKS + 1..PACKS + 9 {
        add(&catalog, number, blocks(number));
    }
    (PACKS + 1..PACKS + 9).for_each(|number| assert!(catalog.remove(pack(number)).unwrap()));
    learned
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("db")).unwrap();
    for file in fs::read_dir(from.join("db")).unwrap().flatten() {
        fs::copy(file.path(), to.join("db").join(file.file_name())).unwrap();
    }
}

/// The files of the database whose names begin and end so.
fn files(folder: &Path, begin: &str, end: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder.join("db")).unwrap().flatten().map(|file| file.path()).collect();
    found.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(begin) && name.ends_with(end)
    });
    found.sort();
    found
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

fn cut_to(path: &Path, bytes: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// Asks for everything: each answer is a miss or right. The number of misses.
fn misses(catalog: &Catalog, learned: &[PackIndex]) -> usize {
    let mut misses = 0;
    for index in learned {
        for block in blocks(number_of(index)) {
            match find(catalog, block) {
                Some(found) => assert!(agrees(&found, index, block), "{found:?}"),
                None => misses += 1,
            }
        }
    }
    misses
}

fn number_of(index: &PackIndex) -> u32 {
    index.entries[0].generation - 1
}

/// What is wrong shows when the catalog is opened, or when it is read, and then at the next start: it is whole again
/// once it was told all. Whether anything showed.
fn noticed_and_mended(folder: &Path, learned: &[PackIndex]) -> bool {
    let (catalog, opened) = open_quick(folder);
    let missed = misses(&catalog, learned);
    let noticed = opened.fresh.is_some() || catalog.damaged();
    assert!(missed == 0 || noticed, "{missed} silent misses");
    assert_eq!(catalog.damaged(), catalog.stats().failed_reads > 0);
    let damaged = catalog.damaged();
    drop(catalog);
    let (catalog, again) = open_quick(folder);
    assert_eq!(again.fresh, damaged.then_some("damage was seen in it"));
    learn_all(&catalog);
    assert_eq!(misses(&catalog, learned), 0);
    noticed
}

#[test]
fn flipped_bits_in_tables_are_misses_and_the_catalog_is_made_anew() {
    let good_folder = tempfile::tempdir().unwrap();
    let learned = good(good_folder.path());
    let tables = files(good_folder.path(), "", ".sst").len();
    assert!(tables > 0);
    let mut random = SmallRng::seed_from_u64(41);
    let mut noticed = 0;
    for round in 0..18 {
        let folder = tempfile::tempdir().unwrap();
        copy(good_folder.path(), folder.path());
        let path = &files(folder.path(), "", ".sst")[round % tables];
        let bytes = fs::metadata(path).unwrap().len() as usize;
        // All over the file, and at its end, where its index and footer are.
        let at = if round % 3 == 0 { bytes - 1 - random.random_range(0..400) } else { random.random_range(0..bytes) };
        flip(path, at, random.random_range(0..8));
        noticed += usize::from(noticed_and_mended(folder.path(), &learned));
    }
    // A flip may lie in what no lookup reads: properties, or rows that are only scanned.
    assert!(noticed >= 13, "{noticed} of 18");
}

#[test]
fn tables_that_are_cut_short_or_lost_are_noticed_at_once() {
    let good_folder = tempfile::tempdir().unwrap();
    let learned = good(good_folder.path());
    for cut in [Some(0), Some(1), Some(2), None] {
        let folder = tempfile::tempdir().unwrap();
        copy(good_folder.path(), folder.path());
        let path = &files(folder.path(), "", ".sst")[0];
        match cut {
            Some(halves) => {
                let bytes = fs::metadata(path).unwrap().len();
                cut_to(path, bytes * halves / 2 - halves / 2);
            }
            None => fs::remove_file(path).unwrap(),
        }
        let (catalog, opened) = open_quick(folder.path());
        assert_eq!(opened, Opened { fresh: Some("it could not be opened"), packs: 0 }, "{cut:?}");
        learn_all(&catalog);
        assert_eq!(misses(&catalog, &learned), 0);
    }
}

#[test]
fn a_manifest_that_is_broken_begins_anew_or_tells_less() {
    let good_folder = tempfile::tempdir().unwrap();
    let learned = good(good_folder.path());
    let bytes = fs::metadata(&files(good_folder.path(), "MANIFEST", "")[0]).unwrap().len() as usize;
    let mut anew = 0;
    for step in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        copy(good_folder.path(), folder.path());
        let path = &files(folder.path(), "MANIFEST", "")[0];
        let at = bytes * (step / 2) / 6;
        match step % 2 {
            0 => flip(path, at, (step / 2 % 8) as u8),
            _ => cut_to(path, at as u64),
        }
        let (catalog, opened) = open_quick(folder.path());
        let missed = misses(&catalog, &learned);
        anew += usize::from(opened.fresh.is_some());
        assert!(opened.fresh.is_some() || missed == 0 || opened.packs < u64::from(PACKS), "{step}: {missed}");
        // Whatever it kept: a full listing says what is missing.
        let present = learned.iter().map(|index| name_of(index, u64::from(number_of(index)))).collect();
        for name in catalog.reconcile(&present, catalog.mark()).unwrap().unknown {
            let index = &learned[name.seq as usize - 1];
            catalog.add(name, index).unwrap();
        }
        assert_eq!(misses(&catalog, &learned), 0, "{step}");
    }
    assert!(anew >= 10, "{anew} of 12");
}

#[test]
fn a_log_that_is_cut_or_torn_leaves_a_state_that_once_was() {
    let good_folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open_quick(good_folder.path());
    let learned: Vec<_> = (1..=40).map(|number| add(&catalog, number, blocks(number))).collect();
    drop(catalog);
    let log = |folder: &Path| {
        let logs = files(folder, "", ".log");
        logs.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
    };
    let bytes = fs::metadata(log(good_folder.path())).unwrap().len();
    let mut random = SmallRng::seed_from_u64(42);
    let mut known = std::collections::BTreeSet::new();
    for round in 0..30 {
        let folder = tempfile::tempdir().unwrap();
        copy(good_folder.path(), folder.path());
        let (path, at) = (log(folder.path()), random.random_range(0..bytes));
        match round % 2 {
            0 => cut_to(&path, at),
            _ => flip(&path, at as usize, random.random_range(0..8)),
        }
        let (catalog, opened) = open_quick(folder.path());
        known.insert(opened.packs);
        let packs = opened.packs as usize;
        assert_eq!(catalog.cursor(node(1)), opened.packs, "cursors are lost with what they stand for");
        assert_eq!(misses(&catalog, &learned[..packs]), 0);
        assert_eq!(misses(&catalog, &learned[packs..]), (40 - packs) * RECORDS as usize);
    }
    assert!(known.len() > 10, "{known:?}");
}

#[test]
fn a_folder_full_of_garbage_is_made_anew_and_only_what_is_ours_is_deleted() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 7] = [
        ("it could not be opened", |db| fs::write(db.join("CURRENT"), "garbage").unwrap()),
        ("it could not be opened", |db| fs::write(db.join("CURRENT"), "MANIFEST-999999\n").unwrap()),
        ("it could not be opened", |db| fs::write(db.join("CURRENT"), [0xff; 9000]).unwrap()),
        ("there was none", |db| fs::remove_file(db.join("CURRENT")).unwrap()),
        ("there was none", |db| {
            fs::remove_dir_all(db).unwrap();
            fs::write(db, "a file where a folder should be").unwrap();
        }),
        ("it could not be opened", |db| {
            let options = rocksdb::Options::default();
            let mut other = rocksdb::DB::open(&options, db).unwrap();
            other.create_cf("somebody else's", &options).unwrap();
        }),
        ("damage was seen in it", |db| fs::write(db.with_file_name("damaged"), "").unwrap()),
    ];
    for (why, spoil) in spoils {
        let folder = tempfile::tempdir().unwrap();
        let (catalog, _) = open(folder.path());
        add(&catalog, 1, 0..4);
        drop(catalog);
        fs::write(folder.path().join("mine"), "of somebody else").unwrap();
        spoil(&folder.path().join("db"));
        let (catalog, opened) = open(folder.path());
        assert_eq!(opened, Opened { fresh: Some(why), packs: 0 });
        assert_eq!((find(&catalog, 0), catalog.cursor(node(1))), (None, 0));
        let index = add(&catalog, 1, 0..4);
        assert!(agrees(&find(&catalog, 0).unwrap(), &index, 0));
        drop(catalog);
        assert_eq!(open(folder.path()).1, Opened { fresh: None, packs: 1 }, "once is enough");
        assert_eq!(fs::read_to_string(folder.path().join("mine")).unwrap(), "of somebody else");
    }
}

#[test]
fn rows_that_disagree_or_are_of_another_version_are_not_used() {
    type Spoil = fn(&Catalog);
    let mut newer = rows::FORMAT;
    newer[6] += 1;
    assert_eq!(newer, *b"KVDCAT\x03\0");
    let spoils: [(&str, Spoil); 6] = [
        ("another version of kvd made it", |catalog| catalog.db.put(rows::FORMAT_KEY, b"KVDCAT\x03\0").unwrap()),
        ("another version of kvd made it", |catalog| catalog.db.delete(rows::FORMAT_KEY).unwrap()),
        ("it could not be read", |catalog| catalog.db.delete(rows::NEXT_KEY).unwrap()),
        ("it could not be read", |catalog| catalog.db.put(rows::NEXT_KEY, 1u32.to_le_bytes()).unwrap()),
        ("it could not be read", |catalog| catalog.db.put(rows::pack_key(1), b"short").unwrap()),
        ("it could not be read", |catalog| catalog.db.put([rows::PACKS[0], 1], b"a key of another length").unwrap()),
    ];
    for (why, spoil) in spoils {
        let folder = tempfile::tempdir().unwrap();
        let (catalog, _) = open(folder.path());
        add(&catalog, 1, 0..4);
        add(&catalog, 2, 4..8);
        spoil(&catalog);
        drop(catalog);
        let (catalog, opened) = open(folder.path());
        assert_eq!(opened, Opened { fresh: Some(why), packs: 0 });
        assert_eq!(find(&catalog, 0), None);
    }
}

#[test]
fn an_entry_that_is_not_as_the_format_says_is_a_counted_miss() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let index = add(&catalog, 1, 0..4);
    let value = catalog.db.get(rows::entry_key(&key(1), &shard(8))).unwrap().unwrap();
    for wrong in [&value[1..], b"", &[value.as_slice(), b"0"].concat(), &[&[9], &value[1..]].concat()] {
        let before = catalog.stats().bad_rows;
        catalog.db.put(rows::entry_key(&key(1), &shard(8)), wrong).unwrap();
        assert_eq!(find(&catalog, 1), None);
        assert_eq!(catalog.stats().bad_rows, before + 1);
        let chain = catalog.lookup_chain(&shard(8), &[key(0), key(1), key(2)]).unwrap();
        assert_eq!(chain.len(), 1, "the chain ends there");
    }
    assert!(agrees(&find(&catalog, 0).unwrap(), &index, 0));
    compact(&catalog);
    assert_eq!(entries_kept(&catalog), 3, "a compaction drops it");
}

#[test]
fn a_catalog_without_numbers_left_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    catalog.db.put(rows::NEXT_KEY, (u32::MAX - 1).to_le_bytes()).unwrap();
    drop(catalog);
    let (catalog, opened) = open(folder.path());
    assert_eq!(opened.fresh, None);
    add(&catalog, 1, 0..4);
    let index = index(2, 4..8);
    let error = catalog.add(name_of(&index, 2), &index).unwrap_err();
    assert!(matches!(error, CatalogError::Spent), "{error}");
    assert!(find(&catalog, 0).is_some() && find(&catalog, 4).is_none());
    drop(catalog);
    assert_eq!(open(folder.path()).1, Opened { fresh: Some("damage was seen in it"), packs: 0 });
}
