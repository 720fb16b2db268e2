//! How long packs are kept, by whose they are: what a namespace's own limits leave open its tenant's say, and what those
//! leave open, the limits of all.

use std::collections::BTreeMap;
use std::time::Duration;

use kvd_proto::{NamespaceDigest, TenantKey};
use kvd_tiers::object::Realm;

use super::collecting::before;
use crate::core::ObjectOptions;

/// Limits by the names that realms have in the store. Of other tenants, whose names nobody here knows, only those of all.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    all: Limit,
    tenant: Option<([u8; 16], Limit)>,
    namespaces: BTreeMap<[u8; 16], Limit>,
}

/// `None`: not said here. Zero: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limit {
    age: Option<Duration>,
    idle: Option<Duration>,
}

impl Limits {
    /// The limits as they are configured, for whoever has the tenant's key.
    pub(crate) fn new(options: &ObjectOptions, key: &TenantKey) -> Self {
        let (tenant, _) = key.sealed_names(&NamespaceDigest::new([0; 32]));
        let mut limits = Self { tenant: Some((tenant, Limit::default())), ..Self::of_all(options) };
        for given in &options.limits {
            let limit = Limit { age: given.max_age, idle: given.max_idle };
            match &given.namespace {
                Some(digest) => drop(limits.namespaces.insert(key.sealed_names(digest).1, limit)),
                None => limits.tenant = Some((tenant, limit)),
            }
        }
        limits
    }

    /// The limits that are everybody's.
    pub(crate) fn of_all(options: &ObjectOptions) -> Self {
        let all = Limit { age: options.expire_after, idle: options.idle_after };
        Self { all, tenant: None, namespaces: BTreeMap::new() }
    }

    /// Age at which a pack is deleted.
    fn age(&self, realm: &Realm) -> Option<Duration> {
        self.first(realm, |limit| limit.age)
    }

    /// After how long without a read a pack is deleted.
    pub(crate) fn idle(&self, realm: &Realm) -> Option<Duration> {
        self.first(realm, |limit| limit.idle)
    }

    /// Whether any pack is ever too old.
    pub(crate) fn any_age(&self) -> bool {
        let tenant = self.tenant.iter().map(|(_, limit)| limit);
        tenant
            .chain(self.namespaces.values())
            .chain([&self.all])
            .any(|limit| limit.age.is_some_and(|age| !age.is_zero()))
    }

    /// Whether a pack that was closed then is too old now, both in milliseconds since 1970.
    pub(crate) fn is_expired(&self, realm: &Realm, created_ms: u64, now_ms: u64) -> bool {
        self.age(realm).is_some_and(|age| created_ms < before(now_ms, age))
    }

    fn first(&self, realm: &Realm, of: impl Fn(&Limit) -> Option<Duration>) -> Option<Duration> {
        let tenant = self.tenant.as_ref().filter(|(name, _)| *name == realm.tenant).map(|(_, limit)| limit);
        let namespace = tenant.and_then(|_| self.namespaces.get(&realm.namespace));
        let said = namespace.and_then(&of).or_else(|| tenant.and_then(&of)).or_else(|| of(&self.all));
        said.filter(|limit| !limit.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ObjectLimit;
    use crate::object::options::StoreUrl;

    const HOUR: Duration = Duration::from_secs(3600);

    fn options() -> ObjectOptions {
        ObjectOptions::sample(StoreUrl::Folder("/nowhere".into()))
    }

    fn realm(tenant: u8, namespace: u8) -> Realm {
        let (tenant, namespace) = TenantKey::new([tenant; 32]).sealed_names(&NamespaceDigest::new([namespace; 32]));
        Realm { tenant, namespace }
    }

    #[test]
    fn the_nearest_limit_that_says_anything_counts() {
        let digest = |number| Some(NamespaceDigest::new([number; 32]));
        let of = |namespace, max_age, max_idle| ObjectLimit { namespace, max_age, max_idle };
        let options = ObjectOptions {
            expire_after: Some(100 * HOUR),
            idle_after: None,
            limits: vec![
                of(None, Some(50 * HOUR), Some(5 * HOUR)),
                of(digest(1), Some(HOUR), None),
                of(digest(2), Some(Duration::ZERO), Some(Duration::ZERO)),
            ],
            ..options()
        };
        let limits = Limits::new(&options, &TenantKey::new([9; 32]));
        let told = |realm| (limits.age(&realm), limits.idle(&realm));
        assert_eq!(told(realm(9, 1)), (Some(HOUR), Some(5 * HOUR)), "its tenant says what it leaves open");
        assert_eq!(told(realm(9, 2)), (None, None), "zero is for ever");
        assert_eq!(told(realm(9, 3)), (Some(50 * HOUR), Some(5 * HOUR)));
        assert_eq!(told(realm(8, 1)), (Some(100 * HOUR), None), "another tenant's namespace of the same digest");
        let all = Limits::of_all(&options);
        assert_eq!((all.age(&realm(9, 1)), all.idle(&realm(9, 1))), (Some(100 * HOUR), None));
        assert!(limits.any_age() && all.any_age());
        let forever =
            ObjectOptions { expire_after: None, limits: vec![of(digest(2), Some(Duration::ZERO), None)], ..options };
        assert!(!Limits::new(&forever, &TenantKey::new([9; 32])).any_age());
    }
}
