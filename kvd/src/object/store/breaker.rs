//! Whether the store is asked at all: after a run of failures it is left alone for a while, then asked by one request.
//!
//! Decided here, carried out by [`super::Store`]: time and randomness are arguments.
//!
//! ```text
//! up -- 8 failures in a row, or one refusal of its kind --> down for 1 s .. 30 s -- then --> trying: one request
//!  ^                                                          ^                                 |         |
//!  |                                                          +------------ it fails -----------+         |
//!  +-------------------------------------------- it gets an answer ---------------------------------------+
//! ```
//!
//! Failures of the store count for all requests. A refusal (denied, full) counts for requests of its own class: who may
//! not write can still read.

use std::time::{Duration, Instant};

use super::{Fault, Op, StoreState};

/// One lost packet is no outage; eight in a row, over several connections, are.
pub(super) const FAILURES_MAX: u32 = 8;
const DOWN_MIN: Duration = Duration::from_secs(1);
const DOWN_MAX: Duration = Duration::from_secs(30);
const CLASSES: usize = 4;

/// What the end of a request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The store answered, be it that there is no such object.
    Answered,
    /// The store itself failed, or the way to it.
    Failed(String),
    /// It refuses this class of requests.
    Refused(String),
    /// It refuses everything.
    Useless(String),
    /// The request ended before it could tell.
    Unknown,
}

impl Verdict {
    /// What a fault says about the store.
    pub(super) fn of(fault: &Fault) -> Verdict {
        match fault {
            Fault::NotFound | Fault::Long { .. } | Fault::Other(_) | Fault::Short { cut: false, .. } => {
                Verdict::Answered
            }
            Fault::Throttled(_)
            | Fault::Unreachable(_)
            | Fault::Stalled(_)
            | Fault::Timeout
            | Fault::Server(_)
            | Fault::Short { cut: true, .. } => Verdict::Failed(fault.to_string()),
            Fault::Denied(_) | Fault::ReadOnly | Fault::Full(_) => Verdict::Refused(fault.to_string()),
            Fault::NoBucket(_) => Verdict::Useless(fault.to_string()),
            Fault::Open => Verdict::Unknown,
        }
    }
}

/// The right to ask once. It must come back with [`Breaker::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Pass {
    op: Op,
    store_trial: bool,
    class_trial: bool,
}

/// The gates of one store.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    store: Gate,
    classes: [Gate; CLASSES],
}

impl Breaker {
    /// Whether a request of this kind would be let through. Takes nothing.
    pub(super) fn admits(&self, op: Op, now: Instant) -> bool {
        self.store.admits(now) && self.classes[class_of(op)].admits(now)
    }

    /// Lets a request through, or not.
    pub(super) fn admit(&mut self, op: Op, now: Instant) -> Option<Pass> {
        if !self.admits(op, now) {
            return None;
        }
        Some(Pass { op, store_trial: self.store.enter(), class_trial: self.classes[class_of(op)].enter() })
    }

    /// What became of a request that was let through. `jitter` is from 0 to 1.
    pub(super) fn settle(&mut self, pass: Pass, verdict: Verdict, now: Instant, jitter: f64) {
        let (store, class) = (&mut self.store, &mut self.classes[class_of(pass.op)]);
        match verdict {
            Verdict::Answered => {
                store.answered(pass.store_trial);
                class.answered(pass.class_trial);
            }
            Verdict::Failed(why) => {
                store.failed(pass.store_trial, FAILURES_MAX, Closing { why, now, jitter });
                class.gave_up(pass.class_trial, now);
            }
            Verdict::Refused(why) => {
                store.answered(pass.store_trial);
                class.failed(pass.class_trial, 1, Closing { why, now, jitter });
            }
            Verdict::Useless(why) => {
                store.failed(pass.store_trial, 1, Closing { why, now, jitter });
                class.gave_up(pass.class_trial, now);
            }
            Verdict::Unknown => {
                store.gave_up(pass.store_trial, now);
                class.gave_up(pass.class_trial, now);
            }
        }
    }

    /// The worst of all gates, for people.
    pub(super) fn state(&self, now: Instant) -> StoreState {
        let states = std::iter::once(&self.store).chain(&self.classes).map(|gate| gate.state(now));
        states
            .max_by_key(|state| match state {
                StoreState::Up => 0,
                StoreState::Trying => 1,
                StoreState::Down { .. } => 2,
            })
            .unwrap_or(StoreState::Up)
    }

    /// Since when something is wrong, and what was wrong last: with the store, or else with a class of requests.
    pub(super) fn trouble(&self) -> Option<(Instant, &str)> {
        let mut gates = std::iter::once(&self.store).chain(&self.classes);
        gates.find_map(|gate| Some((gate.since?, gate.last_error.as_str())))
    }
}

/// Who may read may perhaps not write, list or delete.
fn class_of(op: Op) -> usize {
    match op {
        Op::Get | Op::Head => 0,
        Op::Put => 1,
        Op::List => 2,
        Op::Delete => 3,
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Up,
    /// Nobody is let through until then; then one is.
    Down { until: Instant },
    /// One is out to see.
    Trying,
}

#[derive(Debug, Default)]
struct Gate {
    phase: Phase,
    /// In a row, while up.
    failures: u32,
    /// How often in a row it went down without coming up.
    downs: u32,
    since: Option<Instant>,
    last_error: String,
}

struct Closing {
    why: String,
    now: Instant,
    jitter: f64,
}

impl Gate {
    fn admits(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Up => true,
            Phase::Down { until } => now >= until,
            Phase::Trying => false,
        }
    }

    /// After [`Gate::admits`]; tells whether this is the one that is out to see.
    fn enter(&mut self) -> bool {
        let trial = self.phase != Phase::Up;
        if trial {
            self.phase = Phase::Trying;
        }
        trial
    }

    fn answered(&mut self, trial: bool) {
        // One that set out before the gate went down proves nothing about now.
        if trial || self.phase == Phase::Up {
            *self = Gate::default();
        }
    }

    fn failed(&mut self, trial: bool, most: u32, closing: Closing) {
        if !trial && self.phase != Phase::Up {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.last_error = closing.why;
        if trial || self.failures >= most {
            let doubled = DOWN_MIN.saturating_mul(1 << self.downs.min(5)).min(DOWN_MAX);
            // Many nodes lose one store at the same moment: they must not come back in step.
            let down = doubled.mul_f64(0.8 + 0.4 * closing.jitter.clamp(0.0, 1.0));
            self.phase = Phase::Down { until: closing.now + down };
            self.since.get_or_insert(closing.now);
            self.downs = self.downs.saturating_add(1);
            self.failures = 0;
        }
    }

    fn gave_up(&mut self, trial: bool, now: Instant) {
        if trial {
            self.phase = Phase::Down { until: now };
        }
    }

    fn state(&self, now: Instant) -> StoreState {
        match (self.phase, self.since) {
            (Phase::Down { until }, Some(since)) if now < until => {
                StoreState::Down { since, last_error: self.last_error.clone() }
            }
            (Phase::Down { .. } | Phase::Trying, _) => StoreState::Trying,
            (Phase::Up, _) => StoreState::Up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Bench {
        breaker: Breaker,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { breaker: Breaker::default(), now: Instant::now() }
        }

        fn ask(&mut self, op: Op, verdict: Verdict) {
            let pass = self.breaker.admit(op, self.now).expect("let through");
            self.breaker.settle(pass, verdict, self.now, 0.5);
        }

        fn fails(&mut self, times: u32) {
            for _ in 0..times {
                self.ask(Op::Get, Verdict::Failed("no route".into()));
            }
        }
    }

    #[test]
    fn eight_failures_in_a_row_close_it_and_one_answer_between_them_does_not() {
        let mut bench = Bench::new();
        bench.fails(7);
        bench.ask(Op::Get, Verdict::Answered);
        bench.fails(7);
        assert_eq!(bench.breaker.state(bench.now), StoreState::Up);
        bench.fails(1);
        let since = bench.now;
        assert_eq!(bench.breaker.state(bench.now), StoreState::Down { since, last_error: "no route".into() });
        for op in Op::ALL {
            assert!(bench.breaker.admit(op, bench.now).is_none(), "{op:?}");
        }
    }

    #[test]
    fn one_request_tries_and_its_answer_opens_it() {
        let mut bench = Bench::new();
        bench.fails(8);
        bench.now += SECOND;
        let trial = bench.breaker.admit(Op::List, bench.now).expect("the time is over");
        assert_eq!(bench.breaker.state(bench.now), StoreState::Trying);
        assert!(bench.breaker.trouble().is_some(), "why it is tried is still told");
        assert!(bench.breaker.admit(Op::Get, bench.now).is_none(), "one is enough");
        bench.breaker.settle(trial, Verdict::Answered, bench.now, 0.5);
        assert_eq!(bench.breaker.state(bench.now), StoreState::Up);
        bench.fails(7);
        assert!(bench.breaker.admits(Op::Get, bench.now), "the count began anew");
    }

    #[test]
    fn the_time_doubles_to_its_bound_and_since_is_the_beginning() {
        let mut bench = Bench::new();
        let since = bench.now;
        bench.fails(8);
        for seconds in [1, 2, 4, 8, 16, 30, 30, 30] {
            bench.now += SECOND * seconds - Duration::from_millis(1);
            assert!(!bench.breaker.admits(Op::Get, bench.now), "{seconds} s are not over");
            assert!(matches!(bench.breaker.state(bench.now), StoreState::Down { since: at, .. } if at == since));
            bench.now += Duration::from_millis(1);
            bench.fails(1);
        }
        // Without the middle of the jitter the bound is a little off, but it is one.
        bench.now += SECOND * 36;
        let pass = bench.breaker.admit(Op::Get, bench.now).expect("let through");
        bench.breaker.settle(pass, Verdict::Failed("no route".into()), bench.now, 1.0);
        assert!(bench.breaker.admits(Op::Get, bench.now + SECOND * 36));
    }

    #[test]
    fn a_trial_that_tells_nothing_leaves_the_next_one_to_try() {
        let mut bench = Bench::new();
        bench.fails(8);
        bench.now += SECOND * 2;
        bench.ask(Op::Get, Verdict::Unknown);
        assert!(bench.breaker.admits(Op::Get, bench.now));
        bench.ask(Op::Get, Verdict::Answered);
        assert_eq!(bench.breaker.state(bench.now), StoreState::Up);
    }

    #[test]
    fn a_refusal_closes_its_own_class_at_once_and_no_other() {
        let mut bench = Bench::new();
        bench.ask(Op::Put, Verdict::Refused("read-only bucket".into()));
        assert!(!bench.breaker.admits(Op::Put, bench.now));
        assert!([Op::Get, Op::Head, Op::List, Op::Delete].iter().all(|op| bench.breaker.admits(*op, bench.now)));
        assert!(matches!(bench.breaker.state(bench.now), StoreState::Down { .. }));
        bench.now += SECOND;
        // The store fails while the class is tried: that says nothing about the class.
        bench.ask(Op::Put, Verdict::Failed("no route".into()));
        assert!(bench.breaker.admits(Op::Put, bench.now));
        bench.ask(Op::Put, Verdict::Answered);
        assert_eq!(bench.breaker.state(bench.now), StoreState::Up);
    }

    #[test]
    fn a_missing_bucket_closes_everything_at_once() {
        let mut bench = Bench::new();
        bench.ask(Op::Get, Verdict::Useless("no such bucket".into()));
        assert!(Op::ALL.iter().all(|op| !bench.breaker.admits(*op, bench.now)));
    }

    #[test]
    fn one_that_set_out_before_changes_nothing_when_it_comes_home() {
        let mut bench = Bench::new();
        let early: Vec<_> = (0..2).filter_map(|_| bench.breaker.admit(Op::Get, bench.now)).collect();
        bench.fails(8);
        bench.breaker.settle(early[0], Verdict::Answered, bench.now, 0.5);
        assert!(!bench.breaker.admits(Op::Get, bench.now));
        bench.breaker.settle(early[1], Verdict::Failed("late".into()), bench.now, 0.5);
        assert!(bench.breaker.admits(Op::Get, bench.now + SECOND), "it was not put off");
    }
}
