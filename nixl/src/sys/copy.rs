//! Copies between memories: plain, with checksums in the same pass, and between a record and scattered fragments.
//!
//! All of them read every source byte exactly once and store the very bytes that they hashed, so a source that is changed meanwhile
//! (it belongs to another process) gives other bytes or other checksums, never a checksum of bytes that were not stored. When a
//! call returns, its stores are ordered before all later stores of the thread: the bytes may be announced at once.

mod runs;
mod stream;

use super::checksum::{ChecksumAlgorithm, Stage, UnitHasher, unit_seed};
use super::lanes::STRIPE_BYTES;
use super::memory::{MemoryError, MemoryExtent};
use super::raw;
pub use runs::{Axis, StridedRun};
pub use stream::StreamCopy;

/// Why a copy was refused. Nothing was stored then; of a stream, nothing of the piece that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// A range lies outside its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The two sides differ in length.
    #[error("the record has {record_bytes} bytes, the other side {other_bytes}")]
    Length {
        /// Length of the record, in bytes.
        record_bytes: usize,
        /// Length of the other side, in bytes.
        other_bytes: usize,
    },
    /// Room for another number of checksums was given.
    #[error("the record has {units} units, but there are {checksums} checksums")]
    Checksums {
        /// Units of the record.
        units: usize,
        /// Checksums that there was room for.
        checksums: usize,
    },
    /// Units cannot have no bytes.
    #[error("units of no bytes")]
    UnitBytes,
    /// Source and destination share bytes.
    #[error("source and destination overlap")]
    Overlap,
    /// A run of fragments has no bytes or its size does not fit the address space.
    #[error("a run of {fragment_bytes}-byte fragments is empty or too large")]
    Run {
        /// Length of its fragments, in bytes.
        fragment_bytes: usize,
    },
}

/// How a record is cut in units and how these are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    /// Length of a unit in bytes; the last one of a record may be shorter.
    pub unit_bytes: usize,
    /// Algorithm of the checksums.
    pub algorithm: ChecksumAlgorithm,
    /// Seed of the record, from which each unit's own is made ([`unit_seed`]).
    pub seed: u64,
}

impl Units {
    /// How many units a record of so many bytes has.
    pub fn count(&self, record_bytes: usize) -> usize {
        record_bytes.div_ceil(self.unit_bytes)
    }

    fn check(&self, record_bytes: usize, checksums: &[u64]) -> Result<(), CopyError> {
        if self.unit_bytes == 0 {
            return Err(CopyError::UnitBytes);
        }
        let units = self.count(record_bytes);
        if units == checksums.len() { Ok(()) } else { Err(CopyError::Checksums { units, checksums: checksums.len() }) }
    }
}

/// Copies all of `source` to `destination`, which has the same length.
pub fn copy(source: &MemoryExtent, destination: &MemoryExtent) -> Result<(), CopyError> {
    same_length(source.len(), destination.len())?;
    apart(source, destination)?;
    let (to, from, len) = (destination.as_ptr(), source.as_ptr(), source.len());
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len >= super::vector::NON_TEMPORAL_BYTES_MIN && super::lanes::supported() {
        // SAFETY: both extents are alive, `len` bytes long and apart, and the machine has AVX2.
        unsafe { super::vector::copy_non_temporal(to, from, len) };
        super::vector::fence();
        return Ok(());
    }
    // SAFETY: both extents are alive, `len` bytes long and apart.
    unsafe { raw::copy_bytes(to, from, len) };
    Ok(())
}

/// Copies `source` to `destination` and makes the checksum of every unit in the same pass.
pub fn copy_checksum(
    source: &MemoryExtent,
    destination: &MemoryExtent,
    units: &Units,
    checksums: &mut [u64],
) -> Result<(), CopyError> {
    let whole = [StridedRun::contiguous(destination.len())];
    scatter_checksum(source, destination, if destination.is_empty() { &[] } else { &whole }, units, checksums)
}

/// Makes the checksum of every unit of `record` without copying it.
pub fn checksum_units(record: &MemoryExtent, units: &Units, checksums: &mut [u64]) -> Result<(), CopyError> {
    units.check(record.len(), checksums)?;
    let mut pass = Pass::new(units, record.len(), record.len().is_multiple_of(STRIPE_BYTES), checksums);
    // SAFETY: the extent is alive and of this length; nothing is stored.
    unsafe { pass.take(std::ptr::null_mut(), record.as_ptr(), record.len()) };
    Ok(())
}

/// Gathers the fragments that `runs` names in `scattered`, in that order, into `record`, with checksums of the record's units.
pub fn gather_checksum(
    scattered: &MemoryExtent,
    runs: &[StridedRun],
    record: &MemoryExtent,
    units: &Units,
    checksums: &mut [u64],
) -> Result<(), CopyError> {
    let mut pass = Pass::checked(scattered, runs, record, units, checksums)?;
    let (from, mut to) = (scattered.as_ptr(), record.as_ptr());
    for run in runs {
        run.for_each(|offset, ahead| {
            pass.prefetch(from.wrapping_add(ahead), run.fragment_bytes);
            // SAFETY: `checked` found every fragment inside `scattered`, and their sum to be the length of `record`.
            unsafe { pass.take(to, from.wrapping_add(offset), run.fragment_bytes) };
            to = to.wrapping_add(run.fragment_bytes);
        });
    }
    pass.end();
    Ok(())
}

/// Scatters `record` over the fragments that `runs` names in `scattered`, in that order, with checksums of the record's units.
pub fn scatter_checksum(
    record: &MemoryExtent,
    scattered: &MemoryExtent,
    runs: &[StridedRun],
    units: &Units,
    checksums: &mut [u64],
) -> Result<(), CopyError> {
    let mut pass = Pass::checked(scattered, runs, record, units, checksums)?;
    let (mut from, to) = (record.as_ptr().cast_const(), scattered.as_ptr());
    for run in runs {
        run.for_each(|offset, _ahead| {
            // SAFETY: `checked` found every fragment inside `scattered`, and their sum to be the length of `record`.
            unsafe { pass.take(to.wrapping_add(offset), from, run.fragment_bytes) };
            from = from.wrapping_add(run.fragment_bytes);
        });
    }
    pass.end();
    Ok(())
}

impl ChecksumAlgorithm {
    /// The checksum of `len` bytes of memory at `offset` in an extent, each byte read once.
    pub fn checksum_memory(
        self,
        seed: u64,
        extent: &MemoryExtent,
        offset: usize,
        len: usize,
    ) -> Result<u64, MemoryError> {
        let part = extent.part(offset, len)?;
        let mut hasher = UnitHasher::new(self, seed, len, len.is_multiple_of(STRIPE_BYTES));
        // SAFETY: the part is alive and `len` bytes long; nothing is stored; a Lanes hasher is given whole stripes.
        unsafe { hasher.take(std::ptr::null_mut(), part.as_ptr(), len, &mut Stage::default()) };
        Ok(hasher.finish())
    }
}

/// One pass over a record in order, however its pieces come.
struct Pass<C> {
    units: Units,
    whole_stripes: bool,
    record_left: usize,
    unit: usize,
    hasher: Option<(UnitHasher, usize)>,
    /// One for each unit of the record.
    checksums: C,
    stage: Stage,
}

impl<'a> Pass<&'a mut [u64]> {
    /// After all checks that the copy is sound.
    fn checked(
        scattered: &MemoryExtent,
        runs: &[StridedRun],
        record: &MemoryExtent,
        units: &Units,
        checksums: &'a mut [u64],
    ) -> Result<Self, CopyError> {
        let other_bytes = runs::check(runs, scattered.len())?;
        same_length(record.len(), other_bytes)?;
        units.check(record.len(), checksums)?;
        apart(record, scattered)?;
        let whole_stripes = runs.iter().all(|run| run.fragment_bytes.is_multiple_of(STRIPE_BYTES));
        Ok(Self::new(units, record.len(), whole_stripes, checksums))
    }
}

impl<C: AsMut<[u64]>> Pass<C> {
    fn new(units: &Units, record_bytes: usize, whole_stripes: bool, checksums: C) -> Self {
        let whole_stripes = whole_stripes && units.unit_bytes.is_multiple_of(STRIPE_BYTES);
        Self {
            units: *units,
            whole_stripes,
            record_left: record_bytes,
            unit: 0,
            hasher: None,
            checksums,
            stage: Stage::default(),
        }
    }

    /// Takes the next `len` bytes of the record, cut at the ends of units.
    ///
    /// # Safety
    /// `from` must be readable and `to`, unless null, writable for `len` bytes, and the two apart. All pieces together are at most
    /// the record's length, and but for the record's last one multiples of 64 bytes if `whole_stripes` was given.
    unsafe fn take(&mut self, mut to: *mut u8, mut from: *const u8, mut len: usize) {
        while len > 0 {
            // The hasher stays in its place: moving its state would cost as much as hashing a small fragment.
            let (hasher, unit_left) = self.hasher.get_or_insert_with(|| {
                let bytes = self.units.unit_bytes.min(self.record_left);
                let seed = unit_seed(self.units.seed, u32::try_from(self.unit).unwrap_or(u32::MAX));
                (UnitHasher::new(self.units.algorithm, seed, bytes, self.whole_stripes), bytes)
            });
            let piece = len.min(*unit_left);
            // SAFETY: piece <= len, so the caller's promise covers it; unit lengths are whole stripes where pieces are.
            unsafe { hasher.take(to, from, piece, &mut self.stage) };
            *unit_left -= piece;
            if *unit_left == 0 {
                self.checksums.as_mut()[self.unit] = hasher.finish();
                self.unit += 1;
                self.hasher = None;
            }
            if !to.is_null() {
                to = to.wrapping_add(piece);
            }
            from = from.wrapping_add(piece);
            len -= piece;
            self.record_left -= piece;
        }
    }

    /// Fetches a small fragment that will be taken soon; large ones are prefetched while they are read.
    #[inline]
    fn prefetch(&self, at: *const u8, bytes: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if bytes <= runs::LOOKAHEAD_BYTES {
            for line in (0..bytes).step_by(64) {
                super::vector::prefetch(at.wrapping_add(line));
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = (at, bytes);
    }

    fn end(self) {
        assert_eq!(self.record_left, 0, "the runs were checked to cover the record");
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        super::vector::fence();
    }
}

fn same_length(record_bytes: usize, other_bytes: usize) -> Result<(), CopyError> {
    if record_bytes == other_bytes { Ok(()) } else { Err(CopyError::Length { record_bytes, other_bytes }) }
}

/// Two mappings of one file can still share bytes; that gives other bytes, but nothing unsound.
fn apart(one: &MemoryExtent, other: &MemoryExtent) -> Result<(), CopyError> {
    let (first, second) = (one.as_ptr().addr(), other.as_ptr().addr());
    if first < second + other.len() && second < first + one.len() { Err(CopyError::Overlap) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
