//! Who may still touch a slot of the arena: client processes, those of earlier epochs, and moves.
//!
//! A slot with a holder is never given away, whatever became of its record.

use std::collections::BTreeMap;

use crate::ids::{ClientSlot, SlotId};

/// Someone who may read or write a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// A client process of this epoch.
    Client(ClientSlot),
    /// A client process that held the slot when the last daemon ended.
    Fenced(ClientSlot),
    /// A move in flight.
    Move,
}

/// Counts per (slot, holder). Bounded: by the lease caps for clients, by slots for the fenced, by the limits of moves.
#[derive(Default)]
pub(super) struct Pins {
    counts: BTreeMap<(SlotId, Holder), u32>,
}

const LOWEST: Holder = Holder::Client(ClientSlot::new(0).expect("0 is a client slot"));

impl Pins {
    /// Adds a hold; true if the holder had none on the slot.
    pub(super) fn add(&mut self, slot: SlotId, holder: Holder) -> bool {
        let count = self.counts.entry((slot, holder)).or_insert(0);
        *count += 1;
        *count == 1
    }

    /// Takes a hold back; true if it was the holder's last on the slot.
    pub(super) fn remove(&mut self, slot: SlotId, holder: Holder) -> bool {
        let count = self.counts.get_mut(&(slot, holder)).expect("a hold was added before it is taken back");
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.counts.remove(&(slot, holder));
        true
    }

    /// Whether the client holds the slot still, in this epoch or since an earlier one.
    pub(super) fn held_by(&self, slot: SlotId, client: ClientSlot) -> bool {
        [Holder::Client(client), Holder::Fenced(client)].iter().any(|holder| self.counts.contains_key(&(slot, *holder)))
    }

    pub(super) fn held(&self, slot: SlotId) -> bool {
        if cfg!(kvd_bug = "pinned_reused") {
            return false;
        }
        self.counts.range((slot, LOWEST)..=(slot, Holder::Move)).next().is_some()
    }

    /// A slot that `client` held in an earlier epoch, at or behind `from`, looking at no more than `steps` slots.
    /// The second value is where to go on; `None` at the end.
    pub(super) fn fenced_by(&self, client: ClientSlot, from: SlotId, steps: u32) -> (Option<SlotId>, Option<SlotId>) {
        let behind = |slot: SlotId| {
            self.counts.range((slot, Holder::Move)..).map(|((slot, _), _)| *slot).find(|found| *found > slot)
        };
        let mut next = self.counts.range((from, LOWEST)..).next().map(|((slot, _), _)| *slot);
        for _ in 0..steps {
            let Some(slot) = next else { break };
            if self.counts.contains_key(&(slot, Holder::Fenced(client))) {
                return (Some(slot), Some(slot));
            }
            next = behind(slot);
        }
        (None, next)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, Holder, u32)> {
        self.counts.iter().map(|((slot, holder), count)| (*slot, *holder, *count))
    }

    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_counts_for_itself() {
        let (slot, other) = (SlotId::from_raw(5), SlotId::from_raw(6));
        let [one, two] = [1, 2].map(|number| ClientSlot::new(number).unwrap());
        let mut pins = Pins::default();
        let all = [Holder::Client(one), Holder::Fenced(one), Holder::Client(two), Holder::Move];
        for holder in all {
            assert!(pins.add(slot, holder), "its first");
            assert!(!pins.add(slot, holder), "its second");
        }
        assert_eq!(pins.len(), 4);
        assert_eq!(pins.iter().collect::<Vec<_>>().len(), 4);
        assert!(pins.held(slot) && !pins.held(other));
        assert!(!pins.remove(slot, Holder::Client(one)) && pins.remove(slot, Holder::Client(one)));
        assert!(pins.held_by(slot, one), "since the last epoch");
        assert!(!pins.remove(slot, Holder::Fenced(one)) && pins.remove(slot, Holder::Fenced(one)));
        assert!(!pins.held_by(slot, one) && pins.held_by(slot, two) && !pins.held_by(other, two));
        assert!(!pins.remove(slot, Holder::Client(two)) && pins.remove(slot, Holder::Client(two)));
        assert!(!pins.held_by(slot, two) && pins.held(slot), "a move holds it still");
        assert!(!pins.remove(slot, Holder::Move) && pins.remove(slot, Holder::Move));
        assert!(!pins.held(slot));
        assert_eq!(pins.len(), 0);
    }

    #[test]
    fn what_a_client_held_before_is_found_in_bounded_steps() {
        let slot = SlotId::from_raw;
        let [mine, other] = [1, 2].map(|number| ClientSlot::new(number).unwrap());
        let mut pins = Pins::default();
        for number in 0..10 {
            pins.add(slot(number), Holder::Client(mine));
            pins.add(slot(number), Holder::Fenced(if number % 5 == 3 { mine } else { other }));
        }
        assert_eq!(pins.fenced_by(mine, slot(0), 3), (None, Some(slot(3))), "three looks, then on from the fourth");
        assert_eq!(pins.fenced_by(mine, slot(3), 3), (Some(slot(3)), Some(slot(3))));
        pins.remove(slot(3), Holder::Fenced(mine));
        assert_eq!(pins.fenced_by(mine, slot(3), 100), (Some(slot(8)), Some(slot(8))));
        assert_eq!(pins.fenced_by(mine, slot(9), 100), (None, None));
        assert_eq!(pins.fenced_by(mine, slot(50), 100), (None, None));
    }
}
