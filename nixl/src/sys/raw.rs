//! Raw byte copies between memory that may change under our hands and memory that is ours.
//!
//! The other side may be a hostile process, so no reference to such bytes is formed and the compiler must not read a byte twice:
//! on x86-64 the copy is one string instruction behind `asm!`, elsewhere (and under Miri) a loop of volatile accesses.

/// Copies `len` bytes from `src` to `dst`, each byte read exactly once.
///
/// # Safety
/// `src` must be valid for reads and `dst` for writes of `len` bytes, and the two must not overlap.
#[inline]
pub(super) unsafe fn copy_bytes(dst: *mut u8, src: *const u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller vouches for both ranges; the ABI guarantees a clear direction flag.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") dst => _, inout("rsi") src => _,
            options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for index in 0..len {
        // SAFETY: index < len, so the address lies in the range that the caller vouches for.
        let from = unsafe { src.add(index) };
        // SAFETY: as above, valid for reads.
        let byte = unsafe { from.read_volatile() };
        // SAFETY: index < len, so the address lies in the range that the caller vouches for.
        let to = unsafe { dst.add(index) };
        // SAFETY: as above, valid for writes.
        unsafe { to.write_volatile(byte) };
    }
}

/// Sets `len` bytes at `dst` to `value`.
///
/// # Safety
/// `dst` must be valid for writes of `len` bytes.
#[inline]
pub(super) unsafe fn fill_bytes(dst: *mut u8, value: u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller vouches for the range; the ABI guarantees a clear direction flag.
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") dst => _, in("al") value,
            options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    for index in 0..len {
        // SAFETY: index < len, so the address lies in the range that the caller vouches for.
        let to = unsafe { dst.add(index) };
        // SAFETY: as above, valid for writes.
        unsafe { to.write_volatile(value) };
    }
}
