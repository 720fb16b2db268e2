//! One process of an engine, and the thread that keeps it joined.

mod keeper;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvd_nixl::sys::{EventFd, Signal, sigbus};
use kvd_proto::wire::session;
use kvd_proto::{Epoch, InstanceId};

use crate::error::{ConnectError, ViewError};
use crate::pinning::Pinning;
use crate::segments::Kept;
use crate::session::{CONTROL_WAIT, Greeting, Session, connect};
use crate::view::{View, ViewSpec};

/// What a process does within its engine. For operators; every role may do everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Looks blocks up and decides.
    Scheduler,
    /// Loads and stores the bytes.
    Worker,
    /// Both.
    Engine,
}

impl Role {
    fn wire(self) -> session::Role {
        match self {
            Self::Scheduler => session::Role::Scheduler,
            Self::Worker => session::Role::Worker,
            Self::Engine => session::Role::Engine,
        }
    }
}

/// What an engine is connected with.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The tenant's socket.
    pub socket: PathBuf,
    /// The engine: all its processes give the same, and keep it over restarts of the daemon.
    pub instance: InstanceId,
    /// What this process does.
    pub role: Role,
    /// For operators, at most 64 bytes.
    pub client_name: String,
    /// How long a match may take; `None`: what the daemon says (50 ms).
    pub match_deadline: Option<Duration>,
    /// How long a load may take; `None`: what the daemon says.
    pub load_deadline: Option<Duration>,
    /// How long the daemon may take over a store's offer or commit. The copies in between are the caller's own time.
    pub store_deadline: Duration,
}

impl EngineOptions {
    /// The defaults for a socket and an instance.
    pub fn new(socket: impl Into<PathBuf>, instance: InstanceId) -> Self {
        Self {
            socket: socket.into(),
            instance,
            role: Role::Engine,
            client_name: String::new(),
            match_deadline: None,
            load_deadline: None,
            store_deadline: Duration::from_secs(1),
        }
    }
}

/// One process of an engine. Clones are the same process; the last one to go says goodbye.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    _keeper: Arc<Keeper>,
}

/// What threads, views and the keeper share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: EngineOptions,
    /// The process that made it: a child by `fork` has none of its threads and must leave it alone.
    process: u32,
    /// Guards the pointer only; sessions are used outside of it.
    current: RwLock<Option<Arc<Session>>>,
    stop: AtomicBool,
    /// Wakes the keeper: the session has ended, or it shall stop.
    wake: Arc<EventFd>,
    /// Epochs joined so far.
    joined: AtomicU64,
    /// Segments that sessions have mapped.
    kept: Arc<Kept>,
    /// How far the last round of pinning ahead has come.
    pub(crate) pinning: Pinning,
}

impl Shared {
    /// The session, if this process is joined now.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        if std::process::id() != self.process {
            return None;
        }
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|session| !session.link.is_down())
    }

    fn publish(&self, session: Option<Arc<Session>>) {
        // Relaxed: a count for people.
        self.joined.fetch_add(u64::from(session.is_some()), Ordering::Relaxed);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = session;
    }

    fn greeting(&self) -> Greeting {
        Greeting {
            instance: self.options.instance,
            role: self.options.role.wire(),
            client_name: self.options.client_name.clone(),
            replaces: None,
        }
    }

    pub(crate) fn stopping(&self) -> bool {
        // Acquire pairs with the Release in Keeper::drop.
        self.stop.load(Ordering::Acquire)
    }
}

/// Ends the keeper's thread with the last handle.
#[derive(Debug)]
struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if std::process::id() != self.shared.process {
            // The thread is the parent's, and so is the session. Joining it here would wait for ever.
            std::mem::forget(thread);
            return;
        }
        // Release pairs with the Acquire in Shared::stopping.
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.signal();
        if let Some(thread) = thread {
            // It panicked or it ended; both are the end.
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Joins the daemon. Fails where it is not there or refuses; once joined, the engine never sees such an error again.
    pub fn connect(options: EngineOptions) -> Result<Self, ConnectError> {
        let (shared, wake) = Self::shared(options)?;
        let deadline = Instant::now() + CONTROL_WAIT;
        let session = connect(&shared.options.socket, &shared.greeting(), wake, &shared.kept, deadline)?;
        Self::keep(shared, Some(Arc::new(session)))
    }

    /// Joins the daemon when it is there: until then every call misses.
    pub fn start(options: EngineOptions) -> Result<Self, ConnectError> {
        let (shared, _) = Self::shared(options)?;
        Self::keep(shared, None)
    }

    fn shared(options: EngineOptions) -> Result<(Arc<Shared>, Arc<EventFd>), ConnectError> {
        // The arena is made of named files that another process of the tenant could cut short.
        sigbus::install()?;
        let wake = Arc::new(EventFd::new()?);
        let shared = Shared {
            options,
            process: std::process::id(),
            current: RwLock::new(None),
            stop: AtomicBool::new(false),
            wake: wake.clone(),
            joined: AtomicU64::new(0),
            kept: Arc::default(),
            pinning: Pinning::default(),
        };
        Ok((Arc::new(shared), wake))
    }

    fn keep(shared: Arc<Shared>, session: Option<Arc<Session>>) -> Result<Self, ConnectError> {
        shared.publish(session.clone());
        let inner = shared.clone();
        let thread = std::thread::Builder::new().name("kvd-keeper".into());
        let thread = thread.spawn(move || keeper::keep_joined(&inner, session))?;
        let keeper = Keeper { shared: shared.clone(), thread: Mutex::new(Some(thread)) };
        Ok(Self { shared, _keeper: Arc::new(keeper) })
    }

    /// Describes what this process will read and write. Opened with the daemon now if it is there, and again by itself
    /// after each restart of it.
    pub fn open_view(&self, spec: &ViewSpec<'_>) -> Result<View, ViewError> {
        View::open(self.clone(), spec)
    }

    /// The daemon's epoch; `None` while this process is not joined.
    pub fn epoch(&self) -> Option<Epoch> {
        self.shared.session().map(|session| session.terms.epoch)
    }

    /// How often this process has joined: 1 plus the restarts of the daemon that it has seen.
    pub fn times_joined(&self) -> u64 {
        // Relaxed: a count for people.
        self.shared.joined.load(Ordering::Relaxed)
    }

    /// Bytes that the engine's instance may hold under leases.
    pub fn lease_bytes_max(&self) -> Option<u64> {
        self.shared.session().map(|session| session.terms.lease_bytes_max)
    }
}
