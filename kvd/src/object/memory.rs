//! Memory of bytes on their way to or from a store, used again: fresh pages cost as much time as copying bytes into them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Memory that came back, by its length. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    /// Guards lists; held for a few instructions, and no other lock is taken under it.
    idle: Arc<Mutex<Idle>>,
    /// Bytes that are kept at most.
    idle_max: u64,
}

#[derive(Debug, Default)]
struct Idle {
    pieces: HashMap<usize, Vec<Vec<u8>>>,
    bytes: u64,
}

impl Memory {
    /// None yet; of what comes back so many bytes are kept.
    pub(super) fn new(idle_max: u64) -> Self {
        Self { idle: Arc::default(), idle_max }
    }

    /// Memory of `bytes` bytes, with whatever was in it last.
    pub(super) fn take(&self, bytes: usize) -> Piece {
        let mut idle = self.idle();
        let used = idle.pieces.get_mut(&bytes).and_then(Vec::pop);
        idle.bytes -= used.as_ref().map_or(0, |used| used.len() as u64);
        drop(idle);
        Piece { bytes: used.unwrap_or_else(|| vec![0; bytes]), home: self.clone() }
    }

    /// Gives all back that nobody uses.
    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of one length; goes back when it is dropped. How much there is of it is bounded by who takes it.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Vec<u8>,
    home: Memory,
}

impl Piece {
    /// Fixed from now on, and free when the last of its clones is dropped.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Piece {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = self.home.idle();
        // Lengths differ by layout: pieces of one that is used no more must not add up with those of the next.
        if idle.bytes + bytes.len() as u64 <= self.home.idle_max {
            idle.bytes += bytes.len() as u64;
            idle.pieces.entry(bytes.len()).or_default().push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_when_the_last_of_its_clones_is_gone() {
        let memory = Memory::new(1 << 20);
        let mut piece = memory.take(8192);
        piece.as_mut().fill(7);
        let frozen = piece.freeze();
        let part = frozen.slice(100..200);
        drop(frozen);
        assert!(memory.take(8192).as_ref().iter().all(|byte| *byte == 0), "it is still read");
        assert!(part.iter().all(|byte| *byte == 7));
        memory.clear();
        drop(part);
        assert_eq!(memory.take(4096).as_ref(), [0; 4096]);
        assert!(memory.take(8192).as_ref().iter().all(|byte| *byte == 7));
        memory.clear();
        assert!(memory.take(8192).as_ref().iter().all(|byte| *byte == 0), "nothing is kept");
    }
    #[test]
    fn no_more_is_kept_than_may_be() {
        let memory = Memory::new(10_000);
        let pieces: Vec<_> = (0..3).map(|_| memory.take(4096)).collect();
        drop(pieces);
        assert_eq!(memory.idle().bytes, 8192);
        drop(memory.take(4000));
        assert_eq!(memory.idle().bytes, 8192, "there is no room for another length");
    }
}
