//! The object tier of a running daemon: what the core asks of it, what it tells, and its threads.
//!
//! ```text
//! core ──orders──► worker ──► packs ──► uploads ──► store          (Put: answered when the record is in a pack)
//!      ◄─outcomes─        ──► runs of ranged reads ◄── store       (Get: straight into DRAM slots, verified)
//!      ──asked───► lookups ──► catalog
//!      ◄─events──          learner ──► catalog ◄── index objects of all nodes
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use kvd_nixl::sys::{EventFd, MemoryExtent, Signal};
use kvd_proto::{BlockHash, GroupKey, NamespaceDigest, Shard, TenantKey};
use kvd_tiers::ladder::{Outcome, RemoteRecord, Turns};
use kvd_tiers::object::catalog::{Catalog, CatalogError, CatalogOptions};
use kvd_tiers::object::{NodeName, Realm};
use kvd_tiers::{MoveId, ObjectPlace, SlotEntry};
use thiserror::Error;
use tokio::sync::mpsc;

use super::identity::{self, IdentityError};
use super::limits::Limits;
use super::listing::Asking;
use super::purging::Scope;
use super::scrubbing::Damaged;
use super::sharing::Sharing;
use super::spending::Spending;
use super::store::{Store, StoreError};
use super::view::View;
use super::{lookups, worker};
use crate::core::ObjectOptions;
use crate::core::admin::ObjectScrub;
use crate::metrics::counters::Counters;
use crate::metrics::object::ObjectCounters;

/// Orders that may wait for the worker: the ladder's own bounds are below.
pub(crate) const ORDERS_WAITING_MAX: usize = 256;
/// Questions that may wait for the catalog; further matches are answered from what is here.
pub(crate) const ASKED_WAITING_MAX: usize = 256;

/// Bytes of one request for records.
pub(crate) const RUN_BYTES_MAX: u64 = 16 << 20;

/// Why there is no object tier.
#[derive(Debug, Error)]
pub enum TierError {
    /// The store's client cannot be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog cannot be used.
    #[error("the catalog of the object tier cannot be used: {0}")]
    Catalog(#[from] CatalogError),
    /// This node has no name.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No threads.
    #[error("starting the object tier: {0}")]
    System(#[from] io::Error),
}

/// A move of the ladder.
#[derive(Debug)]
pub(crate) enum Order {
    /// Takes a copy of a record.
    Put { id: MoveId, entry: SlotEntry, memory: MemoryExtent },
    /// Brings records.
    Get(Vec<Wanted>),
    /// Takes everything of a kind out of the store.
    Purge(Scope),
    /// Verifies what lies in the store.
    Scrub(ObjectScrub),
}

/// A record that the ladder wants.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: MoveId,
    pub(crate) from: ObjectPlace,
    pub(crate) expect: SlotEntry,
    /// Its slot.
    pub(crate) memory: MemoryExtent,
}

/// Which blocks of a chain the catalog knows.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The core's own number of the question.
    pub(crate) ticket: u64,
    pub(crate) shard: Shard,
    pub(crate) payload_bytes: u32,
    /// Of metadata and payload: one that has other metadata does not fit the view's slots.
    pub(crate) record_bytes: u32,
    pub(crate) group_key: GroupKey,
    /// Of the whole chain: keys are made where they are needed, and most chains end at the first.
    pub(crate) hashes: Arc<[BlockHash]>,
    /// The first that is asked about.
    pub(crate) first: u32,
}

/// What the tier tells the core.
#[derive(Debug)]
pub(crate) enum Event {
    /// Whether reads, and writes, are worth asking for.
    Up { reads: bool, writes: bool },
    /// Who takes turns with this node in giving records to the tier.
    Turns(Turns),
    /// The records of the blocks asked for, up to the first that is not known.
    Found { ticket: u64, records: Vec<RemoteRecord> },
}

/// The core's ends.
pub(crate) struct ObjectLink {
    /// `None` once the daemon stops.
    pub(crate) orders: Option<mpsc::Sender<Order>>,
    /// `None` once the daemon stops.
    pub(crate) asked: Option<Sender<Asked>>,
    pub(crate) events: Receiver<Event>,
    /// What operators see of it.
    pub(crate) view: View,
    /// Bytes that this node may keep in the store.
    pub(crate) share_bytes: u64,
}

/// What all parts of the tier share.
pub(super) struct Shared {
    pub(super) options: ObjectOptions,
    pub(super) store: Store,
    pub(super) catalog: Arc<Catalog>,
    pub(super) node: NodeName,
    pub(super) tenant_key: TenantKey,
    pub(super) sharing: Sharing,
    pub(super) limits: Limits,
    pub(super) spending: Spending,
    pub(super) damaged: Damaged,
    pub(super) stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    outcomes: Sender<(MoveId, Outcome)>,
    events: Sender<Event>,
    doorbell: Arc<EventFd>,
}

impl Shared {
    pub(super) fn counters(&self) -> &ObjectCounters {
        &self.counters.object
    }

    /// What the whole daemon counts.
    pub(super) fn all_counters(&self) -> &Counters {
        &self.counters
    }

    /// The store, with the time that a single request of no hurry may take.
    pub(super) fn asking(&self) -> Asking<'_> {
        Asking { store: &self.store, patience: 4 * self.options.request_timeout }
    }

    /// Answers a move.
    pub(super) fn answer(&self, id: MoveId, outcome: Outcome) {
        self.answer_all([(id, outcome)]);
    }

    /// Answers moves and wakes the core once. The channel has room for every move that the ladder may have under way.
    pub(super) fn answer_all(&self, answers: impl IntoIterator<Item = (MoveId, Outcome)>) {
        for answer in answers {
            let _ = self.outcomes.send(answer);
        }
        let _ = self.doorbell.signal();
    }

    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
        let _ = self.doorbell.signal();
    }

    pub(super) fn realm(&self, namespace: &NamespaceDigest) -> Realm {
        let (tenant, namespace) = self.tenant_key.sealed_names(namespace);
        Realm { tenant, namespace }
    }
}

/// What the daemon gives its object tier.
pub(crate) struct TierEnds {
    pub(crate) outcomes: Sender<(MoveId, Outcome)>,
    pub(crate) doorbell: Arc<EventFd>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: Arc<AtomicBool>,
}

/// Opens the catalog and starts the threads; asks nothing of the store yet. The threads end when the core's ends of the
/// channels are gone, and what was taken is uploaded or `patience` is over.
pub(crate) fn start(
    options: &ObjectOptions,
    data_dir: &Path,
    tenant_key: TenantKey,
    ends: TierEnds,
    patience: Duration,
) -> Result<(ObjectLink, Vec<JoinHandle<()>>), TierError> {
    let store = Store::open(options)?;
    // One tier per daemon: nobody was here before.
    let _ = ends.counters.object.store.set(store.counters().clone());
    ends.counters.object.up.set(1);
    let node = identity::node_name(data_dir)?;
    let (catalog, opened) = Catalog::open(&data_dir.join("catalog"), CatalogOptions::default())?;
    if let Some(why) = opened.fresh {
        tracing::info!(why, "the catalog of the object tier begins anew");
    }
    let catalog = Arc::new(catalog);
    let cursor = catalog.cursor(node);
    let (asked, questions) = bounded(ASKED_WAITING_MAX);
    // One answer per question that waits, and one that is being given; and a change of state now and then.
    let (event_sender, events) = bounded(2 * ASKED_WAITING_MAX + 16);
    let (orders, order_receiver) = mpsc::channel(ORDERS_WAITING_MAX);
    let shared = Arc::new(Shared {
        options: options.clone(),
        store,
        catalog,
        node,
        tenant_key,
        sharing: Sharing::new(options.share_bytes, cursor),
        limits: Limits::new(options, &tenant_key),
        spending: Spending::new(Instant::now()),
        damaged: Damaged::default(),
        stop: ends.stop,
        counters: ends.counters,
        outcomes: ends.outcomes,
        events: event_sender,
        doorbell: ends.doorbell,
    });
    tracing::info!(url = %options.url, %node, packs = opened.packs, "the object tier is open");
    let view = View::new(shared.clone());
    let threads = vec![lookups::spawn(shared.clone(), questions)?, worker::spawn(shared, order_receiver, patience)?];
    let link = ObjectLink { orders: Some(orders), asked: Some(asked), events, view, share_bytes: options.share_bytes };
    Ok((link, threads))
}

/// The parts without the threads, and what they answer: what tests of one part need of the others.
#[cfg(test)]
pub(super) fn without_threads(
    options: &ObjectOptions,
    data_dir: &Path,
    tenant_key: TenantKey,
) -> (Arc<Shared>, Receiver<(MoveId, Outcome)>) {
    let (outcomes, answers) = bounded(64);
    let (catalog, _) = Catalog::open(&data_dir.join("catalog"), CatalogOptions::default()).expect("a catalog");
    let shared = Arc::new(Shared {
        options: options.clone(),
        store: Store::open(options).expect("a store"),
        catalog: Arc::new(catalog),
        node: identity::node_name(data_dir).expect("a name"),
        tenant_key,
        sharing: Sharing::new(options.share_bytes, 0),
        limits: Limits::new(options, &tenant_key),
        spending: Spending::new(Instant::now()),
        damaged: Damaged::default(),
        stop: Arc::default(),
        counters: Arc::default(),
        outcomes,
        events: bounded(1).0,
        doorbell: Arc::new(EventFd::new().expect("a descriptor")),
    });
    (shared, answers)
}
