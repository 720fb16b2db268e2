//! Values to bytes.

use super::bytes::{put, seal};
use super::metadata::{HAS_PARENT, HEADER_BYTES, MAGIC, Metadata, MetadataError, SEED, VERSION, at, order_id};

impl Metadata<'_> {
    /// Writes the metadata to the front of `out` and returns its checksum, which the pointing table must keep.
    ///
    /// `out` must have at least [`Metadata::meta_bytes`] bytes; exactly so many are written.
    pub fn encode(&self, out: &mut [u8]) -> Result<u64, MetadataError> {
        self.check()?;
        let wanted = self.meta_bytes();
        let got = out.len();
        let out = out.get_mut(..wanted).ok_or(MetadataError::Short { wanted, got })?;
        out.fill(0);
        put(out, at::MAGIC, &MAGIC);
        put(out, at::VERSION, &VERSION.to_le_bytes());
        put(out, at::HEADER_BYTES, &(HEADER_BYTES as u16).to_le_bytes());
        put(out, at::META_BYTES, &(wanted as u32).to_le_bytes());
        put(out, at::PAYLOAD_BYTES, &u64::from(self.payload_bytes).to_le_bytes());
        put(out, at::GENERATION, &self.generation.to_le_bytes());
        put(out, at::POSITION, &self.position.to_le_bytes());
        put(out, at::KEY, self.key.as_bytes());
        put(out, at::NAMESPACE, self.namespace.as_bytes());
        put(out, at::WRITER, self.writer.as_bytes());
        put(out, at::HASH, &self.hash.padded());
        out[at::HASH_LENGTH] = self.hash.len() as u8;
        if let (Some(key), Some(hash)) = (&self.parent_key, &self.parent_hash) {
            put(out, at::PARENT_KEY, key.as_bytes());
            put(out, at::PARENT_HASH, &hash.padded());
            out[at::PARENT_HASH_LENGTH] = hash.len() as u8;
            out[at::FLAGS] = HAS_PARENT;
        }
        out[at::ALGORITHM] = self.algorithm.id();
        put(out, at::UNIT_BYTES, &self.unit_bytes.to_le_bytes());
        put(out, at::UNIT_COUNT, &(self.checksums.len() as u32).to_le_bytes());
        put(out, at::TOKEN_COUNT, &(self.tokens.len() as u32).to_le_bytes());
        put(out, at::SHARD, &self.shard.to_bytes());
        put(out, at::GROUP, &self.group.to_le_bytes());
        put(out, at::LAYOUT, &order_id(self.unit_order).to_le_bytes());
        put(out, HEADER_BYTES, self.checksums.bytes());
        put(out, HEADER_BYTES + self.checksums.bytes().len(), self.tokens.bytes());
        Ok(seal(SEED, out))
    }
}
