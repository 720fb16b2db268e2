//! What a client asks through its ring: each request checked, handed to the ladder, answered.

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::sys::{MemoryExtent, RingError};
use kvd_proto::wire::ring::{
    BLOCKS_PER_CALL_MAX, Completion, ENTRY_BYTES, FLAG_LEASE, FLAG_PARENT, FLAG_PROBE, FLAG_TOKENS, Op, Request,
    SLAB_BYTES, Status,
};
use kvd_proto::wire::slab::{
    CommitEntries, CommitEntry, GRANTED_BYTES, Granted, GrantedStatus, LANDED_BYTES, offer_bytes,
};
use kvd_proto::{BlockHash, HASH_BYTES_MAX, MissReason, Tier, Time};
use kvd_tiers::ladder::{HashSource, LoadState, Offer};
use kvd_tiers::record::{Metadata, TokenIds, UnitChecksums};
use kvd_tiers::{LeaseId, RequestId, SegmentId, SlotId};

use crate::core::client::{Client, LOADS_MAX, SlabHashes, View, WaitingLoad};
use crate::core::clock;
use crate::core::state::Core;
use crate::metrics::counters::Edge;

/// How units are checksummed: decided by a measurement on a GPU, docs/decisions.
pub(super) const ALGORITHM: ChecksumAlgorithm = ChecksumAlgorithm::Xxh3;

/// A request that makes no sense, which an honest client never sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nonsense;

impl HashSource for SlabHashes {
    fn len(&self) -> u32 {
        self.count
    }

    fn get(&self, index: u32) -> BlockHash {
        self.hash(index)
    }
}

impl Core {
    /// Serves one request of the client in slot `at`.
    pub(super) fn serve(&mut self, at: usize, entry: &[u8; ENTRY_BYTES], now: Time) -> Result<(), RingError> {
        let Some(mut client) = self.clients[at].take() else { return Ok(()) };
        client.requests += 1;
        let answer = match Request::decode(entry) {
            Ok(request) => {
                let answer = self.answer(&mut client, &request, now);
                self.counters.ops(request.op).add(1);
                let answer = answer.unwrap_or_else(|Nonsense| Some(self.blank(request.token, Status::BadRequest)));
                if answer.is_some() {
                    self.counters.op_latency(request.op).record(clock::now().since(now));
                }
                answer
            }
            // Without a token that can be trusted there is nobody to answer but token 0.
            Err(_) => Some(self.blank(0, Status::BadRequest)),
        };
        let mut result = Ok(());
        if let Some(answer) = answer {
            match answer.status {
                Status::BadRequest => self.counters.bad_requests.add(1),
                Status::Refused => self.counters.refused_requests.add(1),
                Status::Ok | Status::Partial => {}
            }
            result = client.complete(&answer).map(|waits| self.counters.completions_delayed.add(u64::from(waits)));
        }
        self.clients[at] = Some(client);
        result
    }

    pub(super) fn blank(&self, token: u64, status: Status) -> Completion {
        Completion { token, status, reason: None, tier: None, count: 0, lease: 0, epoch: self.epoch, arg: 0 }
    }

    /// The answer, or `None` if it comes later.
    fn answer(&mut self, client: &mut Client, request: &Request, now: Time) -> Result<Option<Completion>, Nonsense> {
        let ok = self.blank(request.token, Status::Ok);
        match request.op {
            Op::Match => self.on_match(client, request, now),
            Op::Load => self.on_load(client, request, now),
            Op::Offer => self.on_offer(client, request, now).map(Some),
            Op::Commit => self.on_commit(client, request, now).map(Some),
            Op::Release => {
                self.ladder.release(client.slot, LeaseId(request.lease), now);
                Ok(Some(ok))
            }
            Op::Abandon => {
                self.ladder.abandon(client.slot, LeaseId(request.lease), now);
                Ok(Some(ok))
            }
            Op::Prefetch => self.on_prefetch(client, request, now).map(Some),
            Op::Corrupt => {
                self.counters.corrupt(Tier::Dram).add(1);
                self.ladder.corrupt(client.slot, LeaseId(request.lease), request.first, now);
                Ok(Some(ok))
            }
        }
    }

    fn on_match(&mut self, client: &mut Client, request: &Request, now: Time) -> Result<Option<Completion>, Nonsense> {
        let (id, view) = view_of(client, request)?;
        let hashes = hashes_of(client, request, 0)?;
        if self.object_up {
            let view = view.clone();
            if self.ask_catalog(client, &view, &hashes, request, now) {
                return Ok(None);
            }
        }
        if request.flags & FLAG_PROBE != 0 {
            let count = self.ladder.blocks_here(id, &hashes);
            return Ok(Some(Completion { count, ..self.blank(request.token, Status::Ok) }));
        }
        let want_lease = request.flags & FLAG_LEASE != 0;
        let found = self.ladder.match_prefix(client.slot, id, &hashes, want_lease, now);
        Ok(Some(self.matched(request.token, request.count, &found)))
    }

    fn on_prefetch(&mut self, client: &mut Client, request: &Request, now: Time) -> Result<Completion, Nonsense> {
        let (id, view) = view_of(client, request)?;
        let hashes = hashes_of(client, request, 0)?;
        let view = view.clone();
        if !(self.object_up && self.ask_catalog(client, &view, &hashes, request, now)) {
            self.ladder.prefetch(client.slot, id, &hashes, now);
        }
        Ok(self.blank(request.token, Status::Ok))
    }

    fn on_load(&mut self, client: &mut Client, request: &Request, now: Time) -> Result<Option<Completion>, Nonsense> {
        let (_, view) = view_of(client, request)?;
        let payload_bytes = view.payload_bytes;
        let fits = request.count as usize * LANDED_BYTES <= SLAB_BYTES as usize;
        if request.count == 0 || request.count > BLOCKS_PER_CALL_MAX || !fits || client.slab(request.slab).is_none() {
            return Err(Nonsense);
        }
        if client.loads.len() >= LOADS_MAX {
            return Ok(Some(Completion {
                reason: Some(MissReason::Quota),
                ..self.blank(request.token, Status::Refused)
            }));
        }
        let wait = match request.deadline_us {
            0 => self.settings.load_deadline,
            micros => std::time::Duration::from_micros(u64::from(micros)),
        };
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let lease = LeaseId(request.lease);
        let mut landed = std::mem::take(&mut self.scratch.landed);
        landed.clear();
        let (first, count) = (request.first, request.count);
        let state = self.ladder.load(client.slot, lease, first, count, now.after(wait), id, now, &mut landed);
        landed.truncate(count as usize);
        client.write_landed(request.slab, 0, &landed);
        let whole = self.count_landed(&landed, payload_bytes);
        self.scratch.landed = landed;
        match state {
            LoadState::Done { reason } => {
                if let Some(reason) = reason {
                    self.counters.misses(reason).add(u64::from(count - whole.min(count)));
                }
                Ok(Some(Completion { reason, count: whole, ..self.blank(request.token, Status::Ok) }))
            }
            LoadState::Pending => {
                let (token, slab) = (request.token, request.slab);
                client.loads.push(WaitingLoad { request: id, token, slab, count, payload_bytes, started: now });
                let progress = Completion { count: whole, ..self.blank(token, Status::Partial) };
                // A broken ring shows at the next look at it.
                let _ = client.progress(&progress);
                Ok(None)
            }
        }
    }

    fn on_offer(&mut self, client: &Client, request: &Request, now: Time) -> Result<Completion, Nonsense> {
        let (id, view) = view_of(client, request)?;
        let with_tokens = request.flags & FLAG_TOKENS != 0;
        let tokens_each = if with_tokens { view.block_tokens } else { 0 };
        let bytes = offer_bytes(request.count, tokens_each).filter(|bytes| *bytes <= SLAB_BYTES as usize);
        let fits = request.count as usize * GRANTED_BYTES <= SLAB_BYTES as usize;
        // A view's metadata has room for token ids or it has not: every offer through it is alike.
        let (Some(bytes), true, true) = (bytes, fits, with_tokens == view.token_ids) else { return Err(Nonsense) };
        let hashes = hashes_of(client, request, HASH_BYTES_MAX)?;
        let parent = (request.flags & FLAG_PARENT != 0)
            .then(|| SlabHashes { at: 0, count: 1, slab: hashes.slab.clone(), ..hashes }.hash(0));
        let hashes = SlabHashes { slab: slab_of(client, request)?, at: HASH_BYTES_MAX, ..hashes };
        let mut granted = std::mem::take(&mut self.scratch.granted);
        granted.clear();
        let offer = Offer { parent, first_position: request.first, hashes: &hashes };
        let lease = self.ladder.offer(client.slot, id, &offer, now, &mut granted);
        granted.truncate(request.count as usize);
        let mut slots = 0;
        for (at, grant) in granted.iter().enumerate() {
            if grant.status == GrantedStatus::Granted {
                slots += 1;
                let from = bytes - (request.count as usize - at) * tokens_each as usize * 4;
                self.keep_tokens(&hashes.slab, from, view, grant);
            }
        }
        for (at, grant) in granted.iter().enumerate() {
            hashes.slab.write(at * GRANTED_BYTES, &grant.encode()).map_err(|_| Nonsense)?;
        }
        self.scratch.granted = granted;
        self.counters.blocks_offered.add(u64::from(request.count));
        let lease = lease.map_or(0, |lease| lease.0);
        Ok(Completion { count: slots, lease, ..self.blank(request.token, Status::Ok) })
    }

    /// Puts a block's token ids where its metadata will be, until the commit: the daemon need not remember them. A client
    /// that changes them there changes what it says of its own block.
    fn keep_tokens(&mut self, slab: &MemoryExtent, from: usize, view: &View, grant: &Granted) {
        if !view.token_ids {
            return;
        }
        let tokens = &mut self.scratch.tokens;
        tokens.resize(view.block_tokens as usize * 4, 0);
        let slot = slot_of(grant).and_then(|slot| self.ladder.table().extent(slot));
        if let (Some(slot), Ok(())) = (slot, slab.read(from, tokens)) {
            // The slot has room for the view's metadata, which has room for the tokens.
            let _ = slot.write(view.meta_bytes as usize - tokens.len(), tokens);
        }
    }

    fn on_commit(&mut self, client: &Client, request: &Request, now: Time) -> Result<Completion, Nonsense> {
        let (_, view) = view_of(client, request)?;
        let wanted = (8 + 8 * view.units as usize).saturating_mul(request.count as usize);
        if request.count == 0 || request.count > BLOCKS_PER_CALL_MAX || wanted > SLAB_BYTES as usize {
            return Err(Nonsense);
        }
        let slab = slab_of(client, request)?;
        let mut entries = std::mem::take(&mut self.scratch.slab);
        let read = slab.read(0, &mut entries[..wanted]).map_err(|_| Nonsense);
        let mut committed = 0;
        let mut taken = 0;
        let mut nonsense = read.is_err();
        for entry in CommitEntries::new(&entries[..wanted]).take(request.count as usize) {
            taken += 1;
            match self.commit(client, view, LeaseId(request.lease), &entry, now) {
                Ok(done) => committed += u32::from(done),
                Err(Nonsense) => nonsense = true,
            }
        }
        self.scratch.slab = entries;
        if nonsense || taken != request.count {
            return Err(Nonsense);
        }
        self.counters.blocks_committed.add(u64::from(committed));
        self.counters.moved(Edge::EngineToDram).add(u64::from(committed) * u64::from(view.payload_bytes));
        let reason = (committed < request.count).then_some(MissReason::LeaseLost);
        Ok(Completion { reason, count: committed, ..self.blank(request.token, Status::Ok) })
    }

    /// Writes a filled slot's metadata, then publishes it. `false`: the grant is gone, or the block no longer wanted.
    fn commit(
        &mut self,
        client: &Client,
        view: &View,
        lease: LeaseId,
        entry: &CommitEntry<'_>,
        now: Time,
    ) -> Result<bool, Nonsense> {
        let Some(filling) = self.ladder.filling(client.slot, lease, entry.index) else { return Ok(false) };
        let expected = &filling.entry;
        let same = expected.payload_bytes == view.payload_bytes
            && expected.group == view.group
            && expected.shard == view.shard
            && expected.namespace_prefix.to_le_bytes()[..] == view.namespace.as_bytes()[..8];
        if !same || entry.units() != view.units as usize {
            return Err(Nonsense);
        }
        let Some(slot) = self.ladder.table().extent(filling.slot) else { return Ok(false) };
        let tokens = &mut self.scratch.tokens;
        tokens.clear();
        if view.token_ids {
            tokens.resize(view.block_tokens as usize * 4, 0);
            slot.read(view.meta_bytes as usize - tokens.len(), tokens).map_err(|_| Nonsense)?;
        }
        let metadata = Metadata {
            namespace: view.namespace,
            group: view.group,
            key: expected.key,
            parent_key: expected.parent_key,
            hash: filling.hash,
            parent_hash: filling.parent_hash,
            position: expected.position,
            shard: view.shard.clone(),
            unit_order: view.unit_order,
            writer: client.identity.instance,
            generation: expected.generation,
            payload_bytes: view.payload_bytes,
            algorithm: ALGORITHM,
            unit_bytes: view.unit_bytes,
            checksums: UnitChecksums::new(entry.checksum_bytes()),
            tokens: TokenIds::new(tokens),
        };
        let bytes = metadata.meta_bytes();
        let checksum = match metadata.encode(&mut self.scratch.metadata) {
            Ok(checksum) if bytes == view.meta_bytes as usize => checksum,
            Ok(_) | Err(_) => return Err(Nonsense),
        };
        let written = slot.write(0, &self.scratch.metadata[..bytes]).is_ok();
        let gone = self.look_for_loss(filling.slot.segment(), now);
        if !written || gone || slot.memory().poisoned() {
            return Ok(false);
        }
        Ok(self.ladder.commit(client.slot, lease, entry.index, checksum, now).is_ok())
    }
}

/// The view that a request names.
fn view_of<'a>(client: &'a Client, request: &Request) -> Result<(kvd_tiers::ViewId, &'a View), Nonsense> {
    let view = client.views.get(usize::from(request.view)).ok_or(Nonsense)?;
    Ok((view.id, view))
}

fn slab_of(client: &Client, request: &Request) -> Result<MemoryExtent, Nonsense> {
    client.slab(request.slab).ok_or(Nonsense)
}

/// The hashes in a request's slab from byte `at` on, their bounds checked.
fn hashes_of(client: &Client, request: &Request, at: usize) -> Result<SlabHashes, Nonsense> {
    let (_, view) = view_of(client, request)?;
    let fits = at + request.count as usize * HASH_BYTES_MAX <= SLAB_BYTES as usize;
    if request.count == 0 || request.count > BLOCKS_PER_CALL_MAX || !fits {
        return Err(Nonsense);
    }
    Ok(SlabHashes { slab: slab_of(client, request)?, at, count: request.count, hash_bytes: view.hash_bytes })
}

/// The slot that a grant names.
fn slot_of(grant: &Granted) -> Option<SlotId> {
    let index = grant.offset.checked_div(u64::from(grant.slot_bytes))?;
    Some(SlotId::new(SegmentId(grant.segment), u32::try_from(index).ok()?))
}
