//! Chains of which only the beginning is here: the catalog of the object tier is asked for the rest, off this thread.
//!
//! A match waits for that, no longer than a part of its deadline; a prefetch is answered at once and goes on behind it.

use std::sync::Arc;
use std::time::Duration;

use kvd_proto::wire::ring::{Completion, FLAG_LEASE, FLAG_PROBE, Op, Request, Status};
use kvd_proto::{BlockHash, GroupKey, Time};
use kvd_tiers::ladder::{HashSource, Matched, RemoteChain, RemoteRecord};
use kvd_tiers::record::slot_bytes;

use crate::core::client::{Client, Purpose, QUESTIONS_MAX, Question, SlabHashes, View};
use crate::core::clock;
use crate::core::state::Core;
use crate::object::tier::{Asked, Event};

/// Events taken in one turn, and records in them, so that requests are not kept waiting.
const EVENTS_PER_TURN: usize = 64;
const RECORDS_PER_TURN: usize = 1024;
/// Bits of a ticket that say which client's it is.
const CLIENT_BITS: u32 = 8;

impl Core {
    /// Asks the catalog for what is not here of a chain. `false`: there is nothing to ask, or nobody.
    pub(super) fn ask_catalog(
        &mut self,
        client: &mut Client,
        view: &View,
        hashes: &SlabHashes,
        request: &Request,
        now: Time,
    ) -> bool {
        let worth = self.object_up && !self.purging_store();
        let Some(asked) = self.object.as_ref().filter(|_| worth).and_then(|link| link.asked.clone()) else {
            return false;
        };
        let first = self.ladder.blocks_here(view.id, hashes);
        if first >= hashes.count || client.questions.len() >= QUESTIONS_MAX {
            return false;
        }
        self.next_request += 1;
        let ticket = self.next_request << CLIENT_BITS | u64::from(client.slot.get());
        let all: Arc<[BlockHash]> = (0..hashes.count).map(|index| hashes.get(index)).collect();
        let question = Asked {
            ticket,
            shard: view.shard.clone(),
            payload_bytes: view.payload_bytes,
            record_bytes: slot_bytes(view.meta_bytes as usize, view.payload_bytes) as u32,
            group_key: GroupKey::derive(&self.settings.tenant_key, &view.namespace, view.group),
            hashes: all.clone(),
            first,
        };
        if asked.try_send(question).is_err() {
            return false;
        }
        let purpose = match request.op {
            Op::Prefetch => Purpose::Prefetch,
            _ if request.flags & FLAG_PROBE != 0 => Purpose::Probe { token: request.token },
            _ => Purpose::Match { token: request.token, want_lease: request.flags & FLAG_LEASE != 0 },
        };
        let due = now + self.patience(request);
        self.questions_due.insert((due, ticket));
        let (view, purges) = (view.id, self.counters.object.purges_asked.get());
        client.questions.push(Question { ticket, view, hashes: all, first, purpose, asked: now, due, purges });
        true
    }

    /// How long a match waits for the catalog: the client shall have its answer within its deadline.
    fn patience(&self, request: &Request) -> Duration {
        let deadline = match request.deadline_us {
            0 => self.settings.match_deadline,
            micros => Duration::from_micros(u64::from(micros)),
        };
        deadline / 2
    }

    /// Takes what the object tier tells; whether there was anything.
    pub(super) fn take_events(&mut self, now: Time) -> bool {
        let mut any = false;
        let mut records_taken = 0;
        for _ in 0..EVENTS_PER_TURN {
            if records_taken >= RECORDS_PER_TURN {
                break;
            }
            let Some(Ok(event)) = self.object.as_ref().map(|link| link.events.try_recv()) else { break };
            any = true;
            match event {
                Event::Up { reads, writes } => {
                    self.object_up = reads;
                    self.ladder.set_object_up(reads, writes, now);
                }
                Event::Turns(turns) => self.ladder.set_object_turns(turns, now),
                Event::Found { ticket, records } => {
                    records_taken += records.len();
                    self.answered(ticket, &records, now);
                }
            }
        }
        for _ in 0..EVENTS_PER_TURN {
            let late = self.questions_due.first().copied().filter(|(due, _)| *due <= now);
            let Some((due, ticket)) = late else { break };
            any = true;
            self.questions_due.remove(&(due, ticket));
            self.answered(ticket, &[], now);
        }
        any
    }

    /// Goes on with what waited for the catalog. One that is gone, or was answered by its deadline, is nobody's.
    fn answered(&mut self, ticket: u64, records: &[RemoteRecord], now: Time) {
        let at = (ticket & ((1 << CLIENT_BITS) - 1)) as usize;
        let Some(mut client) = self.clients.get_mut(at).and_then(Option::take) else { return };
        if let Some(place) = client.questions.iter().position(|question| question.ticket == ticket) {
            let question = client.questions.swap_remove(place);
            self.questions_due.remove(&(question.due, ticket));
            // What the store is being purged of, or was since the catalog was asked, must not come back from it.
            let stale = self.purging_store() || question.purges != self.counters.object.purges_asked.get();
            let records = if stale { &[] } else { records };
            let remote = RemoteChain { first: question.first, records };
            let hashes = &question.hashes[..];
            match question.purpose {
                Purpose::Match { token, want_lease } => {
                    let found = self.ladder.match_remote(client.slot, question.view, hashes, remote, want_lease, now);
                    let answer = self.matched(token, HashSource::len(hashes), &found);
                    self.counters.op_latency(Op::Match).record(clock::now().since(question.asked));
                    // A ring that is broken shows at the next look at it.
                    let waits = client.complete(&answer).unwrap_or(false);
                    self.counters.completions_delayed.add(u64::from(waits));
                }
                Purpose::Probe { token } => {
                    let count = question.first + records.len() as u32;
                    let answer = Completion { count, ..self.blank(token, Status::Ok) };
                    let waits = client.complete(&answer).unwrap_or(false);
                    self.counters.completions_delayed.add(u64::from(waits));
                }
                Purpose::Prefetch => {
                    self.ladder.prefetch_remote(client.slot, question.view, hashes, remote, now);
                }
            }
        }
        self.clients[at] = Some(client);
    }

    /// The answer to a match.
    pub(super) fn matched(&self, token: u64, asked: u32, found: &Matched) -> Completion {
        if let Some(tier) = found.slowest {
            self.counters.hits(tier).add(u64::from(found.blocks));
        }
        if let Some(reason) = found.miss {
            self.counters.misses(reason).add(u64::from(asked.saturating_sub(found.blocks)));
        }
        Completion {
            reason: found.miss,
            tier: found.slowest,
            count: found.blocks,
            lease: found.lease.map_or(0, |lease| lease.0),
            arg: u64::try_from(found.estimate.as_micros()).unwrap_or(u64::MAX),
            ..self.blank(token, Status::Ok)
        }
    }
}
