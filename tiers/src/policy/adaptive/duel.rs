//! Worth against recency: two small caches of key prints, one that drops what is worth least, one that drops what was used
//! longest ago, see the same sample of the accesses. While recency hits more, the real cache falls in its order too.
//!
//! It bounds what a wrong opinion can cost: worths are learnt, and after a change of the workload they are wrong for a while.
//!
//! The caches are sets of [`WAYS`] seats that fill alike, and know nothing of chains: their hit ratios are not the real
//! one's, but what differs between them differs there too. 12 bytes per seat, at most 2 x 16 384 seats.

use kvd_proto::BlockKey;

use super::classes::Class;
use super::history::{print, word};
use super::worth::Worth;

const WAYS: usize = 16;
const SEATS_MAX: u64 = 1 << 14;
/// What the lead is summed over, in turn-overs of the caches' seats: long enough that chance does not decide, for its
/// accesses come in chains that hit or miss together.
const TURN_OVERS: f32 = 4.0;
/// Recency rules from where it leads by more than this share of the accesses on, until its lead has shrunk to the other.
const LEAD: f32 = 0.003;
const LEAD_GONE: f32 = 0.0005;

#[derive(Debug, Clone, Copy)]
struct Seat {
    print: u32,
    /// Clock of the last use, wrapping.
    time: u32,
    class: u8,
    taken: bool,
}

const FREE: Seat = Seat { print: 0, time: 0, class: 0, taken: false };

pub(super) struct Duel {
    worth: Vec<Seat>,
    recency: Vec<Seat>,
    /// One of 2^this keys is watched.
    sample: u32,
    /// Hits of recency less hits of worth, fading.
    lead: f32,
    recency_rules: bool,
}

impl Duel {
    /// For a cache of `blocks` blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let sample = blocks.div_ceil(SEATS_MAX).next_power_of_two().ilog2();
        let sets = ((blocks >> sample) as usize).div_ceil(WAYS).max(1);
        let seats = vec![FREE; sets * WAYS];
        Self { worth: seats.clone(), recency: seats, sample, lead: 0.0, recency_rules: false }
    }

    /// Whether blocks should fall in the order of their last use.
    pub(super) fn recency_rules(&self) -> bool {
        self.recency_rules
    }

    /// A block was asked for or offered, and is of this class now.
    pub(super) fn access(&mut self, key: &BlockKey, class: Class, clock: u64, opinion: &Worth) {
        let word = word(key);
        // Not the bits by which the history takes its sample.
        if word.trailing_zeros() < self.sample {
            return;
        }
        let sets = self.worth.len() / WAYS;
        let first = (word >> self.sample) as usize % sets * WAYS;
        let newcomer = Seat { print: print(word), time: clock as u32, class: class.byte(), taken: true };
        let by_recency = play(&mut self.recency[first..first + WAYS], newcomer, |seat| -(age(seat, clock) as f32));
        let price = |seat: &Seat| opinion.of(Class::from_byte(seat.class), u64::from(age(seat, clock)));
        let by_worth = play(&mut self.worth[first..first + WAYS], newcomer, price);
        let span = TURN_OVERS * self.worth.len() as f32;
        self.lead += f32::from(u8::from(by_recency)) - f32::from(u8::from(by_worth)) - self.lead / span;
        self.recency_rules = self.lead > span * if self.recency_rules { LEAD_GONE } else { LEAD };
    }
}

/// Whether the newcomer has a seat already. Else it takes a free one, or that of the lowest value if it is no lower itself.
fn play(set: &mut [Seat], newcomer: Seat, value: impl Fn(&Seat) -> f32) -> bool {
    if let Some(seat) = set.iter_mut().find(|seat| seat.taken && seat.print == newcomer.print) {
        *seat = newcomer;
        return true;
    }
    let rank = |seat: &Seat| if seat.taken { value(seat) } else { f32::NEG_INFINITY };
    let lowest = set.iter_mut().min_by(|a, b| rank(a).total_cmp(&rank(b))).expect("a set has seats");
    if rank(lowest) <= value(&newcomer) {
        *lowest = newcomer;
    }
    false
}

fn age(seat: &Seat, clock: u64) -> u32 {
    (clock as u32).wrapping_sub(seat.time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::adaptive::classes::Traits;
    use crate::policy::adaptive::worth::step_of;

    fn key(number: u64) -> BlockKey {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        BlockKey::new(bytes)
    }

    /// Blocks of class `favoured` are said to return late but surely, and never do; those of class `slighted` return.
    #[test]
    fn recency_rules_while_worth_misleads_and_no_longer() {
        let class = |turn| Class::new(Traits { turn, uses: 0, length: 0, last: false });
        let (favoured, slighted) = (class(1), class(2));
        let mut opinion = Worth::new();
        for _ in 0..20_000 {
            opinion.unused(favoured, 0..step_of(1 << 16));
            opinion.used(favoured, step_of(1 << 16));
            opinion.unused(slighted, 0..step_of(1 << 20));
        }
        for _ in 0..2_000 {
            opinion.refresh_one(0, 1e6);
        }
        let mut duel = Duel::new(1024);
        let mut clock = 0;
        let mut play = |duel: &mut Duel, returns: Class, passes: Class| {
            for _ in 0..60_000u64 {
                clock += 2;
                duel.access(&key(clock / 2 % 400), returns, clock, &opinion);
                duel.access(&key((1 << 40) | (clock / 2)), passes, clock, &opinion);
            }
            duel.recency_rules()
        };
        assert!(play(&mut duel, slighted, favoured), "worth keeps what never returns");
        assert!(!play(&mut duel, favoured, slighted), "now it is right");
    }
}
