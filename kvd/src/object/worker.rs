//! The thread that speaks to the store: takes the ladder's moves, keeps packs and requests going, and ends in order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvd_nixl::sys::MemoryExtent;
use kvd_tiers::ladder::{DeviceFault, Outcome};
use kvd_tiers::object::PackName;
use kvd_tiers::record::{Expect, Scratch, slot_bytes, verify_metadata};
use kvd_tiers::{MoveId, SlotEntry};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::packing::{Closed, Incoming, Packed, Packing};
use super::purging::{self, Scope};
use super::reading;
use super::spending::Spent;
use super::store::{Fault, Op};
use super::tier::{Event, ORDERS_WAITING_MAX, Order, RUN_BYTES_MAX, Shared};
use super::{collecting, learning, scrubbing, uploading};

/// Packs being uploaded at a time, at most.
const UPLOADS_MAX: usize = 8;
/// Packs that are filled, or wait, while as many as may be are uploaded.
const FILLED_PACKS: usize = 2;
/// How often a pack is tried before it is given up.
const UPLOAD_FAILURES_MAX: u32 = 5;
/// How often it is looked whether the store answers.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a record may wait for room in a pack before it is given up, so that its slot is free again; twice as long as the
/// last upload took, where that is longer.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// See `ROOM_PATIENCE`: what a slow store may ask for.
const ROOM_PATIENCE_MAX: Duration = Duration::from_secs(60);
/// Threads for the catalog's writes and a folder's files.
const BLOCKING_THREADS: usize = 8;
/// Threads for requests at most: one moves, decrypts and verifies a gigabyte or two a second.
const REQUEST_THREADS_MAX: usize = 8;

/// What came of an upload.
struct Uploaded {
    closed: Closed,
    /// Whether anything of it had to be uploaded.
    result: Result<bool, Fault>,
    took: Duration,
}

/// Packs being uploaded at a time: a store gives one request a part of what it can take, and machines with more cores store
/// more. A quarter of the share at most: room is made for all of it before.
pub(crate) fn uploads_at_once(share_bytes: u64, pack_bytes: u64) -> usize {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let of_share = usize::try_from(share_bytes / pack_bytes.saturating_mul(4).max(1)).unwrap_or(usize::MAX);
    (cores / 2).clamp(2, UPLOADS_MAX).min(of_share).max(1)
}

/// Packs that are in memory at most, where so many are uploaded at a time.
pub(crate) fn packs_in_memory(uploads: usize) -> u64 {
    (uploads + FILLED_PACKS) as u64
}

/// Requests have threads of their own beside the one that packs; a quarter of the machine is enough for them.
pub(crate) fn request_threads() -> usize {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / 4).clamp(1, REQUEST_THREADS_MAX)
}

/// Starts the thread. It ends when the channel of its orders closes and what it took is uploaded, or `patience` is over.
pub(super) fn spawn(
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    patience: Duration,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(request_threads())
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("kvd-object-io")
        .build()?;
    thread::Builder::new().name("kvd-object".into()).spawn(move || {
        runtime.block_on(Worker::new(shared).run(orders, patience));
        // A folder's writes may still be under way in their threads: nobody waits for them.
        runtime.shutdown_background();
    })
}

/// The end of a task; never, where there is none.
async fn ended(task: &mut Option<tokio::task::JoinHandle<()>>) -> Result<(), tokio::task::JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

/// A record that is to be packed.
struct Waiting {
    since: Instant,
    id: MoveId,
    entry: SlotEntry,
    memory: MemoryExtent,
}

struct Worker {
    shared: Arc<Shared>,
    packing: Packing,
    uploads_max: usize,
    /// Fewer of them while a line is too thin for all: each has a time to end in.
    uploads_now: usize,
    uploads: JoinSet<Uploaded>,
    /// Records that found no room, the oldest first.
    waiting: VecDeque<Waiting>,
    /// Purges of the store, one at a time, while nothing is uploaded.
    purges: VecDeque<Scope>,
    purging: JoinSet<Result<u64, Fault>>,
    /// One at a time.
    scrubbing: JoinSet<Result<(), Fault>>,
    scratch: Scratch,
    random: SmallRng,
    /// Whether reads, and writes, are worth asking for.
    up: (bool, bool),
    /// See `ROOM_PATIENCE`.
    room_patience: Duration,
    /// No upload begins before: one was refused without being asked for.
    rests_until: Option<Instant>,
}

/// Milliseconds since 1970, by this node's clock.
#[expect(clippy::disallowed_methods, reason = "other nodes read it: a time that they share")]
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        let options = &shared.options;
        let uploads_max = uploads_at_once(options.share_bytes, options.pack_bytes);
        let bytes_max = options.pack_bytes.saturating_mul(packs_in_memory(uploads_max));
        let packing = Packing::new(shared.node, options.pack_bytes, options.pack_age, bytes_max);
        Self {
            packing,
            uploads_max,
            uploads_now: uploads_max,
            uploads: JoinSet::new(),
            waiting: VecDeque::new(),
            purges: VecDeque::new(),
            purging: JoinSet::new(),
            scrubbing: JoinSet::new(),
            scratch: Scratch::default(),
            random: SmallRng::from_os_rng(),
            up: (true, true),
            room_patience: ROOM_PATIENCE,
            rests_until: None,
            shared,
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>, patience: Duration) {
        let mut learner = tokio::spawn(learning::run(self.shared.clone()));
        let mut collector = self.shared.options.writable.then(|| tokio::spawn(collecting::run(self.shared.clone())));
        let mut batch = Vec::with_capacity(ORDERS_WAITING_MAX);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let due = self.packing.due();
            let closing = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = orders.recv_many(&mut batch, ORDERS_WAITING_MAX) => {
                    if count == 0 {
                        break;
                    }
                    self.take(&mut batch);
                }
                Some(ended) = self.uploads.join_next() => match ended {
                    Ok(ended) => self.uploaded(ended),
                    // What became of its records cannot be known: the daemon is not whole any more, and its supervisor sees it.
                    Err(error) => return tracing::error!(%error, "an upload broke off"),
                },
                Some(ended) = self.purging.join_next() => match ended {
                    Ok(ended) => self.purged(ended),
                    Err(error) => return tracing::error!(%error, "a purge of the store broke off"),
                },
                Some(ended) = self.scrubbing.join_next() => match ended {
                    Ok(ended) => scrubbing::ended(self.shared.counters(), ended),
                    Err(error) => return tracing::error!(%error, "a scrub of the store broke off"),
                },
                ended = &mut learner => {
                    return tracing::error!(?ended, "packs are learned of no more");
                }
                ended = ended(&mut collector) => {
                    return tracing::error!(?ended, "nobody collects any more");
                }
                () = closing => {}
                _ = looks.tick() => self.look(),
            }
            self.go_on(false);
        }
        learner.abort();
        collector.inspect(|collector| collector.abort());
        self.end(patience).await;
    }

    /// The daemon stops: purges come to their end and what was taken is uploaded, as far as the time reaches.
    async fn end(mut self, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        self.refuse_waiting(Duration::ZERO);
        loop {
            if let Some(Ok(ended)) = self.purging.try_join_next() {
                self.purged(ended);
            }
            self.look();
            self.go_on(true);
            let left = !self.uploads.is_empty() || !self.packing.is_empty() || !self.purges.is_empty();
            let now = tokio::time::Instant::now();
            if !left || now >= until {
                break;
            }
            let tick = until.min(now + LOOK_EVERY);
            if let Ok(Some(Ok(ended))) = tokio::time::timeout_at(tick, self.next_upload()).await {
                self.uploaded(ended);
            }
        }
        if !self.purges.is_empty() {
            tracing::error!("the daemon ends before a purge has reached the store: purge it again");
        }
        if !self.uploads.is_empty() || !self.packing.is_empty() {
            let bytes = self.packing.bytes();
            tracing::warn!(
                bytes,
                "packs were not uploaded before the daemon ended: their records are on this node only"
            );
        }
    }

    /// The next upload that ends; never, while there is none.
    async fn next_upload(&mut self) -> Option<Result<Uploaded, tokio::task::JoinError>> {
        if self.uploads.is_empty() { std::future::pending().await } else { self.uploads.join_next().await }
    }

    fn take(&mut self, batch: &mut Vec<Order>) {
        // Engines wait for those; the others keep their order.
        let mut wanted = Vec::new();
        for order in &mut *batch {
            if let Order::Get(records) = order {
                wanted.append(records);
            }
        }
        for run in reading::runs(wanted, RUN_BYTES_MAX) {
            tokio::spawn(reading::read(self.shared.clone(), run));
        }
        for order in batch.drain(..) {
            match order {
                Order::Get(_) => {}
                Order::Purge(scope) => {
                    self.refuse_waiting(Duration::ZERO);
                    for closed in self.packing.purge(scope, unix_ms()) {
                        self.abandon(&closed);
                    }
                    self.purges.push_back(scope);
                }
                Order::Scrub(wanted) => {
                    self.scrubbing.spawn(scrubbing::run(self.shared.clone(), wanted));
                }
                Order::Put { id, entry, memory } => {
                    let waiting = self.put(Waiting { since: Instant::now(), id, entry, memory });
                    self.waiting.extend(waiting);
                }
            }
        }
    }

    /// Puts a record into a pack and answers; one that finds no room comes back.
    fn put(&mut self, record: Waiting) -> Option<Waiting> {
        let started = Instant::now();
        let Waiting { id, entry, memory, .. } = &record;
        let packed = match self.packing.has(entry) {
            true => Packed::Known,
            // A catalog that cannot be asked costs a duplicate, no more.
            false => match self.shared.catalog.lookup(&entry.key, &entry.shard) {
                Ok(Some(_)) => Packed::Known,
                Ok(None) | Err(_) => self.pack(entry, memory),
            },
        };
        let outcome = match packed {
            Packed::Taken => Outcome::Done { bytes: memory.len() as u64, took: started.elapsed() },
            Packed::Known => {
                self.shared.counters().records_known.add(1);
                Outcome::Done { bytes: 0, took: started.elapsed() }
            }
            Packed::Corrupt(mismatch) => {
                tracing::warn!(key = %entry.key, mismatch, "a record in DRAM is corrupt");
                Outcome::Corrupt
            }
            Packed::NoRoom => {
                self.packing.close_for_room(unix_ms());
                return Some(record);
            }
        };
        self.shared.answer(*id, outcome);
        None
    }

    fn pack(&mut self, entry: &SlotEntry, memory: &MemoryExtent) -> Packed {
        let metadata = match verify_metadata(memory, &Expect::from(entry), &mut self.scratch) {
            Ok(sealed) => sealed.metadata,
            Err(mismatch) => return Packed::Corrupt(mismatch.to_string()),
        };
        let bytes = slot_bytes(metadata.meta_bytes(), metadata.payload_bytes);
        let realm = self.shared.realm(&metadata.namespace);
        let Some(record_bytes) = u32::try_from(bytes).ok().filter(|bytes| *bytes as usize <= memory.len()) else {
            return Packed::Corrupt("it does not fit in its slot".into());
        };
        let random = &mut self.random;
        let record = Incoming { entry, memory, realm, record_bytes };
        self.packing.take(&record, || PackName::new(random.random()), Instant::now(), unix_ms())
    }

    /// Closes packs, starts uploads, and lets records go on that waited for room.
    fn go_on(&mut self, all: bool) {
        self.packing.close_due(Instant::now(), unix_ms(), all);
        if let Some(scope) = self.purges.front().filter(|_| self.uploads.is_empty() && self.purging.is_empty()) {
            self.purging.spawn(purging::purge(self.shared.clone(), *scope));
        }
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        let uploads = self.up.1 && self.shared.sharing.is_ready() && self.purges.is_empty() && !rests;
        while uploads && self.uploads.len() < self.uploads_now {
            let Some(closed) = self.packing.next_closed() else { break };
            let (shared, mut closed) = (self.shared.clone(), closed);
            self.uploads.spawn(async move {
                let begun = Instant::now();
                let result = uploading::upload(&shared, &mut closed).await;
                Uploaded { closed, result, took: begun.elapsed() }
            });
        }
        while let Some(record) = self.waiting.pop_front() {
            if let Some(record) = self.put(record) {
                self.waiting.push_front(record);
                break;
            }
        }
        self.shared.counters().buffered_bytes.set(self.packing.bytes());
    }

    fn purged(&mut self, result: Result<u64, Fault>) {
        self.purges.pop_front();
        let counters = self.shared.counters();
        match result {
            Ok(packs) => tracing::info!(packs, "a purge of the store is over"),
            Err(fault) => {
                tracing::error!(%fault, "a purge could not reach the store: what it holds of the purged is still there");
                counters.purges_failed.add(1);
            }
        }
        counters.purges_done.add(1);
    }

    fn uploaded(&mut self, Uploaded { mut closed, result, took }: Uploaded) {
        let counters = self.shared.counters();
        let fault = match result {
            Ok(anything) => {
                counters.packs_put.add(u64::from(anything));
                self.uploads_now = (self.uploads_now + 1).min(self.uploads_max);
                self.room_patience = (2 * took).clamp(ROOM_PATIENCE, ROOM_PATIENCE_MAX);
                return self.packing.gone(&closed);
            }
            Err(fault) => fault,
        };
        // One that was not even asked for says nothing about the pack.
        closed.failures += u32::from(fault != Fault::Open);
        if matches!(fault, Fault::Stalled(_) | Fault::Timeout) {
            self.uploads_now = (self.uploads_now / 2).max(1);
        }
        if fault == Fault::Open {
            self.rests_until = Some(Instant::now() + LOOK_EVERY);
        }
        // Credentials are renewed, and buckets made again.
        let passing = matches!(fault, Fault::Open | Fault::Denied(_) | Fault::NoBucket(_));
        let hopeless = !fault.is_transient() && !passing;
        if self.purges.iter().any(|scope| scope.takes(closed.realm())) {
            // Purged while it was on its way: it must not come after the purge.
            self.abandon(&closed);
            self.packing.gone(&closed);
        } else if hopeless || closed.failures >= UPLOAD_FAILURES_MAX {
            let records = closed.records();
            tracing::warn!(%fault, records, "a pack cannot be uploaded and is given up");
            counters.packs_dropped.add(1);
            counters.records_dropped.add(records);
            self.abandon(&closed);
            self.packing.gone(&closed);
        } else {
            self.packing.again(closed);
        }
        // Nothing more is sent to a store that was found down just now.
        self.look();
    }

    /// What a given up pack may have left in the store goes.
    fn abandon(&self, closed: &Closed) {
        if let Some((name, index)) = closed.left() {
            self.shared.sharing.abandoned(&self.shared, name, index);
        }
    }

    /// Whether the store answers, and whether anybody has waited for room too long.
    fn look(&mut self) {
        let store = &self.shared.store;
        let reads = store.admits(Op::Get) && store.admits(Op::List);
        let answers = reads && store.admits(Op::Put);
        // At first it is not known what is there.
        let writes = answers && self.shared.sharing.is_ready();
        let told = &self.shared.counters().up;
        if told.get() != 0 && !answers {
            let state = store.state();
            tracing::warn!(?state, reads, "the object tier's store fails: it is left alone for a while");
        }
        // Not only when the core must know: before the share is known, nothing is written whether the store answers or not.
        told.set(u64::from(answers));
        if (reads, writes) != self.up {
            self.up = (reads, writes);
            self.shared.tell(Event::Up { reads, writes });
        }
        let stopping = self.shared.stop.load(Ordering::Relaxed);
        let late = self.refuse_waiting(if stopping { Duration::ZERO } else { self.room_patience });
        if late && !stopping {
            self.make_room();
        }
        let now = Instant::now();
        self.packing.rest(now);
        self.shared.spending.note(now, Spent::of(self.shared.store.counters()));
    }

    /// Records that have waited for room for `patience` are given up, so that their slots are free; whether there was one.
    fn refuse_waiting(&mut self, patience: Duration) -> bool {
        let mut any = false;
        while self.waiting.front().is_some_and(|record| record.since.elapsed() >= patience) {
            let Some(record) = self.waiting.pop_front() else { break };
            self.shared.answer(record.id, Outcome::Failed(DeviceFault::NoSpace));
            any = true;
        }
        any
    }

    /// The oldest pack is given up, so that younger ones find room when the store comes back.
    fn make_room(&mut self) {
        if let Some(closed) = self.packing.drop_oldest() {
            let records = closed.records();
            self.abandon(&closed);
            tracing::warn!(records, "a pack is given up: the store takes less than is stored");
            self.shared.counters().packs_dropped.add(1);
            self.shared.counters().records_dropped.add(records);
        }
    }
}
