//! What is learned is found, what is gone is not, and a restart changes neither.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{Added, CatalogError, CatalogStats, PackRow, Reconciled};
use super::*;

#[test]
fn what_is_learned_is_found_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, opened) = open(folder.path());
    assert_eq!(opened, Opened { fresh: Some("there was none"), packs: 0 });
    let one = index(1, 0..64);
    assert_eq!(catalog.add(name_of(&one, 1), &one).unwrap(), Added::New);
    let two = add(&catalog, 2, 64..128);
    let check = |catalog: &Catalog| {
        for block in 0..128 {
            let of = if block < 64 { &one } else { &two };
            let found = find(catalog, block).unwrap();
            assert!(agrees(&found, of, block), "{found:?}");
        }
        assert_eq!(find(catalog, 128), None);
        assert_eq!(catalog.lookup(&key(0), &shard(4)).unwrap(), None, "another part of the block");
        assert_eq!(catalog.cursor(node(1)), 2);
        assert_eq!(catalog.cursor(node(2)), 0);
        let row = PackRow {
            name: two.pack,
            node: node(1),
            seq: 2,
            realm: two.realm,
            bytes: two.pack_bytes(),
            records: 64,
            created_ms: two.created_ms,
        };
        assert_eq!(catalog.pack(two.pack), Some(row));
        assert_eq!(catalog.pack(pack(9)), None);
        assert_eq!(catalog.packs().map(|row| row.name).collect::<Vec<_>>(), [one.pack, two.pack]);
    };
    check(&catalog);
    drop(catalog);
    let (catalog, opened) = open(folder.path());
    assert_eq!(opened, Opened { fresh: None, packs: 2 });
    check(&catalog);
    let mode = std::fs::metadata(folder.path().join("lock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn shards_are_told_of_while_the_newest_pack_with_them_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let (one, other) = (index(1, 0..3), Realm { tenant: [7; 16], namespace: [9; 16] });
    let told = |catalog: &Catalog, realm: &Realm, group| catalog.shards(realm, group);
    assert_eq!(told(&catalog, &one.realm, 0), []);
    catalog.add(name_of(&one, 1), &one).unwrap();
    let mut two = index(2, 3..9);
    two.entries[1].shard = shard(4);
    two.entries[2].group = 5;
    two.entries[3].shard = shard(2);
    catalog.add(name_of(&two, 2), &two).unwrap();
    let (catalog, _) = {
        drop(catalog);
        open(folder.path())
    };
    assert_eq!(told(&catalog, &one.realm, 0), [shard(2), shard(4), shard(8)]);
    assert_eq!((told(&catalog, &one.realm, 5), told(&catalog, &one.realm, 6)), (vec![shard(8)], vec![]));
    assert_eq!(told(&catalog, &other, 0), []);
    // A third pack has one of them again.
    let mut three = index(3, 9..10);
    three.entries[0].shard = shard(4);
    catalog.add(name_of(&three, 3), &three).unwrap();
    catalog.remove(two.pack).unwrap();
    assert_eq!(told(&catalog, &one.realm, 0), [shard(4)]);
    compact(&catalog);
    let kept = |catalog: &Catalog| {
        let rows = catalog.db.full_iterator(rocksdb::IteratorMode::Start);
        rows.filter(|row| rows::is_shard_key(&row.as_ref().unwrap().0)).count()
    };
    assert_eq!(kept(&catalog), 1, "those of packs that are gone are swept");
    drop(catalog);
    assert_eq!(told(&open(folder.path()).0, &one.realm, 0), [shard(4)]);
}

#[test]
fn a_pack_is_learned_once_and_its_cursor_still_moves() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let old = add(&catalog, 3, 0..10);
    let newer = add(&catalog, 4, 5..15);
    assert_eq!(catalog.add(name_of(&old, 3), &old).unwrap(), Added::Known);
    assert!(agrees(&find(&catalog, 7).unwrap(), &newer, 7), "the older does not come back to the front");
    assert_eq!(catalog.add(name_of(&old, 9), &old).unwrap(), Added::Known);
    assert_eq!(catalog.cursor(node(1)), 9);
    assert_eq!(catalog.add(name_of(&newer, 4), &newer).unwrap(), Added::Known);
    assert_eq!(catalog.cursor(node(1)), 9, "a cursor does not move back");
    catalog.skip(IndexName { node: node(1), seq: 11, pack: pack(77) }).unwrap();
    assert_eq!((catalog.cursor(node(1)), catalog.stats().packs), (11, 2));
}

#[test]
fn of_two_copies_the_one_learned_last_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let old = add(&catalog, 1, 0..10);
    let new = add(&catalog, 2, 5..15);
    assert!(agrees(&find(&catalog, 4).unwrap(), &old, 4));
    assert!(agrees(&find(&catalog, 5).unwrap(), &new, 5));
    assert!(catalog.remove(old.pack).unwrap());
    assert_eq!(find(&catalog, 4), None);
    assert!(agrees(&find(&catalog, 5).unwrap(), &new, 5), "the usual order: the older goes first");
}

#[test]
fn a_pack_that_is_gone_is_a_miss_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let gone = add(&catalog, 1, 0..64);
    let stays = add(&catalog, 2, 64..128);
    let number = find(&catalog, 64).unwrap().number;
    assert!(catalog.remove(gone.pack).unwrap());
    assert!(!catalog.remove(gone.pack).unwrap());
    assert!(!catalog.remove(pack(50)).unwrap());
    let check = |catalog: &Catalog| {
        assert!((0..64).all(|block| find(catalog, block).is_none()));
        assert!((64..128).all(|block| find(catalog, block).is_some_and(|found| agrees(&found, &stays, block))));
        assert_eq!(catalog.pack(gone.pack), None);
        assert_eq!(catalog.packs().map(|row| row.name).collect::<Vec<_>>(), [stays.pack]);
        assert_eq!(catalog.cursor(node(1)), 2);
    };
    check(&catalog);
    drop(catalog);
    let (catalog, opened) = open(folder.path());
    assert_eq!(opened, Opened { fresh: None, packs: 1 });
    check(&catalog);
    // Also the newest may go: its number is not given to another, under which its old entries would be found.
    assert!(catalog.remove(stays.pack).unwrap());
    drop(catalog);
    let (catalog, _) = open(folder.path());
    add(&catalog, 3, 200..201);
    assert!(find(&catalog, 200).unwrap().number > number);
    assert!((0..128).all(|block| find(&catalog, block).is_none()));
    let again = add(&catalog, 1, 0..64);
    assert!(agrees(&find(&catalog, 1).unwrap(), &again, 1), "a pack may come back");
}

#[test]
fn compactions_drop_entries_of_packs_that_are_gone_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let block = |number: u32| u64::from(number) * 64;
    for number in 1..=200 {
        add(&catalog, number, block(number)..block(number) + 64);
    }
    for number in (1..=200).filter(|number| number % 10 != 0) {
        assert!(catalog.remove(pack(number)).unwrap());
    }
    assert!(entries_kept(&catalog) > 20 * 64, "removing does not touch entries");
    compact(&catalog);
    assert_eq!(entries_kept(&catalog), 20 * 64);
    drop(catalog);
    let (catalog, _) = open(folder.path());
    compact(&catalog);
    for number in 1..=200 {
        assert_eq!(find(&catalog, block(number) + 63).is_some(), number % 10 == 0, "{number}");
    }
    let CatalogStats { packs, entries_estimate, bytes_on_disk, memory_bytes, .. } = catalog.stats();
    assert_eq!((packs, entries_estimate), (20, 20 * 64 + 4), "4: format, next number, a cursor, a shard");
    assert!(bytes_on_disk > 20 * 64 * 57 && memory_bytes > 0, "{bytes_on_disk} {memory_bytes}");
}

#[test]
fn a_chain_ends_at_the_first_record_that_is_nowhere_or_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    for number in 0..10u32 {
        add(&catalog, number + 1, u64::from(number) * 64..u64::from(number) * 64 + 64);
    }
    let chain =
        |blocks: std::ops::Range<u64>| catalog.lookup_chain(&shard(8), &blocks.map(key).collect::<Vec<_>>()).unwrap();
    assert_eq!(chain(0..0), []);
    assert_eq!(chain(640..700), []);
    // Ends within, at and beyond the batches of 1, 16 and 64.
    for (from, found) in [(639, 1), (638, 2), (623, 17), (622, 18), (559, 81), (558, 82), (495, 145), (0, 640)] {
        let got = chain(from..700);
        assert_eq!(got.len(), found, "from {from}");
        for (located, block) in got.iter().zip(from..) {
            assert_eq!(Some(*located), find(&catalog, block));
        }
    }
    assert_eq!(chain(0..640).len(), 640, "to the last key");
    let blocks: Vec<_> = (0..30).chain(900..901).chain(30..60).map(key).collect();
    assert_eq!(catalog.lookup_chain(&shard(8), &blocks).unwrap().len(), 30, "what follows a gap is not part of it");
    assert!(catalog.remove(pack(3)).unwrap());
    assert_eq!(chain(0..640).len(), 128);
    assert_eq!(chain(192..640).len(), 448);
    assert_eq!(catalog.lookup_chain(&shard(4), &[key(0)]).unwrap(), []);
}

#[test]
fn packs_are_told_by_node_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let mut learned = Vec::new();
    for (writer, seq) in [(2, 256), (1, 1), (2, 257), (1, 2), (255, 1), (2, 70_000), (0, 5)] {
        let index = PackIndex { node: node(writer), ..index(learned.len() as u32, [learned.len() as u64]) };
        catalog.add(name_of(&index, seq), &index).unwrap();
        learned.push(index.pack);
    }
    let names = |rows: Vec<PackRow>| rows.iter().map(|row| row.name).collect::<Vec<_>>();
    assert_eq!(names(catalog.packs().collect()), learned);
    assert_eq!(names(catalog.packs_of(node(2)).collect()), [learned[0], learned[2], learned[5]]);
    assert_eq!(names(catalog.packs_of(node(255)).collect()), [learned[4]]);
    assert_eq!(catalog.packs_of(node(3)).count(), 0);
    catalog.remove(learned[2]).unwrap();
    assert_eq!(catalog.packs_of(node(2)).map(|row| row.seq).collect::<Vec<_>>(), [256, 70_000]);
    assert_eq!([0, 1, 2, 3, 255].map(|number| catalog.cursor(node(number))), [5, 2, 70_000, 0, 1]);
}

#[test]
fn a_full_listing_tells_what_went_and_what_was_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let mut names = Vec::new();
    for number in 1..=2500 {
        let index = PackIndex { node: node((number % 3) as u8), ..index(number, [u64::from(number)]) };
        names.push(name_of(&index, u64::from(number)));
        catalog.add(names[names.len() - 1], &index).unwrap();
    }
    let since = catalog.mark();
    let late = add(&catalog, 9000, [9000]);
    let mut present: BTreeSet<_> = names.iter().copied().filter(|name| name.seq % 2 == 0).collect();
    let unknown: Vec<_> = [0, 1, 9].map(|writer| IndexName { node: node(writer), seq: 8000, pack: pack(8000) }).into();
    present.extend(&unknown);
    let told = catalog.reconcile(&present, since).unwrap();
    assert_eq!(told.unknown, unknown);
    let removed: BTreeSet<_> = told.removed.iter().copied().collect();
    assert_eq!(removed, names.iter().filter(|name| name.seq % 2 == 1).map(|name| name.pack).collect());
    assert_eq!(told.removed.len(), 1250);
    let check = |catalog: &Catalog| {
        assert!((1..=2500).all(|block| find(catalog, block).is_some() == (block % 2 == 0)));
        assert!(agrees(&find(catalog, 9000).unwrap(), &late, 9000), "it came after the listing began");
        assert_eq!(catalog.packs().count(), 1251);
        assert_eq!(catalog.packs_of(node(0)).count(), 416);
    };
    check(&catalog);
    drop(catalog);
    let (catalog, _) = open(folder.path());
    check(&catalog);
    present.retain(|name| name.seq != 8000);
    present.insert(name_of(&late, 9000));
    assert_eq!(catalog.reconcile(&present, catalog.mark()).unwrap(), Reconciled::default());
}

#[test]
fn an_index_under_a_foreign_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let index = index(1, 0..4);
    let name = name_of(&index, 1);
    for wrong in [IndexName { node: node(2), ..name }, IndexName { pack: pack(2), ..name }] {
        let error = catalog.add(wrong, &index).unwrap_err();
        assert!(matches!(error, CatalogError::Foreign { name } if name == wrong), "{error}");
        assert_eq!(catalog.cursor(wrong.node), 0);
    }
    assert_eq!((find(&catalog, 0), catalog.stats().packs), (None, 0));
}

#[test]
fn a_full_catalog_refuses_until_packs_go() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = Catalog::open(folder.path(), CatalogOptions { packs_max: 2, ..OPTIONS }).unwrap();
    add(&catalog, 1, 0..4);
    add(&catalog, 2, 4..8);
    let third = index(3, 8..12);
    let error = catalog.add(name_of(&third, 3), &third).unwrap_err();
    assert!(matches!(error, CatalogError::Full { packs_max: 2 }), "{error}");
    assert_eq!((find(&catalog, 8), catalog.cursor(node(1))), (None, 2), "it will be asked for again");
    catalog.remove(pack(1)).unwrap();
    assert_eq!(catalog.add(name_of(&third, 3), &third).unwrap(), Added::New);
    assert!(agrees(&find(&catalog, 8).unwrap(), &third, 8));
}

#[test]
fn whoever_comes_second_is_refused_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let index = add(&catalog, 1, 0..4);
    let refused = |result: Result<_, CatalogError>| match result {
        Err(CatalogError::Held { path }) => assert_eq!(path, folder.path()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("two of them"),
    };
    refused(Catalog::open(folder.path(), OPTIONS).map(|_| ()));
    assert!(agrees(&find(&catalog, 0).unwrap(), &index, 0));
    drop(catalog);
    // A tool that knows nothing of our lock but that of the database.
    let mut tool = rocksdb::Options::default();
    tool.set_log_level(rocksdb::LogLevel::Fatal);
    let tool = rocksdb::DB::open(&tool, folder.path().join("db")).unwrap();
    refused(Catalog::open(folder.path(), OPTIONS).map(|_| ()));
    drop(tool);
    let (catalog, opened) = open(folder.path());
    assert_eq!(opened, Opened { fresh: None, packs: 1 });
    assert!(agrees(&find(&catalog, 0).unwrap(), &index, 0));
}

#[test]
fn readers_find_right_places_while_packs_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = open(folder.path());
    let blocks = |number: u32| (0..40).map(move |block| block * u64::from(1 + number % 3) % 80);
    let done = AtomicBool::new(false);
    let mut found = 0;
    std::thread::scope(|scope| {
        let readers = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut found = 0;
                loop {
                    // Read before the round, so that the last round comes after the last change.
                    let last = done.load(Ordering::SeqCst);
                    for block in 0..80 {
                        let blocks_asked = [block, (block + 1) % 80];
                        let located = catalog.lookup_chain(&shard(8), &blocks_asked.map(key)).unwrap();
                        for (located, block) in located.iter().zip(blocks_asked) {
                            let number = located.generation - 1;
                            assert!(agrees(located, &index(number, blocks(number)), block), "{block} {located:?}");
                            found += 1;
                        }
                    }
                    if last {
                        return found;
                    }
                }
            })
        });
        for number in 1..=600 {
            add(&catalog, number, blocks(number));
            if number > 20 {
                assert!(catalog.remove(pack(number - 20)).unwrap());
            }
            if number % 200 == 0 {
                compact(&catalog);
            }
        }
        done.store(true, Ordering::SeqCst);
        found = readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>();
    });
    assert!(found > 0);
    assert!((0..40).all(|block| find(&catalog, block).is_some()), "whatever is in the twenty that are left");
    catalog.live().self_check();
}
