//! Never slower than recomputing: how fast an edge is, and how much of a load pays.

use std::time::Duration;

use kvd_proto::Time;

use super::lanes::Speed;

/// Busy time after which a sample is taken: long enough that the queue's depth does not show in it.
const SAMPLE_NANOS: u64 = 20_000_000;

/// Bandwidth of one edge, measured over the time in which it had work.
#[derive(Debug, Default, Clone)]
pub(super) struct Edge {
    in_flight: u32,
    in_flight_bytes: u64,
    busy_since: Time,
    busy_nanos: u64,
    bytes: u64,
    /// Bytes per second, smoothed; 0 until the first sample.
    bytes_per_second: u64,
    /// Of one move, smoothed.
    latency_nanos: u64,
    pub(super) moved_bytes: u64,
    pub(super) moves: u64,
}

impl Edge {
    pub(super) fn started(&mut self, bytes: u64, now: Time) {
        if self.in_flight == 0 {
            self.busy_since = now;
        }
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
    }

    /// A move ended. `moved` is 0 for one that failed: its time counts, as a load waits for it as well.
    pub(super) fn ended(&mut self, bytes: u64, moved: u64, took: Duration, now: Time) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
        self.busy_nanos += u64::try_from(now.since(self.busy_since).as_nanos()).unwrap_or(u64::MAX);
        self.busy_since = now;
        self.bytes += moved;
        if moved > 0 {
            self.moved_bytes += moved;
            self.moves += 1;
            let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.latency_nanos = smooth(self.latency_nanos, took);
        }
        let first = self.bytes_per_second == 0 && self.busy_nanos > 0 && self.bytes > 0;
        if first || self.busy_nanos >= SAMPLE_NANOS {
            let sample = u128::from(self.bytes) * 1_000_000_000 / u128::from(self.busy_nanos.max(1));
            // At least 1: an edge that moves nothing is slow, not unknown.
            self.bytes_per_second = smooth(self.bytes_per_second, u64::try_from(sample).unwrap_or(u64::MAX)).max(1);
            (self.busy_nanos, self.bytes) = (0, 0);
        }
    }

    /// A move ended that says nothing about the edge.
    pub(super) fn dropped(&mut self, bytes: u64, now: Time) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
        self.busy_since = now;
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Of one move; zero before the first.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_nanos(self.latency_nanos)
    }

    /// What waits ahead of the next move, in nanoseconds; 0 while nothing was measured.
    fn queue_nanos(&self) -> u64 {
        self.nanos(self.in_flight_bytes)
    }

    fn nanos(&self, bytes: u64) -> u64 {
        if self.bytes_per_second == 0 {
            return 0;
        }
        u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second)).unwrap_or(u64::MAX)
    }

    /// How long `bytes` more take.
    pub(super) fn estimate(&self, bytes: u64) -> Duration {
        let latency = if bytes > 0 { self.latency_nanos } else { 0 };
        Duration::from_nanos(self.queue_nanos().saturating_add(self.nanos(bytes)).max(latency))
    }
}

fn smooth(old: u64, sample: u64) -> u64 {
    if old == 0 { sample } else { old - old / 4 + sample / 4 }
}

/// Decides block by block, in chain order, how long a prefix pays: the one with the highest net gain.
pub(super) struct Gate {
    recompute_nanos: u64,
    net: i128,
    best: i128,
    best_blocks: u32,
    blocks: u32,
    queued: bool,
}

impl Gate {
    /// `None` where the engine's speed is unknown: everything is loaded.
    pub(super) fn new(speed: Speed) -> Option<Self> {
        let per_second = u64::from(speed.tokens_per_second);
        let recompute_nanos = (u64::from(speed.block_tokens) * 1_000_000_000).checked_div(per_second)?;
        Some(Self { recompute_nanos, net: 0, best: 0, best_blocks: 0, blocks: 0, queued: false })
    }

    /// The next block lies in the arena.
    pub(super) fn dram(&mut self) {
        self.count(0);
    }

    /// The next block must come over `edge`.
    pub(super) fn fetch(&mut self, edge: &Edge, bytes: u64) {
        let queue = if self.queued { 0 } else { edge.queue_nanos() };
        self.queued = true;
        self.count(edge.nanos(bytes).saturating_add(queue));
    }

    fn count(&mut self, cost_nanos: u64) {
        self.blocks += 1;
        self.net += i128::from(self.recompute_nanos) - i128::from(cost_nanos);
        // On a tie the longer prefix: it spares the engine work.
        if self.net >= self.best {
            (self.best, self.best_blocks) = (self.net, self.blocks);
        }
    }

    /// How many blocks pay.
    pub(super) fn paying(&self) -> u32 {
        self.best_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(bytes_per_second: u64) -> Edge {
        Edge { bytes_per_second, ..Edge::default() }
    }

    fn gate(tokens_per_second: u32) -> Gate {
        Gate::new(Speed { block_tokens: 16, tokens_per_second }).unwrap()
    }

    #[test]
    fn bandwidth_counts_busy_time_only() {
        let mut edge = Edge::default();
        let mut now = Time::ZERO;
        for _ in 0..100 {
            // Two at once, 1 MiB each, 2 ms for both; then a pause that must not count.
            edge.started(1 << 20, now);
            edge.started(1 << 20, now);
            now = now + Duration::from_millis(2);
            edge.ended(1 << 20, 1 << 20, Duration::from_millis(2), now);
            edge.ended(1 << 20, 1 << 20, Duration::from_millis(2), now);
            now = now + Duration::from_secs(1);
        }
        let expected = 1_048_576_000;
        assert!((edge.bytes_per_second() as i64 - expected).abs() < expected / 10, "{}", edge.bytes_per_second());
    }

    /// A move that has the edge for itself and takes so many milliseconds.
    fn moved(edge: &mut Edge, bytes: u64, millis: u64, now: &mut Time) {
        let took = Duration::from_millis(millis);
        edge.started(bytes, *now);
        *now = *now + took;
        edge.ended(bytes, bytes, took, *now);
    }

    #[test]
    fn a_sample_counts_for_a_quarter_of_what_was_known() {
        let (mut edge, mut now) = (Edge::default(), Time::from_nanos(1));
        moved(&mut edge, 40 << 20, 20, &mut now);
        let first = edge.bytes_per_second();
        assert_eq!((first, edge.latency()), ((40 << 20) * 50, Duration::from_millis(20)));
        // Half as fast.
        moved(&mut edge, 40 << 20, 40, &mut now);
        assert_eq!(edge.bytes_per_second(), first - first / 8);
        assert_eq!(edge.latency(), Duration::from_millis(25));
        assert_eq!((edge.moves, edge.moved_bytes), (2, 80 << 20));
    }

    #[test]
    fn after_the_first_move_only_a_long_time_is_a_sample() {
        let (mut edge, mut now) = (Edge::default(), Time::from_nanos(1));
        moved(&mut edge, 1 << 20, 1, &mut now);
        assert_eq!(edge.bytes_per_second(), 1000 << 20);
        moved(&mut edge, 1 << 20, 19, &mut now);
        assert_eq!(edge.bytes_per_second(), 1000 << 20);
        moved(&mut edge, 1 << 20, 1, &mut now);
        assert_eq!(edge.bytes_per_second(), (750 << 20) + (1 << 20) * 100 / 4);
    }

    #[test]
    fn a_failed_move_costs_time_and_nothing_else() {
        let (mut edge, mut now) = (Edge::default(), Time::from_nanos(1));
        let fail = |edge: &mut Edge, millis: u64, now: &mut Time| {
            edge.started(1 << 20, *now);
            *now = *now + Duration::from_millis(millis);
            edge.ended(1 << 20, 0, Duration::from_millis(millis), *now);
        };
        fail(&mut edge, 10, &mut now);
        assert_eq!(edge.bytes_per_second(), 0, "still unknown");
        fail(&mut edge, 10, &mut now);
        assert_eq!((edge.bytes_per_second(), edge.latency()), (1, Duration::ZERO), "slow, and not unknown");
        let mut edge = Edge::default();
        moved(&mut edge, 8 << 20, 20, &mut now);
        fail(&mut edge, 60, &mut now);
        assert_eq!(edge.bytes_per_second(), (300 << 20), "three quarters of 400 MiB/s");
        assert_eq!((edge.latency(), edge.moves, edge.moved_bytes), (Duration::from_millis(20), 1, 8 << 20));
    }

    #[test]
    fn a_move_that_says_nothing_takes_its_time_along() {
        let (mut edge, mut now) = (Edge::default(), Time::from_nanos(1));
        edge.started(1 << 20, now);
        edge.started(1 << 20, now);
        now = now + Duration::from_secs(1);
        edge.dropped(1 << 20, now);
        now = now + Duration::from_millis(1);
        edge.ended(1 << 20, 1 << 20, Duration::from_millis(1), now);
        assert_eq!(edge.bytes_per_second(), 1000 << 20);
        assert_eq!(edge.estimate(10 << 20), Duration::from_millis(10), "nothing is left in the queue");
    }

    #[test]
    fn an_estimate_counts_the_queue_and_is_no_less_than_one_move() {
        let (mut edge, mut now) = (Edge::default(), Time::from_nanos(1));
        assert_eq!(edge.estimate(1 << 30), Duration::ZERO, "nothing is known yet");
        moved(&mut edge, 10 << 20, 20, &mut now);
        assert_eq!(edge.estimate(0), Duration::ZERO);
        assert_eq!(edge.estimate(1), Duration::from_millis(20));
        assert_eq!(edge.estimate(20 << 20), Duration::from_millis(40));
        edge.started(5 << 20, now);
        edge.started(10 << 20, now);
        assert_eq!(edge.estimate(20 << 20), Duration::from_millis(70));
        edge.ended(10 << 20, 0, Duration::ZERO, now);
        assert_eq!(edge.estimate(20 << 20), Duration::from_millis(50));
    }

    #[test]
    fn a_queue_is_waited_for_once() {
        // Ten blocks together gain a little more than the five milliseconds that wait ahead, nine do not.
        let mut busy = edge(2 << 30);
        busy.started(10 << 20, Time::ZERO);
        for (blocks, pays) in [(9, 0), (10, 10)] {
            let mut gate = gate(16_000);
            (0..blocks).for_each(|_| gate.fetch(&busy, 1 << 20));
            assert_eq!(gate.paying(), pays);
        }
    }

    #[test]
    fn what_costs_as_much_as_it_gains_is_loaded() {
        let mut even = gate(16_000);
        even.fetch(&edge(1_000_000), 1000);
        assert_eq!(even.paying(), 1);
    }

    #[test]
    fn loads_what_pays_and_no_more() {
        // 16 tokens at 16 000 per second are 1 ms; 1 MiB at 2 GiB/s is half of that, at 0.5 GiB/s the double.
        let fast = edge(2 << 30);
        let slow = edge(1 << 29);
        let mut all = gate(16_000);
        (0..10).for_each(|_| all.fetch(&fast, 1 << 20));
        assert_eq!(all.paying(), 10);
        let mut none = gate(16_000);
        (0..10).for_each(|_| none.fetch(&slow, 1 << 20));
        assert_eq!(none.paying(), 0);
        let mut prefix = gate(16_000);
        (0..5).for_each(|_| prefix.dram());
        (0..5).for_each(|_| prefix.fetch(&slow, 1 << 20));
        assert_eq!(prefix.paying(), 5);
        // Blocks of the arena behind a slow one make up for it.
        let mut across = gate(16_000);
        across.fetch(&slow, 1 << 20);
        (0..5).for_each(|_| across.dram());
        assert_eq!(across.paying(), 6);
    }

    #[test]
    fn an_unmeasured_edge_and_an_unknown_engine_hold_nothing_back() {
        let mut unknown = gate(16_000);
        unknown.fetch(&Edge::default(), 1 << 30);
        assert_eq!(unknown.paying(), 1);
        assert!(Gate::new(Speed { block_tokens: 16, tokens_per_second: 0 }).is_none());
    }

    #[test]
    fn a_long_queue_tips_the_scales() {
        let mut busy = edge(2 << 30);
        busy.started(1 << 30, Time::ZERO);
        let mut few = gate(16_000);
        (0..10).for_each(|_| few.fetch(&busy, 1 << 20));
        assert_eq!(few.paying(), 0, "half a second of queue for 10 ms of work");
    }
}
