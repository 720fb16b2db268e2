//! Everything of a tenant or a namespace goes from the store, whoever wrote it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_tiers::object::Realm;

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

/// One look at all that is published; how many packs of the scope there were.
async fn pass(shared: &Arc<Shared>, scope: Scope) -> Result<u64, Fault> {
    learning::list_all(shared).await?;
    let catalog = shared.catalog.clone();
    let found = tokio::task::spawn_blocking(move || {
        catalog.packs().filter(|row| scope.takes(&row.realm)).map(|row| row.index_name()).collect::<Vec<_>>()
    });
    let found = found.await.map_err(|error| Fault::Other(error.to_string()))?;
    for name in &found {
        collecting::remove(shared, *name).await?;
    }
    Ok(found.len() as u64)
}
