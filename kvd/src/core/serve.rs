//! Start and stop of the daemon: locks, arena, devices, ladder, listener, in this order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use kvd_nixl::sys::{EventFd, Signal, sigbus};
use kvd_proto::{Epoch, InstanceId, Time};
use kvd_tiers::dram::{Arena, ArenaError, ArenaOptions, Opened as OpenedArena};
use kvd_tiers::ladder::{DeviceConfig, Ladder, LadderConfig, ObjectConfig, Outcome};
use kvd_tiers::nvme::{Restored, Uuid};
use kvd_tiers::policy::{Adaptive, Lru};
use kvd_tiers::{ClientSlot, DeviceId, MoveId};
use thiserror::Error;

use crate::core::client::{Client, Identity};
use crate::core::device::{self, DeviceEnds, DeviceError, DeviceHealth, DeviceSetup, Opening, Order};
use crate::core::epoch::{DataDir, DataDirError};
use crate::core::handle::CoreHandle;
use crate::core::namespaces::Namespaces;
use crate::core::options::{NvmeOptions, PolicyChoice, ServeOptions};
use crate::core::predecessor::patiently;
use crate::core::preparer::{self, Preparing};
use crate::core::sleeper::Sleeper;
use crate::core::state::{AnyPolicy, ArenaTable, Core, DeviceLink, Scratchpad, Settings, StartReport};
use crate::core::{clock, verify};
use crate::metrics::counters::{Counters, DEVICES_MAX};
use crate::object::tier::{self, RUN_BYTES_MAX, TierEnds, TierError};
use crate::session::{
    CALLS_WAITING_MAX, Control, CoreLink, ListenError, Listener, Orphan, Reactor, SessionId, SessionOptions,
};

/// Outcomes that may wait for the core: those of all devices at once, and of the object tier.
const OUTCOMES_WAITING_MAX: usize = device::ORDERS_WAITING_MAX * DEVICES_MAX + (PUTS_MAX + GETS_MAX) as usize;
/// Records that the object tier takes and brings at a time; of those that it brings the bytes are bounded too. Each of the
/// former is an order of its own, all of the latter that start together are one.
const PUTS_MAX: u32 = 32;
const GETS_MAX: u32 = 1024;
const _: () = assert!(2 * PUTS_MAX as usize <= tier::ORDERS_WAITING_MAX, "and room for lists of fetches");
/// Records in DRAM that may wait for verification.
const VERIFIES_WAITING_MAX: usize = 64;
/// Words to the sessions thread that may wait: two per client slot and the last one.
const CONTROLS_WAITING_MAX: usize = 2 * ClientSlot::COUNT + 1;

/// Record size from which the policy's grain is guessed before any engine has come: the smallest that is usual.
const BLOCK_BYTES_GUESS: u64 = 64 * 1024;

/// Why the daemon does not start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The data folder.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The arena.
    #[error("the arena cannot be used: {0}")]
    Arena(#[from] ArenaError),
    /// A device.
    #[error("an NVMe device cannot be used: {0}")]
    Device(#[from] DeviceError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The object tier.
    #[error("the object tier cannot be used: {0}")]
    Object(#[from] TierError),
    /// An option out of its bounds.
    #[error("{0}")]
    Options(&'static str),
    /// No threads, descriptors or memory.
    #[error("{doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { doing, source }
}

/// A daemon that serves. Dropping it stops it as [`Running::stop`] does.
pub struct Running {
    handle: CoreHandle,
    socket: PathBuf,
    stopper: Stopper,
    threads: Vec<JoinHandle<()>>,
    _data: DataDir,
}

/// Ends a daemon from anywhere, such as a signal handler's task.
#[derive(Clone)]
pub struct Stopper {
    stop: Arc<AtomicBool>,
    doorbell: Arc<EventFd>,
    /// The core tells the sessions thread to end; where there is no core any more, it must see so by itself.
    sessions_bell: Arc<EventFd>,
    preparer: Thread,
}

impl Stopper {
    /// Asks the daemon to stop; returns at once.
    pub fn stop(&self) {
        // Release pairs with the core's Acquire; the bell makes it look.
        self.stop.store(true, Ordering::Release);
        let _ = self.doorbell.signal();
        let _ = self.sessions_bell.signal();
        self.preparer.unpark();
    }
}

impl Running {
    /// Speaks to the core.
    pub const fn handle(&self) -> &CoreHandle {
        &self.handle
    }

    /// Where engines connect.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Can end the daemon from another thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Whether any of its threads has ended by itself: then nothing is served rightly any more.
    pub fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops and waits for the end: moves under way may land until the stop deadline, then devices are flushed. The arena
    /// stays as it is, for the successor.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopper.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the daemon panicked");
            }
            // The sessions thread may have looked before the core was gone.
            let _ = self.stopper.sessions_bell.signal();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A device thread that was started.
struct StartedDevice {
    opening: Receiver<Opening>,
    orders: Sender<Order>,
    health: Arc<DeviceHealth>,
    thread: JoinHandle<()>,
    path: PathBuf,
}

/// What device threads share.
struct DeviceCommons {
    outcomes: Sender<(MoveId, Outcome)>,
    doorbell: Arc<EventFd>,
    counters: Arc<Counters>,
}

/// Starts the daemon and returns once engines can connect.
pub fn serve(options: &ServeOptions) -> Result<Running, ServeError> {
    let started = clock::now();
    check(options)?;
    sigbus::install().map_err(system("installing the SIGBUS guard"))?;
    let data = DataDir::open(&options.data_dir)?;
    let arena = open_arena(options, data.next_epoch()?)?;
    let doorbell = Arc::new(EventFd::new().map_err(system("making the core's doorbell"))?);
    let counters = Arc::new(Counters::default());
    let (outcome_sender, outcomes) = bounded(OUTCOMES_WAITING_MAX);
    let commons = DeviceCommons { outcomes: outcome_sender, doorbell: doorbell.clone(), counters: counters.clone() };
    let stop = Arc::new(AtomicBool::new(false));
    let preparing = Preparing {
        files: arena.arena.files().clone(),
        assigned: Arc::new(AtomicU32::new(arena.segments.iter().map(|one| one.segment.0 + 1).max().unwrap_or(0))),
        stop: stop.clone(),
        all: options.dram.prefault,
    };
    let preparer = preparer::spawn(preparing.clone()).map_err(system("starting a thread"))?;
    let stopper = Stopper {
        stop: stop.clone(),
        doorbell: doorbell.clone(),
        sessions_bell: Arc::new(EventFd::new().map_err(system("making the sessions' doorbell"))?),
        preparer: preparer.thread().clone(),
    };
    let mut threads = vec![preparer];
    let begun = Begun { options, started, doorbell, counters, commons, stop, preparing };
    match begun.finish(arena, outcomes, &data, &stopper, &mut threads) {
        Ok(handle) => Ok(Running { handle, socket: options.socket.clone(), stopper, threads, _data: data }),
        Err(error) => {
            stopper.stop();
            threads.into_iter().for_each(|thread| drop(thread.join()));
            Err(error)
        }
    }
}

fn check(options: &ServeOptions) -> Result<(), ServeError> {
    let nvme_paths = options.nvme.as_ref().map_or(1, |nvme| nvme.paths.len());
    if !(1..=DEVICES_MAX).contains(&nvme_paths) {
        return Err(ServeError::Options("tiers.nvme.paths names 1 to 16 paths"));
    }
    if !(1..=ClientSlot::COUNT).contains(&options.sessions_max) {
        return Err(ServeError::Options("session.max lies between 1 and 64"));
    }
    Ok(())
}

/// 16 random bytes, for the names of new arenas and devices.
fn random_name() -> Result<[u8; 16], ServeError> {
    let mut name = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut name));
    read.map(|()| name).map_err(system("reading /dev/urandom"))
}

/// How long to wait for the lock of the arena: some ten milliseconds after a kill in the middle of a device's copies. Whoever has it
/// longer lives.
const ARENA_PATIENCE: Duration = Duration::from_millis(500);

fn open_arena(options: &ServeOptions, epoch_min: Epoch) -> Result<OpenedArena, ServeError> {
    let arena = ArenaOptions {
        folder: options.dram.path.clone(),
        capacity_bytes: options.dram.capacity_bytes,
        epoch_min,
        uuid: random_name()?,
    };
    let locked = |error: &ArenaError| matches!(error, ArenaError::Locked { .. });
    let opened = patiently(ARENA_PATIENCE, locked, || Arena::open(&arena))?;
    let found = &opened.adoption;
    tracing::info!(
        adopted = found.adopted,
        torn = found.torn,
        unfinished = found.unfinished,
        segments_lost = found.segments_lost,
        survivors = opened.survivors.len(),
        "the arena is open"
    );
    Ok(opened)
}

/// A start half done.
struct Begun<'a> {
    options: &'a ServeOptions,
    started: Time,
    doorbell: Arc<EventFd>,
    counters: Arc<Counters>,
    commons: DeviceCommons,
    stop: Arc<AtomicBool>,
    preparing: Preparing,
}

impl Begun<'_> {
    fn finish(
        self,
        arena: OpenedArena,
        outcomes: Receiver<(MoveId, Outcome)>,
        data: &DataDir,
        stopper: &Stopper,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> Result<CoreHandle, ServeError> {
        let OpenedArena { arena, segments, records, fenced, survivors, .. } = arena;
        let arena_epoch = arena.epoch();
        let started = self.start_devices(arena_epoch)?;
        let zones = started.iter().map(prepared_zones).collect::<Result<Vec<_>, _>>()?;
        let assigned = self.preparing.assigned.clone();
        let table = ArenaTable { arena, assigned, preparer: stopper.preparer.clone() };
        let mut ladder = Ladder::new(self.ladder_config(table.arena.segments(), &zones), table, self.policy());
        let now = clock::now();
        let mut clients: Vec<Option<Client>> = std::iter::repeat_with(|| None).take(ClientSlot::COUNT).collect();
        let mut orphans = Vec::new();
        for survivor in survivors {
            let at = usize::from(survivor.client.get());
            let session = SessionId::survivor(survivor.client);
            let identity = stranger(survivor.instance, survivor.epoch);
            clients[at] = Some(Client::new(session, survivor.client, identity, None, now));
            orphans.extend(survivor.process.map(|pidfd| Orphan { session, pidfd }));
        }
        for segment in segments {
            ladder.restore_segment(segment);
        }
        for slot in fenced {
            ladder.fence(slot);
        }
        let mut report = StartReport { started: self.started, ..StartReport::default() };
        for record in records {
            report.restored_dram += 1;
            ladder.restore(&record);
        }
        let mut devices = Vec::new();
        let mut epoch = arena_epoch;
        for one in started {
            let opened = recover(&one, &mut ladder)?;
            epoch = epoch.max(opened.epoch);
            report.restored_nvme += opened.records;
            if let Some(why) = opened.reformatted {
                tracing::warn!(device = %one.path.display(), why, "a device was formatted anew");
            }
            devices.push(DeviceLink {
                path: one.path.display().to_string(),
                io: opened.io,
                capacity_bytes: u64::from(opened.zones) * u64::from(kvd_tiers::SEGMENT_BYTES),
                orders: Some(one.orders),
                waker: opened.waker,
                health: one.health,
                dirty: false,
            });
            threads.push(one.thread);
        }
        ladder.restored(clock::now());
        forget_idle(&mut ladder, &mut clients, &mut orphans);
        data.write_epoch(epoch)?;
        let control_event = stopper.sessions_bell.clone();
        self.open_doors(Parts { ladder, epoch, clients, devices, report, outcomes, orphans, control_event }, threads)
    }
}

/// Clients of an earlier epoch that hold nothing are over, as those whose socket ends while the daemon lives: processes that
/// cannot be seen from here, or live long, would take up all slots in the end. One that rejoins is given another slot.
fn forget_idle(ladder: &mut Ladder<ArenaTable, AnyPolicy>, clients: &mut [Option<Client>], orphans: &mut Vec<Orphan>) {
    for place in clients {
        let Some(client) = place.take_if(|client| !ladder.holds(client.slot)) else { continue };
        ladder.table_mut().arena.leave(client.slot);
        orphans.retain(|orphan| orphan.session != client.session);
    }
}

/// What is known of a client of the last epoch.
fn stranger(instance: InstanceId, epoch: Epoch) -> Identity {
    let name = String::new();
    Identity { instance, role: "engine", name, version: 0, uid: u32::MAX, pid: 0, start_time: 0, epoch }
}

/// Waits until the device's file is ours; how many zones it has.
fn prepared_zones(device: &StartedDevice) -> Result<u32, ServeError> {
    match device.opening.recv() {
        Ok(Opening::Prepared { zones }) => Ok(zones),
        Ok(Opening::Failed(error)) => Err(error.into()),
        Ok(Opening::Found(_) | Opening::Ready(_)) | Err(_) => Err(ended()),
    }
}

/// Takes over what a device holds.
fn recover(device: &StartedDevice, ladder: &mut Ladder<ArenaTable, AnyPolicy>) -> Result<device::Opened, ServeError> {
    loop {
        match device.opening.recv() {
            Ok(Opening::Found(found)) => found.into_iter().for_each(|one| match one {
                Restored::Zone(zone) => ladder.restore_zone(zone),
                Restored::Record(record) => ladder.restore(&record),
            }),
            Ok(Opening::Ready(opened)) => return Ok(opened),
            Ok(Opening::Failed(error)) => return Err(error.into()),
            Ok(Opening::Prepared { .. }) | Err(_) => return Err(ended()),
        }
    }
}

fn ended() -> ServeError {
    ServeError::System { doing: "opening an NVMe device", source: io::Error::other("its thread ended") }
}

/// Everything the core and the sessions thread are made of.
struct Parts {
    ladder: Ladder<ArenaTable, AnyPolicy>,
    epoch: Epoch,
    clients: Vec<Option<Client>>,
    devices: Vec<DeviceLink>,
    report: StartReport,
    outcomes: Receiver<(MoveId, Outcome)>,
    orphans: Vec<Orphan>,
    control_event: Arc<EventFd>,
}

impl Begun<'_> {
    fn tenant(&self) -> kvd_tiers::TenantId {
        kvd_tiers::TenantId(self.options.tenant.key.tag())
    }

    fn policy(&self) -> AnyPolicy {
        match self.options.policy {
            PolicyChoice::Lru => Box::new(Lru::default()),
            PolicyChoice::Adaptive => {
                let nvme = self.options.nvme.as_ref().map_or(0, |nvme| nvme.capacity_bytes);
                Box::new(Adaptive::new((self.options.dram.capacity_bytes + nvme) / BLOCK_BYTES_GUESS))
            }
        }
    }

    fn ladder_config(&self, segments: u32, zones: &[u32]) -> LadderConfig {
        LadderConfig {
            lease_bytes_max: self.options.lease_bytes_max,
            lease_idle: self.options.lease_idle,
            floor_bytes: self.options.dram.floor_bytes,
            gate: self.options.gate_enabled,
            object: self.options.object.as_ref().map(|object| ObjectConfig {
                writes: object.writable,
                puts_max: PUTS_MAX,
                gets_max: GETS_MAX,
                run_bytes_max: RUN_BYTES_MAX,
                ..ObjectConfig::default()
            }),
            ..LadderConfig::new(segments, zones.iter().map(|&zones| DeviceConfig { zones }).collect())
        }
    }

    /// Opens all devices at once: they recover in parallel.
    fn start_devices(&self, epoch: Epoch) -> Result<Vec<StartedDevice>, ServeError> {
        let Some(nvme) = &self.options.nvme else { return Ok(Vec::new()) };
        let start = |(n, path): (usize, &PathBuf)| self.start_device(nvme, n as u8, path.clone(), epoch);
        nvme.paths.iter().enumerate().map(start).collect()
    }

    fn start_device(
        &self,
        nvme: &NvmeOptions,
        number: u8,
        path: PathBuf,
        epoch: Epoch,
    ) -> Result<StartedDevice, ServeError> {
        let count = nvme.paths.len() as u64;
        let setup = DeviceSetup {
            id: DeviceId(number),
            path: path.clone(),
            capacity_bytes: nvme.capacity_bytes / count,
            io: nvme.io,
            read_bytes_per_second_max: nvme.read_bytes_per_second_max.map(|rate| (rate / count).max(1)),
            write_bytes_per_second_max: nvme.write_bytes_per_second_max.map(|rate| (rate / count).max(1)),
            epoch,
            uuid: Uuid::new(random_name()?),
        };
        let (opening_sender, opening) = bounded(device::FOUND_WAITING_MAX);
        let (orders, order_receiver) = bounded(device::ORDERS_WAITING_MAX);
        let health = Arc::new(DeviceHealth::default());
        let ends = DeviceEnds {
            opening: opening_sender,
            orders: order_receiver,
            outcomes: self.commons.outcomes.clone(),
            doorbell: self.commons.doorbell.clone(),
            counters: self.commons.counters.clone(),
            health: health.clone(),
        };
        let thread = device::spawn(setup, ends).map_err(system("starting a device thread"))?;
        Ok(StartedDevice { opening, orders, health, thread, path })
    }

    /// The last steps: everything is known, engines may come.
    fn open_doors(self, parts: Parts, threads: &mut Vec<JoinHandle<()>>) -> Result<CoreHandle, ServeError> {
        let Parts { ladder, epoch, clients, devices, report, outcomes, orphans, control_event } = parts;
        let mode = if self.options.allowed_uids.is_empty() { 0o600 } else { 0o666 };
        let listener = Listener::bind(&self.options.socket, mode)?;
        let (verifier, verify_orders) = bounded(VERIFIES_WAITING_MAX);
        let verify_thread = verify::spawn(verify_orders, self.commons.outcomes.clone(), self.doorbell.clone());
        threads.push(verify_thread.map_err(system("starting a thread"))?);
        let (calls_sender, calls) = bounded(CALLS_WAITING_MAX);
        let (control, control_receiver) = bounded::<Control>(CONTROLS_WAITING_MAX);
        let (handle, commands) = CoreHandle::new(self.doorbell.clone(), self.counters.clone(), epoch);
        let reactor = Reactor::new(
            listener,
            CoreLink { calls: calls_sender, doorbell: self.doorbell.clone() },
            (control_receiver, control_event.clone()),
            SessionOptions { sessions_max: self.options.sessions_max, allowed_uids: self.options.allowed_uids.clone() },
            self.counters.clone(),
            orphans,
        );
        let reactor = reactor.map_err(system("preparing the sessions thread"))?;
        let object = match &self.options.object {
            Some(object) => {
                let ends = TierEnds {
                    outcomes: self.commons.outcomes.clone(),
                    doorbell: self.doorbell.clone(),
                    counters: self.counters.clone(),
                    stop: self.stop.clone(),
                };
                let (data_dir, key) = (&self.options.data_dir, self.options.tenant.key);
                let (link, started) = tier::start(object, data_dir, key, ends, self.options.stop_deadline / 2)?;
                threads.extend(started);
                Some(link)
            }
            None => None,
        };
        let mut core = Core {
            ladder,
            epoch,
            settings: Settings {
                tenant: self.tenant(),
                tenant_key: self.options.tenant.key,
                match_deadline: self.options.match_deadline,
                load_deadline: self.options.load_deadline,
                stop_deadline: self.options.stop_deadline,
            },
            report: StartReport { ready: clock::now(), ..report },
            sleeper: Sleeper::new(self.doorbell.clone(), clients.len()).map_err(system("preparing the core thread"))?,
            clients,
            first_client: 0,
            gauges_due: Time::ZERO,
            next_request: 0,
            drains: 0,
            drain_left: 0,
            namespaces: Namespaces::load(&self.options.data_dir),
            devices,
            object_up: object.is_some(),
            wanted: Vec::new(),
            store_purges: Vec::new(),
            object,
            questions_due: BTreeSet::new(),
            verifier: Some(verifier),
            stop: self.stop.clone(),
            calls,
            control,
            control_event,
            commands,
            outcomes,
            counters: self.counters.clone(),
            in_flight: BTreeMap::new(),
            scratch: Scratchpad::new(),
        };
        // Before anybody can scrape them.
        core.refresh_gauges();
        threads.push(spawn("kvd-core", move || core.run())?);
        threads.push(spawn("kvd-sessions", move || reactor.run())?);
        tracing::info!(%epoch, dram = report.restored_dram, nvme = report.restored_nvme, "ready");
        Ok(handle)
    }
}

/// Starts a thread that serves until told to stop.
fn spawn(
    name: &'static str,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, ServeError> {
    let body = move || {
        if let Err(error) = run() {
            tracing::error!(thread = name, %error, "a thread of the daemon cannot go on");
        }
    };
    thread::Builder::new().name(name.into()).spawn(body).map_err(system("starting a thread"))
}

#[cfg(test)]
mod tests;
