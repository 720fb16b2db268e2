//! A client against a daemon of a few lines: what it does with late, wrong, missing and no answers.
#![expect(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

mod fake;

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use fake::{Fake, PAYLOAD_BYTES, UNIT_BYTES};
use kvd_client::{
    AsyncEngine, BlockMemory, ConnectError, Engine, EngineLayout, EngineOptions, Loaded, StoreRequest, Stored, View,
    ViewError, ViewSpec,
};
use kvd_nixl::sys::{MemoryExtent, Region};
use kvd_proto::wire::session::ShardRange;
use kvd_proto::{
    BlockHash, Epoch, GroupKind, GroupSpec, InstanceId, MissReason, Namespace, Plane, Shard, Sharding, UnitOrder,
};

fn namespace() -> Namespace {
    let plane = Plane {
        name: "kv".into(),
        layers: 2,
        heads: 2,
        unit_bytes: UNIT_BYTES as u32,
        unit_order: UnitOrder::TokenKvDim,
        k_dim: 64,
        v_dim: 64,
        scales_bytes: 0,
        sharding: Sharding::Sharded,
    };
    let group = GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None };
    Namespace {
        model: "m".into(),
        weights_digest: [1; 32],
        kv_dtype: "bf16".into(),
        scale_scheme: String::new(),
        hash_algorithm: "sha256".into(),
        hash_seed: vec![],
        lora: None,
        block_tokens: 16,
        groups: vec![group.clone(), group],
    }
}

fn spec(namespace: &Namespace, group: u16) -> ViewSpec<'_> {
    ViewSpec {
        namespace,
        group,
        shard: Shard::whole(2, 2).unwrap(),
        hash_bytes: 8,
        prefill_tokens_per_second: 0.0,
        token_ids: false,
    }
}

fn options(socket: &Path) -> EngineOptions {
    EngineOptions { store_deadline: Duration::from_millis(300), ..EngineOptions::new(socket, InstanceId::new([4; 16])) }
}

fn hashes(count: u64) -> Vec<BlockHash> {
    (1..=count).map(|number| BlockHash::new(&number.to_le_bytes()).unwrap()).collect()
}

/// Memory of an engine with so many blocks, each filled with bytes of its own, or zeros.
fn pool(blocks: usize, filled: bool) -> (MemoryExtent, EngineLayout) {
    let memory = MemoryExtent::whole(Arc::new(Region::new(blocks * PAYLOAD_BYTES).unwrap()));
    if filled {
        let bytes: Vec<u8> = (0..memory.len()).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 15) as u8).collect();
        memory.write(0, &bytes).unwrap();
    }
    (memory.clone(), EngineLayout::contiguous(memory, PAYLOAD_BYTES))
}

fn bytes(memory: &MemoryExtent) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

fn blocks(layout: &EngineLayout, count: usize) -> Vec<BlockMemory<'_>> {
    (0..count).map(|index| layout.block(index).unwrap()).collect()
}

fn store(view: &View, hashes: &[BlockHash], sources: &[BlockMemory<'_>]) -> Stored {
    view.store(&StoreRequest { parent: None, first_position: 0, hashes, sources, tokens: &[] })
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "{what} within 10 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Scene {
    folder: tempfile::TempDir,
    fake: Fake,
    engine: Engine,
    view: View,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::start(&folder.path().join("s"), 5);
        let engine = Engine::connect(options(&folder.path().join("s"))).unwrap();
        let view = engine.open_view(&spec(&namespace(), 0)).unwrap();
        Self { folder, fake, engine, view }
    }
}

#[test]
fn stored_blocks_match_and_load_verified() {
    let Scene { fake, view, .. } = Scene::new();
    let hashes = hashes(12);
    let (source, from) = pool(10, true);
    let stored = store(&view, &hashes[..10], &blocks(&from, 10));
    assert_eq!(stored, Stored { granted: 10, ..Stored::default() });
    let again = store(&view, &hashes[..10], &blocks(&from, 10));
    assert_eq!(again, Stored { present: 10, ..Stored::default() });

    for step in [0, 1, 3] {
        fake.switches.landed_per_completion.store(step, Ordering::SeqCst);
        let found = view.match_prefix(&hashes);
        assert_eq!((found.blocks(), found.reason()), (10, Some(MissReason::Cold)));
        let (target, to) = pool(10, false);
        let loaded = view.load(&found, 0..10, &blocks(&to, 10));
        assert_eq!(loaded, Loaded { blocks: 10, from_dram: 5, from_nvme: 5, ..Loaded::default() });
        assert!(bytes(&target) == bytes(&source));
        let (target, to) = pool(3, false);
        assert_eq!(view.load(&found, 4..7, &blocks(&to, 3)).blocks, 3);
        assert!(bytes(&target) == bytes(&source)[4 * PAYLOAD_BYTES..7 * PAYLOAD_BYTES]);
        assert_eq!(view.load(&found, 9..12, &blocks(&to, 3)).blocks, 1);
        found.release();
    }
    eventually("all leases back", || fake.seen.lock().unwrap().released.len() == 3);
    view.prefetch(&hashes);
    view.set_prefill_rate(1000.0);
}

#[test]
fn a_damaged_copy_is_reported_and_loaded_again_or_missed() {
    let Scene { fake, view, .. } = Scene::new();
    let hashes = hashes(4);
    let (source, from) = pool(4, true);
    fake.switches.damage.store(1, Ordering::SeqCst);
    store(&view, &hashes[..1], &blocks(&from, 1));
    store(&view, &hashes, &blocks(&from, 4));
    let found = view.match_prefix(&hashes);
    let (target, to) = pool(4, false);
    let loaded = view.load(&found, 0..4, &blocks(&to, 4));
    assert_eq!((loaded.blocks, loaded.corrupt, loaded.reason), (4, 1, None));
    assert!(bytes(&target) == bytes(&source));
    assert_eq!(fake.seen.lock().unwrap().corrupt.len(), 1);

    // Two bad copies in one load: it goes on behind each.
    let Scene { fake, view, .. } = Scene::new();
    fake.switches.damage.store(2, Ordering::SeqCst);
    store(&view, &hashes, &blocks(&from, 4));
    let found = view.match_prefix(&hashes);
    let loaded = view.load(&found, 0..4, &blocks(&to, 4));
    assert_eq!((loaded.blocks, loaded.corrupt, loaded.reason), (4, 2, None));
    assert!(bytes(&target) == bytes(&source));
    assert_eq!(fake.seen.lock().unwrap().corrupt.len(), 2);
}

#[test]
fn a_stopped_daemon_costs_the_deadline_and_its_late_leases_go_back() {
    let Scene { fake, view, .. } = Scene::new();
    let hashes = hashes(3);
    let (_source, from) = pool(3, true);
    store(&view, &hashes, &blocks(&from, 3));
    fake.silence();
    let started = Instant::now();
    // More than there are slabs: also the call that finds no place ends in time.
    for _ in 0..20 {
        let missed = view.match_prefix_within(&hashes, Duration::from_millis(10));
        assert_eq!((missed.blocks(), missed.reason()), (0, Some(MissReason::Timeout)));
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    fake.switches.silent.store(false, Ordering::SeqCst);
    eventually("calls work again", || view.match_prefix(&hashes).blocks() == 3);
    // Each of the sixteen that got through took a lease that nobody waited for.
    eventually("late leases back", || {
        view.match_prefix(&hashes);
        fake.seen.lock().unwrap().released.len() >= 17
    });
}

#[test]
fn a_dead_daemon_means_misses_until_the_next_one_is_joined() {
    let Scene { folder, fake, engine, view } = Scene::new();
    let hashes = hashes(3);
    let (_source, from) = pool(3, true);
    store(&view, &hashes, &blocks(&from, 3));
    let found = view.match_prefix(&hashes);
    fake.silence();
    let waiting = {
        let (view, hashes) = (view.clone(), hashes.clone());
        std::thread::spawn(move || {
            let started = Instant::now();
            let missed = view.match_prefix_within(&hashes, Duration::from_secs(20));
            (missed.reason(), started.elapsed())
        })
    };
    std::thread::sleep(Duration::from_millis(30));
    fake.kill();
    let (reason, waited) = waiting.join().unwrap();
    assert_eq!(reason, Some(MissReason::TierDown));
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    let (_target, to) = pool(3, false);
    assert_eq!(view.match_prefix(&hashes).reason(), Some(MissReason::TierDown));
    assert_eq!(store(&view, &hashes, &blocks(&from, 3)).reason, Some(MissReason::TierDown));
    assert_eq!(view.load(&found, 0..3, &blocks(&to, 3)).reason, Some(MissReason::LeaseLost));

    let next = Fake::start(&folder.path().join("s"), 6);
    eventually("joined again", || engine.epoch() == Some(Epoch::new(6)));
    assert_eq!(engine.times_joined(), 2);
    let hello = next.seen.lock().unwrap().hellos[0].clone();
    assert_eq!((hello.last_epoch, hello.last_client_slot), (5, 3));
    assert_eq!(view.load(&found, 0..3, &blocks(&to, 3)).reason, Some(MissReason::LeaseLost));
    assert_eq!(store(&view, &hashes, &blocks(&from, 3)).granted, 3);
    assert_eq!(view.match_prefix(&hashes).blocks(), 3);
    drop((view, engine));
    assert_eq!(next.seen.lock().unwrap().goodbyes, 1);
}

#[test]
fn an_answer_of_another_epoch_ends_the_session() {
    let Scene { folder: _folder, fake, engine, view } = Scene::new();
    fake.switches.epoch_off.store(1, Ordering::SeqCst);
    assert_eq!(view.match_prefix(&hashes(1)).reason(), Some(MissReason::TierDown));
    fake.switches.epoch_off.store(0, Ordering::SeqCst);
    eventually("joined again", || engine.times_joined() == 2);
}

#[test]
fn a_socket_that_does_not_answer_costs_the_deadline_only() {
    let Scene { fake, engine, view, .. } = Scene::new();
    let (_source, from) = pool(1, true);
    fake.switches.deaf.store(true, Ordering::SeqCst);
    let started = Instant::now();
    // The segment that the grant names cannot be had.
    let stored = store(&view, &hashes(1), &blocks(&from, 1));
    assert_eq!((stored.refused, stored.reason), (1, Some(MissReason::Timeout)));
    assert!(started.elapsed() < Duration::from_secs(1));
    eventually("the grant back", || !fake.seen.lock().unwrap().abandoned.is_empty());
    fake.switches.deaf.store(false, Ordering::SeqCst);
    eventually("stores again", || store(&view, &hashes(2), &blocks(&pool(2, true).1, 2)).granted > 0);
    assert_eq!(engine.times_joined(), 1, "late answers are skipped, not taken for others");
}

#[test]
fn refusals_are_told_where_they_can_be_mended() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    assert!(matches!(Engine::connect(options(&socket)), Err(ConnectError::Unreachable { .. })));
    let early = Engine::start(options(&socket)).unwrap();
    let view = early.open_view(&spec(&namespace(), 0)).unwrap();
    assert_eq!(view.match_prefix(&hashes(1)).reason(), Some(MissReason::TierDown));
    let fake = Fake::start(&socket, 1);
    eventually("joined", || early.epoch().is_some());
    assert!(matches!(early.open_view(&spec(&namespace(), 1)), Err(ViewError::Refused { .. })));
    assert!(matches!(early.open_view(&spec(&namespace(), 2)), Err(ViewError::Group(2))));
    fake.switches.refuse.store(true, Ordering::SeqCst);
    assert!(matches!(Engine::connect(options(&socket)), Err(ConnectError::Refused { .. })));
}

#[test]
fn threads_share_an_engine() {
    let Scene { fake, view, .. } = Scene::new();
    let hashes = hashes(8);
    let (_source, from) = pool(8, true);
    store(&view, &hashes, &blocks(&from, 8));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let found = view.match_prefix_within(&hashes, Duration::from_secs(5));
                    assert_eq!(found.blocks(), 8);
                    let (_target, to) = pool(1, false);
                    let loaded = view.load_within(&found, 3..4, &blocks(&to, 1), Duration::from_secs(5));
                    assert_eq!((loaded.blocks, loaded.reason), (1, None));
                }
            });
        }
    });
    eventually("all leases back", || fake.seen.lock().unwrap().released.len() == 800);
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn futures_do_the_same_and_a_dropped_one_leaves_nothing_behind() {
    let Scene { folder, fake, .. } = Scene::new();
    let engine = AsyncEngine::connect(options(&folder.path().join("s"))).unwrap();
    let view = engine.open_view(&spec(&namespace(), 0)).unwrap();
    let hashes = hashes(3);
    let (source, from) = pool(3, true);
    let (target, to) = pool(3, false);
    let (from, to) = (Arc::new(from), Arc::new(to));
    let all = from.blocks(&[0, 1, 2]).unwrap();
    let stored = block_on(view.store(None, 0, hashes.clone(), from, all.clone(), vec![]));
    assert_eq!(stored.granted, 3);
    let found = Arc::new(block_on(view.match_prefix(hashes.clone())));
    assert_eq!(block_on(view.load(found.clone(), 0..3, to.clone(), all.clone())).blocks, 3);
    assert!(bytes(&target) == bytes(&source));

    fake.silence();
    let started = Instant::now();
    let running = view.load(found.clone(), 0..3, to.clone(), all.clone());
    let waiting = view.load(found, 0..3, to, all);
    std::thread::sleep(Duration::from_millis(10));
    drop(waiting);
    assert!(started.elapsed() < Duration::from_millis(200), "what has not begun is dropped at once");
    drop(running);
    assert!(started.elapsed() >= Duration::from_millis(400), "what has begun is waited for");
}

#[test]
fn whatever_a_daemon_says_of_shards_costs_one_question_a_second() {
    let whole = ShardRange { layer_end: 2, head_end: 2, interleave_of: 1, ..ShardRange::default() };
    let half = ShardRange { head_end: 1, ..whole };
    let lists = [
        // Nothing, itself, and what is no shard, or none of this group.
        vec![],
        vec![whole],
        vec![
            ShardRange { layer_end: 0, ..whole },
            ShardRange { head_end: 1 << 20, ..whole },
            ShardRange { interleave_of: 0, ..whole },
            ShardRange { layer_end: 60_000, head_end: 60_000, ..whole },
        ],
        // One half, ever so often, and no other; halves of tokens.
        vec![half; 500],
        (0..40).map(|_| ShardRange { interleave_of: 2, ..half }).collect(),
    ];
    for shards in lists {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::start(&folder.path().join("s"), 5);
        *fake.switches.shards.lock().unwrap() = Some(shards.clone());
        let engine = Engine::connect(options(&folder.path().join("s"))).unwrap();
        let view = engine.open_view(&spec(&namespace(), 0)).unwrap();
        let (_, filled) = pool(4, true);
        assert_eq!(store(&view, &hashes(4), &blocks(&filled, 4)).granted, 4);
        let started = Instant::now();
        for _ in 0..50 {
            let found = view.match_prefix(&hashes(9));
            assert_eq!((found.blocks(), found.own_blocks()), (4, 4), "{shards:?}");
        }
        let seen = fake.seen.lock().unwrap();
        assert_eq!((seen.matched, seen.opened), (50, 1), "{shards:?}");
        assert!(u64::from(seen.asked_for_shards) <= 1 + started.elapsed().as_secs(), "{}", seen.asked_for_shards);
    }
}

#[test]
fn a_daemon_that_cannot_tell_of_shards_is_not_asked() {
    let Scene { fake, view, .. } = Scene::new();
    assert_eq!(view.match_prefix(&hashes(3)).blocks(), 0);
    let seen = fake.seen.lock().unwrap();
    assert_eq!((seen.matched, seen.asked_for_shards), (1, 0));
}

#[test]
fn a_daemon_that_opens_another_shard_than_it_was_asked_for_ends_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(&folder.path().join("s"), 5);
    // Both halves; this daemon opens every view with the sizes of the whole.
    let whole = ShardRange { layer_end: 2, head_end: 2, interleave_of: 1, ..ShardRange::default() };
    let halves = vec![ShardRange { head_end: 1, ..whole }, ShardRange { head_start: 1, ..whole }];
    *fake.switches.shards.lock().unwrap() = Some(halves);
    let engine = Engine::connect(options(&folder.path().join("s"))).unwrap();
    let view = engine.open_view(&spec(&namespace(), 0)).unwrap();
    let found = view.match_prefix(&hashes(3));
    assert_eq!((found.blocks(), found.reason()), (0, Some(MissReason::Cold)));
    eventually("joined again", || engine.times_joined() > 1);
}

#[test]
fn shards_that_come_and_go_are_followed() {
    let whole = ShardRange { layer_end: 2, head_end: 2, interleave_of: 1, ..ShardRange::default() };
    let half = ShardRange { head_end: 1, ..whole };
    let beyond = ShardRange { head_start: 1, head_end: 60_000, ..whole };
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(&folder.path().join("s"), 5);
    *fake.switches.shards.lock().unwrap() = Some(vec![half, beyond]);
    let engine = Engine::connect(options(&folder.path().join("s"))).unwrap();
    let view = engine.open_view(&spec(&namespace(), 0)).unwrap();
    for shards in [vec![half, beyond], vec![half], vec![], vec![beyond], vec![half, beyond]] {
        let asked = fake.seen.lock().unwrap().asked_for_shards;
        *fake.switches.shards.lock().unwrap() = Some(shards);
        eventually("asked again", || {
            assert_eq!(view.match_prefix(&hashes(3)).blocks(), 0);
            fake.seen.lock().unwrap().asked_for_shards > asked
        });
    }
}
