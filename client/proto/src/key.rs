//! What tiers index blocks by.

use std::fmt;

use crate::{BlockHash, NamespaceDigest, Shard, TenantKey};

const GROUP_CONTEXT: &[u8; 16] = b"kvd group key v1";
const SEED_CONTEXT: &[u8; 16] = b"kvd unit seed v1";

/// Names a block across tenants, namespaces and groups: 128 bits of keyed BLAKE3 of (tenant key, namespace, group, block
/// hash). Without the tenant's key it can neither be guessed nor forged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey([u8; 16]);

impl BlockKey {
    /// The key with these bytes, as read from a tier.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({self})")
    }
}

/// The key of one (tenant, namespace, group), derived once per view. Secret like the tenant's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GroupKey([u8; 32]);

impl GroupKey {
    /// Derives the key of a group.
    pub fn derive(tenant: &TenantKey, namespace: &NamespaceDigest, group: u16) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(tenant.as_bytes());
        hasher.update(GROUP_CONTEXT);
        hasher.update(namespace.as_bytes());
        hasher.update(&group.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The key of the block with this hash.
    pub fn block(&self, hash: &BlockHash) -> BlockKey {
        // The length goes in with the bytes: a hash and the same hash with zeros behind are two blocks.
        let mut message = [0; 33];
        message[0] = hash.len() as u8;
        message[1..].copy_from_slice(&hash.padded());
        let digest = blake3::keyed_hash(&self.0, &message);
        BlockKey(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
    }
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupKey(hidden)")
    }
}

/// Seeds the unit checksums of a record, so that the bytes of another block or shard never pass for this one's.
pub fn checksum_seed(key: &BlockKey, shard: &Shard) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(SEED_CONTEXT);
    hasher.update(&key.0);
    hasher.update(&shard.to_bytes());
    let digest = hasher.finalize();
    u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interleave;

    #[test]
    fn keys_differ_in_every_part() {
        let derive = |tenant: u8, namespace: u8, group: u16, hash: &[u8]| {
            GroupKey::derive(&TenantKey::new([tenant; 32]), &NamespaceDigest::new([namespace; 32]), group)
                .block(&BlockHash::new(hash).unwrap())
        };
        let base = derive(1, 1, 0, &[7]);
        assert_eq!(base, derive(1, 1, 0, &[7]));
        for other in [derive(2, 1, 0, &[7]), derive(1, 2, 0, &[7]), derive(1, 1, 1, &[7]), derive(1, 1, 0, &[7, 0])] {
            assert_ne!(base, other);
        }
    }

    /// The derivation is part of the formats: keys on a device must mean the same to the next version.
    #[test]
    fn derivation_is_frozen() {
        let group = GroupKey::derive(&TenantKey::new([1; 32]), &NamespaceDigest::new([2; 32]), 3);
        let key = group.block(&BlockHash::new(&[4; 32]).unwrap());
        assert_eq!(key.to_string(), "9e312965bca16365da4b5b697ae2178e");
        let shard = Shard::new(0..32, 0..8, Interleave::WHOLE).unwrap();
        assert_eq!(format!("{:016x}", checksum_seed(&key, &shard)), "a5f6a0d4fd63d2d3");
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", TenantKey::new([9; 32])), "TenantKey(hidden)");
        let group = GroupKey::derive(&TenantKey::new([9; 32]), &NamespaceDigest::new([2; 32]), 3);
        assert_eq!(format!("{group:?}"), "GroupKey(hidden)");
    }
}
