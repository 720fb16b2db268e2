//! Ids of daemons, engines and tenants.

use std::fmt;

use crate::namespace::NamespaceDigest;

/// Counts the starts of a daemon on one data folder. Every reply carries it, so that an engine notices a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one engine: all its processes join under the same id, and it survives a daemon restart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct InstanceId([u8; 16]);

impl InstanceId {
    /// The instance with these bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

/// The secret of a tenant. It never appears in logs: `Debug` hides it and there is no `Display`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TenantKey([u8; 32]);

impl TenantKey {
    /// The key with these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A number that names the tenant and gives nothing of the key away; the same wherever the key is known.
    pub fn tag(&self) -> u64 {
        let digest = blake3::keyed_hash(&self.0, b"kvd tenant tag v1");
        u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
    }

    /// What the tenant and one of its namespaces are called where others may look, 16 bytes each: the same wherever the key is
    /// known, and without it they tell neither apart from chance.
    pub fn sealed_names(&self, namespace: &NamespaceDigest) -> ([u8; 16], [u8; 16]) {
        let first = |hash: blake3::Hash| *hash.as_bytes().first_chunk().expect("a digest has 32 bytes");
        let tenant = first(blake3::keyed_hash(&self.0, b"kvd sealed tenant v1"));
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"kvd sealed namespace v1").update(namespace.as_bytes());
        (tenant, first(hasher.finalize()))
    }

    /// The bytes, for key derivation in this crate only.
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantKey(hidden)")
    }
}
