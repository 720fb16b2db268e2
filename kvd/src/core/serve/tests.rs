//! A whole daemon in this process, spoken to as an engine does: raw socket, raw rings.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kvd_nixl::sys::{Bell, Consumer, Mapping, Memory, MemoryExtent, Producer, recv_with_fds, ring_bytes};
use kvd_nixl::{ChecksumAlgorithm, unit_seed};
use kvd_proto::wire::ring::{Completion, FLAG_LEASE, FLAG_PARENT, FLAG_TOKENS, Op, Request, Status};
use kvd_proto::wire::session::{
    Body, GetSegment, Goodbye, Hello, ListShards, OpenView, RefusalCode, RingGeometry, ViewOpened, Welcome,
    decode_frame, encode_frame,
};
use kvd_proto::wire::slab::{
    GRANTED_BYTES, Granted, GrantedStatus, LANDED_BYTES, Landed, LandedStatus, put_commit, put_hash,
};
use kvd_proto::{
    BlockHash, GroupKind, GroupSpec, Interleave, MissReason, Namespace, Plane, Shard, Sharding, TenantKey, Tier,
    UnitOrder,
};
use kvd_tiers::ladder::SlotTable as _;
use kvd_tiers::{SegmentId, SlotId};

use super::*;
use crate::core::admin::{AdminCommand, AdminReply, Page};
use crate::core::options::{DramOptions, IoChoice, TenantOptions};

const UNIT: usize = 8192;
const UNITS: usize = 8;
const TOKENS: u32 = 16;

fn options(folder: &Path) -> ServeOptions {
    ServeOptions {
        data_dir: folder.join("data"),
        socket: folder.join("kvd.sock"),
        tenant: TenantOptions { name: "test".into(), key: TenantKey::new([3; 32]) },
        sessions_max: 8,
        allowed_uids: vec![],
        dram: DramOptions {
            path: folder.join("dram"),
            capacity_bytes: 3 * (64 << 20),
            floor_bytes: 0,
            prefault: false,
        },
        nvme: Some(NvmeOptions {
            paths: vec![folder.join("nvme")],
            capacity_bytes: 300 << 20,
            io: IoChoice::Auto,
            read_bytes_per_second_max: None,
            write_bytes_per_second_max: None,
        }),
        object: None,
        policy: PolicyChoice::Lru,
        lease_bytes_max: 64 << 20,
        lease_idle: Duration::from_secs(30),
        match_deadline: Duration::from_millis(50),
        load_deadline: Duration::from_secs(5),
        gate_enabled: false,
        stop_deadline: Duration::from_secs(5),
    }
}

fn namespace() -> Namespace {
    let plane = Plane {
        name: "kv".into(),
        layers: 2,
        heads: 4,
        unit_bytes: UNIT as u32,
        unit_order: UnitOrder::TokenKvDim,
        k_dim: 128,
        v_dim: 128,
        scales_bytes: 0,
        sharding: Sharding::Sharded,
    };
    Namespace {
        model: "tiny".into(),
        weights_digest: [1; 32],
        kv_dtype: "bf16".into(),
        scale_scheme: String::new(),
        hash_algorithm: "sha256".into(),
        hash_seed: vec![],
        lora: None,
        block_tokens: TOKENS,
        groups: vec![GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane], geometry: None }],
    }
}

/// An engine with one view.
struct Engine {
    socket: UnixStream,
    welcome: Welcome,
    geometry: RingGeometry,
    memory: Arc<Mapping>,
    requests: Producer,
    completions: Consumer,
    bell: Bell,
    view: ViewOpened,
    segments: Vec<(u32, Mapping)>,
    token: u64,
}

fn say(socket: &mut UnixStream, body: Body) -> (Body, Vec<OwnedFd>) {
    socket.write_all(&encode_frame(body).unwrap()).unwrap();
    let mut buffer = vec![0; 65536];
    let received = recv_with_fds(socket.as_fd(), &mut buffer).unwrap();
    let (body, _) = decode_frame(&buffer[..received.bytes]).unwrap().expect("one whole answer");
    (body, received.fds)
}

impl Engine {
    fn connect(path: &Path, replaces: Option<(u64, u32)>) -> Self {
        let mut socket = UnixStream::connect(path).unwrap();
        let (last_epoch, last_client_slot) = replaces.unwrap_or((0, 0));
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            instance: vec![5; 16],
            client_name: "test".into(),
            last_epoch,
            last_client_slot,
            ..Hello::default()
        };
        let (Body::Welcome(welcome), mut fds) = say(&mut socket, Body::Hello(hello)) else { panic!("not welcome") };
        let geometry = welcome.geometry.unwrap();
        let bell = Bell::from_fd(fds.pop().unwrap());
        let memory = Arc::new(Mapping::new(fds[0].as_fd(), 0, geometry.memory_bytes as usize).unwrap());
        let ring = |at: u64| MemoryExtent::new(memory.clone(), at as usize, ring_bytes(geometry.ring_entries)).unwrap();
        let requests = Producer::new(ring(geometry.request_ring_offset), geometry.ring_entries).unwrap();
        let completions = Consumer::new(ring(geometry.completion_ring_offset), geometry.ring_entries).unwrap();
        let open = OpenView {
            namespace: namespace().encode().unwrap(),
            shard: Some((&Shard::whole(2, 4).unwrap()).into()),
            hash_bytes: 32,
            token_ids: true,
            ..OpenView::default()
        };
        let (Body::ViewOpened(view), _) = say(&mut socket, Body::OpenView(open)) else { panic!("no view") };
        Self { socket, welcome, geometry, memory, requests, completions, bell, view, segments: vec![], token: 0 }
    }

    fn slab(&self, slab: u16) -> MemoryExtent {
        let at = self.geometry.slabs_offset as usize + usize::from(slab) * self.geometry.slab_bytes as usize;
        MemoryExtent::new(self.memory.clone(), at, self.geometry.slab_bytes as usize).unwrap()
    }

    fn request(&self, op: Op) -> Request {
        Request {
            op,
            flags: 0,
            view: self.view.view as u16,
            slab: 0,
            first: 0,
            count: 0,
            token: 0,
            lease: 0,
            deadline_us: 0,
            arg: 0,
        }
    }

    /// Asks and waits for the last completion.
    fn ask(&mut self, request: Request) -> Completion {
        self.token += 1;
        let request = Request { token: self.token, ..request };
        assert!(self.requests.push(&request.encode()).unwrap());
        self.requests.wake(&self.bell).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let entry = self.completions.spin_then_wait(&self.bell, Duration::from_micros(50), Some(deadline)).unwrap();
            let completion = Completion::decode(&entry.expect("an answer within ten seconds")).unwrap();
            if completion.token == self.token && completion.status != Status::Partial {
                assert_eq!(completion.epoch.get(), self.welcome.epoch);
                return completion;
            }
        }
    }

    fn find(&mut self, hashes: &[BlockHash]) -> Completion {
        let mut list = Vec::new();
        hashes.iter().for_each(|hash| put_hash(&mut list, hash));
        self.slab(0).write(0, &list).unwrap();
        self.ask(Request { flags: FLAG_LEASE, count: hashes.len() as u32, ..self.request(Op::Match) })
    }

    /// Maps a segment at its first use.
    fn slot(&mut self, segment: u32) -> &Mapping {
        if !self.segments.iter().any(|(known, _)| *known == segment) {
            let (Body::SegmentFd(told), fds) = say(&mut self.socket, Body::GetSegment(GetSegment { segment })) else {
                panic!("no segment");
            };
            self.segments.push((segment, Mapping::new(fds[0].as_fd(), 0, told.bytes as usize).unwrap()));
        }
        &self.segments.iter().find(|(known, _)| *known == segment).unwrap().1
    }

    /// Offers, fills and commits a chain from its start.
    fn store(&mut self, hashes: &[BlockHash]) -> u32 {
        let mut list = vec![0; 32];
        hashes.iter().for_each(|hash| put_hash(&mut list, hash));
        (0..hashes.len() as u32 * TOKENS).for_each(|token| list.extend(token.to_le_bytes()));
        let slab = self.slab(0);
        slab.write(0, &list).unwrap();
        let offer = Request { flags: FLAG_TOKENS, count: hashes.len() as u32, ..self.request(Op::Offer) };
        let offered = self.ask(offer);
        assert_eq!(offered.status, Status::Ok);
        let meta = self.view.meta_bytes as usize;
        let mut commit = Vec::new();
        let mut filled = 0;
        for (at, hash) in hashes.iter().enumerate() {
            let mut entry = [0; GRANTED_BYTES];
            slab.read(at * GRANTED_BYTES, &mut entry).unwrap();
            let granted = Granted::decode(&entry).unwrap();
            if granted.status != GrantedStatus::Granted {
                continue;
            }
            let payload = payload(hash);
            self.slot(granted.segment).write(granted.offset as usize + meta, &payload).unwrap();
            put_commit(&mut commit, granted.index, &checksums(granted.seed, &payload));
            filled += 1;
        }
        if filled == 0 {
            return 0;
        }
        slab.write(0, &commit).unwrap();
        let commit = Request { lease: offered.lease, count: filled, ..self.request(Op::Commit) };
        let committed = self.ask(commit);
        assert_eq!((committed.status, committed.reason), (Status::Ok, None));
        committed.count
    }

    /// Loads the first `count` blocks of a lease and checks every byte. Where each came from.
    fn load(&mut self, lease: u64, hashes: &[BlockHash]) -> Vec<Tier> {
        let load = Request { lease, count: hashes.len() as u32, ..self.request(Op::Load) };
        let loaded = self.ask(load);
        assert_eq!((loaded.count, loaded.reason), (hashes.len() as u32, None), "{loaded:?}");
        let meta = self.view.meta_bytes as usize;
        let mut tiers = Vec::new();
        for (at, hash) in hashes.iter().enumerate() {
            let mut entry = [0; LANDED_BYTES];
            self.slab(0).read(at * LANDED_BYTES, &mut entry).unwrap();
            let landed = Landed::decode(&entry).unwrap();
            assert_eq!(landed.status, LandedStatus::Landed);
            let mut found = vec![0; UNIT * UNITS];
            self.slot(landed.segment).read(landed.offset as usize + meta, &mut found).unwrap();
            assert_eq!(found, payload(hash));
            tiers.push(landed.tier.unwrap());
        }
        tiers
    }
}

fn hash(n: u32) -> BlockHash {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    BlockHash::new(&bytes).unwrap()
}

/// Bytes that only this block has.
fn payload(hash: &BlockHash) -> Vec<u8> {
    let seed = u32::from_le_bytes(*hash.as_bytes().first_chunk().unwrap());
    (0..(UNIT * UNITS) as u32).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 11) as u8).collect()
}

fn checksums(seed: u64, payload: &[u8]) -> Vec<u64> {
    let one = |(n, unit)| ChecksumAlgorithm::Xxh3.checksum(unit_seed(seed, n as u32), unit);
    payload.chunks(UNIT).enumerate().map(one).collect()
}

#[test]
fn blocks_are_stored_matched_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    assert_eq!((engine.view.payload_bytes as usize, engine.view.meta_bytes), (UNIT * UNITS, 4096));
    let chain: Vec<_> = (0..10).map(hash).collect();
    let cold = engine.find(&chain);
    assert_eq!((cold.count, cold.reason, cold.lease), (0, Some(MissReason::Cold), 0));
    assert_eq!(engine.store(&chain), 10);
    assert_eq!(engine.store(&chain), 0, "present blocks are not stored twice");
    let mut longer = chain.clone();
    longer.push(hash(99));
    let found = engine.find(&longer);
    assert_eq!((found.count, found.reason, found.tier), (10, Some(MissReason::Cold), Some(Tier::Dram)));
    assert_eq!(engine.load(found.lease, &chain), [Tier::Dram; 10]);
    let released = engine.ask(Request { lease: found.lease, ..engine.request(Op::Release) });
    assert_eq!(released.status, Status::Ok);
    let counters = running.handle().counters();
    assert_eq!(counters.blocks_committed.get(), 10);
    assert!(matches!(say(&mut engine.socket, Body::Goodbye(Goodbye {})), (Body::Goodbye(_), _)));
    running.stop();
}

#[test]
fn nonsense_requests_are_answered_and_harm_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    let chain = [hash(1)];
    let bad = |engine: &mut Engine, request: Request| assert_eq!(engine.ask(request).status, Status::BadRequest);
    for request in [
        Request { view: 9, count: 1, ..engine.request(Op::Match) },
        Request { slab: 16, count: 1, ..engine.request(Op::Match) },
        Request { count: 0, ..engine.request(Op::Match) },
        Request { count: u32::MAX, ..engine.request(Op::Match) },
        Request { count: u32::MAX, ..engine.request(Op::Load) },
        Request { slab: 99, count: 1, ..engine.request(Op::Load) },
        Request { count: 4097, flags: FLAG_TOKENS, ..engine.request(Op::Offer) },
        Request { count: 1, flags: FLAG_PARENT, ..engine.request(Op::Offer) },
        Request { count: 5000, ..engine.request(Op::Commit) },
        Request { view: 9, count: 1, ..engine.request(Op::Prefetch) },
    ] {
        bad(&mut engine, request);
    }
    let gone = engine.ask(Request { lease: 12345, count: 1, ..engine.request(Op::Load) });
    assert_eq!((gone.count, gone.reason), (0, Some(MissReason::LeaseLost)));
    assert_eq!(engine.store(&chain), 1);
    assert_eq!(engine.find(&chain).count, 1);
    assert_eq!(running.handle().counters().bad_requests.get(), 10);
}

#[test]
fn a_successor_adopts_dram_and_an_engine_rejoins() {
    let folder = tempfile::tempdir().unwrap();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    let chain: Vec<_> = (0..20).map(hash).collect();
    assert_eq!(engine.store(&chain), 20);
    let before = engine.welcome.epoch;
    let slot = engine.welcome.client_slot;
    running.stop();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), Some((before, slot)));
    assert!(engine.welcome.epoch > before);
    assert_eq!(engine.welcome.client_slot, slot, "the slot of the session that was replaced");
    let found = engine.find(&chain);
    assert_eq!((found.count, found.tier), (20, Some(Tier::Dram)));
    assert_eq!(engine.load(found.lease, &chain), [Tier::Dram; 20]);
}

#[test]
fn without_its_arena_a_successor_serves_from_nvme() {
    let folder = tempfile::tempdir().unwrap();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    let chain: Vec<_> = (0..20).map(hash).collect();
    assert_eq!(engine.store(&chain), 20);
    let written = &running.handle().counters().device(0).writes;
    let until = Instant::now() + Duration::from_secs(10);
    while written.get() < 20 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    running.stop();
    std::fs::remove_dir_all(folder.path().join("dram")).unwrap();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    let found = engine.find(&chain);
    assert_eq!((found.count, found.tier), (20, Some(Tier::Nvme)));
    assert_eq!(engine.load(found.lease, &chain), [Tier::Nvme; 20]);
    let again = engine.find(&chain);
    assert_eq!(again.tier, Some(Tier::Dram));
}

/// A daemon in another container than its engines sees no process of theirs, so none can be watched.
#[test]
fn a_newcomer_is_not_taken_for_a_survivor_whose_process_is_invisible() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let running = serve(&options).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    assert_eq!(engine.store(&[hash(9)]), 1);
    assert!(matches!(say(&mut engine.socket, Body::Goodbye(Goodbye {})), (Body::Goodbye(_), _)));
    drop(engine);
    running.stop();
    // It may be reading the first slot.
    let mut arena = open_arena(&options, Epoch::new(1)).unwrap().arena;
    let survivor = ClientSlot::new(0).unwrap();
    let process = kvd_tiers::dram::ClientProcess { pid: 0, start_time: 0, instance: InstanceId::new([8; 16]) };
    arena.join(survivor, &process);
    arena.pin(SlotId::new(SegmentId(0), 0), survivor);
    drop(arena);
    let running = serve(&options).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    assert_eq!(engine.welcome.client_slot, 1, "slot 0 is the survivor's");
    assert_eq!(engine.store(&[hash(1)]), 1);
    assert!(matches!(say(&mut engine.socket, Body::Goodbye(Goodbye {})), (Body::Goodbye(_), _)));
    drop(engine);
    let second = Engine::connect(running.socket(), None);
    assert_eq!(second.welcome.client_slot, 1, "the newcomer's end freed its own slot and no other");
}

#[test]
fn engines_that_held_nothing_when_a_daemon_died_take_up_no_slots() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let mut engines = Vec::new();
    for round in 0..3 {
        let running = serve(&options).unwrap();
        let engine = Engine::connect(running.socket(), None);
        assert_eq!(engine.welcome.client_slot, 0, "round {round}");
        // It says no goodbye and its process lives on, here and where nobody can see it.
        engines.push(engine);
        running.stop();
        let mut arena = open_arena(&options, Epoch::new(1)).unwrap().arena;
        let process = kvd_tiers::dram::ClientProcess { pid: 0, start_time: 0, instance: InstanceId::new([8; 16]) };
        arena.join(ClientSlot::new(1).unwrap(), &process);
    }
}

#[test]
fn shards_that_have_nothing_of_a_view_are_not_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    engine.store(&[hash(1)]);
    // The engine's own view, in which there is a block, has 2 layers and 4 heads.
    let mut told = |model: &str, layers, heads, interleave| {
        let namespace = Namespace { model: model.into(), ..namespace() };
        let shard = Shard::new(layers, heads, interleave).unwrap();
        let open = OpenView {
            namespace: namespace.encode().unwrap(),
            shard: Some((&shard).into()),
            hash_bytes: 32,
            token_ids: true,
            ..OpenView::default()
        };
        let (Body::ViewOpened(view), _) = say(&mut engine.socket, Body::OpenView(open)) else { panic!("no view") };
        let (Body::Shards(told), _) = say(&mut engine.socket, Body::ListShards(ListShards { view: view.view })) else {
            panic!("not told")
        };
        assert_eq!(told.view, view.view);
        told.shards.iter().map(|range| Shard::try_from(range).unwrap()).collect::<Vec<_>>()
    };
    let (own, whole) = (namespace().model, Interleave::WHOLE);
    assert_eq!(told(&own, 0..2, 0..2, whole), [Shard::whole(2, 4).unwrap()]);
    assert_eq!(told(&own, 1..2, 3..4, whole), [Shard::whole(2, 4).unwrap()]);
    assert_eq!(told(&own, 0..2, 0..4, whole), [], "its own");
    assert_eq!(told(&own, 0..2, 0..4, Interleave::new(0, 2).unwrap()), [], "other tokens");
    assert_eq!(told("another", 0..2, 0..2, whole), [], "another namespace");
    let (answer, _) = say(&mut engine.socket, Body::ListShards(ListShards { view: 99 }));
    assert!(matches!(&answer, Body::Error(error) if error.code() == RefusalCode::NotFound), "{answer:?}");
}

#[test]
fn operators_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let running = serve(&options(folder.path())).unwrap();
    let mut engine = Engine::connect(running.socket(), None);
    engine.store(&[hash(1), hash(2)]);
    let ask = |command| running.handle().ask_blocking(command).unwrap();
    let AdminReply::Status(status) = ask(AdminCommand::Status) else { panic!() };
    assert_eq!((status.records, status.sessions), (2, 1));
    let page = Page { offset: 0, limit: 10 };
    let AdminReply::Sessions { total, sessions } = ask(AdminCommand::Sessions(page)) else { panic!() };
    assert_eq!((total, sessions[0].pid), (1, std::process::id()));
    let AdminReply::Explain(found) = ask(AdminCommand::Explain { hash: hash(2), namespace: None }) else { panic!() };
    assert!(found[0].matchable);
    let AdminReply::Changed(purged) = ask(AdminCommand::Purge { namespace: None }) else { panic!() };
    assert_eq!(purged.blocks, 2);
    assert_eq!(engine.find(&[hash(1)]).count, 0);
}

#[test]
fn a_second_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _running = serve(&options(folder.path())).unwrap();
    assert!(matches!(serve(&options(folder.path())), Err(ServeError::DataDir(DataDirError::InUse(_)))));
    let elsewhere = ServeOptions { data_dir: folder.path().join("other"), ..options(folder.path()) };
    assert!(matches!(serve(&elsewhere), Err(ServeError::Arena(ArenaError::Locked { .. }))));
}
