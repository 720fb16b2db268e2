//! A daemon of a few lines behind the real protocol: one segment, no tiers, and switches for what may go wrong.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvd_nixl::sys::{
    Bell, ChecksumAlgorithm, Consumer, Mapping, Memory, MemoryExtent, Producer, memfd_sealed, recv_with_fds,
    ring_bytes, send_with_fds,
};
use kvd_proto::record::{HEADER_BYTES, MAGIC, SEED, at, meta_bytes};
use kvd_proto::wire::ring::{Completion, Op, RING_ENTRIES, Request, SLAB_BYTES, SLABS, Status};
use kvd_proto::wire::session::{
    Body, Error, FEATURE_SHARDS, Goodbye, Hello, ListShards, RefusalCode, Refused, RingGeometry, SegmentFd, ShardRange,
    Shards, ViewOpened, Welcome, decode_frame, encode_frame,
};
use kvd_proto::wire::slab::{CommitEntries, GRANTED_BYTES, Granted, GrantedStatus, LANDED_BYTES, Landed, LandedStatus};
use kvd_proto::{Epoch, MissReason, Tier};

pub(crate) const PAYLOAD_BYTES: usize = 16384;
pub(crate) const UNIT_BYTES: usize = 4096;
const SLOT_BYTES: usize = PAYLOAD_BYTES + 4096;
const SEGMENT_BYTES: usize = 1 << 20;

/// What goes wrong, switched by tests while the daemon runs.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    /// Requests on the ring are left unanswered, as by a stopped daemon. Those that came meanwhile are answered later.
    pub(crate) silent: AtomicBool,
    /// Messages on the socket are left unanswered.
    pub(crate) deaf: AtomicBool,
    /// Every Hello is refused.
    pub(crate) refuse: AtomicBool,
    /// So many blocks land per completion; 0: all at once.
    pub(crate) landed_per_completion: AtomicU32,
    /// The next so many commits publish a slot whose payload is then damaged.
    pub(crate) damage: AtomicU32,
    /// Epoch that completions carry beyond the true one.
    pub(crate) epoch_off: AtomicU64,
    /// It tells of shards, and names these.
    pub(crate) shards: Mutex<Option<Vec<ShardRange>>>,
}

/// What tests look at.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) hellos: Vec<Hello>,
    pub(crate) released: Vec<u64>,
    pub(crate) abandoned: Vec<u64>,
    pub(crate) corrupt: Vec<(u64, u32)>,
    pub(crate) goodbyes: u32,
    pub(crate) opened: u32,
    pub(crate) matched: u32,
    pub(crate) asked_for_shards: u32,
}

#[derive(Debug)]
pub(crate) struct Fake {
    path: PathBuf,
    pub(crate) switches: Arc<Switches>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start(path: &Path, epoch: u64) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (switches, seen, stop) = (Arc::<Switches>::default(), Arc::<Mutex<Seen>>::default(), Arc::default());
        let shared = (switches.clone(), seen.clone(), Arc::<AtomicBool>::clone(&stop));
        let thread = std::thread::spawn(move || accept(&listener, epoch, &shared));
        Self { path: path.to_path_buf(), switches, seen, stop, thread: Some(thread) }
    }

    /// Stops answering on the ring, also what comes while this is said.
    pub(crate) fn silence(&self) {
        self.switches.silent.store(true, Ordering::SeqCst);
        // Longer than one turn of its loop.
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Dies as by SIGKILL: every descriptor closes, nothing is said.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.end();
    }
}

type Shared = (Arc<Switches>, Arc<Mutex<Seen>>, Arc<AtomicBool>);

fn accept(listener: &UnixListener, epoch: u64, shared: &Shared) {
    let mut sessions = Vec::new();
    while !shared.2.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((socket, _)) => {
                let shared = shared.clone();
                sessions.push(std::thread::spawn(move || Session::serve(socket, epoch, &shared)));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    sessions.into_iter().for_each(|session| session.join().unwrap());
}

struct Session {
    socket: UnixStream,
    inbox: Vec<u8>,
    epoch: Epoch,
    shared: Shared,
    slabs: Vec<MemoryExtent>,
    completions: Producer,
    bell: Bell,
    segment_file: File,
    segment: Arc<Mapping>,
    leases: u64,
    slots: u32,
    grants: HashMap<(u64, u32), ([u8; 32], u32)>,
    matched: HashMap<u64, Vec<[u8; 32]>>,
    blocks: HashMap<[u8; 32], (u32, u64)>,
}

impl Session {
    fn serve(socket: UnixStream, epoch: u64, shared: &Shared) {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let requests_at = 0;
        let completions_at = ring_bytes(RING_ENTRIES).next_multiple_of(4096);
        let slabs_at = 2 * completions_at;
        let bytes = slabs_at + usize::from(SLABS) * SLAB_BYTES as usize;
        let file = memfd_sealed("fake", bytes as u64).unwrap();
        let memory = Arc::new(Mapping::new(file.as_fd(), 0, bytes).unwrap());
        let extent = |at, len| MemoryExtent::new(memory.clone(), at, len).unwrap();
        let mut requests = Consumer::new(extent(requests_at, ring_bytes(RING_ENTRIES)), RING_ENTRIES).unwrap();
        let completions = Producer::new(extent(completions_at, ring_bytes(RING_ENTRIES)), RING_ENTRIES).unwrap();
        let slab = |slab: usize| extent(slabs_at + slab * SLAB_BYTES as usize, SLAB_BYTES as usize);
        let (bell, theirs) = Bell::pair().unwrap();
        let segment_file = tempfile::tempfile().unwrap();
        segment_file.set_len(SEGMENT_BYTES as u64).unwrap();
        let segment = Arc::new(Mapping::new(segment_file.as_fd(), 0, SEGMENT_BYTES).unwrap());
        let mut session = Self {
            socket,
            inbox: Vec::new(),
            epoch: Epoch::new(epoch),
            shared: shared.clone(),
            slabs: (0..usize::from(SLABS)).map(slab).collect(),
            completions,
            bell,
            segment_file,
            segment,
            leases: 0,
            slots: 0,
            grants: HashMap::new(),
            matched: HashMap::new(),
            blocks: HashMap::new(),
        };
        let geometry = RingGeometry {
            memory_bytes: bytes as u64,
            request_ring_offset: requests_at as u64,
            completion_ring_offset: completions_at as u64,
            ring_entries: RING_ENTRIES,
            slabs_offset: slabs_at as u64,
            slabs: u32::from(SLABS),
            slab_bytes: SLAB_BYTES,
        };
        let mut welcome = Some((geometry, [file, theirs.into()]));
        while !session.shared.2.load(Ordering::SeqCst) {
            if !session.control(&mut welcome) {
                return;
            }
            if session.shared.0.silent.load(Ordering::SeqCst) {
                continue;
            }
            let until = Instant::now() + Duration::from_millis(1);
            let spin = Duration::from_micros(20);
            while let Ok(Some(entry)) = requests.spin_then_wait(&session.bell, spin, Some(until)) {
                session.answer(&Request::decode(&entry).unwrap());
                if session.shared.0.silent.load(Ordering::SeqCst) {
                    break;
                }
            }
        }
    }

    /// Serves the socket; false at its end.
    fn control(&mut self, welcome: &mut Option<(RingGeometry, [OwnedFd; 2])>) -> bool {
        let mut piece = [0; 4096];
        match recv_with_fds(self.socket.as_fd(), &mut piece) {
            Ok(received) if received.bytes == 0 => return false,
            Ok(received) => self.inbox.extend_from_slice(&piece[..received.bytes]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        if self.shared.0.deaf.load(Ordering::SeqCst) {
            return true;
        }
        while let Some((body, used)) = decode_frame(&self.inbox).unwrap() {
            self.inbox.drain(..used);
            let (answer, fds) = match body {
                Body::Hello(hello) => {
                    self.shared.1.lock().unwrap().hellos.push(hello);
                    if self.shared.0.refuse.load(Ordering::SeqCst) {
                        let refused = Refused { code: RefusalCode::Full.into(), ..Refused::default() };
                        let _ = self.say(Body::Refused(refused), &[]);
                        return false;
                    }
                    let (geometry, fds) = welcome.take().unwrap();
                    let shards = self.shared.0.shards.lock().unwrap().is_some();
                    let welcome = Welcome {
                        version: 1,
                        epoch: self.epoch.get(),
                        client_slot: 3,
                        geometry: Some(geometry),
                        match_deadline_us: 50_000,
                        load_deadline_us: 500_000,
                        features: if shards { vec![FEATURE_SHARDS.into()] } else { Vec::new() },
                        ..Welcome::default()
                    };
                    (Body::Welcome(welcome), fds.into())
                }
                Body::OpenView(view) if view.group > 0 => {
                    (Body::Error(Error { code: RefusalCode::Layout.into(), message: "no".into() }), Vec::new())
                }
                Body::ListShards(ListShards { view }) => {
                    self.shared.1.lock().unwrap().asked_for_shards += 1;
                    let shards = self.shared.0.shards.lock().unwrap().clone().unwrap_or_default();
                    (Body::Shards(Shards { view, shards }), Vec::new())
                }
                Body::OpenView(view) => {
                    self.shared.1.lock().unwrap().opened += 1;
                    let opened = ViewOpened {
                        view: 1,
                        payload_bytes: PAYLOAD_BYTES as u32,
                        meta_bytes: 4096,
                        unit_bytes: UNIT_BYTES as u32,
                        hash_bytes: view.hash_bytes,
                        checksum_algorithm: ChecksumAlgorithm::Xxh3.id().into(),
                    };
                    (Body::ViewOpened(opened), Vec::new())
                }
                Body::GetSegment(ask) => {
                    let fd = self.segment_file.as_fd().try_clone_to_owned().unwrap();
                    (Body::SegmentFd(SegmentFd { segment: ask.segment, bytes: SEGMENT_BYTES as u64 }), vec![fd])
                }
                Body::Goodbye(_) => {
                    self.shared.1.lock().unwrap().goodbyes += 1;
                    (Body::Goodbye(Goodbye {}), Vec::new())
                }
                other => (other, Vec::new()),
            };
            if !self.say(answer, &fds) {
                return false;
            }
        }
        true
    }

    fn say(&self, body: Body, fds: &[OwnedFd]) -> bool {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        send_with_fds(self.socket.as_fd(), &encode_frame(body).unwrap(), &fds).is_ok()
    }

    fn complete(&mut self, completion: Completion) {
        assert!(self.completions.push(&completion.encode()).unwrap());
        let _ = self.completions.wake(&self.bell);
    }

    fn answer(&mut self, request: &Request) {
        let epoch = Epoch::new(self.epoch.get() + self.shared.0.epoch_off.load(Ordering::SeqCst));
        let mut done = Completion {
            token: request.token,
            status: Status::Ok,
            reason: None,
            tier: None,
            count: 0,
            lease: 0,
            epoch,
            arg: 0,
        };
        let slab = self.slabs[usize::from(request.slab)].clone();
        let seen = self.shared.1.clone();
        match request.op {
            Op::Match => {
                seen.lock().unwrap().matched += 1;
                let hashes = hashes(&slab, 0, request.count);
                let found: Vec<_> = hashes.into_iter().take_while(|hash| self.blocks.contains_key(hash)).collect();
                done.count = found.len() as u32;
                done.reason = (done.count < request.count).then_some(MissReason::Cold);
                if done.count > 0 {
                    self.leases += 1;
                    (done.lease, done.tier) = (self.leases, Some(Tier::Dram));
                    self.matched.insert(self.leases, found);
                }
            }
            Op::Load => return self.load(request, &slab, done),
            Op::Offer => {
                self.leases += 1;
                done.lease = self.leases;
                let offered = hashes(&slab, 32, request.count);
                for (index, hash) in offered.into_iter().enumerate() {
                    let granted = self.grant(hash, index as u32);
                    done.count += u32::from(granted.status == GrantedStatus::Granted);
                    slab.write(index * GRANTED_BYTES, &granted.encode()).unwrap();
                }
            }
            Op::Commit => {
                let mut bytes = vec![0; SLAB_BYTES as usize];
                slab.read(0, &mut bytes).unwrap();
                for entry in CommitEntries::new(&bytes).take(request.count as usize) {
                    let Some((hash, slot)) = self.grants.remove(&(request.lease, entry.index)) else { continue };
                    let checksum = self.seal(slot, entry.checksum_bytes());
                    self.blocks.insert(hash, (slot, checksum));
                    done.count += 1;
                }
            }
            Op::Release => seen.lock().unwrap().released.push(request.lease),
            Op::Abandon => seen.lock().unwrap().abandoned.push(request.lease),
            Op::Corrupt => {
                seen.lock().unwrap().corrupt.push((request.lease, request.first));
                self.repair(request);
            }
            Op::Prefetch => {}
        }
        self.complete(done);
    }

    fn grant(&mut self, hash: [u8; 32], index: u32) -> Granted {
        if self.blocks.contains_key(&hash) {
            return Granted::without_slot(GrantedStatus::Present, None);
        }
        if (self.slots as usize + 1) * SLOT_BYTES > SEGMENT_BYTES {
            return Granted::without_slot(GrantedStatus::Refused, Some(MissReason::Quota));
        }
        let slot = self.slots;
        self.slots += 1;
        self.grants.insert((self.leases, index), (hash, slot));
        Granted {
            status: GrantedStatus::Granted,
            reason: None,
            segment: 7,
            offset: u64::from(slot) * SLOT_BYTES as u64,
            slot_bytes: SLOT_BYTES as u32,
            generation: slot + 1,
            seed: u64::from(slot) + 99,
            index,
        }
    }

    /// Writes the metadata of a slot, as far as a client reads it. Its checksum.
    fn seal(&self, slot: u32, checksums: &[u8]) -> u64 {
        let mut bytes = vec![0; meta_bytes(checksums.len() / 8, 0)];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(at::MAGIC, &MAGIC);
        put(at::PAYLOAD_BYTES, &(PAYLOAD_BYTES as u64).to_le_bytes());
        put(at::GENERATION, &(slot + 1).to_le_bytes());
        put(at::ALGORITHM, &[ChecksumAlgorithm::Xxh3.id()]);
        put(at::UNIT_BYTES, &(UNIT_BYTES as u32).to_le_bytes());
        put(at::UNIT_COUNT, &(checksums.len() as u32 / 8).to_le_bytes());
        put(HEADER_BYTES, checksums);
        let crc = ChecksumAlgorithm::Crc64Nvme;
        let checksum = crc.checksum(crc.checksum(SEED, &bytes[..16]), &bytes[24..]);
        bytes[at::META_CHECKSUM..24].copy_from_slice(&checksum.to_le_bytes());
        let start = slot as usize * SLOT_BYTES;
        self.segment.write(start, &bytes).unwrap();
        let damage = &self.shared.0.damage;
        if damage.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            self.flip(slot);
        }
        checksum
    }

    fn flip(&self, slot: u32) {
        let at = slot as usize * SLOT_BYTES + 4096 + 9000;
        let mut byte = [0];
        self.segment.read(at, &mut byte).unwrap();
        self.segment.write(at, &[byte[0] ^ 4]).unwrap();
    }

    /// The good copy from below.
    fn repair(&self, request: &Request) {
        let hash = self.matched[&request.lease][request.first as usize];
        self.flip(self.blocks[&hash].0);
    }

    fn load(&mut self, request: &Request, slab: &MemoryExtent, done: Completion) {
        let held = &self.matched[&request.lease][request.first as usize..][..request.count as usize];
        for (index, hash) in held.iter().enumerate() {
            let (slot, meta_checksum) = self.blocks[hash];
            let landed = Landed {
                status: LandedStatus::Landed,
                reason: None,
                tier: Some(if slot % 2 == 0 { Tier::Dram } else { Tier::Nvme }),
                segment: 7,
                offset: u64::from(slot) * SLOT_BYTES as u64,
                slot_bytes: SLOT_BYTES as u32,
                generation: slot + 1,
                meta_checksum,
                seed: u64::from(slot) + 99,
            };
            slab.write(index * LANDED_BYTES, &landed.encode()).unwrap();
        }
        let step = self.shared.0.landed_per_completion.load(Ordering::SeqCst);
        let mut count = step;
        while step > 0 && count < request.count {
            self.complete(Completion { status: Status::Partial, count, ..done });
            std::thread::sleep(Duration::from_micros(200));
            count += step;
        }
        self.complete(Completion { count: request.count, ..done });
    }
}

fn hashes(slab: &MemoryExtent, from: usize, count: u32) -> Vec<[u8; 32]> {
    (0..count as usize)
        .map(|index| {
            let mut hash = [0; 32];
            slab.read(from + index * 32, &mut hash).unwrap();
            hash
        })
        .collect()
}
