//! Sparse content of a simulated disk.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Granule of the sparse store; nothing outside this file depends on it.
const PAGE: usize = 4096;

/// The bytes of one file; what was never written reads as zeros. Bounded by the file's size. A clone shares its pages
/// until one side writes, so that a crash image of a large disk costs little.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl Image {
    /// Fills `bytes` with the content at `offset`.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (at, range) in pieces(offset, bytes.len(), PAGE) {
            let into = &mut bytes[range];
            let within = (at % PAGE as u64) as usize;
            match self.pages.get(&(at / PAGE as u64)) {
                Some(content) => into.copy_from_slice(&content[within..within + into.len()]),
                None => into.fill(0),
            }
        }
    }

    /// Puts `bytes` at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, range) in pieces(offset, bytes.len(), PAGE) {
            let from = &bytes[range];
            let within = (at % PAGE as u64) as usize;
            let page = self.pages.entry(at / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + from.len()].copy_from_slice(from);
        }
    }
}

/// Cuts `len` bytes at `offset` where the file's granules end: position in the file and range of the caller's bytes.
pub(super) fn pieces(offset: u64, len: usize, granule: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == len {
            return None;
        }
        let at = offset + start as u64;
        let left_in_granule = granule - (at % granule as u64) as usize;
        let range = start..(start + left_in_granule).min(len);
        start = range.end;
        Some((at, range))
    })
}
