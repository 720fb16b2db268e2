//! Everything that must agree before two blocks may be exchanged.

use std::fmt;

use thiserror::Error;

use crate::GroupSpec;

mod canonical;

/// The longest canonical encoding in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 64 * 1024;

/// Everything that must agree before two blocks may be exchanged. Neither the tenant nor the tensor-parallel size is part
/// of it: the first stands in the key, the second in the shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// The model's name, 1 to 256 bytes.
    pub model: String,
    /// Digest over the bytes of the weights; an in-place update makes a new namespace.
    pub weights_digest: [u8; 32],
    /// Element type of the cache, such as `bf16` or `fp8_e4m3`; 1 to 64 bytes.
    pub kv_dtype: String,
    /// How quantised elements are scaled; empty for none, at most 64 bytes.
    pub scale_scheme: String,
    /// How the engine hashes blocks; 1 to 64 bytes.
    pub hash_algorithm: String,
    /// The seed of those hashes, at most 64 bytes.
    pub hash_seed: Vec<u8>,
    /// The LoRA adapter, 1 to 256 bytes.
    pub lora: Option<String>,
    /// Tokens of one block, 1 to 65536.
    pub block_tokens: u32,
    /// The kinds of cache of this model, 1 to 32.
    pub groups: Vec<GroupSpec>,
}

/// BLAKE3 of a namespace's canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceDigest([u8; 32]);

impl NamespaceDigest {
    /// The digest with these bytes, as read from a tier.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The inverse of its `Display`: 64 hexadecimal digits, of either case.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for NamespaceDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NamespaceDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamespaceDigest({self})")
    }
}

/// Bytes or fields that are no namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NamespaceError {
    /// The encoding ends before its fields do.
    #[error("the namespace encoding ends too early")]
    Short,
    /// Bytes behind the last field.
    #[error("bytes follow the namespace encoding")]
    Trailing,
    /// Not a namespace, or one of another version.
    #[error("not a namespace encoding of version 1")]
    Version,
    /// A field outside its bounds.
    #[error("the namespace field `{0}` is out of bounds")]
    Bounds(&'static str),
    /// A field whose code is not known.
    #[error("the namespace field `{0}` has an unknown code")]
    Code(&'static str),
}

impl Namespace {
    /// The canonical encoding: one sequence of bytes per namespace, another namespace has another one.
    pub fn encode(&self) -> Result<Vec<u8>, NamespaceError> {
        canonical::encode(self)
    }

    /// The exact inverse of [`Namespace::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, NamespaceError> {
        canonical::decode(bytes)
    }

    /// The digest of the canonical encoding.
    pub fn digest(&self) -> Result<NamespaceDigest, NamespaceError> {
        self.encode().map(|bytes| NamespaceDigest(*blake3::hash(&bytes).as_bytes()))
    }
}
