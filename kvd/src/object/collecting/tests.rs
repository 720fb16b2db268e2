//! Goal: of what lies in a store exactly that goes which is to go, and of two collectors one collects.
//! Method: nodes without threads that share a folder, whose files are made as old as need be.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use kvd_proto::{BlockKey, NamespaceDigest, Shard, TenantKey};
use kvd_tiers::object::pack::{PackBuilder, Pushed};
use kvd_tiers::object::{NodeName, PackName, Realm};

use super::lease::{Claim, Lease, hold};
use super::*;
use crate::core::{ObjectLimit, ObjectOptions};
use crate::object::inspecting::Inspector;
use crate::object::limits::Limits;
use crate::object::options::StoreUrl;
use crate::object::tier::without_threads;

mod matrix;

const HOUR_MS: u64 = 3_600_000;
/// Some moment.
const NOW: u64 = 1_700_000_000_000;

struct Pool {
    folder: tempfile::TempDir,
}

impl Pool {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn options(&self) -> ObjectOptions {
        ObjectOptions::sample(StoreUrl::Folder(self.folder.path().join("objects")))
    }

    fn node(&self, number: u8, options: &ObjectOptions) -> Arc<Shared> {
        let data = self.folder.path().join(format!("node-{number}"));
        std::fs::create_dir_all(&data).expect("a folder");
        without_threads(options, &data, TenantKey::new([1; 32])).0
    }

    fn file(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join("objects").join(path)
    }

    /// Makes an object two hours old.
    fn age(&self, path: &str) {
        let file = File::options().write(true).open(self.file(path)).expect(path);
        let written = file.metadata().and_then(|found| found.modified()).expect("when it was written");
        file.set_modified(written - Duration::from_secs(7200)).expect("aged");
    }
}

fn namespace(number: u8) -> NamespaceDigest {
    NamespaceDigest::new([number; 32])
}

/// Uploads a pack with one record, as a node does.
async fn store(shared: &Shared, number: u8, realm: Realm, created_ms: u64) -> IndexName {
    let mut builder = PackBuilder::new(PackName::new([number; 16]), shared.node, realm, 1 << 20);
    let pushed = Pushed {
        key: BlockKey::new([number; 16]),
        shard: Shard::whole(4, 2).expect("a shard"),
        parent_key: None,
        group: 0,
        position: 0,
        generation: 1,
        record_bytes: 8192,
        payload_bytes: 100,
        meta_checksum: 7,
    };
    builder.push(pushed, Bytes::from(vec![0; 8192])).expect("room");
    let pack = builder.finish(created_ms).expect("a record");
    let parts = pack.records.into_iter().chain([pack.tail.into()]).collect();
    let deadline = shared.asking().deadline();
    shared.store.put_new(&pack_path(pack.index.pack), parts, deadline).await.expect("put");
    let name = IndexName { node: shared.node, seq: u64::from(number), pack: pack.index.pack };
    shared.store.put_new(&name.path(), vec![pack.index_bytes.into()], deadline).await.expect("put");
    shared.catalog.add(name, &pack.index).expect("added");
    shared.sharing.published(shared, name, &pack.index);
    name
}

/// Names of all objects but the collectors'.
async fn objects(shared: &Shared) -> Vec<String> {
    let listed = shared.store.list("", None, 100, shared.asking().deadline()).await.expect("listed");
    listed.into_iter().map(|object| object.path).filter(|path| !path.starts_with("collector/")).collect()
}

fn both(names: &[IndexName]) -> Vec<String> {
    let mut paths: Vec<_> = names.iter().flat_map(|name| [name.path(), pack_path(name.pack)]).collect();
    paths.sort();
    paths
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test)
}

fn terms(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder.join("objects/collector")) else { return Vec::new() };
    entries.map(|entry| entry.expect("listed").file_name().into_string().expect("text")).collect()
}

#[test]
fn of_two_that_want_the_lease_at_once_one_gets_it() {
    run(async {
        let pool = Pool::new();
        let (a, b) = (pool.node(1, &pool.options()), pool.node(2, &pool.options()));
        for round in 0..20 {
            let now = NOW + round * HOUR_MS;
            let claim = |shared: &Arc<Shared>| {
                let shared = shared.clone();
                async move { hold(shared.asking(), shared.node, now, Claim::IfFree).await.expect("no fault") }
            };
            let (one, other) = tokio::join!(claim(&a), claim(&b));
            assert!(one.is_some() != other.is_some(), "round {round}: {one:?} {other:?}");
            assert_eq!(terms(pool.folder.path()), [format!("{:016x}", round + 1)], "old terms are gone");
        }
    });
}

#[test]
fn a_lease_is_kept_by_its_holder_and_taken_over_when_it_has_expired() {
    run(async {
        let pool = Pool::new();
        let shared = pool.node(1, &pool.options());
        let (a, b) = (NodeName::new([1; 16]), NodeName::new([2; 16]));
        let term = async |node, now, claim| {
            let lease: Option<Lease> = hold(shared.asking(), node, now, claim).await.expect("no fault");
            lease.map(|lease| lease.term)
        };
        assert_eq!(term(a, NOW, Claim::IfFree).await, Some(1));
        assert_eq!(term(b, NOW + 1, Claim::IfFree).await, None);
        assert_eq!(term(a, NOW + 300_000, Claim::IfFree).await, Some(2), "its holder goes on");
        assert_eq!(term(b, NOW + 360_001, Claim::IfFree).await, None, "the new term counts");
        assert_eq!(term(b, NOW + 660_000, Claim::IfFree).await, Some(3), "it has expired");
        assert_eq!(term(a, NOW + 660_001, Claim::Now).await, Some(4), "an operator does not wait");
        assert_eq!(term(b, NOW - HOUR_MS, Claim::IfFree).await, Some(5), "no lease reaches that far: a wrong clock");
        std::fs::write(pool.file("collector/0000000000000009"), "nonsense").expect("written");
        std::fs::write(pool.file("collector/f"), "somebody else's").expect("written");
        assert_eq!(term(a, NOW, Claim::IfFree).await, Some(10));
        let left = terms(pool.folder.path());
        assert!(left.contains(&"f".to_owned()) && left.len() == 2, "{left:?}");
    });
}

#[test]
fn packs_go_by_age_whoever_wrote_them_and_by_idleness_on_their_own_node() {
    run(async {
        let pool = Pool::new();
        let old = Some(Duration::from_secs(10 * 3600));
        let a = pool.node(1, &ObjectOptions { expire_after: old, idle_after: None, ..pool.options() });
        let realm = a.realm(&namespace(1));
        let b = pool.node(2, &ObjectOptions { idle_after: Some(Duration::from_millis(1)), ..pool.options() });
        let expired = store(&b, 1, realm, NOW - 11 * HOUR_MS).await;
        let young = store(&b, 2, realm, NOW - 9 * HOUR_MS).await;
        let own_expired = store(&a, 3, realm, NOW - 11 * HOUR_MS).await;
        assert_eq!(objects(&a).await, both(&[expired, young, own_expired]));
        let index = a.asking().index(expired).await.expect("there").expect("an index");
        a.catalog.add(expired, &index).expect("added");
        turn(&a, 0, NOW).await.expect("no fault");
        assert_eq!(objects(&a).await, both(&[young]));
        assert_eq!((a.counters().packs_expired.get(), a.counters().own_packs.get()), (2, 0));
        assert!(a.catalog.pack(expired.pack).is_none() && a.catalog.pack(own_expired.pack).is_none());

        // The other one's daemon, which does not have the lease.
        let now = crate::object::unix_ms();
        turn(&b, now + 60_000, now + 60_000).await.expect("no fault");
        assert_eq!(objects(&a).await, both(&[young]), "before the start nobody knows who read it");
        // It has not heard that one of its two is gone: that is deleted once more, and no harm done.
        turn(&b, 0, now + 60_000).await.expect("no fault");
        assert_eq!((objects(&a).await, b.counters().packs_idle.get()), (vec![], 2));
    });
}

#[test]
fn a_clock_that_is_ahead_takes_no_packs_of_others() {
    run(async {
        let pool = Pool::new();
        let old = Some(Duration::from_secs(10 * 3600));
        let (a, b) =
            (pool.node(1, &ObjectOptions { expire_after: old, ..pool.options() }), pool.node(2, &pool.options()));
        let now = crate::object::unix_ms();
        let young = store(&b, 1, a.realm(&namespace(1)), now).await;
        let index = a.asking().index(young).await.expect("there").expect("an index");
        a.catalog.add(young, &index).expect("added");
        turn(&a, 0, now + 240 * HOUR_MS).await.expect("no fault");
        assert_eq!(objects(&a).await, both(&[young]));
    });
}

#[test]
fn what_a_crash_leaves_goes_once_it_is_an_hour_old() {
    run(async {
        let pool = Pool::new();
        let shared = pool.node(1, &pool.options());
        let realm = shared.realm(&namespace(1));
        let kept = store(&shared, 1, realm, NOW).await;
        let unlearned = store(&shared, 2, realm, NOW).await;
        shared.catalog.remove(unlearned.pack).expect("forgotten");
        let (orphan, young) = (store(&shared, 3, realm, NOW).await, store(&shared, 4, realm, NOW).await);
        for name in [orphan, young] {
            std::fs::remove_file(pool.file(&name.path())).expect("deleted");
            shared.catalog.remove(name.pack).expect("forgotten");
        }
        let canary = |digit: &str| format!("canary/{}", digit.repeat(32));
        let (old, new) = (canary("1"), canary("2"));
        // Others may use the bucket, and the same words.
        let foreign = ["packs/03/not-ours", "others/1", "nodes/report.csv", "canary/yellow"];
        for name in foreign.into_iter().chain([old.as_str(), &new]) {
            let text = vec![Bytes::from_static(b"x")];
            shared.store.put_new(name, text, shared.asking().deadline()).await.expect("put");
        }
        for path in both(&[kept, unlearned]) {
            pool.age(&path);
        }
        for path in foreign.into_iter().chain([pack_path(orphan.pack).as_str(), &old]) {
            pool.age(path);
        }
        let mut wanted = both(&[kept, unlearned]);
        wanted.extend([pack_path(young.pack), new]);
        wanted.extend(foreign.map(str::to_owned));
        wanted.sort();
        turn(&shared, 0, NOW).await.expect("no fault");
        assert_eq!(objects(&shared).await, wanted);
        assert_eq!(shared.counters().orphans_collected.get(), 1);
    });
}

#[test]
fn a_namespace_has_limits_of_its_own_whoever_wrote_its_packs() {
    run(async {
        let pool = Pool::new();
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let limit = |number, max_age: Option<u64>, max_idle| ObjectLimit {
            namespace: Some(namespace(number)),
            max_age: max_age.map(hours),
            max_idle,
        };
        let limits =
            vec![limit(1, Some(2), None), limit(2, Some(0), None), limit(3, None, Some(Duration::from_millis(1)))];
        let options = ObjectOptions { expire_after: Some(hours(10)), limits, ..pool.options() };
        let (a, b) = (pool.node(1, &options), pool.node(2, &options));
        let now = crate::object::unix_ms() + 60_000;
        let realm = |number| a.realm(&namespace(number));
        store(&a, 1, realm(1), now - 3 * HOUR_MS).await;
        let kept = store(&a, 2, realm(2), now - 1000 * HOUR_MS).await;
        store(&a, 3, realm(3), now - 3 * HOUR_MS).await;
        let plain = store(&a, 4, realm(4), now - 3 * HOUR_MS).await;
        let theirs = store(&b, 5, realm(1), now - 3 * HOUR_MS).await;
        let stranger = Realm { tenant: [7; 16], ..realm(1) };
        let strange = store(&b, 6, stranger, now - 3 * HOUR_MS).await;
        for name in [theirs, strange] {
            let index = a.asking().index(name).await.expect("there").expect("an index");
            a.catalog.add(name, &index).expect("added");
        }
        turn(&a, 0, now).await.expect("no fault");
        assert_eq!(
            objects(&a).await,
            both(&[kept, plain, strange]),
            "of another tenant's nobody here knows the namespace"
        );
        assert_eq!((a.counters().packs_expired.get(), a.counters().packs_idle.get()), (2, 1));
    });
}

#[test]
fn an_operator_collects_by_the_same_limits() {
    run(async {
        let pool = Pool::new();
        let limit =
            ObjectLimit { namespace: Some(namespace(1)), max_age: Some(Duration::from_secs(3600)), max_idle: None };
        let options = ObjectOptions { limits: vec![limit], ..pool.options() };
        let shared = pool.node(1, &options);
        let old = crate::object::unix_ms() - 2 * HOUR_MS;
        let short = store(&shared, 1, shared.realm(&namespace(1)), old).await;
        let kept = store(&shared, 2, shared.realm(&namespace(2)), old).await;
        let look = Inspector::new(&shared.store, &options);
        let collected = look.collect(&Limits::of_all(&options), true).await.expect("no fault");
        assert_eq!(collected.expired, [], "without the key all packs are somebody else's");
        let limits = Limits::new(&options, &TenantKey::new([1; 32]));
        let collected = look.collect(&limits, true).await.expect("no fault");
        assert_eq!(collected.expired.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [short]);
        assert_eq!(objects(&shared).await, both(&[kept]));
    });
}
