//! A device that fails is left alone, and tried again by itself.

use std::time::Duration;

use kvd_proto::Time;

use super::config::LadderConfig;
use super::moves::DeviceFault;

/// How far a pause grows.
const PAUSE_DOUBLINGS_MAX: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Up,
    /// Takes no writes (full or read-only) until the time given; reads are served.
    Full { until: Time },
    /// Nothing is asked of it but a probe, at the time given. `None`: the probe is under way.
    Down { probe: Option<Time> },
}

/// What a move that failed wanted of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Read,
    Write,
}

/// The state of one device.
#[derive(Debug, Clone, Default)]
pub(super) struct Breaker {
    state: State,
    read_errors: u32,
    write_errors: u32,
    window_start: Time,
    doublings: u32,
    pub(super) trips: u64,
}

impl Breaker {
    /// Reads are served and fetches planned.
    pub(super) fn readable(&self) -> bool {
        !matches!(self.state, State::Down { .. })
    }

    /// Spills, vacates and formats are planned.
    pub(super) fn writable(&self) -> bool {
        self.state == State::Up
    }

    pub(super) fn failed(&mut self, side: Side, fault: DeviceFault, config: &LadderConfig, now: Time) {
        match fault {
            DeviceFault::Gone => self.down(config, now),
            DeviceFault::NoSpace | DeviceFault::ReadOnly => self.full(config, now),
            DeviceFault::Io => {
                if now.since(self.window_start) > config.breaker_window {
                    (self.window_start, self.read_errors, self.write_errors) = (now, 0, 0);
                }
                match side {
                    Side::Read => self.read_errors += 1,
                    Side::Write => self.write_errors += 1,
                }
                // One that fails writes only goes on serving what it has.
                if self.read_errors >= config.breaker_errors {
                    self.down(config, now);
                } else if self.write_errors >= config.breaker_errors {
                    self.full(config, now);
                    self.write_errors = 0;
                }
            }
        }
    }

    fn full(&mut self, config: &LadderConfig, now: Time) {
        if !matches!(self.state, State::Down { .. }) {
            self.state = State::Full { until: now + self.pause(config) };
        }
    }

    fn down(&mut self, config: &LadderConfig, now: Time) {
        if self.readable() {
            self.trips += 1;
        }
        if !matches!(self.state, State::Down { probe: Some(_) }) {
            self.state = State::Down { probe: Some(now + self.pause(config)) };
        }
        (self.read_errors, self.write_errors) = (0, 0);
    }

    fn pause(&mut self, config: &LadderConfig) -> Duration {
        let pause = config.breaker_pause * (1 << self.doublings);
        self.doublings = (self.doublings + 1).min(PAUSE_DOUBLINGS_MAX);
        pause
    }

    /// A write landed: whatever it was is over.
    pub(super) fn wrote(&mut self) {
        if self.state == State::Up {
            self.doublings = 0;
        }
    }

    /// True if a probe shall be sent now. A pause after a full disk ends by itself: the next spill is the probe.
    pub(super) fn probe_due(&mut self, now: Time) -> bool {
        match self.state {
            State::Up => false,
            State::Full { until } => {
                if now >= until {
                    self.state = State::Up;
                }
                false
            }
            State::Down { probe } => {
                let due = probe.is_some_and(|probe| now >= probe);
                if due {
                    self.state = State::Down { probe: None };
                }
                due
            }
        }
    }

    pub(super) fn probed(&mut self, alive: bool, config: &LadderConfig, now: Time) {
        if alive {
            self.state = State::Up;
            (self.read_errors, self.write_errors) = (0, 0);
        } else {
            self.state = State::Down { probe: Some(now + self.pause(config)) };
        }
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        match self.state {
            State::Up => None,
            State::Full { until } => Some(until),
            State::Down { probe } => probe,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_probes_and_comes_back() {
        let config = LadderConfig::new(1, Vec::new());
        let mut breaker = Breaker::default();
        let now = Time::from_nanos(5);
        for _ in 0..config.breaker_errors {
            assert!(breaker.readable());
            breaker.failed(Side::Read, DeviceFault::Io, &config, now);
        }
        assert!(!breaker.readable());
        let probe = breaker.timeout().unwrap();
        assert!(!breaker.probe_due(now));
        assert!(breaker.probe_due(probe));
        assert!(!breaker.probe_due(probe), "one probe at a time");
        breaker.probed(false, &config, probe);
        let again = breaker.timeout().unwrap();
        assert_eq!(again.since(probe), config.breaker_pause * 2);
        assert!(breaker.probe_due(again));
        breaker.probed(true, &config, again);
        assert!(breaker.writable());
    }

    #[test]
    fn rare_errors_do_not_trip() {
        let config = LadderConfig::new(1, Vec::new());
        let mut breaker = Breaker::default();
        let mut now = Time::ZERO;
        for _ in 0..100 {
            now = now + config.breaker_window;
            breaker.failed(Side::Read, DeviceFault::Io, &config, now);
            assert!(breaker.readable());
        }
    }

    #[test]
    fn a_full_disk_still_reads() {
        let config = LadderConfig::new(1, Vec::new());
        let mut breaker = Breaker::default();
        breaker.failed(Side::Write, DeviceFault::NoSpace, &config, Time::ZERO);
        assert!(breaker.readable() && !breaker.writable());
        let until = breaker.timeout().unwrap();
        assert!(!breaker.probe_due(until));
        assert!(breaker.writable(), "the next spill is the probe");
    }

    #[test]
    fn a_device_that_fails_writes_only_still_reads() {
        let config = LadderConfig::new(1, Vec::new());
        let mut breaker = Breaker::default();
        for _ in 0..3 * config.breaker_errors {
            breaker.failed(Side::Write, DeviceFault::Io, &config, Time::ZERO);
            assert!(breaker.readable());
        }
        assert!(!breaker.writable());
        assert!(breaker.timeout().is_some_and(|until| !breaker.probe_due(until) && breaker.writable()));
    }

    #[test]
    fn pauses_double_up_to_sixteen_times_until_a_write_lands() {
        let config = LadderConfig::new(1, Vec::new());
        let mut breaker = Breaker::default();
        let mut now = Time::from_nanos(5);
        breaker.failed(Side::Read, DeviceFault::Gone, &config, now);
        for factor in [1, 2, 4, 8, 16, 16] {
            let probe = breaker.timeout().unwrap();
            assert_eq!(probe.since(now), config.breaker_pause * factor);
            assert!(breaker.probe_due(probe));
            now = probe;
            breaker.probed(false, &config, now);
        }
        let pause = |breaker: &mut Breaker| {
            breaker.probed(true, &config, now);
            breaker.failed(Side::Write, DeviceFault::NoSpace, &config, now);
            breaker.timeout().unwrap().since(now)
        };
        assert_eq!(pause(&mut breaker), config.breaker_pause * 16, "an answer to a probe does not end it");
        breaker.wrote();
        assert_eq!(pause(&mut breaker), config.breaker_pause * 16, "nor one to what was asked before it was full");
        breaker.probed(true, &config, now);
        breaker.wrote();
        assert_eq!(pause(&mut breaker), config.breaker_pause);
    }

    #[test]
    fn a_device_that_is_out_is_taken_out_once() {
        let config = LadderConfig::new(1, Vec::new());
        let mut breaker = Breaker::default();
        let now = Time::from_nanos(5);
        breaker.failed(Side::Read, DeviceFault::Gone, &config, now);
        let probe = breaker.timeout().unwrap();
        // Moves that were under way fail after it, each in its own way.
        for fault in [DeviceFault::Gone, DeviceFault::NoSpace, DeviceFault::ReadOnly] {
            breaker.failed(Side::Write, fault, &config, now + Duration::from_millis(1));
            assert!(!breaker.readable());
            assert_eq!(breaker.timeout(), Some(probe), "its pause stays as it was");
        }
        assert_eq!(breaker.trips, 1);
        assert!(breaker.probe_due(probe));
        assert_eq!(breaker.timeout(), None, "the probe is under way");
        breaker.failed(Side::Read, DeviceFault::Gone, &config, probe);
        assert!(breaker.timeout().is_some_and(|again| again > probe));
        assert_eq!(breaker.trips, 1);
        breaker.probed(true, &config, probe);
        breaker.failed(Side::Read, DeviceFault::Gone, &config, probe);
        assert_eq!(breaker.trips, 2);
    }

    #[test]
    fn errors_of_reads_and_writes_are_counted_apart_and_not_for_ever() {
        let config = LadderConfig::new(1, Vec::new());
        let mut breaker = Breaker::default();
        let mut now = Time::from_nanos(5);
        for _ in 0..3 {
            now = now + config.breaker_window + Duration::from_nanos(1);
            for side in [Side::Read, Side::Write] {
                (1..config.breaker_errors).for_each(|_| breaker.failed(side, DeviceFault::Io, &config, now));
            }
            assert!(breaker.readable() && breaker.writable());
        }
        breaker.failed(Side::Write, DeviceFault::Io, &config, now);
        assert!(breaker.readable() && !breaker.writable());
        breaker.failed(Side::Read, DeviceFault::Io, &config, now);
        assert!(!breaker.readable());
    }
}
