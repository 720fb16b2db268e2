//! The collector: packs that are too old or that nobody reads, and what crashes left behind.
//!
//! Every node deletes its own packs by age and idleness, since only it knows when it read them. How old and how idle is said by
//! [`limits`](super::limits), which may differ by namespace. One of them, by a leased
//! object, does for all nodes what needs the whole listing: packs of any node that are too old, orphans, leftovers of
//! checks. Two at once do no harm: deleting what is gone is done.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kvd_tiers::object::{IndexName, Realm, pack_path};

use super::listing::Asking;
use super::sharing;
use super::store::Fault;
use super::tier::Shared;
use super::worker::unix_ms;

pub(crate) mod lease;
pub(crate) mod orphans;
#[cfg(test)]
mod tests;

/// After the start: what this node has in the store is known by then.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Between two turns.
const EVERY: Duration = Duration::from_secs(300);
/// Packs deleted by age in one turn: the rest waits for the next one.
const EXPIRED_MAX: usize = 10_000;

/// Collects until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let started_ms = unix_ms();
    let mut pause = FIRST_AFTER;
    loop {
        tokio::time::sleep(pause).await;
        pause = EVERY;
        if let Err(fault) = turn(&shared, started_ms, unix_ms()).await {
            tracing::warn!(%fault, "the collector of the object tier stopped half way; it goes on in its next turn");
        }
    }
}

/// One turn; ends with its first fault. Idleness is counted from `started_ms`: what was read before it is not known.
pub(super) async fn turn(shared: &Arc<Shared>, started_ms: u64, now_ms: u64) -> Result<(), Fault> {
    finish(shared).await?;
    for name in idle(shared, started_ms, now_ms) {
        remove(shared, name).await?;
        shared.counters().packs_idle.add(1);
    }
    let mine = expired(shared, now_ms, true).await;
    remove_expired(shared, mine).await?;
    let asking = shared.asking();
    let Some(lease) = lease::hold(asking, shared.node, now_ms, lease::Claim::IfFree).await? else { return Ok(()) };
    // Others' packs by the store's clock, where this node's is ahead of it.
    let store_ms = lease.store_time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let others = expired(shared, now_ms.min(u64::try_from(store_ms).unwrap_or(u64::MAX)), false).await;
    remove_expired(shared, others).await?;
    let known = |pack| shared.catalog.pack(pack).is_some();
    let left = orphans::collect(asking, lease.store_time, known, true).await?;
    shared.counters().orphans_collected.add(left.orphans.len() as u64);
    Ok(())
}

fn idle(shared: &Shared, started_ms: u64, now_ms: u64) -> Vec<IndexName> {
    let since = |realm: &Realm| shared.limits.idle(realm).map(|idle_after| before(now_ms, idle_after));
    // Nobody can have been idle since before the start.
    shared.sharing.unused_since(|realm| since(realm).filter(|since| *since > started_ms), EXPIRED_MAX)
}

/// Packs that the catalog knows to be too old: of this node, or of all.
async fn expired(shared: &Arc<Shared>, now_ms: u64, own: bool) -> Vec<IndexName> {
    if !shared.limits.any_age() {
        return Vec::new();
    }
    let shared = shared.clone();
    let search = move || {
        let limits = &shared.limits;
        let old = shared
            .catalog
            .packs()
            .filter(|row| (!own || row.node == shared.node) && limits.is_expired(&row.realm, row.created_ms, now_ms));
        old.take(EXPIRED_MAX).map(|row| row.index_name()).collect()
    };
    // Reads a row per pack from a disk. Broken off, it finds nothing this time.
    tokio::task::spawn_blocking(search).await.unwrap_or_default()
}

pub(crate) fn before(now_ms: u64, age: Duration) -> u64 {
    now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

async fn remove_expired(shared: &Shared, names: Vec<IndexName>) -> Result<(), Fault> {
    for name in names {
        remove(shared, name).await?;
        shared.counters().packs_expired.add(1);
    }
    Ok(())
}

/// Deletes what is half deleted; how many packs that were. One that cannot be deleted does not keep the others.
pub(super) async fn finish(shared: &Shared) -> Result<u64, Fault> {
    let going = shared.sharing.going();
    let mut failed = None;
    for name in &going {
        if let Err(fault) = remove(shared, *name).await {
            failed.get_or_insert(fault);
        }
    }
    failed.map_or(Ok(going.len() as u64), Err)
}

/// Deletes a pack of any node, and forgets it.
pub(super) async fn remove(shared: &Shared, name: IndexName) -> Result<(), Fault> {
    sharing::delete(shared, name, shared.asking().deadline()).await?;
    if name.node == shared.node {
        shared.sharing.forget(shared, name.pack);
    }
    Ok(())
}

/// Deletes a pack where nobody keeps a catalog: first what makes it visible, then what it is.
pub(crate) async fn remove_unknown(asking: Asking<'_>, name: IndexName) -> Result<(), Fault> {
    let deadline: Instant = asking.deadline();
    asking.store.delete(&name.path(), deadline).await?;
    asking.store.delete(&pack_path(name.pack), deadline).await
}
