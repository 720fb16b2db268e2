//! Offers: who may bring a block, and where it goes; and the commit that makes it findable.

use kvd_proto::wire::slab::{Granted, GrantedStatus};
use kvd_proto::{BlockHash, BlockKey, MissReason, Time, checksum_seed};

use super::evict::Ask;
use super::lanes::{HashSource, Speed};
use super::leases::{Grant, Lease, LeaseKind};
use super::moves::{CommitError, Filling};
use super::nodes::{NodeId, flag};
use super::pins::Holder;
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{ClientSlot, LeaseId, SlotEntry, SlotState, ViewId};
use crate::policy::{Access, AccessKind, Policy, Rank};

/// Steps of cuts that an offer does ahead: a long chain's worth.
const CUTS_BEFORE_OFFER: u32 = 1024;

/// Consecutive blocks of a chain that a client could bring.
pub struct Offer<'a, H: HashSource + ?Sized> {
    /// The block before the first; `None` for the start of a chain.
    pub parent: Option<BlockHash>,
    /// Place of the first in its chain.
    pub first_position: u32,
    /// The blocks.
    pub hashes: &'a H,
}

/// Where the next block of an offer hangs.
struct Tip {
    node: NodeId,
    hash: Option<BlockHash>,
    rank: Rank,
}

/// What all blocks of one offer share.
struct Bid {
    client: ClientSlot,
    owner: u8,
    lane: u16,
    /// Blocks of the chain up to the end of the offer.
    chain_blocks: u32,
    now: Time,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Asks for slots to fill. `out` gets one entry per block, in order; what was granted belongs to the returned fill lease,
    /// and its slots are pinned for `client` until they are committed or given up. The first refusal refuses the rest: a
    /// block is of no use without those before it.
    pub fn offer(
        &mut self,
        client: ClientSlot,
        view: ViewId,
        offer: &Offer<'_, impl HashSource + ?Sized>,
        now: Time,
        out: &mut Vec<Granted>,
    ) -> Option<LeaseId> {
        self.counters.offers += 1;
        self.settle_use();
        let count = offer.hashes.len();
        let refused = |reason| Granted::without_slot(GrantedStatus::Refused, Some(reason));
        if count == 0 {
            return None;
        }
        let known = self.instances.of(client).zip(self.views.get(view));
        let end = offer.first_position.checked_add(count);
        let sane = offer.parent.is_some() == (offer.first_position > 0);
        let (Some((owner, found)), Some(chain_blocks), true) = (known, end, sane) else {
            out.extend((0..count).map(|_| refused(MissReason::LeaseLost)));
            return None;
        };
        let (lane, group_key) = (found.lane, found.group_key);
        // Who found a block corrupt stores its chain anew at once: what is left of the old one shall be gone by then.
        self.work_cuts(CUTS_BEFORE_OFFER);
        let bid = Bid { client, owner, lane, chain_blocks, now };
        let mut grants = Vec::new();
        let mut not_admitted = false;
        let mut refusal = (self.work.draining() || self.leases.full()).then_some(MissReason::Quota);
        let mut tip = Tip { node: NodeId::NONE, hash: offer.parent, rank: Rank::default() };
        if let (None, Some(parent)) = (refusal, &offer.parent) {
            match self.tip(&bid, group_key.block(parent), offer.first_position) {
                Ok(node) => (tip.node, tip.rank) = (node, self.nodes[node].rank()),
                Err(reason) => refusal = Some(reason),
            }
        }
        for index in 0..count {
            if let Some(reason) = refusal {
                if not_admitted {
                    self.tell_refused(
                        &bid,
                        group_key.block(&offer.hashes.get(index)),
                        offer.first_position + index,
                        &tip,
                    );
                }
                self.counters.refused += 1;
                out.push(refused(reason));
                continue;
            }
            let hash = offer.hashes.get(index);
            let key = group_key.block(&hash);
            let before = self.counters.not_admitted;
            match self.offer_held(&bid, key, hash, offer.first_position + index, &tip, &mut grants) {
                Ok((granted, node)) => {
                    out.push(granted);
                    tip = Tip { node, hash: Some(hash), rank: self.nodes[node].rank() };
                }
                Err(reason) => {
                    not_admitted = self.counters.not_admitted > before;
                    self.counters.refused += 1;
                    refusal = Some(reason);
                    out.push(refused(reason));
                }
            }
        }
        let lease = (!grants.is_empty()).then(|| self.fill_lease(&bid, grants));
        self.work_some(now);
        lease
    }

    /// The node that an offer's first block hangs on: known, or a place kept for it.
    fn tip(&mut self, bid: &Bid, key: BlockKey, first_position: u32) -> Result<NodeId, MissReason> {
        if let Some(id) = self.find(&key, bid.lane) {
            let node = &self.nodes[id];
            if node.position + 1 != first_position {
                return Err(MissReason::Corrupt);
            }
            return if node.has(flag::LOOSE) || self.being_cut(id) { Err(MissReason::Evicted) } else { Ok(id) };
        }
        // Its children will wait as orphans: no more of them than may wait.
        if self.orphans.len() >= self.config.orphans_max as usize {
            return Err(MissReason::Quota);
        }
        self.add_node(key, bid.lane, first_position - 1, NodeId::NONE).ok_or(MissReason::Quota)
    }

    /// What follows a block that was not admitted is not asked for: the policy only hears of it.
    fn tell_refused(&mut self, bid: &Bid, key: BlockKey, position: u32, tip: &Tip) {
        let access = self.access_of_offer(bid, AccessKind::Refused, key, position, tip.rank);
        self.policy.rank(&access);
    }

    /// Offers one block; the tip must not fall to make room for its own child.
    fn offer_held(
        &mut self,
        bid: &Bid,
        key: BlockKey,
        hash: BlockHash,
        position: u32,
        tip: &Tip,
        grants: &mut Vec<Grant>,
    ) -> Result<(Granted, NodeId), MissReason> {
        let held = tip.node.get();
        if let Some(held) = held {
            self.hold(held);
        }
        let answer = self.offer_one(bid, key, hash, position, tip, grants);
        // A place that was made free for it, and is not taken after all.
        if answer.is_err()
            && let Some(id) = self.find(&key, bid.lane)
        {
            self.free_if_empty(id);
        }
        if let Some(held) = held {
            self.unhold(held);
        }
        answer
    }

    fn offer_one(
        &mut self,
        bid: &Bid,
        key: BlockKey,
        hash: BlockHash,
        position: u32,
        tip: &Tip,
        grants: &mut Vec<Grant>,
    ) -> Result<(Granted, NodeId), MissReason> {
        let known = self.find(&key, bid.lane);
        if let Some(id) = known {
            if self.being_cut(id) {
                return Err(MissReason::Evicted);
            }
            self.place_under(id, position, tip.node, bid.now)?;
            let node = &self.nodes[id];
            if node.resident() {
                self.counters.present += 1;
                return Ok((Granted::without_slot(GrantedStatus::Present, None), id));
            }
            if node.has(flag::FILLING) && !cfg!(kvd_bug = "filled_twice") {
                self.counters.in_flight += 1;
                return Ok((Granted::without_slot(GrantedStatus::InFlight, None), id));
            }
            // The copy that is being fetched is gone: nothing will come of it.
            if node.has(flag::FETCHING) {
                self.displace(id, bid.now);
            }
        }
        let lane = self.lanes.get(bid.lane);
        let (class, slot_bytes) = (lane.dram_class, lane.slot_bytes);
        let held = self.instances.get(bid.owner).lease_bytes + u64::from(slot_bytes);
        if held > self.config.lease_bytes_max {
            return Err(MissReason::Quota);
        }
        let access = self.access_of_offer(bid, AccessKind::Offer, key, position, tip.rank);
        let rank = self.policy.rank(&access);
        let vacant = self.take_dram(class, &Ask { owner: bid.owner, admission: Some((rank, &access)) })?;
        // Making room may have freed an empty place of this block: look again.
        let id = match self.find(&key, bid.lane) {
            Some(id) => id,
            None => match self.add_node(key, bid.lane, position, tip.node) {
                Some(id) => id,
                None => {
                    self.dram.release(vacant);
                    return Err(MissReason::Quota);
                }
            },
        };
        let generation = self.next_generation();
        let node = &mut self.nodes[id];
        (node.generation, node.rank, node.meta_checksum) = (generation, rank.0, 0);
        node.clear(flag::UPLOADED);
        let slot = vacant.slot();
        let filling = self.fill_slot(id, vacant, flag::FILLING, bid.owner);
        self.pin_slot(slot, Holder::Client(bid.client));
        self.instances.get_mut(bid.owner).lease_bytes += u64::from(slot_bytes);
        if cfg!(kvd_bug = "publish_before_commit") {
            self.mark_dram(id);
        }
        self.counters.granted += 1;
        let index = grants.len() as u32;
        let parent_key = tip.node.get().map(|parent| self.nodes[parent].key);
        grants.push(Grant { node: id, slot: Some(filling), hash, parent_hash: tip.hash, parent_key });
        let granted = Granted {
            status: GrantedStatus::Granted,
            reason: None,
            segment: slot.segment().0,
            offset: u64::from(slot.index()) * u64::from(slot_bytes),
            slot_bytes,
            generation,
            seed: checksum_seed(&key, &self.lanes.get(bid.lane).shard),
            index,
        };
        Ok((granted, id))
    }

    fn access_of_offer(&self, bid: &Bid, kind: AccessKind, key: BlockKey, position: u32, rank: Rank) -> Access {
        let slot_bytes = self.lanes.get(bid.lane).slot_bytes;
        Access { kind, key, position, chain_blocks: bid.chain_blocks, slot_bytes, rank, now: bid.now }
    }

    /// It vanished and what hangs on it goes with it, in bounded steps: what was hung on it now would go as well.
    fn being_cut(&self, id: NodeId) -> bool {
        let node = &self.nodes[id];
        node.has(flag::CUT) && !node.resident()
    }

    /// A known block must hang where the offer says. One that was cut loose, or is but an empty place, is moved there.
    fn place_under(&mut self, id: NodeId, position: u32, parent: NodeId, now: Time) -> Result<(), MissReason> {
        let node = &self.nodes[id];
        if node.parent == parent && node.position == position && !node.has(flag::LOOSE) {
            return Ok(());
        }
        if node.resident() || (node.position != position && !node.leaf()) {
            return Err(MissReason::Corrupt);
        }
        // Purged or cut while it was on its way. Its writer goes on for a moment; a fetch makes room, and a spill is no
        // hindrance, it only has what it writes taken back.
        if node.has(flag::FILLING) {
            return Err(MissReason::Evicted);
        }
        if node.has(flag::FETCHING) {
            self.displace(id, now);
        }
        let before = self.nodes[id].parent;
        self.unlink(id);
        self.nodes[id].position = position;
        self.nodes[id].clear(flag::LOOSE);
        if !parent.is_none() {
            self.link(id, parent);
        }
        if let Some(before) = before.get().filter(|before| *before != parent) {
            self.refresh(before);
            self.free_if_empty(before);
        }
        Ok(())
    }

    fn fill_lease(&mut self, bid: &Bid, grants: Vec<Grant>) -> LeaseId {
        let slot_bytes = self.lanes.get(bid.lane).slot_bytes;
        let open = grants.len() as u32;
        self.leases.add(Lease {
            id: LeaseId(0),
            instance: bid.owner,
            client: bid.client,
            kind: LeaseKind::Fill { grants, open },
            slot_bytes,
            speed: Speed { block_tokens: 0, tokens_per_second: 0 },
            charge: u64::from(open) * u64::from(slot_bytes),
            touched: bid.now,
            pins: Vec::new(),
            loads: 0,
            released: false,
        })
    }

    /// What the metadata of a granted slot must say. The shell writes it before it commits.
    pub fn filling(&self, client: ClientSlot, lease: LeaseId, index: u32) -> Option<Filling> {
        let lease = self.leases.get(lease).filter(|lease| lease.client == client)?;
        let LeaseKind::Fill { grants, .. } = &lease.kind else { return None };
        let grant = grants.get(index as usize)?;
        let slot = grant.slot.as_ref()?.slot();
        Some(Filling {
            slot,
            slot_bytes: lease.slot_bytes,
            entry: match cfg!(kvd_bug = "loose_parent") {
                true => self.entry(grant.node, SlotState::Filling),
                false => SlotEntry { parent_key: grant.parent_key, ..self.entry(grant.node, SlotState::Filling) },
            },
            hash: grant.hash,
            parent_hash: grant.parent_hash,
        })
    }

    /// The slot is whole, its metadata written: the block can be found from here on, once its ancestors can.
    pub fn commit(
        &mut self,
        client: ClientSlot,
        lease: LeaseId,
        index: u32,
        meta_checksum: u64,
        now: Time,
    ) -> Result<(), CommitError> {
        let found = self.leases.get_mut(lease).filter(|lease| lease.client == client).ok_or(CommitError::NoLease)?;
        let LeaseKind::Fill { grants, open } = &mut found.kind else { return Err(CommitError::NoLease) };
        let grant = grants.get_mut(index as usize).ok_or(CommitError::NoGrant)?;
        let filling = grant.slot.take().ok_or(CommitError::NoGrant)?;
        let id = grant.node;
        *open -= 1;
        let done = *open == 0;
        let slot = filling.slot();
        self.uncharge_grant(lease);
        let result = if self.nodes[id].has(flag::LOOSE) {
            self.give_back(id, filling);
            Err(CommitError::Unwanted)
        } else {
            self.nodes[id].meta_checksum = meta_checksum;
            self.publish_dram(id, filling.seal());
            self.attach_or_wait(id, now);
            self.want_spill(id);
            self.counters.committed += 1;
            self.work.zone_may_change = true;
            Ok(())
        };
        self.unpin_slot(slot, Holder::Client(client));
        if done {
            self.leases.remove(lease);
        }
        self.work_some(now);
        result
    }

    fn uncharge_grant(&mut self, lease: LeaseId) {
        let lease = self.leases.get_mut(lease).expect("the caller has it");
        let (instance, bytes) = (lease.instance, u64::from(lease.slot_bytes));
        lease.charge -= bytes;
        self.instances.get_mut(instance).lease_bytes -= bytes;
    }

    /// Gives up what is left of a fill lease: the client will not write there any more.
    pub fn abandon(&mut self, client: ClientSlot, lease: LeaseId, now: Time) {
        if self.leases.get(lease).is_some_and(|lease| lease.client == client) {
            self.give_up_fill(lease);
        }
        self.work_some(now);
    }

    pub(super) fn give_up_fill(&mut self, lease: LeaseId) {
        let Some(found) = self.leases.get(lease) else { return };
        let client = found.client;
        let LeaseKind::Fill { grants, .. } = &found.kind else { return };
        for index in 0..grants.len() {
            let lease = self.leases.get_mut(lease).expect("it stays until the loop ends");
            let LeaseKind::Fill { grants, .. } = &mut lease.kind else { return };
            let grant = &mut grants[index];
            let Some(filling) = grant.slot.take() else { continue };
            let (id, slot, lease) = (grant.node, filling.slot(), lease.id);
            self.uncharge_grant(lease);
            self.give_back(id, filling);
            self.unpin_slot(slot, Holder::Client(client));
        }
        self.leases.remove(lease);
    }
}
