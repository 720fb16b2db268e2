//! What goes and what stays, case by case, and collectors that come between each other.

use super::*;
use crate::object::purging::{Scope, purge};

/// What one pack is, who looks at it, and what becomes of it.
struct Case {
    what: &'static str,
    /// Whose it is: the node's that looks, or another's.
    own: bool,
    /// Hours before the look, by the clock of who wrote it.
    hours: i64,
    /// The collector has the lease.
    leased: bool,
    /// Its index object is gone, and nobody knows of it.
    orphan: bool,
    /// Its object is two hours old, by the store's clock.
    old: bool,
    goes: bool,
}

#[test]
fn each_pack_goes_or_stays_by_its_age_its_owner_and_who_has_the_lease() {
    let case = |what, own, hours, leased, goes| Case { what, own, hours, leased, orphan: false, old: false, goes };
    let orphan = |what, own, old, leased, goes| Case { what, own, hours: 0, leased, orphan: true, old, goes };
    let cases = [
        case("an own pack that is too old", true, 11, true, true),
        case("an own pack that is too old, without the lease", true, 11, false, true),
        case("an own pack that is not", true, 9, true, false),
        case("a foreign pack that is too old", false, 11, true, true),
        case("a foreign pack that is too old, without the lease", false, 11, false, false),
        case("a foreign pack that is not", false, 9, true, false),
        case("a pack of a node whose clock is a day ahead", false, -24, true, false),
        case("an own pack from before the clock was set back", true, -24, true, false),
        orphan("an old orphan of its own", true, true, true, true),
        orphan("an old orphan of another node", false, true, true, true),
        orphan("an old orphan, without the lease", false, true, false, false),
        orphan("a young orphan", false, false, true, false),
        orphan("a young orphan of its own", true, false, true, false),
    ];
    for Case { what, own, hours, leased, orphan, old, goes } in cases {
        run(async {
            let pool = Pool::new();
            let limit = Some(Duration::from_secs(10 * 3600));
            let looker = pool.node(1, &ObjectOptions { expire_after: limit, ..pool.options() });
            let other = pool.node(2, &pool.options());
            let created = NOW.checked_add_signed(-hours * HOUR_MS as i64).expect("a time");
            let writer = if own { &looker } else { &other };
            let name = store(writer, 1, writer.realm(&namespace(1)), created).await;
            if orphan {
                std::fs::remove_file(pool.file(&name.path())).expect("deleted");
                writer.catalog.remove(name.pack).expect("forgotten");
            } else if !own {
                let index = looker.asking().index(name).await.expect("there").expect("an index");
                looker.catalog.add(name, &index).expect("added");
            }
            if old {
                pool.age(&pack_path(name.pack));
            }
            if !leased {
                hold(other.asking(), other.node, NOW, Claim::IfFree).await.expect("no fault").expect("free");
            }
            turn(&looker, 0, NOW).await.expect("no fault");
            let left = objects(&looker).await.contains(&pack_path(name.pack));
            assert_eq!(left, !goes, "{what}");
        });
    }
}

#[test]
fn a_clock_that_is_off_makes_no_orphan_old() {
    run(async {
        let pool = Pool::new();
        let shared = pool.node(1, &pool.options());
        let name = store(&shared, 1, shared.realm(&namespace(1)), NOW).await;
        std::fs::remove_file(pool.file(&name.path())).expect("deleted");
        shared.catalog.remove(name.pack).expect("forgotten");
        // A year ahead, then long ago: the store's own clock tells how old an object is.
        for now in [NOW + 365 * 24 * HOUR_MS, 1] {
            turn(&shared, 0, now).await.expect("no fault");
            assert_eq!(objects(&shared).await, [pack_path(name.pack)]);
        }
    });
}

#[test]
fn collectors_that_come_between_each_other_do_no_harm() {
    run(async {
        let pool = Pool::new();
        let limit = Some(Duration::from_secs(10 * 3600));
        let options = ObjectOptions { expire_after: limit, ..pool.options() };
        let (a, b) = (pool.node(1, &options), pool.node(2, &options));
        for round in 0..10 {
            let realm = a.realm(&namespace(1));
            let young = store(&a, 10 + round, realm, NOW).await;
            let mut old = Vec::new();
            for (number, writer) in [(100 + round, &a), (120 + round, &b), (140 + round, &a)] {
                old.push(store(writer, number, realm, NOW - 11 * HOUR_MS).await);
            }
            let (orphan, gone) = (old.pop().expect("three"), old.len());
            std::fs::remove_file(pool.file(&orphan.path())).expect("deleted");
            a.catalog.remove(orphan.pack).expect("forgotten");
            pool.age(&pack_path(orphan.pack));
            for (name, node) in old.iter().zip([&b, &a]) {
                let index = node.asking().index(*name).await.expect("there").expect("an index");
                node.catalog.add(*name, &index).expect("added");
            }
            // Daemons' own turns, and operators who do not wait for a lease: each may lose its own on the way.
            let operator = |shared: &Arc<Shared>| {
                let shared = shared.clone();
                async move { hold(shared.asking(), NodeName::new([9; 16]), NOW, Claim::Now).await }
            };
            let (one, other, first, second) =
                tokio::join!(turn(&a, 0, NOW), turn(&b, 0, NOW), operator(&a), operator(&b));
            for ended in [one, other, first.map(drop), second.map(drop)] {
                ended.unwrap_or_else(|fault| panic!("round {round}: {fault}"));
            }
            let left = objects(&a).await;
            assert!(both(&[young]).iter().all(|path| left.contains(path)), "round {round}: {left:?}");
            // Whoever had no lease leaves the rest to the next turn, some time after.
            turn(&a, 0, NOW + 2 * HOUR_MS).await.expect("no fault");
            let left = objects(&a).await;
            assert!(both(&old).iter().all(|path| !left.contains(path)), "round {round}, {gone}: {left:?}");
            assert!(!left.contains(&pack_path(orphan.pack)), "round {round}: {left:?}");
            remove(&a, young).await.expect("no fault");
        }
    });
}

#[test]
fn a_delete_that_fails_half_way_counts_until_it_is_finished() {
    run(async {
        let pool = Pool::new();
        let options = ObjectOptions { request_timeout: Duration::from_millis(100), ..pool.options() };
        let shared = pool.node(1, &options);
        let name = store(&shared, 1, shared.realm(&namespace(1)), NOW).await;
        let bytes = shared.counters().own_bytes.get();
        // The pack cannot be deleted: it has become a folder, with something in it.
        let pack = pool.file(&pack_path(name.pack));
        std::fs::remove_file(&pack).and_then(|()| std::fs::create_dir_all(pack.join("in the way"))).expect("made");
        remove(&shared, name).await.expect_err("it is in the way");
        assert!(!pool.file(&name.path()).exists(), "what made it visible goes first");
        // Counted anew it is still there: nobody else knows of it.
        shared.sharing.set_ready(&shared);
        assert_eq!((shared.counters().own_bytes.get(), shared.counters().own_packs.get()), (bytes, 1));
        assert_eq!(shared.sharing.going(), [name]);
        turn(&shared, 0, NOW).await.expect_err("it is still in the way");
        std::fs::remove_dir_all(&pack).expect("out of the way");
        turn(&shared, 0, NOW).await.expect("no fault");
        assert_eq!((shared.counters().own_bytes.get(), shared.sharing.going()), (0, vec![]));
    });
}

#[test]
fn a_purge_takes_what_nobody_can_find_as_well() {
    run(async {
        let pool = Pool::new();
        let shared = pool.node(1, &pool.options());
        let theirs = Realm { tenant: [7; 16], namespace: [7; 16] };
        let (first, second) = (shared.realm(&namespace(1)), shared.realm(&namespace(2)));
        let mut names = Vec::new();
        for (number, realm) in [first, second, theirs].into_iter().enumerate() {
            names.push(store(&shared, number as u8 + 1, realm, NOW).await);
            let invisible = store(&shared, number as u8 + 11, realm, NOW).await;
            std::fs::remove_file(pool.file(&invisible.path())).expect("deleted");
            names.push(invisible);
        }
        std::fs::write(pool.file("packs/01/01010101010101010101010101010102"), "no pack at all").expect("written");
        let left = |from: usize| {
            let paths = names[from..].iter().enumerate();
            let mut paths: Vec<_> = paths
                .flat_map(|(at, name)| [(at % 2 == 0).then(|| name.path()), Some(pack_path(name.pack))])
                .flatten()
                .collect();
            paths.push("packs/01/01010101010101010101010101010102".into());
            paths.sort();
            paths
        };
        assert_eq!(objects(&shared).await, left(0));
        assert_eq!(purge(shared.clone(), Scope::Realm(first)).await, Ok(2));
        assert_eq!(objects(&shared).await, left(2));
        assert_eq!(purge(shared.clone(), Scope::Tenant(first.tenant)).await, Ok(2));
        assert_eq!(objects(&shared).await, left(4), "other tenants' packs are not touched");
    });
}
