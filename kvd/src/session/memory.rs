//! The memory that a session shares with its client: two rings and the slabs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kvd_nixl::sys::{
    Bell, Consumer, Mapping, MappingError, MemoryError, MemoryExtent, Producer, RingError, memfd_sealed, ring_bytes,
};
use kvd_proto::wire::ring::{RING_ENTRIES, SLAB_BYTES, SLABS};
use kvd_proto::wire::session::RingGeometry;
use thiserror::Error;

const PAGE: usize = 4096;
const REQUESTS_AT: usize = 0;
const COMPLETIONS_AT: usize = ring_bytes(RING_ENTRIES).next_multiple_of(PAGE);
const SLABS_AT: usize = COMPLETIONS_AT + ring_bytes(RING_ENTRIES).next_multiple_of(PAGE);
const MEMORY_BYTES: usize = SLABS_AT + SLABS as usize * SLAB_BYTES as usize;

/// Why a session's memory could not be made.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// No memory or no descriptor.
    #[error("making the session's memory or bell: {0}")]
    Io(#[from] io::Error),
    /// The memory cannot be mapped.
    #[error("mapping the session's memory: {0}")]
    Mapping(#[from] MappingError),
    /// The layout does not fit the memory: a defect of this module.
    #[error("laying out the session's memory: {0}")]
    Range(#[from] MemoryError),
    /// The layout does not fit the rings: a defect of this module.
    #[error("laying out the session's rings: {0}")]
    Ring(#[from] RingError),
}

/// The daemon's end of a session's fast path.
#[derive(Debug)]
pub(crate) struct SessionLink {
    memory: Arc<Mapping>,
    /// From the client.
    pub(crate) requests: Consumer,
    /// To the client.
    pub(crate) completions: Producer,
    /// Both ways.
    pub(crate) bell: Bell,
}

/// What goes to the client.
#[derive(Debug)]
pub(crate) struct ClientEnd {
    pub(crate) memory: OwnedFd,
    pub(crate) bell: OwnedFd,
}

impl SessionLink {
    /// New memory, sealed against shrinking, and both ends of it.
    pub(crate) fn new() -> Result<(Self, ClientEnd), LinkError> {
        let file = memfd_sealed("kvd-session", MEMORY_BYTES as u64)?;
        let memory = Arc::new(Mapping::new(file.as_fd(), 0, MEMORY_BYTES)?);
        let ring = |at| MemoryExtent::new(memory.clone(), at, ring_bytes(RING_ENTRIES));
        let requests = Consumer::new(ring(REQUESTS_AT)?, RING_ENTRIES)?;
        let completions = Producer::new(ring(COMPLETIONS_AT)?, RING_ENTRIES)?;
        let (bell, theirs) = Bell::pair()?;
        Ok((Self { memory, requests, completions, bell }, ClientEnd { memory: file, bell: theirs.into() }))
    }

    /// A slab, or `None` if there is no such slab.
    pub(crate) fn slab(&self, slab: u16) -> Option<MemoryExtent> {
        if slab >= SLABS {
            return None;
        }
        let at = SLABS_AT + usize::from(slab) * SLAB_BYTES as usize;
        MemoryExtent::new(self.memory.clone(), at, SLAB_BYTES as usize).ok()
    }
}

/// Where things lie, for the client.
pub(crate) fn geometry() -> RingGeometry {
    RingGeometry {
        memory_bytes: MEMORY_BYTES as u64,
        request_ring_offset: REQUESTS_AT as u64,
        completion_ring_offset: COMPLETIONS_AT as u64,
        ring_entries: RING_ENTRIES,
        slabs_offset: SLABS_AT as u64,
        slabs: u32::from(SLABS),
        slab_bytes: SLAB_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_slabs_are_bounded() {
        let (link, _client) = SessionLink::new().unwrap();
        let last = link.slab(SLABS - 1).unwrap();
        assert_eq!(last.offset() + last.len(), MEMORY_BYTES);
        assert!(link.slab(SLABS).is_none());
        assert_eq!(link.slab(0).unwrap().offset(), SLABS_AT);
    }
}
