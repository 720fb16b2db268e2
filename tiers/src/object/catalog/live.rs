//! Which packs are there, by number: what is kept in memory of packs.

use super::super::names::PackName;

/// Dead places that are kept whatever the number of live ones, so that a small set is not forever rewritten.
const DEAD_PLACES_MIN: usize = 1024;
/// Places more than needed that are asked for, on top of an eighth: doubling would cost as much again as the packs do.
const SPARE_PLACES: usize = 1024;

/// The live packs. Numbers only grow, so both lists are sorted: a place is found by bisection, one more is an append,
/// and one that is gone is left in its place until a quarter is dead. 21 bytes per pack.
#[derive(Debug, Default)]
pub(super) struct Live {
    numbers: Vec<u32>,
    /// `None`: gone.
    names: Vec<Option<PackName>>,
    live: usize,
    next: u32,
}

impl Live {
    /// A set without packs, in which the next number is `next`.
    pub(super) fn new(next: u32) -> Self {
        Self { next, ..Self::default() }
    }

    /// Number of live packs.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The number that the next pack gets; all that were ever used are below.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Gives a number to `pack`, unless there is none left.
    pub(super) fn add(&mut self, pack: PackName) -> Option<u32> {
        let number = self.next;
        self.next = number.checked_add(1)?;
        self.push(number, pack);
        Some(number)
    }

    /// Takes in a pack that has a number already; whether the number lies behind all others and ahead of the next one.
    pub(super) fn restore(&mut self, number: u32, pack: PackName) -> bool {
        let fits = number < self.next && self.numbers.last().is_none_or(|last| *last < number);
        if fits {
            self.push(number, pack);
        }
        fits
    }

    /// The live pack with this number.
    pub(super) fn name(&self, number: u32) -> Option<PackName> {
        self.names[self.numbers.binary_search(&number).ok()?]
    }

    /// The pack is gone; whether it was there.
    pub(super) fn take(&mut self, number: u32) -> bool {
        let Ok(place) = self.numbers.binary_search(&number) else { return false };
        let was = self.names[place].take().is_some();
        self.live -= usize::from(was);
        if self.numbers.len() - self.live > DEAD_PLACES_MIN + self.live / 4 {
            self.close_gaps();
        }
        was
    }

    /// What is dead by now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let numbers = self.numbers.iter().zip(&self.names).filter(|(_, name)| name.is_some());
        Snapshot { live: numbers.map(|(number, _)| *number).collect(), next: self.next }
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.numbers.capacity() * size_of::<u32>() + self.names.capacity() * size_of::<Option<PackName>>()
    }

    fn push(&mut self, number: u32, pack: PackName) {
        if self.numbers.len() == self.numbers.capacity() {
            let more = self.numbers.len() / 8 + SPARE_PLACES;
            self.numbers.reserve_exact(more);
            self.names.reserve_exact(more);
        }
        self.numbers.push(number);
        self.names.push(Some(pack));
        self.live += 1;
    }

    fn close_gaps(&mut self) {
        let mut names = self.names.iter();
        self.numbers.retain(|_| names.next().is_some_and(Option::is_some));
        self.names.retain(Option::is_some);
        self.numbers.shrink_to(self.live + SPARE_PLACES);
        self.names.shrink_to(self.live + SPARE_PLACES);
    }

    #[cfg(test)]
    pub(super) fn self_check(&self) {
        assert_eq!(self.numbers.len(), self.names.len());
        assert_eq!(self.names.iter().flatten().count(), self.live);
        assert!(self.numbers.is_sorted_by(|a, b| a < b));
        assert!(self.numbers.last().is_none_or(|last| *last < self.next));
        assert!(self.numbers.len() - self.live <= DEAD_PLACES_MIN + self.live / 4);
    }
}

/// Which packs were dead when it was taken. Packs that came later count as alive.
#[derive(Debug)]
pub(super) struct Snapshot {
    live: Vec<u32>,
    next: u32,
}

impl Snapshot {
    /// Whether the pack with this number is gone for good.
    pub(super) fn dead(&self, number: u32) -> bool {
        number < self.next && self.live.binary_search(&number).is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn pack(seed: u32) -> PackName {
        PackName::new((u128::from(seed) << 7).to_le_bytes())
    }

    proptest! {
        #[test]
        fn it_equals_a_map(
            steps in prop::collection::vec(prop::option::weighted(0.45, any::<prop::sample::Index>()), 0..9000),
        ) {
            let mut live = Live::new(7);
            let mut plain = BTreeMap::new();
            for step in steps {
                match step {
                    Some(which) => {
                        let number = which.index(live.next() as usize) as u32;
                        prop_assert_eq!(live.take(number), plain.remove(&number).is_some());
                    }
                    None => {
                        let number = live.add(pack(live.next())).unwrap();
                        plain.insert(number, pack(number));
                    }
                }
                prop_assert_eq!(live.len(), plain.len());
            }
            live.self_check();
            let snapshot = live.snapshot();
            for number in 0..live.next() + 2 {
                prop_assert_eq!(live.name(number), plain.get(&number).copied());
                prop_assert_eq!(snapshot.dead(number), number < live.next() && !plain.contains_key(&number));
            }
        }
    }

    #[test]
    fn gaps_are_closed_and_memory_follows() {
        let mut live = Live::new(0);
        (0..40_000).for_each(|seed| assert_eq!(live.add(pack(seed)), Some(seed)));
        let full = live.memory_bytes();
        assert!(full < 40_000 * 26, "{full}: it grows by an eighth, not by doubling");
        // Oldest first, as packs go.
        (0..39_000).for_each(|number| assert!(live.take(number)));
        live.self_check();
        assert_eq!((live.len(), live.name(39_000), live.name(38_999)), (1000, Some(pack(39_000)), None));
        assert!(live.memory_bytes() < full / 8, "{}", live.memory_bytes());
        assert!(!live.take(5), "it is gone already");
    }

    #[test]
    fn numbers_are_never_used_twice() {
        let mut live = Live::new(u32::MAX - 1);
        assert_eq!(live.add(pack(1)), Some(u32::MAX - 1));
        assert!(live.take(u32::MAX - 1));
        assert_eq!(live.add(pack(2)), None, "the last number stays unused, so that the next one can always be told");
        assert_eq!(live.len(), 0);
    }

    #[test]
    fn restored_numbers_must_grow_and_stay_below_the_next() {
        let mut live = Live::new(10);
        assert!(live.restore(3, pack(3)));
        assert!(!live.restore(3, pack(3)));
        assert!(!live.restore(2, pack(2)));
        assert!(!live.restore(10, pack(10)));
        assert!(live.restore(9, pack(9)));
        assert_eq!((live.len(), live.name(9), live.name(10)), (2, Some(pack(9)), None));
    }
}
