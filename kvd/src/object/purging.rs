//! Everything of a tenant or a namespace goes from the store, whoever wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use kvd_tiers::object::{PACKS_PREFIX, PackName, Realm, pack_path, parse_pack_path};

use super::store::Fault;
use super::tier::Shared;
use super::{collecting, learning};

/// How long a store that fails is tried, since a pack could be deleted last.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// Looks that find something; what is found by then was stored by others while the purge went on.
const PASSES_MAX: usize = 8;
/// Packs deleted at a time.
const DELETED_AT_ONCE: usize = 8;

/// What a purge takes from the store. Other tenants' packs are never ours to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything of a tenant, by the name that it has in the store.
    Tenant([u8; 16]),
    /// One namespace of a tenant.
    Realm(Realm),
}

impl Scope {
    pub(super) fn takes(&self, realm: &Realm) -> bool {
        match self {
            Self::Tenant(tenant) => realm.tenant == *tenant,
            Self::Realm(wanted) => realm == wanted,
        }
    }
}

/// Deletes every pack of the scope, and looks again until the store lists none, or only what others go on storing. Nothing of
/// this node is uploaded meanwhile.
pub(super) async fn purge(shared: Arc<Shared>, scope: Scope) -> Result<u64, Fault> {
    let mut until = Instant::now() + PATIENCE;
    let (mut deleted, mut passes) = (0, 0);
    while passes < PASSES_MAX {
        let before = deleted;
        let passed = pass(&shared, scope, &mut deleted).await;
        if deleted > before {
            until = Instant::now() + PATIENCE;
        }
        match passed {
            Ok(()) if deleted == before => return Ok(deleted),
            Ok(()) => passes += 1,
            Err(fault) if Instant::now() >= until || !(fault.is_transient() || fault == Fault::Open) => {
                return Err(fault);
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    tracing::warn!("other nodes go on storing what is purged: it is left where it was stored after the purge");
    Ok(deleted)
}

/// One look at all that there is; counts the packs that went. What is half deleted may be of the scope, and no listing of index
/// objects shows it: it goes first, whosever it is.
async fn pass(shared: &Arc<Shared>, scope: Scope, deleted: &mut u64) -> Result<(), Fault> {
    *deleted += collecting::finish(shared).await?;
    learning::list_all(shared).await?;
    let catalog = shared.catalog.clone();
    let found = tokio::task::spawn_blocking(move || {
        catalog.packs().filter(|row| scope.takes(&row.realm)).map(|row| row.index_name()).collect::<Vec<_>>()
    });
    let found = found.await.map_err(|error| Fault::Other(error.to_string()))?;
    if shared.catalog.damaged() {
        // What it cannot read is purged of nothing.
        return Err(Fault::Other("the catalog is damaged: start kvd anew, and purge again".into()));
    }
    if found.is_empty() {
        return remove_invisible(shared, scope, deleted).await;
    }
    let removals = found.into_iter().map(|name| collecting::remove(shared, name));
    let mut removals = stream::iter(removals).buffer_unordered(DELETED_AT_ONCE);
    while let Some(removed) = removals.next().await {
        removed?;
        *deleted += 1;
    }
    Ok(())
}

/// Deletes packs of the scope that the catalog does not know: what crashes and late answers left behind, and what has an index
/// object that cannot be read or was refused. They tell themselves whose they are. One that its node is about to publish goes as
/// well, and is a miss to whoever learns of it.
async fn remove_invisible(shared: &Arc<Shared>, scope: Scope, deleted: &mut u64) -> Result<(), Fault> {
    let asking = shared.asking();
    let mut unknown = Vec::new();
    let mut packs = asking.pages(PACKS_PREFIX);
    while let Some(page) = packs.next().await? {
        for object in page {
            let is_unknown = |pack: &PackName| shared.catalog.pack(*pack).is_none();
            let Some(pack) = parse_pack_path(&object.path).filter(is_unknown) else { continue };
            let index = asking.index_in_pack(pack, object.bytes).await?;
            if index.is_some_and(|index| scope.takes(&index.realm)) {
                unknown.push(pack);
            }
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let mut visible = BTreeMap::new();
    let mut indexes = asking.indexes();
    while let Some(page) = indexes.next().await? {
        visible.extend(page.into_iter().filter(|name| unknown.contains(&name.pack)).map(|name| (name.pack, name)));
    }
    for pack in unknown {
        match visible.get(&pack) {
            Some(name) => collecting::remove_unknown(asking, *name).await?,
            None => shared.store.delete(&pack_path(pack), asking.deadline()).await?,
        }
        *deleted += 1;
    }
    Ok(())
}
