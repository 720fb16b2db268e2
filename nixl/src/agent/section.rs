//! Memory and storage that transfers may name.

use std::sync::Arc;

use crate::io::FileId;
use crate::sys::Memory;

/// The kinds of sections; the vocabulary is NIXL's. A backend refuses the kinds that it cannot move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// Memory of this process or shared with another one (NIXL: `DRAM_SEG`).
    Memory,
    /// A file (`FILE_SEG`).
    File,
    /// A block device (`BLK_SEG`).
    BlockDevice,
    /// An object in a store (`OBJ_SEG`).
    Object,
    /// Memory of an accelerator (`VRAM_SEG`).
    Device,
}

/// Which backend of its agent a stored section belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendId(pub(super) usize);

/// A registered stretch of bytes. Clones are the same section; a transfer holds its sections until it is done.
#[derive(Clone, Debug)]
pub struct Section {
    place: Arc<Place>,
}

#[derive(Debug)]
pub(super) enum Place {
    Memory(Arc<dyn Memory>),
    Stored { backend: BackendId, file: FileId, bytes: u64, kind: SectionKind },
    Foreign { kind: SectionKind, bytes: u64 },
}

impl Section {
    /// Memory.
    pub fn memory(memory: Arc<dyn Memory>) -> Self {
        Self::of(Place::Memory(memory))
    }

    /// An object or device section, by size: no backend here moves one yet, so transfers with it are refused.
    pub fn foreign(kind: SectionKind, bytes: u64) -> Self {
        Self::of(Place::Foreign { kind, bytes })
    }

    pub(super) fn of(place: Place) -> Self {
        Self { place: Arc::new(place) }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// What it is.
    pub fn kind(&self) -> SectionKind {
        match &*self.place {
            Place::Memory(_) => SectionKind::Memory,
            Place::Stored { kind, .. } | Place::Foreign { kind, .. } => *kind,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        match &*self.place {
            Place::Memory(memory) => memory.len() as u64,
            Place::Stored { bytes, .. } | Place::Foreign { bytes, .. } => *bytes,
        }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.place, &other.place)
    }
}
