//! The one source of chance in a world.

use std::ops::Range;
use std::time::Duration;

use kvd_nixl::io::Seeded;

/// A stream of draws.
#[derive(Clone, Debug)]
pub(crate) struct Random(Seeded);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not draw alike.
        let mut first = Seeded::new(seed ^ 0x6B76_6453_494D_0001);
        Self(Seeded::new(first.bits()))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number in `range`.
    pub(crate) fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.0.below(range.end - range.start)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.0.below(len as u64) as usize
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.0.below(100) < percent
    }

    /// True in `per_mille` of a thousand cases.
    pub(crate) fn per_mille(&mut self, per_mille: u64) -> bool {
        self.0.below(1000) < per_mille
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    pub(crate) fn pick_any<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| self.pick(from))
    }

    pub(crate) fn micros(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.range(range))
    }
}
