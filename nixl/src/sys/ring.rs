//! A ring of 64-byte entries in shared memory: one producer, one consumer, neither trusting the other.
//!
//! ```text
//! offset    0  tail    u64  entries ever published; written by the producer only   } each on its own cache line, so that
//!          64  head    u64  entries ever taken; written by the consumer only        } the two sides do not fight for one
//!         128  parked  u32  1 = the consumer sleeps or is about to                  }
//!         256  entries      `capacity` times 64 bytes; entry number n lies at n modulo capacity
//! ```
//!
//! **Hostile peers.** Each side keeps its own position in private memory and only ever publishes it; the peer's position is
//! validated against it (`tail - head` within `0 ..= capacity`, never backwards), so a scribbled index is [`RingError::Corrupt`] and
//! never an access out of bounds. An entry is copied out exactly once, before anybody looks at it.
//!
//! **No lost wake-up.** Consumer: (C1) store parked = 1, (C2) SeqCst fence, (C3) load tail, sleep only if nothing is there.
//! Producer: (P1) store tail, (P2) SeqCst fence, (P3) load parked, signal if it is 1. The two fences are totally ordered. If C2 comes
//! first, P3 sees the 1 of C1 and signals, and a [`Signal`] is kept until drained. If P2 comes first, C3 sees the tail of P1 and does
//! not sleep. Either way the entry is noticed.

use super::eventfd::Signal;
use super::memory::MemoryExtent;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// Length of an entry in bytes.
pub const RING_ENTRY_BYTES: usize = 64;

const TAIL: usize = 0;
const HEAD: usize = 64;
const PARKED: usize = 128;
const HEADER_BYTES: usize = 256;

/// What can be wrong with a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The peer published a position that cannot be: end the session.
    #[error("ring corrupt: the peer's position {theirs} does not fit ours, {ours}, with {capacity} entries")]
    Corrupt {
        /// The position read from shared memory.
        theirs: u64,
        /// Our own position.
        ours: u64,
        /// Entries of the ring.
        capacity: u64,
    },
    /// The capacity is no power of two, or the memory does not fit it.
    #[error("a ring of {entries} entries does not fit memory of {bytes} bytes at offset {offset}")]
    Geometry {
        /// Entries asked for.
        entries: u32,
        /// Length of the memory given, in bytes.
        bytes: usize,
        /// Where the extent starts in its memory, in bytes.
        offset: usize,
    },
    /// Waiting failed.
    #[error("waiting for the ring's peer failed: {0}")]
    Wait(#[from] io::Error),
}

/// Bytes of memory that a ring of so many entries takes.
pub const fn ring_bytes(entries: u32) -> usize {
    HEADER_BYTES + entries as usize * RING_ENTRY_BYTES
}

/// The shared words, found once.
#[derive(Debug)]
struct Shared {
    extent: MemoryExtent,
    capacity: u64,
}

impl Shared {
    fn new(extent: MemoryExtent, entries: u32) -> Result<Self, RingError> {
        let fits =
            entries.is_power_of_two() && extent.len() == ring_bytes(entries) && extent.offset().is_multiple_of(64);
        if !fits {
            return Err(RingError::Geometry { entries, bytes: extent.len(), offset: extent.offset() });
        }
        Ok(Self { extent, capacity: entries.into() })
    }

    fn tail(&self) -> &AtomicU64 {
        self.extent.memory().atomic_u64(self.extent.offset() + TAIL)
    }

    fn head(&self) -> &AtomicU64 {
        self.extent.memory().atomic_u64(self.extent.offset() + HEAD)
    }

    fn parked(&self) -> &AtomicU32 {
        self.extent.memory().atomic_u32(self.extent.offset() + PARKED)
    }

    fn entry_offset(&self, position: u64) -> usize {
        let index = usize::try_from(position % self.capacity).expect("less than a u32");
        HEADER_BYTES + index * RING_ENTRY_BYTES
    }

    fn corrupt(&self, theirs: u64, ours: u64) -> RingError {
        RingError::Corrupt { theirs, ours, capacity: self.capacity }
    }
}

const PROOF: &str = "Shared::new has checked that every entry lies inside the extent";

/// The publishing half. One per ring.
#[derive(Debug)]
pub struct Producer {
    shared: Shared,
    tail: u64,
    /// The consumer's position when it was last looked at; never ahead of the truth.
    head_seen: u64,
}

impl Producer {
    /// The producing half of a new (zeroed) ring of `entries` entries, a power of two, in memory of exactly [`ring_bytes`] bytes at
    /// an offset that is a multiple of 64.
    pub fn new(extent: MemoryExtent, entries: u32) -> Result<Self, RingError> {
        Ok(Self { shared: Shared::new(extent, entries)?, tail: 0, head_seen: 0 })
    }

    /// Publishes an entry; `false` = full, nothing happened. Call [`Self::wake`] after the last one of a batch.
    pub fn push(&mut self, entry: &[u8; RING_ENTRY_BYTES]) -> Result<bool, RingError> {
        if self.tail - self.head_seen == self.shared.capacity && self.free()? == 0 {
            return Ok(false);
        }
        self.shared.extent.write(self.shared.entry_offset(self.tail), entry).expect(PROOF);
        self.tail += 1;
        // Release pairs with the Acquire in Consumer::pop: who sees the tail sees the entry.
        self.shared.tail().store(self.tail, Ordering::Release);
        Ok(true)
    }

    /// Entries that can be pushed now.
    pub fn free(&mut self) -> Result<u64, RingError> {
        // Acquire pairs with the Release in Consumer::pop: the entries before head have been copied out and may be overwritten.
        let head = self.shared.head().load(Ordering::Acquire);
        if head < self.head_seen || head > self.tail {
            return Err(self.shared.corrupt(head, self.tail));
        }
        self.head_seen = head;
        Ok(self.shared.capacity - (self.tail - head))
    }

    /// Wakes the consumer if it sleeps; see "no lost wake-up" in the module documentation. Returns whether it slept.
    pub fn wake(&self, signal: &impl Signal) -> io::Result<bool> {
        fence(Ordering::SeqCst); // P2
        let parked = self.shared.parked();
        // Relaxed: ordered by the fence above. The swap lets one sleep cost one signal, however many entries follow.
        let asleep = parked.load(Ordering::Relaxed) != 0 && parked.swap(0, Ordering::Relaxed) != 0;
        if asleep {
            signal.signal()?;
        }
        Ok(asleep)
    }
}

/// The taking half. One per ring.
#[derive(Debug)]
pub struct Consumer {
    shared: Shared,
    head: u64,
    /// The producer's position when it was last looked at; never ahead of the truth.
    tail_seen: u64,
}

impl Consumer {
    /// The consuming half; the arguments are those of [`Producer::new`].
    pub fn new(extent: MemoryExtent, entries: u32) -> Result<Self, RingError> {
        Ok(Self { shared: Shared::new(extent, entries)?, head: 0, tail_seen: 0 })
    }

    /// Takes the next entry, if there is one.
    pub fn pop(&mut self) -> Result<Option<[u8; RING_ENTRY_BYTES]>, RingError> {
        if self.head == self.tail_seen && !self.look()? {
            return Ok(None);
        }
        let mut entry = [0; RING_ENTRY_BYTES];
        self.shared.extent.read(self.shared.entry_offset(self.head), &mut entry).expect(PROOF);
        self.head += 1;
        // Release pairs with the Acquire in Producer::free: the entry has been copied out before its place is given back.
        self.shared.head().store(self.head, Ordering::Release);
        Ok(Some(entry))
    }

    /// Whether an entry is there.
    fn look(&mut self) -> Result<bool, RingError> {
        // Acquire pairs with the Release in Producer::push: the entries before tail are complete.
        let tail = self.shared.tail().load(Ordering::Acquire);
        if tail < self.tail_seen || tail - self.head > self.shared.capacity {
            return Err(self.shared.corrupt(tail, self.head));
        }
        self.tail_seen = tail;
        Ok(tail != self.head)
    }

    /// Announces that the consumer is going to sleep. `true`: nothing is there, so it may sleep on its signal, and must call
    /// [`Self::unpark`] afterwards. `false`: an entry is there; the announcement is withdrawn.
    pub fn park(&mut self) -> Result<bool, RingError> {
        // Relaxed: ordered by the fence below.
        self.shared.parked().store(1, Ordering::Relaxed); // C1
        fence(Ordering::SeqCst); // C2
        let empty = self.head == self.tail_seen && !self.look()?; // C3
        if !empty {
            self.unpark();
        }
        Ok(empty)
    }

    /// Withdraws the announcement of [`Self::park`].
    pub fn unpark(&self) {
        // Relaxed: a producer that still sees the 1 gives one signal too many, which is harmless.
        self.shared.parked().store(0, Ordering::Relaxed);
    }

    /// Takes the next entry: spins for `spin`, then sleeps on `signal` until `deadline` (`None` = no limit) is over, then `None`.
    ///
    /// The signal must serve this ring alone, for it is drained here.
    pub fn spin_then_wait(
        &mut self,
        signal: &impl Signal,
        spin: Duration,
        deadline: Option<Instant>,
    ) -> Result<Option<[u8; RING_ENTRY_BYTES]>, RingError> {
        let started = Instant::now();
        loop {
            // The clock costs more than a look at the ring, so it is asked once in a while only.
            for _ in 0..64 {
                if let Some(entry) = self.pop()? {
                    return Ok(Some(entry));
                }
                std::hint::spin_loop();
            }
            if started.elapsed() >= spin {
                break;
            }
        }
        loop {
            let slept = if self.park()? {
                let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                let woken = signal.wait(left);
                self.unpark();
                woken.and_then(|_| signal.drain())
            } else {
                Ok(())
            };
            // What a peer published before it went away is still taken, then its end is told.
            let entry = self.pop()?;
            if entry.is_none() {
                slept?;
            }
            if entry.is_some() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Memory, Region};
    use std::sync::Arc;

    fn memory(entries: u32) -> MemoryExtent {
        let memory: Arc<dyn Memory> = Arc::new(Region::new(64 + ring_bytes(entries)).unwrap());
        MemoryExtent::new(memory, 64, ring_bytes(entries)).unwrap()
    }

    fn entry(number: u64) -> [u8; RING_ENTRY_BYTES] {
        let mut bytes = [0; RING_ENTRY_BYTES];
        for part in bytes.chunks_exact_mut(8) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn entries_come_in_order_and_a_full_ring_refuses() {
        let extent = memory(4);
        let (mut producer, mut consumer) =
            (Producer::new(extent.clone(), 4).unwrap(), Consumer::new(extent, 4).unwrap());
        let (mut pushed, mut popped) = (0, 0);
        for burst in [1, 4, 3, 7, 2, 4, 9] {
            for _ in 0..burst {
                pushed += u64::from(producer.push(&entry(pushed)).unwrap());
            }
            assert!(pushed - popped <= 4);
            assert_eq!(producer.free().unwrap(), 4 - (pushed - popped));
            for _ in 0..3 {
                if let Some(bytes) = consumer.pop().unwrap() {
                    assert_eq!(bytes, entry(popped));
                    popped += 1;
                }
            }
        }
        assert!(popped > 16);
    }

    #[test]
    fn scribbled_positions_are_corrupt() {
        let extent = memory(4);
        for tail in [5, u64::MAX, 1 << 63] {
            let mut consumer = Consumer::new(extent.clone(), 4).unwrap();
            consumer.shared.tail().store(tail, Ordering::Relaxed);
            assert!(matches!(consumer.pop(), Err(RingError::Corrupt { .. })), "tail {tail}");
            assert!(matches!(consumer.park(), Err(RingError::Corrupt { .. })), "tail {tail}");
        }
        // Backwards.
        let mut consumer = Consumer::new(extent.clone(), 4).unwrap();
        consumer.shared.tail().store(2, Ordering::Relaxed);
        assert!(consumer.pop().unwrap().is_some());
        assert!(consumer.pop().unwrap().is_some());
        consumer.shared.tail().store(1, Ordering::Relaxed);
        assert!(matches!(consumer.pop(), Err(RingError::Corrupt { .. })));

        let mut producer = Producer::new(extent, 4).unwrap();
        for number in 0..4 {
            assert!(producer.push(&entry(number)).unwrap());
        }
        for head in [5, u64::MAX] {
            producer.shared.head().store(head, Ordering::Relaxed);
            assert!(matches!(producer.push(&entry(9)), Err(RingError::Corrupt { .. })), "head {head}");
        }
        producer.shared.head().store(2, Ordering::Relaxed);
        assert_eq!(producer.free().unwrap(), 2);
        producer.shared.head().store(1, Ordering::Relaxed);
        assert!(matches!(producer.free(), Err(RingError::Corrupt { .. })));
    }

    #[test]
    fn geometry_is_checked() {
        let extent = memory(4);
        assert!(Producer::new(extent.clone(), 8).is_err());
        assert!(Producer::new(extent.clone(), 3).is_err());
        assert!(Consumer::new(extent.clone(), 0).is_err());
        let shifted = MemoryExtent::new(Arc::clone(extent.memory()), 8, ring_bytes(4)).unwrap();
        assert!(Consumer::new(shifted, 4).is_err());
    }

    #[test]
    fn parking_is_withdrawn_when_an_entry_is_there() {
        let extent = memory(4);
        let (mut producer, mut consumer) =
            (Producer::new(extent.clone(), 4).unwrap(), Consumer::new(extent, 4).unwrap());
        assert!(consumer.park().unwrap());
        assert_eq!(consumer.shared.parked().load(Ordering::Relaxed), 1);
        consumer.unpark();
        producer.push(&entry(0)).unwrap();
        assert!(!consumer.park().unwrap());
        assert_eq!(consumer.shared.parked().load(Ordering::Relaxed), 0);
    }

    /// Goal: no entry lost, doubled or torn, and no wake-up lost. Method: two threads; the consumer sleeps without a limit whenever
    /// it finds nothing, and the producer pauses at random, so a lost wake-up hangs and fails by the test runner's limit.
    #[test]
    #[cfg(not(miri))]
    fn two_threads_lose_no_entry_and_no_wake_up() {
        use crate::sys::Bell;
        const ENTRIES: u64 = 200_000;
        let extent = memory(8);
        let (ours, theirs) = Bell::pair().unwrap();
        let mut producer = Producer::new(extent.clone(), 8).unwrap();
        let mut consumer = Consumer::new(extent, 8).unwrap();
        let writer = std::thread::spawn(move || {
            let (mut number, mut slept) = (0, 0u64);
            while number < ENTRIES {
                if producer.push(&entry(number)).unwrap() {
                    number += 1;
                } else {
                    std::thread::yield_now();
                }
                slept += u64::from(producer.wake(&theirs).unwrap());
                if number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58 == 0 {
                    std::thread::yield_now();
                }
            }
            (slept, theirs)
        });
        for number in 0..ENTRIES {
            let spin = Duration::from_nanos(number % 3 * 500);
            let taken = consumer.spin_then_wait(&ours, spin, None).unwrap();
            assert_eq!(taken, Some(entry(number)));
        }
        let (slept, theirs) = writer.join().unwrap();
        assert!(slept > 0, "the consumer never slept: the test shows nothing");
        let deadline = Instant::now() + Duration::from_millis(5);
        assert!(consumer.spin_then_wait(&ours, Duration::ZERO, Some(deadline)).unwrap().is_none());
        assert!(Instant::now() >= deadline);
        drop(theirs);
        assert!(matches!(consumer.spin_then_wait(&ours, Duration::ZERO, None), Err(RingError::Wait(_))));
    }
}
