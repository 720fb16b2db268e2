//! The right to make one request: a place among those in flight, and the breaker's pass. Dropped, it gives both back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio::sync::OwnedSemaphorePermit;

use super::breaker::{Pass, Verdict};
use super::{Fault, Inner, Op};

/// A request that its caller gave less time than this tells nothing about the store when the time is over.
const FAIR_MIN: Duration = Duration::from_millis(250);

/// One request in flight.
#[derive(Debug)]
pub(super) struct Ticket {
    inner: Arc<Inner>,
    op: Op,
    begun: Instant,
    pass: Option<Pass>,
    _place: OwnedSemaphorePermit,
}

impl Ticket {
    /// Waits for a place until the deadline; [`Fault::Open`] at once where the store is left alone.
    pub(super) async fn take(inner: &Arc<Inner>, op: Op, deadline: Instant) -> Result<Ticket, Fault> {
        if !inner.admits(op) {
            return Err(Fault::Open);
        }
        let place = Arc::clone(&inner.places).acquire_owned();
        let place = tokio::time::timeout_at(deadline.into(), place).await.map_err(|_| Fault::Timeout)?;
        let place = place.expect("the semaphore of a store is never closed");
        let begun = Instant::now();
        if begun >= deadline {
            return Err(Fault::Timeout);
        }
        let mut control = inner.control.lock().unwrap_or_else(PoisonError::into_inner);
        let pass = control.breaker.admit(op, begun).ok_or(Fault::Open)?;
        drop(control);
        inner.counters.send(op);
        // Relaxed, here and below: a number to go by, nothing is read under it.
        inner.reads.fetch_add(usize::from(op == Op::Get), Ordering::Relaxed);
        Ok(Ticket { inner: Arc::clone(inner), op, begun, pass: Some(pass), _place: place })
    }

    /// Counts bytes of a body that came.
    pub(super) fn received(&self, bytes: u64) {
        self.inner.counters.bytes_down.add(bytes);
    }

    /// Learns from a whole body.
    pub(super) fn measured(&self, bytes: u64, took: Duration) {
        self.inner.estimator.body(bytes, took);
    }

    /// Counts the outcome, and tells the breaker.
    pub(super) fn settle(mut self, fault: Option<&Fault>) {
        self.inner.counters.count(self.op, fault);
        let verdict = match fault {
            None => Verdict::Answered,
            Some(Fault::Timeout) if self.begun.elapsed() < FAIR_MIN => Verdict::Unknown,
            Some(fault) => Verdict::of(fault),
        };
        self.tell(verdict);
    }

    fn tell(&mut self, verdict: Verdict) {
        if let Some(pass) = self.pass.take() {
            let mut control = self.inner.control.lock().unwrap_or_else(PoisonError::into_inner);
            let jitter = control.random.random();
            control.breaker.settle(pass, verdict, Instant::now(), jitter);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.inner.reads.fetch_sub(usize::from(self.op == Op::Get), Ordering::Relaxed);
        self.tell(Verdict::Unknown);
    }
}
