//! Everything of a tenant or a namespace goes from the store, whoever wrote it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_tiers::object::{PACKS_PREFIX, PackName, Realm, parse_pack_path};

use super::store::Fault;
use super::tier::Shared;
use super::{collecting, learning};

/// How long a store that fails is tried.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

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

/// Deletes every pack of the scope, and looks again until the store lists none. Nothing of this node is uploaded meanwhile.
pub(super) async fn purge(shared: Arc<Shared>, scope: Scope) -> Result<u64, Fault> {
    let until = Instant::now() + PATIENCE;
    let mut deleted = 0;
    loop {
        match pass(&shared, scope).await {
            Ok(0) => return Ok(deleted),
            Ok(more) => deleted += more,
            Err(fault) if Instant::now() >= until || !(fault.is_transient() || fault == Fault::Open) => {
                return Err(fault);
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// One look at all that there is; how many packs of the scope there were. What is half deleted may be of the scope, and
/// no listing of index objects shows it: it goes first, whosever it is.
async fn pass(shared: &Arc<Shared>, scope: Scope) -> Result<u64, Fault> {
    let finished = collecting::finish(shared).await?;
    learning::list_all(shared).await?;
    let catalog = shared.catalog.clone();
    let found = tokio::task::spawn_blocking(move || {
        catalog.packs().filter(|row| scope.takes(&row.realm)).map(|row| row.index_name()).collect::<Vec<_>>()
    });
    let found = found.await.map_err(|error| Fault::Other(error.to_string()))?;
    for name in &found {
        collecting::remove(shared, *name).await?;
    }
    let invisible = if found.is_empty() { remove_invisible(shared, scope).await? } else { 0 };
    Ok(finished + found.len() as u64 + invisible)
}

/// Deletes packs of the scope that no index object speaks of: what crashes and late answers left behind. They tell themselves
/// whose they are. One that its node is about to publish goes as well, and is a miss to whoever learns of it.
async fn remove_invisible(shared: &Arc<Shared>, scope: Scope) -> Result<u64, Fault> {
    let asking = shared.asking();
    let mut packs = asking.pages(PACKS_PREFIX);
    let mut deleted = 0;
    while let Some(page) = packs.next().await? {
        for object in page {
            let unknown = |pack: &PackName| shared.catalog.pack(*pack).is_none();
            let Some(pack) = parse_pack_path(&object.path).filter(unknown) else { continue };
            let index = asking.index_in_pack(pack, object.bytes).await?;
            if index.is_some_and(|index| scope.takes(&index.realm)) {
                shared.store.delete(&object.path, asking.deadline()).await?;
                deleted += 1;
            }
        }
    }
    Ok(deleted)
}
