//! Learns, per class, when blocks are used again, and what keeping one is therefore worth.
//!
//! Ages are counted in blocks that were asked for or offered since the last use, in four steps per octave. For every step a
//! class counts the blocks that were used in it and those that came through it unused; the quotient is the chance of a use
//! in that step. A class that has seen little borrows from its groups: what a group says counts like [`BORROWED`] blocks of
//! its own.
//!
//! The worth of a block of age `a` is the best ratio of expected uses to expected time of keeping it, over all times at
//! which one could give it up (the Gittins index of the block). It is the right price in a cache whose places are let
//! by time: as long as the worth is above what others pay, it pays to keep the block, also while nothing happens yet, as
//! in the half minute that people take to think before they answer.

use super::classes::{CLASSES, Class, GROUPS};

/// Steps of age: four per octave up to 2^28 blocks.
pub(super) const STEPS: usize = 112;

/// How many blocks a group's opinion stands for. The ten to twenty tracked blocks of a chain live or die together, so this is
/// the word of some thirty chains: fewer are an anecdote.
const BORROWED: f32 = 500.0;

/// Chance of a use in one step when nothing was ever seen: some use in the long run, at no particular age.
const UNKNOWN: f32 = 0.02;

/// Counts fade to a half over this many of the ages at which blocks fall at present.
const FADE_AGES: f32 = 64.0;

/// The step an age belongs to.
pub(super) fn step_of(age: u64) -> usize {
    if age < 4 {
        return age as usize;
    }
    let octave = age.ilog2();
    (4 * (octave as usize - 1) + (age >> (octave - 2) & 3) as usize).min(STEPS - 1)
}

/// First age of a step.
pub(super) fn step_start(step: usize) -> u64 {
    if step < 4 {
        return step as u64;
    }
    (4 + (step as u64 & 3)) << (step / 4 - 1)
}

#[derive(Clone)]
struct Counts {
    used: [f32; STEPS],
    unused: [f32; STEPS],
    chance: [f32; STEPS],
    faded_at: u64,
}

impl Counts {
    fn new() -> Self {
        Self { used: [0.0; STEPS], unused: [0.0; STEPS], chance: [UNKNOWN; STEPS], faded_at: 0 }
    }

    fn fade(&mut self, clock: u64, fall_age: f32) {
        let elapsed = (clock - self.faded_at) as f32;
        self.faded_at = clock;
        let factor = (-elapsed / (FADE_AGES * fall_age.max(1.0))).exp2();
        for step in 0..STEPS {
            self.used[step] *= factor;
            self.unused[step] *= factor;
        }
    }

    fn learn(&mut self, prior: &[f32; STEPS]) {
        for (step, prior) in prior.iter().enumerate() {
            let (used, unused) = (self.used[step], self.unused[step]);
            self.chance[step] = (used + BORROWED * prior) / (used + unused + BORROWED);
        }
    }
}

/// The tables, some 350 KiB.
pub(super) struct Worth {
    classes: Vec<Counts>,
    groups: Vec<Counts>,
    worth: Vec<[f32; STEPS]>,
    next: usize,
}

impl Worth {
    pub(super) fn new() -> Self {
        let counts = Counts::new();
        let mut worth = [0.0; STEPS];
        appraise(&counts.chance, &mut worth);
        Self {
            classes: vec![counts.clone(); CLASSES],
            groups: vec![counts; GROUPS],
            worth: vec![worth; CLASSES],
            next: 0,
        }
    }

    /// Uses per block of time that keeping a block of this class and age is worth.
    pub(super) fn of(&self, class: Class, age: u64) -> f32 {
        self.worth[class.index()][step_of(age)]
    }

    /// Blocks of `class` came through the steps unused.
    pub(super) fn unused(&mut self, class: Class, steps: std::ops::Range<usize>) {
        for step in steps {
            self.classes[class.index()].unused[step] += 1.0;
            for group in class.groups() {
                self.groups[group].unused[step] += 1.0;
            }
        }
    }

    /// A block of `class` was used at this step.
    pub(super) fn used(&mut self, class: Class, step: usize) {
        self.classes[class.index()].used[step] += 1.0;
        for group in class.groups() {
            self.groups[group].used[step] += 1.0;
        }
    }

    /// Brings one table up to date, the next in turn: groups from the widest down, then the classes. Under a microsecond.
    pub(super) fn refresh_one(&mut self, clock: u64, fall_age: f32) {
        let at = self.next;
        self.next = (at + 1) % (GROUPS + CLASSES);
        if at < GROUPS {
            let group = GROUPS - 1 - at;
            let prior = match group {
                group if group == GROUPS - 1 => [UNKNOWN; STEPS],
                group if group >= GROUPS - 5 => self.groups[GROUPS - 1].chance,
                // Fine groups are numbered (turn, uses, last): see `Class::groups`.
                group => self.groups[GROUPS - 5 + usize::from(group / 2 % 5 > 0) * 2 + group % 2].chance,
            };
            let counts = &mut self.groups[group];
            counts.fade(clock, fall_age);
            counts.learn(&prior);
            return;
        }
        let index = at - GROUPS;
        let class = Class::from_byte(index as u8);
        let prior = self.groups[class.groups()[0]].chance;
        let counts = &mut self.classes[index];
        counts.fade(clock, fall_age);
        counts.learn(&prior);
        appraise(&counts.chance, &mut self.worth[index]);
    }
}

/// Worth by age from the chances by step.
///
/// With uses and time summed from age 0 on, the best ratio from an age is the steepest line from its point (time, uses) to a
/// later one: a tangent to the upper hull of what lies to the right, found from the right to the left in one go.
fn appraise(chance: &[f32; STEPS], worth: &mut [f32; STEPS]) {
    let mut points = [(0.0f64, 0.0f64); STEPS];
    let (mut alive, mut uses, mut time) = (1.0, 0.0, 0.0);
    for step in 0..STEPS - 1 {
        let chance = f64::from(chance[step]);
        time += alive * (1.0 - 0.5 * chance) * (step_start(step + 1) - step_start(step)) as f64;
        uses += alive * chance;
        alive *= 1.0 - chance;
        points[step + 1] = (time, uses);
    }
    let slope = |a: usize, b: usize| (points[b].1 - points[a].1) / (points[b].0 - points[a].0).max(f64::MIN_POSITIVE);
    let mut hull = [STEPS - 1; STEPS];
    let mut corners = 1;
    worth[STEPS - 1] = 0.0;
    for from in (0..STEPS - 1).rev() {
        while corners > 1 && slope(from, hull[corners - 2]) >= slope(from, hull[corners - 1]) {
            corners -= 1;
        }
        worth[from] = slope(from, hull[corners - 1]) as f32;
        hull[corners] = from;
        corners += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::adaptive::classes::Traits;

    #[test]
    fn steps_tile_the_ages() {
        for step in 0..STEPS - 1 {
            assert_eq!(step_of(step_start(step)), step);
            assert_eq!(step_of(step_start(step + 1) - 1), step);
        }
        assert_eq!(step_of(u64::MAX), STEPS - 1);
    }

    #[test]
    fn a_class_that_returns_is_worth_more_and_the_more_the_nearer_its_use() {
        let back = Class::new(Traits { turn: 2, uses: 1, length: 1, last: false });
        let gone = Class::new(Traits { turn: 0, uses: 0, length: 1, last: true });
        let mut worth = Worth::new();
        for _ in 0..5_000 {
            worth.unused(back, 0..step_of(3_000));
            worth.used(back, step_of(3_000));
            worth.unused(gone, 0..step_of(100_000));
        }
        for _ in 0..3 * (GROUPS + CLASSES) {
            worth.refresh_one(0, 10_000.0);
        }
        assert!(worth.of(back, 0) > 100.0 * worth.of(gone, 0));
        assert!(worth.of(back, 2_900) > worth.of(back, 0), "the nearer the use the more it is worth");
        assert!(worth.of(back, 100_000) < worth.of(back, 2_900), "what missed its use is not waited for");
    }
}
