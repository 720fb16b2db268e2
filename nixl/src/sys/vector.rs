//! The loads and stores of the vector copy loops.

use super::raw;
use std::arch::asm;
use std::arch::x86_64::{__m256i, _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm256_storeu_si256, _mm256_stream_si256};

/// How far ahead of the loads lines are fetched. Measured: 1, 2, 4 and 8 KiB are equal, none costs a tenth.
pub(super) const PREFETCH_BYTES: usize = 2 << 10;

/// From this many bytes on a plain copy goes past the caches.
pub(super) const NON_TEMPORAL_BYTES_MIN: usize = 4096;

/// How bytes are stored. Constants rather than a generic enum, so that a loop can be compiled for each.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Store {
    /// Not at all.
    None = 0,
    /// Through the caches.
    Plain = 1,
    /// Past the caches: whole lines, not read before they are written.
    NonTemporal = 2,
}

/// What suits a destination of whole stripes: nothing for null, non-temporal where lines are written whole.
#[inline]
pub(super) fn sort_of_store(to: *mut u8) -> Store {
    match (to.is_null(), to.addr().is_multiple_of(64)) {
        (true, _) => Store::None,
        (false, true) => Store::NonTemporal,
        (false, false) => Store::Plain,
    }
}

/// Loads 32 bytes, exactly once: `asm!` without `pure` is neither repeated nor split, so what is hashed is what is stored, even if
/// another process changes the source meanwhile.
///
/// # Safety
/// 32 bytes at `from` must be readable, and the machine must have AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load(from: *const u8) -> __m256i {
    let value;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("vmovdqu {value}, ymmword ptr [{from}]", value = lateout(ymm_reg) value, from = in(reg) from, options(nostack, preserves_flags, readonly))
    };
    value
}

/// Stores 32 bytes in the way of `STORE` (a [`Store`]).
///
/// # Safety
/// Unless nothing is stored, 32 bytes at `to` must be writable, and aligned to 32 if the store is non-temporal. The machine must
/// have AVX2. After non-temporal stores, [`fence`] comes before the bytes are announced to anybody.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn store<const STORE: u8>(to: *mut u8, value: __m256i) {
    if STORE == Store::NonTemporal as u8 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_si256(to.cast(), value) };
    } else if STORE == Store::Plain as u8 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), value) };
    }
}

/// Asks for the line at an address, which may be any: a prefetch never faults.
#[inline]
pub(super) fn prefetch(at: *const u8) {
    // SAFETY: a hint to the processor, without effect on memory, valid for any address; every x86-64 has it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// Orders non-temporal stores before all later stores: only then may the bytes be announced.
#[inline]
pub(super) fn fence() {
    // SAFETY: every x86-64 has the instruction; it touches no memory.
    unsafe { _mm_sfence() };
}

/// Copies past the caches; the ends that are no whole lines go through them.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes, and the two apart. The machine must have AVX2. [`fence`] follows.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn copy_non_temporal(to: *mut u8, from: *const u8, len: usize) {
    let head = to.align_offset(64).min(len);
    let body = (len - head) & !63;
    // SAFETY: head <= len, inside the caller's ranges.
    unsafe { raw::copy_bytes(to, from, head) };
    for at in (head..head + body).step_by(64) {
        prefetch(from.wrapping_add(at + PREFETCH_BYTES));
        // SAFETY: at + 64 <= head + body <= len, inside the caller's range.
        let low = unsafe { load(from.wrapping_add(at)) };
        // SAFETY: as above.
        let high = unsafe { load(from.wrapping_add(at + 32)) };
        // SAFETY: as above; `to + head` is aligned to 64, and so is this address.
        unsafe { store::<{ Store::NonTemporal as u8 }>(to.wrapping_add(at), low) };
        // SAFETY: as above, aligned to 32.
        unsafe { store::<{ Store::NonTemporal as u8 }>(to.wrapping_add(at + 32), high) };
    }
    let done = head + body;
    // SAFETY: done <= len, and what remains lies inside the caller's ranges.
    unsafe { raw::copy_bytes(to.wrapping_add(done), from.wrapping_add(done), len - done) };
}
