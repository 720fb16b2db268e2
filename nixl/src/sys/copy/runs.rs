//! Fragments in scattered memory, and the order in which they make up a record.

use std::ops::Range;

use super::CopyError;
use crate::sys::memory::MemoryError;

/// How far ahead of the copy small fragments are prefetched, and what counts as small.
pub(super) const LOOKAHEAD_BYTES: usize = 2048;

/// One direction in which fragments repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// How many there are.
    pub count: usize,
    /// Bytes from the start of one to the start of the next.
    pub stride: usize,
}

impl Axis {
    /// An axis along which nothing repeats.
    pub const ONE: Self = Self { count: 1, stride: 0 };
}

/// Fragments of equal length that repeat along up to three axes: the last axis runs fastest.
///
/// A record of one layer, `[head][token][k|v][dim]` bytes, in an engine's `[k|v][token][head][dim]`, is one run: fragments of `dim`
/// bytes, axes head (stride dim), token (stride heads * dim), k|v (stride tokens * heads * dim).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StridedRun {
    /// Where the first fragment starts, in bytes from the start of the scattered memory.
    pub offset: usize,
    /// Length of each fragment in bytes. Multiples of 64, at addresses that are multiples of 64, are fast.
    pub fragment_bytes: usize,
    /// The axes, slowest first.
    pub axes: [Axis; 3],
}

impl StridedRun {
    /// One fragment at the start.
    pub const fn contiguous(bytes: usize) -> Self {
        Self { offset: 0, fragment_bytes: bytes, axes: [Axis::ONE; 3] }
    }

    /// All bytes of the run; `None` when they do not fit the address space.
    pub fn bytes(&self) -> Option<usize> {
        self.axes.iter().try_fold(self.fragment_bytes, |bytes, axis| bytes.checked_mul(axis.count))
    }

    /// One past the last byte touched, counted from the start of the scattered memory; `None` when that does not fit the address
    /// space.
    pub fn end(&self) -> Option<usize> {
        let first = self.offset.checked_add(self.fragment_bytes)?;
        self.axes
            .iter()
            .try_fold(first, |end, axis| axis.stride.checked_mul(axis.count.checked_sub(1)?)?.checked_add(end))
    }

    /// The same run without what lies outside `bytes` of it. `None` where that is no run: a range that begins or ends within a
    /// fragment and covers others too, or does so with rows of them.
    pub fn part(&self, bytes: Range<usize>) -> Option<Self> {
        if bytes.start >= bytes.end || bytes.end > self.bytes()? {
            return None;
        }
        // Bytes from one member to the next in the record; the fragment itself is the fastest axis, of single bytes.
        let [slow, middle, fast] = self.axes;
        let row = self.fragment_bytes * fast.count;
        let axes = [(row * middle.count, slow), (row, middle), (self.fragment_bytes, fast)];
        let mut part = Self { axes: [Axis::ONE; 3], ..*self };
        let (mut first, len) = (bytes.start, bytes.len());
        for (at, (period, axis)) in axes.into_iter().enumerate() {
            part.offset += first / period * axis.stride;
            first %= period;
            if first + len <= period {
                continue;
            }
            if first != 0 || !len.is_multiple_of(period) {
                return None;
            }
            part.axes[at] = Axis { count: len / period, ..axis };
            part.axes[at + 1..].copy_from_slice(&self.axes[at + 1..]);
            return Some(part);
        }
        part.offset += first;
        part.fragment_bytes = len;
        Some(part)
    }

    /// Calls `visit` with the offset of every fragment in order, and with the offset of one that comes some [`LOOKAHEAD_BYTES`]
    /// later on the fastest axis (perhaps beyond its end: good for a prefetch only).
    #[inline]
    pub(super) fn for_each(&self, mut visit: impl FnMut(usize, usize)) {
        let [slow, middle, fast] = self.axes;
        let ahead = LOOKAHEAD_BYTES.div_ceil(self.fragment_bytes).wrapping_mul(fast.stride);
        for slow_index in 0..slow.count {
            for middle_index in 0..middle.count {
                let row = self.offset + slow_index * slow.stride + middle_index * middle.stride;
                for fast_index in 0..fast.count {
                    let offset = row + fast_index * fast.stride;
                    visit(offset, offset.wrapping_add(ahead));
                }
            }
        }
    }
}

/// The bytes of all runs together, if every fragment lies inside `len` bytes of scattered memory.
pub(super) fn check(runs: &[StridedRun], len: usize) -> Result<usize, CopyError> {
    let mut total = 0usize;
    for run in runs {
        let refused = CopyError::Run { fragment_bytes: run.fragment_bytes };
        let bytes = run.bytes().filter(|bytes| *bytes > 0).ok_or(refused)?;
        total = total.checked_add(bytes).ok_or(refused)?;
        if run.end().ok_or(refused)? > len {
            return Err(MemoryError::OutOfBounds { offset: run.offset, len: bytes, size: len }.into());
        }
    }
    Ok(total)
}
