//! Bytes to values. Bounded, never panics, accepts nothing but what `encode` writes.

use kvd_nixl::sys::ChecksumAlgorithm;
use kvd_proto::{BlockHash, BlockKey, InstanceId, NamespaceDigest, Shard};

use super::bytes::{all_zero, array, checked, u16_at, u32_at, u64_at};
use super::metadata::{
    HAS_PARENT, HEADER_BYTES, MAGIC, META_BYTES_MAX, Metadata, MetadataError, PAYLOAD_BYTES_MAX, SECTOR_BYTES, SEED,
    Sealed, TokenIds, UnitChecksums, VERSION, at, meta_bytes, order_from_id,
};

impl<'a> Metadata<'a> {
    /// Reads the metadata at the front of `bytes`, which must be private to this process.
    pub fn decode(bytes: &'a [u8]) -> Result<Sealed<'a>, MetadataError> {
        let bytes = bounds(bytes)?;
        let meta_checksum = checked(SEED, bytes).ok_or(MetadataError::Checksum)?;
        let metadata = fields(bytes)?;
        metadata.check()?;
        Ok(Sealed { metadata, meta_checksum })
    }
}

/// Bytes of metadata that the first sector announces; nothing of it is proven yet.
pub(super) fn announced(sector: &[u8]) -> Result<usize, MetadataError> {
    if sector.len() < SECTOR_BYTES {
        return Err(MetadataError::Short { wanted: SECTOR_BYTES, got: sector.len() });
    }
    if array::<8>(sector, at::MAGIC) != MAGIC {
        return Err(MetadataError::Magic);
    }
    if u16_at(sector, at::VERSION) != VERSION {
        return Err(MetadataError::Version(u16_at(sector, at::VERSION)));
    }
    let wanted = u32_at(sector, at::META_BYTES) as usize;
    let whole = wanted.is_multiple_of(SECTOR_BYTES) && (SECTOR_BYTES..=META_BYTES_MAX).contains(&wanted);
    whole.then_some(wanted).ok_or(MetadataError::Malformed("meta_bytes"))
}

fn bounds(bytes: &[u8]) -> Result<&[u8], MetadataError> {
    let wanted = announced(bytes)?;
    bytes.get(..wanted).ok_or(MetadataError::Short { wanted, got: bytes.len() })
}

fn fields(bytes: &[u8]) -> Result<Metadata<'_>, MetadataError> {
    let malformed = MetadataError::Malformed;
    let units = u32_at(bytes, at::UNIT_COUNT) as usize;
    let tokens = u32_at(bytes, at::TOKEN_COUNT) as usize;
    // Bounds before sums: META_BYTES_MAX keeps everything below far from overflow.
    if units > META_BYTES_MAX || tokens > META_BYTES_MAX || meta_bytes(units, tokens) != bytes.len() {
        return Err(malformed("counts"));
    }
    let (units_end, tokens_end) = (HEADER_BYTES + 8 * units, HEADER_BYTES + 8 * units + 4 * tokens);
    if usize::from(u16_at(bytes, at::HEADER_BYTES)) != HEADER_BYTES {
        return Err(malformed("header_bytes"));
    }
    if !all_zero(&bytes[at::RESERVED..HEADER_BYTES]) || !all_zero(&bytes[tokens_end..]) {
        return Err(malformed("reserved"));
    }
    let payload = u32::try_from(u64_at(bytes, at::PAYLOAD_BYTES)).ok().filter(|bytes| *bytes <= PAYLOAD_BYTES_MAX);
    let (parent_key, parent_hash) = parent(bytes)?;
    Ok(Metadata {
        namespace: NamespaceDigest::new(array(bytes, at::NAMESPACE)),
        group: u16_at(bytes, at::GROUP),
        key: BlockKey::new(array(bytes, at::KEY)),
        parent_key,
        hash: hash(bytes, at::HASH, at::HASH_LENGTH).ok_or(malformed("hash"))?,
        parent_hash,
        position: u32_at(bytes, at::POSITION),
        shard: Shard::from_bytes(&array(bytes, at::SHARD)).map_err(|_| malformed("shard"))?,
        unit_order: order_from_id(u16_at(bytes, at::LAYOUT)).ok_or(malformed("layout"))?,
        writer: InstanceId::new(array(bytes, at::WRITER)),
        generation: u32_at(bytes, at::GENERATION),
        payload_bytes: payload.ok_or(malformed("payload_bytes"))?,
        algorithm: ChecksumAlgorithm::from_id(bytes[at::ALGORITHM]).ok_or(malformed("checksum algorithm"))?,
        unit_bytes: u32_at(bytes, at::UNIT_BYTES),
        checksums: UnitChecksums::new(&bytes[HEADER_BYTES..units_end]),
        tokens: TokenIds::new(&bytes[units_end..tokens_end]),
    })
}

type Parent = (Option<BlockKey>, Option<BlockHash>);

fn parent(bytes: &[u8]) -> Result<Parent, MetadataError> {
    let key: [u8; 16] = array(bytes, at::PARENT_KEY);
    match bytes[at::FLAGS] {
        0 => {
            let empty = all_zero(&key) && all_zero(&array::<32>(bytes, at::PARENT_HASH));
            let empty = empty && bytes[at::PARENT_HASH_LENGTH] == 0;
            empty.then_some((None, None)).ok_or(MetadataError::Malformed("parent"))
        }
        HAS_PARENT => {
            let hash = hash(bytes, at::PARENT_HASH, at::PARENT_HASH_LENGTH);
            Ok((Some(BlockKey::new(key)), Some(hash.ok_or(MetadataError::Malformed("parent hash"))?)))
        }
        _ => Err(MetadataError::Malformed("flags")),
    }
}

fn hash(bytes: &[u8], at: usize, length_at: usize) -> Option<BlockHash> {
    BlockHash::from_padded(&array(bytes, at), usize::from(bytes[length_at])).ok()
}
