//! Full verification of records in DRAM, for scrubs: too long for the core thread, so a thread of its own.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender};
use kvd_nixl::sys::{EventFd, MemoryExtent, Signal};
use kvd_tiers::ladder::Outcome;
use kvd_tiers::record::{Expect, Scratch, verify_record};
use kvd_tiers::{MoveId, SlotEntry};

use crate::core::clock;

/// A record to verify.
pub(super) struct VerifyOrder {
    pub(super) id: MoveId,
    pub(super) slot: MemoryExtent,
    pub(super) expect: SlotEntry,
}

/// Starts the thread. It ends when `orders` is closed.
pub(super) fn spawn(
    orders: Receiver<VerifyOrder>,
    outcomes: Sender<(MoveId, Outcome)>,
    doorbell: Arc<EventFd>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("kvd-verify".into()).spawn(move || {
        let mut scratch = Scratch::default();
        for order in orders {
            let started = clock::now();
            let expect = Expect {
                key: order.expect.key,
                shard: order.expect.shard.clone(),
                generation: order.expect.generation,
                payload_bytes: order.expect.payload_bytes,
                meta_checksum: order.expect.meta_checksum,
            };
            let outcome = match verify_record(&order.slot, &expect, &mut scratch) {
                Ok(()) => Outcome::Done { bytes: order.slot.len() as u64, took: clock::now().since(started) },
                Err(mismatch) => {
                    tracing::warn!(key = %expect.key, %mismatch, "a record in DRAM is corrupt");
                    Outcome::Corrupt
                }
            };
            if outcomes.send((order.id, outcome)).is_err() {
                return;
            }
            let _ = doorbell.signal();
        }
    })
}
