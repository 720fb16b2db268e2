//! The way of batches to the daemon: while one is copied, the next is offered and the one before is published.

use std::collections::VecDeque;

use kvd_nixl::device::{Lane, Way};
use kvd_proto::MissReason;
use kvd_proto::wire::ring::{Op, Request, Status};
use kvd_proto::wire::slab::{GRANTED_BYTES, Granted, GrantedStatus};

use super::filling::Filling;
use super::{Batch, Batches, Pace, Stored};
use crate::convoy::Convoy;
use crate::link::{Call, CallError};
use crate::session::Session;
use crate::view::{Opened, View, request};

/// One store's batches take such a part of what its instance may hold under leases: others of it, and matches, need theirs.
const LEASE_PARTS: usize = 4;

/// Batches with which a device goes on while the ones before are published; two stores share its chunks.
fn going_on(lane: Option<&Lane>) -> usize {
    lane.map_or(0, |lane| lane.chunks() / 2)
}

/// One store.
pub(super) struct Pipeline<'a> {
    pub(super) view: &'a View,
    pub(super) session: &'a Session,
    pub(super) opened: Opened,
}

impl<'a> Pipeline<'a> {
    /// Stores batch after batch; `settled` blocks of them are accounted for in `stored`.
    pub(super) fn store_all(
        &self,
        batches: &Batches<'a>,
        stored: &mut Stored,
        settled: &mut usize,
    ) -> Result<(), CallError> {
        let mut first = 0;
        let mut ahead: Option<Offered<'a>> = None;
        // A device is at them.
        let mut filling: VecDeque<Filled<'a>> = VecDeque::new();
        let mut behind: Option<Published<'a>> = None;
        loop {
            let offered = match ahead.take() {
                Some(offered) => offered,
                None if first == batches.count => break,
                None => {
                    // A store that waits for a place while it holds another could wait for ever.
                    for filled in filling.drain(..) {
                        self.publish(filled, &mut behind, stored, settled)?;
                    }
                    if let Some(before) = behind.take() {
                        before.settle(stored, settled)?;
                    }
                    self.offer(self.session.link.call(self.view.store_deadline())?, batches, &mut first)?
                }
            };
            // Only where a place is free at once, for the same reason.
            if first < batches.count
                && let Some(call) = self.session.link.try_call(self.view.store_deadline())
            {
                ahead = Some(self.offer(call, batches, &mut first)?);
            }
            let lane = offered.batch.store.sources[offered.batch.first].lane();
            filling.push_back(self.fill(offered)?);
            while filling.len() > going_on(lane)
                && let Some(filled) = filling.pop_front()
            {
                self.publish(filled, &mut behind, stored, settled)?;
            }
        }
        for filled in filling {
            self.publish(filled, &mut behind, stored, settled)?;
        }
        behind.map_or(Ok(()), |last| last.settle(stored, settled))
    }

    /// Sends the offer of the batch that begins at `first`, which moves on.
    fn offer(&self, mut call: Call<'a>, batches: &Batches<'a>, first: &mut usize) -> Result<Offered<'a>, CallError> {
        let lane = batches.store.sources[*first].lane();
        // One is offered ahead and one is being published, beside those that are filled.
        let under_way = going_on(lane) + 3;
        let lease_bytes_max = usize::try_from(self.session.terms.lease_bytes_max).unwrap_or(usize::MAX);
        let share = lease_bytes_max / LEASE_PARTS / under_way;
        let pace = Pace::new(self.view, self.opened.meta_bytes, &call, batches, *first, share);
        let count = pace.next(*first, batches.count - *first);
        let batch = Batch { store: batches.store, first: *first, count, block_tokens: batches.block_tokens };
        call.slab().write(0, &batch.offer()).map_err(|_| CallError::Timeout)?;
        let position = batch.store.first_position.saturating_add(batch.first as u32);
        let offer = request(Op::Offer, self.opened.number, batch.count);
        call.send(Request { flags: batch.flags(), first: position, ..offer })?;
        *first += count;
        Ok(Offered { call, batch })
    }

    /// Copies what is wanted of a batch, or lets a device begin with it.
    fn fill(&self, offered: Offered<'a>) -> Result<Filled<'a>, CallError> {
        let Offered { mut call, batch } = offered;
        let answer = call.next()?;
        let (view, session, opened) = (self.view, self.session, self.opened);
        let convoy = Convoy::new(session, Way::ToHost);
        let filling = Filling { convoy, view, session, opened, segments: Vec::new(), commit: Vec::new(), count: 0 };
        let (lease, tally) = (GrantLease { session, lease: answer.lease }, Stored::default());
        let mut filled = Filled { filling, call, lease, tally, blocks: batch.count };
        if answer.status != Status::Ok {
            filled.tally.refuse(batch.count, answer.reason.unwrap_or(MissReason::Quota));
            return Ok(filled);
        }
        for index in 0..batch.count {
            let Some(granted) = read_granted(&filled.call, index) else { return Err(CallError::Timeout) };
            match granted.status {
                GrantedStatus::Granted => {
                    let source = &batch.store.sources[batch.first + index];
                    filled.filling.fill(&granted, source, filled.call.deadline())?;
                }
                GrantedStatus::Present | GrantedStatus::InFlight => filled.tally.present += 1,
                GrantedStatus::Refused => filled.tally.refuse(1, granted.reason.unwrap_or(MissReason::Quota)),
            }
        }
        filled.filling.send(filled.call.deadline())?;
        Ok(filled)
    }

    /// Sends the commit of a batch once it is copied, and takes the answer to the one before.
    fn publish(
        &self,
        filled: Filled<'a>,
        behind: &mut Option<Published<'a>>,
        stored: &mut Stored,
        settled: &mut usize,
    ) -> Result<(), CallError> {
        let Filled { filling, mut call, lease, tally, blocks } = filled;
        let (commit, count) = filling.finish()?;
        let mut open = None;
        if count > 0 {
            call.renew(self.view.store_deadline());
            call.slab().write(0, &commit).map_err(|_| CallError::Timeout)?;
            call.send(Request { lease: lease.lease, ..request(Op::Commit, self.opened.number, count as usize) })?;
            open = Some(call);
        }
        match behind.replace(Published { call: open, lease, filled: count, tally, blocks }) {
            Some(before) => before.settle(stored, settled),
            None => Ok(()),
        }
    }
}

/// A batch that the daemon has been asked about.
struct Offered<'a> {
    call: Call<'a>,
    batch: Batch<'a>,
}

/// A batch that is copied, or just being copied by a device. Slots are given back when nothing of it moves any more.
struct Filled<'a> {
    filling: Filling<'a>,
    call: Call<'a>,
    lease: GrantLease<'a>,
    tally: Stored,
    blocks: usize,
}

/// A batch whose commit is under way.
struct Published<'a> {
    call: Option<Call<'a>>,
    /// Given back behind the commit's answer, unless it has ended with it.
    lease: GrantLease<'a>,
    filled: u32,
    tally: Stored,
    blocks: usize,
}

impl Published<'_> {
    /// Waits for the commit's answer and counts.
    fn settle(mut self, stored: &mut Stored, settled: &mut usize) -> Result<(), CallError> {
        if let Some(call) = &mut self.call {
            let published = call.next()?.count.min(self.filled);
            self.tally.granted += published;
            self.tally.refuse((self.filled - published) as usize, MissReason::LeaseLost);
            // The daemon ends a lease with the last commit under it, and all that was granted was filled.
            if published == self.filled {
                self.lease.lease = 0;
            }
        }
        stored.granted += self.tally.granted;
        stored.present += self.tally.present;
        stored.refused += self.tally.refused;
        stored.reason = stored.reason.or(self.tally.reason);
        *settled += self.blocks;
        Ok(())
    }
}

/// Gives back what was granted and not committed, however the store ends.
struct GrantLease<'a> {
    session: &'a Session,
    lease: u64,
}

impl Drop for GrantLease<'_> {
    fn drop(&mut self) {
        if self.lease != 0 && !self.session.link.is_down() {
            self.session.link.give_back(Op::Abandon, self.lease);
        }
    }
}

fn read_granted(call: &Call<'_>, index: usize) -> Option<Granted> {
    let mut bytes = [0; GRANTED_BYTES];
    call.slab().read(index * GRANTED_BYTES, &mut bytes).ok()?;
    Granted::decode(&bytes).ok()
}
