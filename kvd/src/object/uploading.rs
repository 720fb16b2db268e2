//! One pack on its way into the store: room for it, the pack, then the index object that makes it visible.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvd_tiers::object::{IndexName, PackEntry, pack_path};

use super::packing::Closed;
use super::store::Fault;
use super::tier::Shared;

/// An upload may take a second for this much, beside the time that the store may be silent, four times over.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// Uploads a pack and publishes it; `false` where nothing of it had to be. After an error it may be in the store, invisible:
/// an orphan.
pub(super) async fn upload(shared: &Shared, closed: &mut Closed) -> Result<bool, Fault> {
    settle(shared, closed).await;
    let Some(pack) = &closed.pack else { return Ok(false) };
    let patience = 4 * shared.options.request_timeout + Duration::from_secs(pack.bytes / BYTES_PER_SECOND_MIN);
    let deadline = Instant::now() + patience;
    let sharing = &shared.sharing;
    let room = sharing.make_room(shared, pack.index.pack, pack.bytes, deadline).await?;
    // The name is random: whatever is there already is what an attempt before this one put there.
    let tail = Bytes::from(pack.tail.clone());
    let parts = pack.records.iter().cloned().chain([tail]).collect();
    let put = shared.store.put_new(&pack_path(pack.index.pack), parts, deadline).await;
    closed.sent |=
        !matches!(put, Err(Fault::Denied(_) | Fault::NoBucket(_) | Fault::Full(_) | Fault::ReadOnly | Fault::Open));
    if closed.sent {
        room.keep();
    }
    put?;
    // One at a time: nobody looks again behind the number he has seen, so an attempt before this one has lost its own when
    // another pack was published since.
    let mut publishing = sharing.publishing.lock().await;
    let named = |seq| IndexName { node: shared.node, seq, pack: pack.index.pack };
    if let Some(before) = closed.number.filter(|seq| !publishing.is_last(*seq)) {
        shared.store.delete(&named(before).path(), deadline).await?;
        closed.number = None;
    }
    let name = named(*closed.number.get_or_insert_with(|| publishing.next()));
    shared.store.put_new(&name.path(), vec![Bytes::from(pack.index_bytes.clone())], deadline).await?;
    drop(publishing);
    let (catalog, index) = (shared.catalog.clone(), pack.index.clone());
    let added = tokio::task::spawn_blocking(move || catalog.add(name, &index)).await;
    if !matches!(added, Ok(Ok(_))) {
        tracing::warn!(?added, "the catalog does not learn of a pack of this node");
    }
    // Behind the catalog, from which packs are counted anew now and then.
    sharing.published(shared, name, &pack.index);
    Ok(true)
}

/// Leaves out what another node has uploaded since it was packed. A catalog that cannot be asked costs a copy, no more.
async fn settle(shared: &Shared, closed: &mut Closed) {
    if std::mem::replace(&mut closed.settled, true) {
        return;
    }
    let Some(pack) = closed.pack.take() else { return };
    let (catalog, entries) = (shared.catalog.clone(), pack.index.entries.clone());
    let look = move || {
        let is_known = |entry: &PackEntry| matches!(catalog.lookup(&entry.key, &entry.shard), Ok(Some(_)));
        entries.iter().enumerate().filter(|(_, entry)| is_known(entry)).map(|(at, _)| at).collect::<HashSet<_>>()
    };
    let known = tokio::task::spawn_blocking(look).await.unwrap_or_default();
    if known.is_empty() {
        closed.pack = Some(pack);
        return;
    }
    shared.counters().records_known.add(known.len() as u64);
    closed.pack = pack.without(&known);
}
