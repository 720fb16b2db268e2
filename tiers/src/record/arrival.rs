//! A record that comes in pieces of any length, from an object store say: verified in the pass that stores it.

use kvd_nixl::sys::MemoryExtent;
use kvd_nixl::sys::copy::{StreamCopy, Units};

use kvd_proto::checksum_seed;

use super::metadata::{META_BYTES_MAX, Metadata, SECTOR_BYTES, Sealed, slot_bytes};
use super::verify::{Expect, Mismatch, compare};

/// One record on its way into its slot. What is hashed is what is stored, so the slot's bytes are not read again.
#[derive(Debug)]
pub struct Arrival {
    slot: MemoryExtent,
    expect: Expect,
    /// Bytes of the whole record, and how many of them have come.
    bytes: usize,
    came: usize,
    /// A private copy of the metadata, as far as it has come.
    metadata: Vec<u8>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// So many bytes of metadata are still needed.
    Metadata(usize),
    Payload(Box<StreamCopy>),
    /// Nothing more of it is stored.
    Refused(Mismatch),
}

impl Arrival {
    /// For a record of `bytes` bytes, metadata and padding included, that is to fill `slot`.
    pub fn new(slot: MemoryExtent, bytes: usize, expect: Expect) -> Self {
        let meta_bytes = bytes.checked_sub(slot_bytes(0, expect.payload_bytes));
        let fits = |meta: &usize| meta.is_multiple_of(SECTOR_BYTES) && (SECTOR_BYTES..=META_BYTES_MAX).contains(meta);
        let stage = match meta_bytes.filter(fits) {
            Some(wanted) if slot.len() == bytes => Stage::Metadata(wanted),
            _ => Stage::Refused(Mismatch::Bounds { wanted: bytes, got: slot.len() }),
        };
        let metadata = Vec::with_capacity(if let Stage::Metadata(wanted) = stage { wanted } else { 0 });
        Self { slot, expect, bytes, came: 0, metadata, stage }
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> usize {
        self.bytes - self.came
    }

    /// Takes what belongs to the record from the front of `bytes`, and returns the rest. A record that was refused takes its
    /// bytes as well, and stores none.
    pub fn take<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (mut now, later) = bytes.split_at(bytes.len().min(self.left()));
        self.came += now.len();
        if let Stage::Metadata(wanted) = self.stage {
            let (metadata, payload) = now.split_at(now.len().min(wanted - self.metadata.len()));
            self.metadata.extend_from_slice(metadata);
            now = payload;
            if self.metadata.len() == wanted {
                self.stage = self.payload(wanted).map_or_else(Stage::Refused, |copy| Stage::Payload(Box::new(copy)));
            }
        }
        if let Stage::Payload(copy) = &mut self.stage {
            let (payload, padding) = now.split_at(now.len().min(copy.left()));
            let stored = copy.take(payload).is_ok();
            let at = self.came - padding.len();
            // Neither can be: all lengths were compared.
            if !stored || self.slot.write(at, padding).is_err() {
                self.stage = Stage::Refused(self.bounds());
            }
        }
        later
    }

    /// The record's metadata, once all of it has come and every byte but the padding is as it was sealed.
    pub fn finish(&self) -> Result<Sealed<'_>, Mismatch> {
        let cut = Mismatch::Bounds { wanted: self.bytes, got: self.came };
        let found = match &self.stage {
            Stage::Payload(copy) if self.left() == 0 => copy.checksums().ok_or(cut)?,
            Stage::Payload(_) | Stage::Metadata(_) => return Err(cut),
            Stage::Refused(mismatch) => return Err(*mismatch),
        };
        let sealed = Metadata::decode(&self.metadata)?;
        let wanted = sealed.metadata.checksums;
        match found.iter().enumerate().position(|(unit, checksum)| wanted.get(unit) != *checksum) {
            Some(unit) => Err(Mismatch::Unit { unit: unit as u32 }),
            None => Ok(sealed),
        }
    }

    /// What takes the payload, after the metadata has been found to be what was expected.
    fn payload(&self, meta_bytes: usize) -> Result<StreamCopy, Mismatch> {
        let sealed = compare(Metadata::decode(&self.metadata)?, &self.expect)?;
        let found = &sealed.metadata;
        // Fewer than there is room for would leave the payload in another place.
        if found.meta_bytes() != meta_bytes {
            return Err(Mismatch::Bounds { wanted: meta_bytes, got: found.meta_bytes() });
        }
        let units = Units {
            unit_bytes: found.unit_bytes as usize,
            algorithm: found.algorithm,
            seed: checksum_seed(&found.key, &found.shard),
        };
        let payload = self.slot.part(meta_bytes, found.payload_bytes as usize).map_err(|_| self.bounds())?;
        self.slot.write(0, &self.metadata).map_err(|_| self.bounds())?;
        StreamCopy::new(payload, &units).map_err(|_| self.bounds())
    }

    fn bounds(&self) -> Mismatch {
        Mismatch::Bounds { wanted: self.bytes, got: self.slot.len() }
    }
}
