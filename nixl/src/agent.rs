//! Transfers between sections, as NIXL has them, with ownership in place of polling.
//!
//! ```text
//! Section ─┐ DescriptorList::prepare (checked once) ─ select(&[u32]) ─┐
//!          │                                                          ├ Agent::prepare ─ Transfer ─ post ─ TransferFuture ─ Report
//! Section ─┘ DescriptorList::prepare ─────────────── all() ───────────┘      pairs, merged            deadline, cancel
//! ```
//!
//! * A transfer in flight **holds** both ends until the hardware is done, whatever became of its future.
//! * A deadline detaches the waiter, never the move; `cancel().await` means drained: nothing lands afterwards.
//! * Every descriptor has its own status with errno. A short read or write is an error.
//! * Each backend is one driver thread that sleeps until there is work; nothing polls.

mod engine;
mod list;
mod movers;
mod notify;
mod plan;
mod posting;
mod section;
mod telemetry;
mod transfer;
mod wait;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use list::{DESCRIPTORS_MAX, DescriptorList, DescriptorRun, Extent, ListError, Selection};
pub use notify::{NOTIFICATION_BYTES_MAX, NotificationQueue};
pub use plan::{MemoryCopy, Operation, PlanError};
pub use section::{BackendId, Section, SectionKind};
pub use telemetry::Telemetry;
pub use transfer::{Cancelling, DescriptorError, PostError, PostOptions, Report, Transfer, TransferFuture};
pub use wait::wait_blocking;

use crate::io::{FileId, Io};
use crate::sys::Memory;
use engine::{Command, Engine};
use movers::{Copier, IoMover};
use plan::Plan;
use section::Place;

/// A file of an `Io`, for use as a section.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Its id there.
    pub file: FileId,
    /// Its size.
    pub bytes: u64,
    /// [`SectionKind::File`] or [`SectionKind::BlockDevice`].
    pub kind: SectionKind,
}

/// Why a backend was not added.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its thread could not be started.
    #[error("backend {name}: no thread: {source}")]
    Thread {
        /// Name given to the backend.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be made.
    #[error("backend {name}: {source}")]
    Backend {
        /// Name given to the backend.
        name: String,
        /// What its maker said.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A backend's driver, by name.
#[derive(Debug)]
struct Backend {
    id: BackendId,
    name: String,
    engine: Arc<Engine>,
}

/// Backends, and the transfers between what they reach. Dropping it, and its transfers, waits for what is under way.
#[derive(Debug)]
pub struct Agent {
    memory: Arc<Engine>,
    storage: Vec<Backend>,
}

/// Ids are unique in the process, so that a section of one agent means nothing to another.
static NEXT_BACKEND: AtomicUsize = AtomicUsize::new(0);

impl Agent {
    /// An agent that copies between memories.
    pub fn new() -> Result<Self, AgentError> {
        let (engine, ()) = start("memory", || Ok((Copier::new(), ())))?;
        Ok(Self { memory: Arc::new(engine), storage: Vec::new() })
    }

    /// Adds a backend over any `Io`. `make` runs on the driver's thread, as some are bound to it, and tells which files
    /// the `Io` has; their sections come back in the same order.
    pub fn add_io<I: Io>(
        &mut self,
        name: &str,
        make: impl FnOnce() -> Result<(I, Vec<Stored>), Box<dyn Error + Send + Sync>> + Send + 'static,
    ) -> Result<(BackendId, Vec<Section>), AgentError> {
        let (engine, stored) = start(name, move || make().map(|(io, stored)| (IoMover::new(io), stored)))?;
        // Relaxed: only uniqueness matters.
        let backend = BackendId(NEXT_BACKEND.fetch_add(1, Ordering::Relaxed));
        let section = |Stored { file, bytes, kind }| Section::of(Place::Stored { backend, file, bytes, kind });
        let sections = stored.into_iter().map(section).collect();
        self.storage.push(Backend { id: backend, name: name.to_owned(), engine: Arc::new(engine) });
        Ok((backend, sections))
    }

    /// Tells a backend about memory that will be used often; it pins it once, if it can. `false`: unknown or busy.
    pub fn register(&self, backend: BackendId, memory: &Arc<dyn Memory>) -> bool {
        self.tell(backend, memory, true)
    }

    /// Ends a registration.
    pub fn unregister(&self, backend: BackendId, memory: &Arc<dyn Memory>) -> bool {
        self.tell(backend, memory, false)
    }

    fn tell(&self, backend: BackendId, memory: &Arc<dyn Memory>, registered: bool) -> bool {
        let command = Command::Register { memory: Arc::clone(memory), registered };
        self.engine(backend).is_some_and(|engine| engine.send(command).is_ok())
    }

    /// Pairs `local` (memory) with `remote` descriptor by descriptor and merges neighbours. Storage backends see no
    /// bytes: they refuse a `copy` that asks for more than a copy.
    pub fn prepare(
        &self,
        operation: Operation,
        local: &Selection,
        remote: &Selection,
        copy: MemoryCopy,
    ) -> Result<Transfer, PlanError> {
        let (plan, backend) = Plan::new(operation, local, remote, copy)?;
        let engine = match backend {
            None => &self.memory,
            Some(id) => self.engine(id).ok_or(PlanError::NotSupported { local: local.kind, remote: remote.kind })?,
        };
        Ok(Transfer::new(plan, Arc::clone(engine)))
    }

    /// Counters by backend: "memory" first, then in the order in which backends were added.
    pub fn telemetry(&self) -> Vec<(&str, Telemetry)> {
        let memory = ("memory", self.memory.counters().snapshot());
        let storage = self.storage.iter().map(|b| (b.name.as_str(), b.engine.counters().snapshot()));
        std::iter::once(memory).chain(storage).collect()
    }

    fn engine(&self, id: BackendId) -> Option<&Arc<Engine>> {
        self.storage.iter().find(|backend| backend.id == id).map(|backend| &backend.engine)
    }
}

/// Starts an engine and names it in its errors.
fn start<M: engine::Mover, T: Send + 'static>(
    name: &str,
    make: impl FnOnce() -> Result<(M, T), Box<dyn Error + Send + Sync>> + Send + 'static,
) -> Result<(Engine, T), AgentError> {
    let name = || name.to_owned();
    let started = Engine::start(&name(), make).map_err(|source| AgentError::Thread { name: name(), source })?;
    started.map_err(|source| AgentError::Backend { name: name(), source })
}
