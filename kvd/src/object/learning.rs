//! Learning of packs: new index objects again and again, all of them now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use kvd_tiers::object::catalog::Added;
use kvd_tiers::object::{INDEX_PREFIX, IndexName, NodeName, PackIndex, node_prefix};

use super::presence::Presence;
use super::store::Fault;
use super::tier::Shared;
use super::worker::unix_ms;

/// Between two full listings: what others deleted is forgotten then at the latest, and what was missed is found.
const LIST_ALL_EVERY: Duration = Duration::from_secs(600);
/// Index objects of one node in one turn.
const PER_NODE_MAX: usize = 1000;
/// Index objects in all, as many as the catalog takes: 64 MiB each, that is a store of 256 TiB.
const OBJECTS_MAX: usize = 1 << 22;
/// Index objects fetched at a time; the largest has 5 MiB.
const FETCHED_AT_ONCE: usize = 8;
/// Index objects that could not be had, or held no index, to be read once more: bits flip, and proxies answer for stores.
const DOUBTED_MAX: usize = 1000;
/// Until a doubted one is read again; the pause doubles, and ends with the next full listing.
const DOUBTED_PAUSE: Duration = Duration::from_secs(1);
/// Index objects of one turn that a store may fail to give without being down as a whole.
const FAILED_MAX: usize = 8;
/// A number that is so far ahead of this node's clock is no time: it would hide all that its node publishes from then on.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest pause after turns that failed.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Learns until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut all_due = Instant::now();
    let mut failures = 0u32;
    let mut presence = Presence::default();
    let mut doubted = Doubted::default();
    loop {
        let turn = async {
            // Before anything is uploaded: who looks for packs looks at nodes that have said that they write.
            presence.say(&shared).await;
            let nodes = presence.nodes(&shared).await?;
            if !shared.sharing.is_ready() {
                list_own(&shared, &mut doubted).await?;
                shared.sharing.set_ready(&shared);
            }
            if Instant::now() >= all_due {
                // What was doubted is among what is unknown.
                doubted.0.clear();
                reconcile(&shared, &mut doubted).await?;
                shared.sharing.set_ready(&shared);
                all_due = Instant::now() + LIST_ALL_EVERY;
            } else {
                list_new(&shared, &nodes, &mut doubted).await?;
                if doubted.read_again(&shared).await? {
                    // One of its own counts in its share.
                    shared.sharing.set_ready(&shared);
                }
            }
            Ok::<(), Fault>(())
        };
        let pause = match turn.await {
            Ok(()) => {
                failures = 0;
                shared.options.sync_every
            }
            Err(fault) => {
                if failures == 0 {
                    tracing::warn!(%fault, "packs of other nodes cannot be learned of");
                }
                failures = failures.saturating_add(1);
                let longer = shared.options.sync_every.saturating_mul(1 << failures.min(5));
                longer.clamp(Duration::from_millis(250), PAUSE_MAX.max(shared.options.sync_every))
            }
        };
        if shared.catalog.damaged() && shared.counters().catalog_damaged.get() == 0 {
            shared.counters().catalog_damaged.set(1);
            tracing::error!(
                "the catalog of the object tier is damaged and finds less than there is: start kvd anew, and it is made anew"
            );
        }
        let known = shared.catalog.stats();
        shared.counters().packs.set(known.packs);
        // An empty database has rows all the same.
        shared.counters().records.set(if known.packs == 0 { 0 } else { known.entries_estimate });
        tokio::time::sleep(pause).await;
    }
}

/// What this node itself has in the store: it must be known before more is put there.
async fn list_own(shared: &Arc<Shared>, doubted: &mut Doubted) -> Result<(), Fault> {
    let present = shared.asking().index_names(&node_prefix(shared.node), OBJECTS_MAX).await?;
    let unknown = present.into_iter().filter(|name| shared.catalog.pack(name.pack).is_none());
    learn_all(shared, unknown.collect(), doubted).await
}

/// What every other node published since the last look.
async fn list_new(shared: &Arc<Shared>, nodes: &[NodeName], doubted: &mut Doubted) -> Result<(), Fault> {
    for node in nodes.iter().copied().filter(|node| *node != shared.node) {
        let after = IndexName::after(node, shared.catalog.cursor(node));
        let prefix = node_prefix(node);
        let listed = shared
            .store
            .list(prefix.trim_end_matches('/'), Some(&after), PER_NODE_MAX, shared.asking().deadline())
            .await?;
        let names = listed.iter().filter_map(|object| IndexName::parse(&object.path));
        learn_all(shared, names.collect(), doubted).await?;
    }
    Ok(())
}

/// Compares the catalog with everything that is published.
pub(super) async fn list_all(shared: &Arc<Shared>) -> Result<(), Fault> {
    reconcile(shared, &mut Doubted::default()).await
}

async fn reconcile(shared: &Arc<Shared>, doubted: &mut Doubted) -> Result<(), Fault> {
    let since = shared.catalog.mark();
    let present = shared.asking().index_names(INDEX_PREFIX, OBJECTS_MAX).await?;
    let catalog = shared.catalog.clone();
    let reconciled = tokio::task::spawn_blocking(move || catalog.reconcile(&present, since)).await;
    let reconciled =
        match reconciled.map_err(|error| error.to_string()).and_then(|done| done.map_err(|e| e.to_string())) {
            Ok(reconciled) => reconciled,
            Err(error) => return Err(Fault::Other(format!("the catalog cannot be compared with the store: {error}"))),
        };
    shared.counters().packs_gone.add(reconciled.removed.len() as u64);
    learn_all(shared, reconciled.unknown, doubted).await
}

/// Fetches index objects, some at a time, and learns of them in their order: nobody looks again behind a cursor.
async fn learn_all(shared: &Arc<Shared>, names: Vec<IndexName>, doubted: &mut Doubted) -> Result<(), Fault> {
    let asking = shared.asking();
    let latest = unix_ms().saturating_add(AHEAD_MAX.as_secs() * 1000).saturating_mul(1000);
    let names = names
        .into_iter()
        .filter(|name| !shared.damaged.has(name.pack) && (name.seq <= latest || name.node == shared.node));
    let mut failed = 0;
    let fetch = |name: IndexName| async move { (name, asking.index(name).await) };
    let mut fetched = stream::iter(names).map(fetch).buffered(FETCHED_AT_ONCE);
    while let Some((name, index)) = fetched.next().await {
        if let Err(fault) = &index
            && fault.is_transient()
        {
            failed += 1;
            if failed >= FAILED_MAX {
                return Err(fault.clone());
            }
        }
        if learn(shared, name, index).await? == Learned::Unreadable {
            doubted.insert(name);
        }
    }
    Ok(())
}

/// Index objects that could not be had, or held no index, each with the time to read it again and the pause after that.
#[derive(Default)]
struct Doubted(BTreeMap<IndexName, (Instant, Duration)>);

impl Doubted {
    fn insert(&mut self, name: IndexName) {
        if self.0.len() < DOUBTED_MAX {
            self.0.entry(name).or_insert((Instant::now() + DOUBTED_PAUSE, 2 * DOUBTED_PAUSE));
        }
    }

    /// Reads those whose time has come; whether a pack of this node was among those that are known now.
    async fn read_again(&mut self, shared: &Arc<Shared>) -> Result<bool, Fault> {
        let now = Instant::now();
        let mut own = false;
        let due: Vec<_> = self.0.iter().filter(|(_, (at, _))| *at <= now).map(|(name, _)| *name).collect();
        for name in due {
            match learn(shared, name, shared.asking().index(name).await).await? {
                Learned::Unreadable => {
                    let Some((at, pause)) = self.0.get_mut(&name) else { continue };
                    *at = now + *pause;
                    *pause = LIST_ALL_EVERY.min(2 * *pause);
                }
                learned @ (Learned::Known | Learned::Gone) => {
                    own |= learned == Learned::Known && name.node == shared.node;
                    self.0.remove(&name);
                }
            }
        }
        Ok(own)
    }
}

/// What became of an index object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Learned {
    Known,
    Gone,
    /// It cannot be read, or is none.
    Unreadable,
}

/// Learns of a pack by its index object. One that is gone, is none, or cannot be had is passed over: others must not wait for
/// it.
async fn learn(
    shared: &Arc<Shared>,
    name: IndexName,
    index: Result<Result<PackIndex, String>, Fault>,
) -> Result<Learned, Fault> {
    let index = match index {
        Ok(index) => index,
        Err(Fault::NotFound) => return Ok(Learned::Gone),
        // Of who asks, not of the object.
        Err(fault @ (Fault::NoBucket(_) | Fault::Open | Fault::Denied(_))) => return Err(fault),
        Err(fault) => Err(fault.to_string()),
    };
    let catalog = shared.catalog.clone();
    let learned = tokio::task::spawn_blocking(move || match index {
        Ok(index) => catalog.add(name, &index).map(|added| Ok(added == Added::New)),
        Err(error) => catalog.skip(name).map(|()| Err(error)),
    });
    match learned.await.map_err(|error| Fault::Other(error.to_string()))? {
        Ok(Ok(new)) => {
            shared.counters().packs_learned.add(u64::from(new && name.node != shared.node));
            Ok(Learned::Known)
        }
        Ok(Err(error)) => {
            shared.counters().packs_unreadable.add(1);
            tracing::warn!(object = %name.path(), error, "an index object is passed over");
            Ok(Learned::Unreadable)
        }
        // All that follow would fail as well.
        Err(error) => Err(Fault::Other(format!("the catalog cannot be written: {error}"))),
    }
}
