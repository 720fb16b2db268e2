//! A record that comes in pieces of any length, as a network gives them: stored and hashed in one pass as it comes.

use std::fmt;

use super::{CopyError, Pass, STRIPE_BYTES, Units};
use crate::sys::memory::MemoryExtent;

/// Stores pieces one behind the other, with the checksum of every unit in the same pass.
pub struct StreamCopy {
    destination: MemoryExtent,
    pass: Pass<Box<[u64]>>,
    /// Bytes that lie in the destination.
    stored: usize,
    /// Bytes that are no whole stripe yet, and how many: the pass is at its best with whole ones.
    tail: [u8; STRIPE_BYTES],
    held: usize,
}

impl StreamCopy {
    /// For a record as long as `destination`.
    pub fn new(destination: MemoryExtent, units: &Units) -> Result<Self, CopyError> {
        if units.unit_bytes == 0 {
            return Err(CopyError::UnitBytes);
        }
        let checksums = vec![0; units.count(destination.len())].into_boxed_slice();
        let pass = Pass::new(units, destination.len(), true, checksums);
        Ok(Self { destination, pass, stored: 0, tail: [0; STRIPE_BYTES], held: 0 })
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> usize {
        self.destination.len() - self.stored - self.held
    }

    /// Takes the next bytes of the record. When this returns, the stores are ordered before all later ones of the thread: the
    /// memory may be given to somebody else.
    pub fn take(&mut self, mut piece: &[u8]) -> Result<(), CopyError> {
        if piece.len() > self.left() {
            let record_bytes = self.destination.len();
            return Err(CopyError::Length { record_bytes, other_bytes: self.stored + self.held + piece.len() });
        }
        let last = piece.len() == self.left();
        if self.held > 0 {
            piece = self.hold(piece);
            if self.held == STRIPE_BYTES || last && piece.is_empty() {
                let (tail, held) = (self.tail, std::mem::take(&mut self.held));
                self.store(&tail[..held]);
            }
        }
        let whole = if last { piece.len() } else { piece.len() / STRIPE_BYTES * STRIPE_BYTES };
        let (now, later) = piece.split_at(whole);
        self.store(now);
        self.hold(later);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        crate::sys::vector::fence();
        Ok(())
    }

    /// The checksums of all units, once all bytes have come.
    pub fn checksums(&self) -> Option<&[u64]> {
        (self.stored == self.destination.len()).then_some(&*self.pass.checksums)
    }

    /// Keeps what fits behind what is held, and returns the rest.
    fn hold<'p>(&mut self, piece: &'p [u8]) -> &'p [u8] {
        let (now, later) = piece.split_at(piece.len().min(STRIPE_BYTES - self.held));
        self.tail[self.held..self.held + now.len()].copy_from_slice(now);
        self.held += now.len();
        later
    }

    /// Whole stripes, or the end of the record.
    fn store(&mut self, bytes: &[u8]) {
        let to = self.destination.as_ptr().wrapping_add(self.stored);
        // SAFETY: `take` has found that all bytes together are no more than the destination has, which is alive; no Rust
        // reference to its bytes exists, so `bytes` lies apart. Only the last piece is no multiple of 64, and a last unit with
        // such an end is given to a hasher that takes any.
        unsafe { self.pass.take(to, bytes.as_ptr(), bytes.len()) };
        self.stored += bytes.len();
    }
}

impl fmt::Debug for StreamCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamCopy").field("destination", &self.destination).field("left", &self.left()).finish()
    }
}
