//! Counters of one backend.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a backend has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// Bytes that landed.
    pub bytes: u64,
    /// Operations that ended, merged descriptors counted as one.
    pub operations: u64,
    /// Of these, those that failed.
    pub errors: u64,
    /// Operations under way now.
    pub in_flight: u64,
    /// Transfers that ended, however they ended.
    pub transfers: u64,
    /// Of these, those that outlived their deadline.
    pub timeouts: u64,
    /// Sum over ended transfers of the time from post to the end.
    pub latency_sum: Duration,
}

/// The counters behind [`Telemetry`]. Relaxed throughout: each is a number of its own and orders nothing.
#[derive(Debug, Default)]
pub(super) struct Counters {
    bytes: AtomicU64,
    operations: AtomicU64,
    errors: AtomicU64,
    in_flight: AtomicU64,
    transfers: AtomicU64,
    timeouts: AtomicU64,
    latency_ns: AtomicU64,
}

impl Counters {
    pub(super) fn operation_started(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn operation_ended(&self, landed: Option<u64>) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.operations.fetch_add(1, Ordering::Relaxed);
        match landed {
            Some(bytes) => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            None => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    pub(super) fn transfer_ended(&self, latency: Duration) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        self.latency_ns.fetch_add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn timed_out(&self) {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Telemetry {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Telemetry {
            bytes: get(&self.bytes),
            operations: get(&self.operations),
            errors: get(&self.errors),
            in_flight: get(&self.in_flight),
            transfers: get(&self.transfers),
            timeouts: get(&self.timeouts),
            latency_sum: Duration::from_nanos(get(&self.latency_ns)),
        }
    }
}
