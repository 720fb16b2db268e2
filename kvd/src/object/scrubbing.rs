//! Packs verified at rest: each is read whole, at a bounded rate, and what is damaged is not read again.
//!
//! A damaged pack of this node is deleted, index object first, so that its records are misses for every node. One of another
//! node is its own to delete: here it is forgotten, and not learned of again until the next start.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvd_proto::NamespaceDigest;
use kvd_tiers::object::PackName;
use kvd_tiers::object::catalog::PackRow;

use super::collecting;
use super::inspecting::{Inspector, Pace, Verified};
use super::store::Fault;
use super::tier::Shared;
use crate::core::admin::{ObjectScrub, ScrubbedPacks};
use crate::metrics::object::ObjectCounters;

/// How long a store that fails is tried.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// Damaged packs of other nodes that are remembered; a store with more of them has another trouble.
const DAMAGED_MAX: usize = 1 << 16;

/// Packs of other nodes that are not what they should be.
#[derive(Default)]
pub(super) struct Damaged {
    /// Guards names; held for a few instructions, and no other lock is taken under it.
    packs: Mutex<BTreeSet<PackName>>,
}

impl Damaged {
    pub(super) fn has(&self, pack: PackName) -> bool {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).contains(&pack)
    }

    fn add(&self, pack: PackName) {
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        if packs.len() >= DAMAGED_MAX {
            packs.pop_first();
        }
        packs.insert(pack);
    }
}

/// Verifies packs one after the other. Ends with the first fault that does not pass.
pub(super) async fn run(shared: Arc<Shared>, wanted: ObjectScrub) -> Result<(), Fault> {
    let packs = packs(&shared, wanted.packs).await?;
    let counters = shared.counters();
    counters.scrub_left.set(packs.iter().map(|row| u64::from(row.records)).sum());
    let mut pace = Pace::of(wanted.bytes_per_second_max);
    for row in packs {
        // It may have gone since, to make room or by a purge.
        if shared.catalog.pack(row.name).is_some() {
            scrub(&shared, &row, &mut pace).await?;
        }
        counters.scrub_left.set(counters.scrub_left.get().saturating_sub(u64::from(row.records)));
    }
    Ok(())
}

/// A run is over.
pub(super) fn ended(counters: &ObjectCounters, result: Result<(), Fault>) {
    counters.scrub_left.set(0);
    match result {
        Ok(()) => tracing::info!("a scrub of the store is over"),
        Err(fault) => {
            tracing::error!(%fault, "a scrub of the store ended half way");
            counters.scrubs_failed.add(1);
        }
    }
    counters.scrubs_done.add(1);
}

async fn packs(shared: &Arc<Shared>, wanted: ScrubbedPacks) -> Result<Vec<PackRow>, Fault> {
    let shared = shared.clone();
    let list = move || match wanted {
        ScrubbedPacks::Own => shared.catalog.packs_of(shared.node).collect::<Vec<_>>(),
        ScrubbedPacks::Known => {
            // What other tenants keep in the same store is read by nobody here.
            let tenant = shared.realm(&NamespaceDigest::new([0; 32])).tenant;
            shared.catalog.packs().filter(|row| row.realm.tenant == tenant).collect()
        }
    };
    // Reads a row per pack from a disk.
    tokio::task::spawn_blocking(list).await.map_err(|error| Fault::Other(error.to_string()))
}

/// Verifies one pack, and takes it away where it is damaged.
async fn scrub(shared: &Arc<Shared>, row: &PackRow, pace: &mut Pace) -> Result<(), Fault> {
    let Some(mut found) = verify(shared, row, pace).await? else { return Ok(()) };
    if !found.damaged.is_empty() {
        // Perhaps it was the way here that changed a byte, and not the store.
        match verify(shared, row, pace).await? {
            Some(again) => found = again,
            None => return Ok(()),
        }
    }
    let counters = shared.counters();
    // What is missing altogether was not read.
    let corrupt = if found.records == 0 { u64::from(row.records) } else { found.corrupt };
    counters.scrub_records.add(found.records.max(corrupt));
    counters.scrub_corrupt.add(corrupt);
    counters.scrub_bytes.add(found.bytes);
    if !found.damaged.is_empty() {
        counters.scrub_damaged.add(1);
        let (what, damages) = (found.damaged.first(), found.damaged.len());
        tracing::error!(pack = %row.name, node = %row.node, damages, what, "a pack is damaged: its records are misses");
        quarantine(shared, row).await?;
    }
    Ok(())
}

/// As [`Inspector::verify`], again and again while the store fails.
async fn verify(shared: &Shared, row: &PackRow, pace: &mut Pace) -> Result<Option<Verified>, Fault> {
    let until = Instant::now() + PATIENCE;
    loop {
        match Inspector::of(shared.asking()).verify(row.index_name(), pace).await {
            Err(fault) if Instant::now() < until && (fault.is_transient() || fault == Fault::Open) => {
                tokio::time::sleep(PAUSE).await;
            }
            ended => return ended,
        }
    }
}

async fn quarantine(shared: &Arc<Shared>, row: &PackRow) -> Result<(), Fault> {
    if row.node == shared.node && shared.options.writable {
        return collecting::remove(shared, row.index_name()).await;
    }
    shared.damaged.add(row.name);
    let (catalog, name) = (shared.catalog.clone(), row.name);
    let removed = tokio::task::spawn_blocking(move || catalog.remove(name)).await;
    if !matches!(removed, Ok(Ok(_))) {
        tracing::warn!(?removed, "the catalog does not hear of a pack that is damaged");
    }
    Ok(())
}
