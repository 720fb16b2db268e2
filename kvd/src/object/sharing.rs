//! This node's own packs in the store: their numbers, their bytes, and which of them go when the share is full.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use kvd_tiers::object::{IndexName, PackIndex, PackName, Realm, pack_path};
use tokio::sync::Mutex as AsyncMutex;

use super::store::Fault;
use super::tier::Shared;
use super::worker::unix_ms;

/// Deletes that did not come to their end and are remembered; of more than these, what is left is an orphan.
const GOING_MAX: usize = 1000;

/// Sequence numbers of index objects: microseconds since 1970 where the clock allows it, so that a node which lost its
/// catalog goes on behind what it published before.
pub(super) struct Numbers(u64);

impl Numbers {
    /// The next one. Taken even where nothing comes of it.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.saturating_add(1).max(unix_ms().saturating_mul(1000));
        self.0
    }

    /// Whether none was taken since.
    pub(super) fn is_last(&self, seq: u64) -> bool {
        self.0 == seq
    }
}

struct Own {
    name: IndexName,
    realm: Realm,
    bytes: u64,
    records: u64,
    /// When it was written, or last read by this node, in milliseconds since 1970.
    used_ms: u64,
}

impl Own {
    /// One that nobody has used yet.
    fn of(name: IndexName, index: &PackIndex) -> Self {
        let records = index.entries.len() as u64;
        Self { name, realm: index.realm, bytes: index.pack_bytes(), records, used_ms: 0 }
    }
}

#[derive(Default)]
struct Owned {
    packs: BTreeMap<PackName, Own>,
    bytes: u64,
    /// Packs, of any node, that this one is deleting or has failed to: what made them visible may be gone already, and then
    /// nobody else knows of them. They count as long as they may be there.
    going: BTreeMap<PackName, IndexName>,
    /// Packs that an attempt to upload them may have left in the store, with their bytes.
    unsure: BTreeMap<PackName, u64>,
    /// Bytes that uploads under way will add.
    promised: u64,
}

/// What this node keeps in the store.
pub(super) struct Sharing {
    pub(super) publishing: AsyncMutex<Numbers>,
    /// One eviction at a time.
    evicting: AsyncMutex<()>,
    /// Guards numbers; held for a few instructions, and no other lock is taken under it.
    owned: Mutex<Owned>,
    /// The store was listed once: what this node has in it is known.
    ready: AtomicBool,
    share_bytes: u64,
}

impl Sharing {
    /// `published`: the highest number that is known to be this node's.
    pub(super) fn new(share_bytes: u64, published: u64) -> Self {
        Self {
            publishing: AsyncMutex::new(Numbers(published)),
            evicting: AsyncMutex::new(()),
            owned: Mutex::default(),
            ready: AtomicBool::new(false),
            share_bytes,
        }
    }

    fn owned(&self) -> std::sync::MutexGuard<'_, Owned> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// The catalog agrees with a full listing of the store: what is this node's there is known from now on.
    pub(super) fn set_ready(&self, shared: &Shared) {
        self.recount(shared);
        // Of a damaged catalog less was counted than there is.
        self.ready.store(!shared.catalog.damaged(), Ordering::Relaxed);
    }

    /// Counts anew what the catalog says is this node's, and what is half deleted.
    fn recount(&self, shared: &Shared) {
        let mut owned = self.owned();
        let known = std::mem::take(&mut owned.packs);
        for row in shared.catalog.packs_of(shared.node) {
            let used_ms = known.get(&row.name).map_or(row.created_ms, |own| own.used_ms);
            let records = u64::from(row.records);
            let (name, realm) = (row.index_name(), row.realm);
            owned.packs.insert(row.name, Own { name, realm, bytes: row.bytes, records, used_ms });
        }
        for (pack, own) in known.into_iter().filter(|(pack, _)| owned.going.contains_key(pack)).collect::<Vec<_>>() {
            owned.packs.entry(pack).or_insert(own);
        }
        owned.bytes = owned.packs.values().map(|own| own.bytes).sum();
        show(shared, &owned);
    }

    /// A pack of this node is in the store.
    pub(super) fn published(&self, shared: &Shared, name: IndexName, index: &PackIndex) {
        self.insert(shared, Own { used_ms: unix_ms(), ..Own::of(name, index) });
    }

    /// A pack of this node is given up, and may be in the store all the same, visible or not: it is counted, and goes.
    pub(super) fn abandoned(&self, shared: &Shared, name: IndexName, index: &PackIndex) {
        if self.begin(name) {
            self.insert(shared, Own { records: 0, ..Own::of(name, index) });
        } else {
            self.owned().unsure.remove(&name.pack);
        }
    }

    fn insert(&self, shared: &Shared, own: Own) {
        let mut owned = self.owned();
        owned.unsure.remove(&own.name.pack);
        owned.bytes += own.bytes;
        // A listing may have shown it already.
        let before = owned.packs.insert(own.name.pack, own);
        owned.bytes -= before.map_or(0, |own| own.bytes);
        show(shared, &owned);
    }

    /// Remembers that a pack is to go; whether there was room for that.
    fn begin(&self, name: IndexName) -> bool {
        let going = &mut self.owned().going;
        let room = going.len() < GOING_MAX || going.contains_key(&name.pack);
        if room {
            going.insert(name.pack, name);
        }
        room
    }

    fn ended(&self, pack: PackName) {
        self.owned().going.remove(&pack);
    }

    /// Packs whose deletion has begun, and perhaps failed half way.
    pub(super) fn going(&self) -> Vec<IndexName> {
        self.owned().going.values().copied().collect()
    }

    /// A pack was read, by this node; one of another node is none of its business.
    pub(super) fn used(&self, pack: PackName) {
        if let Some(own) = self.owned().packs.get_mut(&pack) {
            own.used_ms = unix_ms();
        }
    }

    /// Own packs that were neither written nor read since the moment that `since_ms` names for their realm, at most `max` of
    /// them.
    pub(super) fn unused_since(&self, since_ms: impl Fn(&Realm) -> Option<u64>, max: usize) -> Vec<IndexName> {
        let owned = self.owned();
        let unused = owned.packs.values().filter(|own| since_ms(&own.realm).is_some_and(|since| own.used_ms < since));
        unused.take(max).map(|own| own.name).collect()
    }

    /// Deletes own packs, the one not used for longest first, until `bytes` more are within the share. They are kept free
    /// until the promise is dropped.
    pub(super) async fn make_room(
        &self,
        shared: &Shared,
        pack: PackName,
        bytes: u64,
        deadline: Instant,
    ) -> Result<Promise<'_>, Fault> {
        if bytes > self.share_bytes {
            return Err(Fault::Full(format!("a pack of {bytes} bytes is more than tiers.object.share")));
        }
        let _one = self.evicting.lock().await;
        loop {
            let victim = {
                let mut owned = self.owned();
                if owned.unsure.contains_key(&pack) {
                    return Ok(Promise { sharing: self, pack, bytes: 0 });
                }
                let unsure: u64 = owned.unsure.values().sum();
                if owned.bytes + owned.promised + unsure + bytes <= self.share_bytes {
                    owned.promised += bytes;
                    return Ok(Promise { sharing: self, pack, bytes });
                }
                let coming = |own: &&Own| (!owned.going.contains_key(&own.name.pack), own.used_ms);
                owned.packs.values().min_by_key(coming).map(|own| own.name)
            };
            let Some(victim) = victim else {
                return Err(Fault::Full("tiers.object.share is used up by packs under way".into()));
            };
            delete(shared, victim, deadline).await?;
            let records = self.forget(shared, victim.pack);
            shared.counters().packs_evicted.add(1);
            shared.counters().records_evicted.add(records);
        }
    }

    /// A pack of this node is gone; how many records it had.
    pub(super) fn forget(&self, shared: &Shared, pack: PackName) -> u64 {
        let mut owned = self.owned();
        let gone = owned.packs.remove(&pack);
        owned.bytes -= gone.as_ref().map_or(0, |own| own.bytes);
        show(shared, &owned);
        gone.map_or(0, |own| own.records)
    }
}

/// Room in the share for a pack that is being uploaded.
pub(super) struct Promise<'a> {
    sharing: &'a Sharing,
    pack: PackName,
    bytes: u64,
}

impl Promise<'_> {
    /// The pack may be in the store from now on: it has its room until it is published or given up, whatever becomes of this
    /// attempt.
    pub(super) fn keep(mut self) {
        let mut owned = self.sharing.owned();
        owned.unsure.entry(self.pack).or_insert(self.bytes);
        owned.promised -= std::mem::take(&mut self.bytes);
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.sharing.owned().promised -= self.bytes;
    }
}

fn show(shared: &Shared, owned: &Owned) {
    shared.counters().own_bytes.set(owned.bytes);
    shared.counters().own_packs.set(owned.packs.len() as u64);
    shared.counters().own_records.set(owned.packs.values().map(|own| own.records).sum());
}

/// Deletes a pack: first what makes it visible, then what it is. What a crash leaves between the two is an orphan; what a
/// fault leaves is remembered.
pub(super) async fn delete(shared: &Shared, name: IndexName, deadline: Instant) -> Result<(), Fault> {
    shared.sharing.begin(name);
    shared.store.delete(&name.path(), deadline).await?;
    let catalog = shared.catalog.clone();
    let removed = tokio::task::spawn_blocking(move || catalog.remove(name.pack)).await;
    if !matches!(removed, Ok(Ok(_))) {
        tracing::warn!(?removed, "the catalog does not hear of a pack that goes");
    }
    shared.store.delete(&pack_path(name.pack), deadline).await?;
    shared.sharing.ended(name.pack);
    Ok(())
}
