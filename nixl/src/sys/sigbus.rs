//! A guard against files that shrink under a mapping.
//!
//! A peer that may write a named tmpfs file may also truncate it; touching the lost pages raises SIGBUS, which would end the
//! daemon and every other session with it. The handler looks the address up in a fixed table of live mappings, maps zero pages
//! from the faulting page to the end of that mapping, marks it poisoned and returns: the access then succeeds on zeros. Every other
//! SIGBUS goes to the action that was there before. The handler uses atomics, `mmap` and `sigaction` only (async-signal-safe).
//!
//! System calls that touch a lost page (an I/O into the mapping) fail with `EFAULT` by themselves and need no guard.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many mappings the guard watches at once: 2 TiB of DRAM tier in 64 MiB segments.
pub const MAPPINGS_MAX: usize = 32768;

struct Watched {
    /// Somebody owns this entry.
    claimed: AtomicBool,
    /// First address; 0 = not watched.
    start: AtomicUsize,
    /// One past the last address.
    end: AtomicUsize,
    poisoned: AtomicBool,
}

static TABLE: [Watched; MAPPINGS_MAX] = [const {
    Watched {
        claimed: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; MAPPINGS_MAX];

/// One past the highest entry ever claimed: bounds the handler's search.
static USED: AtomicUsize = AtomicUsize::new(0);
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// An entry of the table; frees it when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    index: usize,
}

impl Registration {
    /// Starts watching; `None` when the table is full.
    pub(super) fn new(base: NonNull<u8>, len: usize) -> Option<Self> {
        // Acquire pairs with the Release in drop: the entry is used only after its last owner has cleared it.
        let index = TABLE.iter().position(|entry| {
            entry.claimed.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        let start = base.as_ptr().addr();
        TABLE[index].poisoned.store(false, Ordering::Relaxed);
        TABLE[index].end.store(start + len, Ordering::Relaxed);
        USED.fetch_max(index + 1, Ordering::Relaxed);
        // Release pairs with the Acquire in find(): who sees the start sees the end and the flag. A thread that touches the
        // mapping got it from the one that registered it, so its handler sees these stores.
        TABLE[index].start.store(start, Ordering::Release);
        Some(Self { index })
    }

    /// Must precede `munmap`: afterwards the addresses may belong to somebody else.
    pub(super) fn stop_watching(&self) {
        TABLE[self.index].start.store(0, Ordering::SeqCst);
    }

    pub(super) fn poisoned(&self) -> bool {
        // Acquire pairs with the Release in the handler.
        TABLE[self.index].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.stop_watching();
        TABLE[self.index].claimed.store(false, Ordering::Release);
    }
}

/// Installs the handler for the whole process; further calls do nothing.
pub fn install() -> io::Result<()> {
    static RESULT: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = RESULT.get_or_init(|| install_once().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
    (*result).map_err(io::Error::from_raw_os_error)
}

fn install_once() -> io::Result<()> {
    PAGE_BYTES.store(rustix::param::page_size(), Ordering::Relaxed);
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; `previous` is valid for writes of one sigaction.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Kept before the handler can run, so that it always finds it.
    // SAFETY: the call above succeeded and filled it; all-zero would be valid as well.
    let previous = unsafe { previous.assume_init() };
    PREVIOUS.get_or_init(|| previous);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    let action = sigaction_of(handler as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER);
    // SAFETY: `action` is initialised, and the handler is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn sigaction_of(handler: usize, flags: libc::c_int) -> libc::sigaction {
    // SAFETY: sigaction is a plain C struct for which all-zero is valid (empty mask, default action).
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    action
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a SA_SIGINFO handler a valid siginfo.
    let details = unsafe { &*info };
    // SAFETY: whatever the code, the address lies inside siginfo's bytes; it is used only for codes of the kernel, which fill it.
    let address = unsafe { details.si_addr() }.addr();
    if details.si_code > 0 && repair(address) {
        return;
    }
    chain(signal, info, context);
}

/// Puts zero pages over the rest of the mapping that holds `address`; false when there is none.
fn repair(address: usize) -> bool {
    let Some(entry) = find(address) else { return false };
    let (start, end) = (entry.start.load(Ordering::Relaxed), entry.end.load(Ordering::Relaxed));
    let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
    // Release pairs with the Acquire in poisoned(). Before the repair, so that nobody reads zeros and finds the flag unset.
    entry.poisoned.store(true, Ordering::Release);
    // hugetlbfs allows changes at huge pages only, so a refusal is tried again from the next lower 2 MiB and 1 GiB boundary.
    [page_bytes, 2 << 20, 1 << 30].into_iter().any(|unit| {
        let from = (address & !(unit - 1)).max(start);
        let to = end.next_multiple_of(page_bytes);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range lies inside a mapping that its owner keeps until after stop_watching(), and the faulting thread holds
        // that owner. mmap is a bare system call, safe in a handler.
        let mapped = unsafe { libc::mmap(ptr::without_provenance_mut(from), to - from, access, flags, -1, 0) };
        mapped != libc::MAP_FAILED
    })
}

fn find(address: usize) -> Option<&'static Watched> {
    // Relaxed: see Registration::new; a thread that touches a mapping sees its registration.
    TABLE[..USED.load(Ordering::Relaxed)].iter().find(|entry| {
        let start = entry.start.load(Ordering::Acquire);
        start != 0 && start <= address && address < entry.end.load(Ordering::Relaxed)
    })
}

/// Lets the action that was there before ours decide: a handler is called, the default is restored and met on return.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get().map_or((libc::SIG_DFL, 0), |action| (action.sa_sigaction, action.sa_flags));
    match previous {
        (libc::SIG_DFL | libc::SIG_IGN, _) => {
            let default = sigaction_of(libc::SIG_DFL, 0);
            // SAFETY: `default` is initialised; sigaction is async-signal-safe. The instruction then faults again and ends us.
            unsafe { libc::sigaction(signal, &default, ptr::null_mut()) };
            // SAFETY: the kernel hands a SA_SIGINFO handler a valid siginfo.
            let sent = unsafe { (*info).si_code } <= 0;
            if sent {
                // From no instruction that would fault again: it would leave us without a guard.
                // SAFETY: raise is async-signal-safe. Blocked while we handle this one, it ends us on return.
                unsafe { libc::raise(signal) };
            }
        }
        (handler, flags) if flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: the kernel held this address as a SA_SIGINFO handler, so it is a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        (handler, _) => {
            // SAFETY: the kernel held this address as a plain handler, so it is a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::sys::{Mapping, Memory};
    use std::os::fd::AsFd;

    #[test]
    fn a_truncated_file_reads_as_zeros_and_poisons_only_its_own_mapping() {
        install().unwrap();
        install().unwrap();
        // /dev/shm is tmpfs on every system that we support; the default folder may be a disk, which behaves the same here.
        let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
        file.set_len(16 * 4096).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, 16 * 4096).unwrap();
        let other_file = tempfile::tempfile().unwrap();
        other_file.set_len(4096).unwrap();
        let other = Mapping::new(other_file.as_fd(), 0, 4096).unwrap();
        mapping.write(0, &[9; 16 * 4096]).unwrap();
        other.write(0, &[8; 4096]).unwrap();

        file.set_len(4 * 4096).unwrap();
        assert!(!mapping.poisoned());
        let mut bytes = vec![1; 16 * 4096];
        mapping.read(0, &mut bytes).unwrap();
        assert!(mapping.poisoned());
        assert!(bytes[..4 * 4096].iter().all(|byte| *byte == 9));
        assert!(bytes[4 * 4096..].iter().all(|byte| *byte == 0));
        mapping.write(8 * 4096, &[5; 4096]).unwrap();

        let mut bytes = [0; 4096];
        other.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [8; 4096]);
        assert!(!other.poisoned());

        // A new mapping, perhaps in the same table entry, starts healthy.
        drop(mapping);
        file.set_len(4096).unwrap();
        assert!(!Mapping::new(file.as_fd(), 0, 4096).unwrap().poisoned());
    }
}
