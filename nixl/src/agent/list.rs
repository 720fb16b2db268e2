//! Descriptor lists: checked once, selected from by index, cheap to keep.

use std::sync::Arc;

use super::section::{Section, SectionKind};

/// Descriptors one list may have, strided ones counted out: 4 M pages of 64 KiB are 256 GiB.
pub const DESCRIPTORS_MAX: u64 = 1 << 22;

/// A range of a section.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Where.
    pub section: Section,
    /// First byte.
    pub offset: u64,
    /// Bytes, at least one.
    pub len: u64,
}

/// Many ranges of one length at equal distances: a paged cache in a few words instead of a million descriptors.
#[derive(Clone, Debug)]
pub struct DescriptorRun {
    /// The first range.
    pub first: Extent,
    /// Bytes from the start of one range to the start of the next.
    pub stride: u64,
    /// Ranges, at least one.
    pub count: u32,
}

impl From<Extent> for DescriptorRun {
    fn from(first: Extent) -> Self {
        Self { stride: first.len, first, count: 1 }
    }
}

/// Why a list or a selection was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The list has no descriptor.
    #[error("a descriptor list needs at least one descriptor")]
    Empty,
    /// More than [`DESCRIPTORS_MAX`].
    #[error("more than {DESCRIPTORS_MAX} descriptors")]
    TooMany,
    /// A list names sections of one kind.
    #[error("run {run} is of kind {found:?} in a list of kind {expected:?}")]
    MixedKinds {
        /// Position in the input.
        run: usize,
        /// Kind of the first run.
        expected: SectionKind,
        /// Kind of this run.
        found: SectionKind,
    },
    /// A run is empty or reaches beyond its section.
    #[error("run {run} is empty or does not lie inside its section of {section_bytes} bytes")]
    OutOfBounds {
        /// Position in the input.
        run: usize,
        /// Size of its section.
        section_bytes: u64,
    },
    /// A selected index is not in the list.
    #[error("index {index} in a list of {len} descriptors")]
    NoSuchIndex {
        /// What was asked for.
        index: u32,
        /// Descriptors in the list.
        len: u32,
    },
}

/// A checked list of descriptors of one kind. Clones share it.
#[derive(Clone, Debug)]
pub struct DescriptorList {
    runs: Arc<[Run]>,
    len: u32,
    kind: SectionKind,
}

#[derive(Debug)]
struct Run {
    run: DescriptorRun,
    /// Index of its first descriptor in the list.
    start: u32,
}

/// Descriptors chosen from a list, in the order of the choice.
#[derive(Clone, Debug)]
pub struct Selection {
    pub(super) descriptors: Vec<Extent>,
    pub(super) kind: SectionKind,
}

impl DescriptorList {
    /// Checks every run once: kinds, bounds, number.
    pub fn prepare(runs: impl IntoIterator<Item = impl Into<DescriptorRun>>) -> Result<Self, ListError> {
        let mut kept: Vec<Run> = Vec::new();
        let mut len = 0_u64;
        for (index, run) in runs.into_iter().enumerate() {
            let run: DescriptorRun = run.into();
            if let Some(first) = kept.first() {
                let (expected, found) = (first.run.first.section.kind(), run.first.section.kind());
                if expected != found {
                    return Err(ListError::MixedKinds { run: index, expected, found });
                }
            }
            let section_bytes = run.first.section.bytes();
            let inside = end_of(&run).is_some_and(|end| end <= section_bytes);
            if !inside {
                return Err(ListError::OutOfBounds { run: index, section_bytes });
            }
            let start = u32::try_from(len).map_err(|_| ListError::TooMany)?;
            len += u64::from(run.count);
            if len > DESCRIPTORS_MAX {
                return Err(ListError::TooMany);
            }
            kept.push(Run { run, start });
        }
        let kind = kept.first().ok_or(ListError::Empty)?.run.first.section.kind();
        let len = u32::try_from(len).map_err(|_| ListError::TooMany)?;
        Ok(Self { runs: kept.into(), len, kind })
    }

    /// Number of descriptors.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Never: an empty list is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Kind of all its sections.
    pub fn kind(&self) -> SectionKind {
        self.kind
    }

    /// The descriptors with these indices, in this order; an index may come twice.
    pub fn select(&self, indices: &[u32]) -> Result<Selection, ListError> {
        let find = |index: &u32| self.get(*index).ok_or(ListError::NoSuchIndex { index: *index, len: self.len });
        if indices.len() as u64 > DESCRIPTORS_MAX {
            return Err(ListError::TooMany);
        }
        let descriptors = indices.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        if descriptors.is_empty() {
            return Err(ListError::Empty);
        }
        Ok(Selection { descriptors, kind: self.kind })
    }

    /// All descriptors, in order.
    pub fn all(&self) -> Selection {
        let descriptors = (0..self.len).filter_map(|index| self.get(index)).collect();
        Selection { descriptors, kind: self.kind }
    }

    fn get(&self, index: u32) -> Option<Extent> {
        if index >= self.len {
            return None;
        }
        let at = self.runs.partition_point(|run| run.start <= index).checked_sub(1)?;
        let Run { run, start } = &self.runs[at];
        let offset = run.first.offset + u64::from(index - start) * run.stride;
        Some(Extent { offset, ..run.first.clone() })
    }
}

/// One past the last byte of a run; `None` if it is empty or beyond any section.
fn end_of(run: &DescriptorRun) -> Option<u64> {
    let last = u64::from(run.count.checked_sub(1)?).checked_mul(run.stride)?;
    let len = Some(run.first.len).filter(|len| *len > 0)?;
    run.first.offset.checked_add(last)?.checked_add(len)
}
