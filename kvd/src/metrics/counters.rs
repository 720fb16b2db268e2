//! What the daemon counts. Plain atomics, written by whoever does the work, read by the metrics service and the CLI.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvd_proto::wire::ring::Op;
use kvd_proto::{MissReason, Tier};

use super::object::ObjectCounters;

/// A number that only grows, or a gauge that is set.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub fn add(&self, more: u64) {
        // Relaxed: a statistic orders nothing.
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets in nanoseconds; one more bucket holds what is slower.
pub const LATENCY_BOUNDS_NANOS: [u64; 16] = [
    1_000,
    2_000,
    5_000,
    10_000,
    15_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    20_000_000,
    50_000_000,
    250_000_000,
    1_000_000_000,
];

/// How long something took, in buckets.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [Count; LATENCY_BOUNDS_NANOS.len() + 1],
    sum_nanos: Count,
}

impl Latency {
    /// Counts one that took so long.
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_NANOS.partition_point(|&bound| bound < nanos);
        self.buckets[bucket].add(1);
        self.sum_nanos.add(nanos);
    }

    /// How many fell into each bucket, not cumulative; the last has no upper bound.
    pub fn buckets(&self) -> [u64; LATENCY_BOUNDS_NANOS.len() + 1] {
        std::array::from_fn(|at| self.buckets[at].get())
    }

    /// The sum of all, in nanoseconds.
    pub fn sum_nanos(&self) -> u64 {
        self.sum_nanos.get()
    }
}

/// A road on which bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edge {
    /// Stored by an engine into DRAM.
    EngineToDram,
    /// Landed in DRAM for an engine to load.
    DramToEngine,
    /// Spilled.
    DramToNvme,
    /// Fetched.
    NvmeToDram,
    /// Given to the object tier.
    DramToObject,
    /// Got from the object tier.
    ObjectToDram,
}

impl Edge {
    /// Every edge.
    pub const ALL: [Self; 6] = [
        Self::EngineToDram,
        Self::DramToEngine,
        Self::DramToNvme,
        Self::NvmeToDram,
        Self::DramToObject,
        Self::ObjectToDram,
    ];

    /// The labels `from` and `to` in metrics.
    pub const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::EngineToDram => ("engine", "dram"),
            Self::DramToEngine => ("dram", "engine"),
            Self::DramToNvme => ("dram", "nvme"),
            Self::NvmeToDram => ("nvme", "dram"),
            Self::DramToObject => ("dram", "object"),
            Self::ObjectToDram => ("object", "dram"),
        }
    }
}

/// What one NVMe device counts.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Bytes read.
    pub read_bytes: Count,
    /// Bytes written.
    pub written_bytes: Count,
    /// Reads done.
    pub reads: Count,
    /// Writes done.
    pub writes: Count,
    /// Reads that the device failed.
    pub read_errors: Count,
    /// Writes that the device failed.
    pub write_errors: Count,
    /// Gauge: moves queued or under way.
    pub queued: Count,
    /// Gauge: the code of its state.
    pub state: Count,
    /// From command to outcome.
    pub latency: Latency,
}

/// NVMe devices of one daemon at most.
pub const DEVICES_MAX: usize = 16;

/// Everything that the daemon counts since its start. A gauge says so.
#[derive(Debug, Default)]
pub struct Counters {
    ops: [Count; Op::ALL.len()],
    op_latency: [Latency; Op::ALL.len()],
    hits: [Count; Tier::ALL.len()],
    misses: [Count; MissReason::ALL.len()],
    corrupt: [Count; Tier::ALL.len()],
    moved: [Count; Edge::ALL.len()],
    devices: [DeviceCounters; DEVICES_MAX],
    /// The object tier.
    pub object: ObjectCounters,
    /// Requests that made no sense.
    pub bad_requests: Count,
    /// Requests refused for a bound.
    pub refused_requests: Count,
    /// Blocks offered by engines.
    pub blocks_offered: Count,
    /// Blocks committed by engines.
    pub blocks_committed: Count,
    /// Sessions accepted.
    pub sessions_opened: Count,
    /// Gauge: sessions connected.
    pub sessions: Count,
    /// Connections refused or cut before they became sessions.
    pub handshakes_failed: Count,
    /// Times that accept had to back off for want of descriptors.
    pub accept_backoffs: Count,
    /// Clients whose process ended with a session open.
    pub clients_died: Count,
    /// Sessions closed for misbehaving.
    pub sessions_cut: Count,
    /// Completions that could not be delivered at once because the client does not read them.
    pub completions_delayed: Count,
    /// Gauge: beats of the core thread; it must keep growing.
    pub heartbeat: Count,
    /// Gauge: monotonic nanoseconds of the last beat.
    pub heartbeat_nanos: Count,
    /// Gauge: leases held.
    pub leases: Count,
    /// Gauge: records known.
    pub records: Count,
    /// Gauge: blocks known.
    pub blocks: Count,
    /// Gauge: bytes of DRAM slots in use.
    pub dram_used_bytes: Count,
    /// Gauge: bytes that DRAM may hold.
    pub dram_capacity_bytes: Count,
    /// Gauge: bytes that NVMe may hold, over all devices.
    pub nvme_capacity_bytes: Count,
    /// Gauge: bytes of NVMe slots in use.
    pub nvme_used_bytes: Count,
    /// Evictions from DRAM.
    pub dram_evicted: Count,
    /// Evictions from NVMe.
    pub nvme_evicted: Count,
}

impl Counters {
    /// Requests of one kind.
    pub fn ops(&self, op: Op) -> &Count {
        &self.ops[op as usize - 1]
    }

    /// How long requests of one kind took, from the ring to the last completion.
    pub fn op_latency(&self, op: Op) -> &Latency {
        &self.op_latency[op as usize - 1]
    }

    /// Blocks matched, by the slowest tier of their match.
    pub fn hits(&self, tier: Tier) -> &Count {
        &self.hits[tier.code() as usize - 1]
    }

    /// Blocks asked for and missed, by reason.
    pub fn misses(&self, reason: MissReason) -> &Count {
        &self.misses[reason.code() as usize - 1]
    }

    /// Copies found corrupt, by tier.
    pub fn corrupt(&self, tier: Tier) -> &Count {
        &self.corrupt[tier.code() as usize - 1]
    }

    /// Bytes moved, by edge.
    pub fn moved(&self, edge: Edge) -> &Count {
        &self.moved[edge as usize]
    }

    /// One device's counters; devices beyond [`DEVICES_MAX`] do not exist.
    pub fn device(&self, device: u8) -> &DeviceCounters {
        &self.devices[usize::from(device)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_bucket() {
        let latency = Latency::default();
        for nanos in [0, 1_000, 1_001, u64::MAX / 2] {
            latency.record(Duration::from_nanos(nanos));
        }
        let buckets = latency.buckets();
        assert_eq!((buckets[0], buckets[1], buckets[16]), (2, 1, 1));
    }

    #[test]
    fn every_label_has_its_own_count() {
        let counters = Counters::default();
        for (n, reason) in MissReason::ALL.into_iter().enumerate() {
            counters.misses(reason).add(n as u64 + 1);
        }
        for (n, reason) in MissReason::ALL.into_iter().enumerate() {
            assert_eq!(counters.misses(reason).get(), n as u64 + 1);
        }
    }
}
