//! One pack on its way into the store: room for it, the pack, then the index object that makes it visible.

use std::time::{Duration, Instant};

use kvd_tiers::object::{IndexName, pack_path};

use super::packing::Closed;
use super::store::Fault;
use super::tier::Shared;

/// An upload may take a second for this much, beside the time that the store may be silent, four times over.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// Uploads a pack and publishes it. After an error it may be in the store, invisible: an orphan.
pub(super) async fn upload(shared: &Shared, pack: &mut Closed) -> Result<(), Fault> {
    let patience = 4 * shared.options.request_timeout + Duration::from_secs(pack.bytes / BYTES_PER_SECOND_MIN);
    let deadline = Instant::now() + patience;
    let sharing = &shared.sharing;
    let _room = sharing.make_room(shared, pack.bytes, deadline).await?;
    // The name is random: whatever is there already is what an attempt before this one put there.
    shared.store.put_new(&pack_path(pack.index.pack), pack.parts.clone(), deadline).await?;
    // One at a time: nobody looks again behind the number he has seen.
    let mut publishing = sharing.publishing.lock().await;
    let seq = *pack.number.get_or_insert_with(|| publishing.next());
    let name = IndexName { node: shared.node, seq, pack: pack.index.pack };
    shared.store.put_new(&name.path(), vec![pack.index_bytes.clone()], deadline).await?;
    drop(publishing);
    sharing.published(shared, name, pack.bytes, pack.index.entries.len() as u64);
    let (catalog, index) = (shared.catalog.clone(), pack.index.clone());
    let added = tokio::task::spawn_blocking(move || catalog.add(name, &index)).await;
    if !matches!(added, Ok(Ok(_))) {
        tracing::warn!(?added, "the catalog does not learn of a pack of this node");
    }
    Ok(())
}
