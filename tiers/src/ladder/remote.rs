//! The object tier as the ladder sees it: records that others can fetch, and records that it can.
//!
//! Which records lie there the ladder does not know; a catalog does. What a match asked the catalog about comes in as *remote*
//! nodes: children of what is here, bounded in number, in the closure like any other, and forgotten as soon as nobody holds
//! them. One that lands in the arena is remote no longer.

use std::collections::BTreeMap;
use std::time::Duration;

use kvd_proto::{MissReason, Tier, Time};

use super::config::ObjectConfig;
use super::gate::{Edge, Gate};
use super::guards::FillingSlot;
use super::lanes::{HashSource, key_of};
use super::moves::{Matched, Move};
use super::nodes::{NodeId, flag};
use super::port::SlotTable;
use super::state::{Flight, Ladder};
use super::uploads::Uploads;
use crate::ids::{ClientSlot, ObjectPlace, SlotState, ViewId, newer};
use crate::policy::Policy;

/// After so long without a fetch the tier counts as not measured: else one bad hour would keep it unused for ever.
const MEASURED_FOR: Duration = Duration::from_secs(10);

/// A record that the catalog knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRecord {
    /// Where it lies.
    pub place: ObjectPlace,
    /// Generation under which it was sealed.
    pub generation: u32,
    /// The checksum of its metadata: the anchor of trust.
    pub meta_checksum: u64,
}

/// What the catalog knows of a chain.
#[derive(Debug, Clone, Copy)]
pub struct RemoteChain<'a> {
    /// Place in the chain of the first record.
    pub first: u32,
    /// Records of consecutive blocks.
    pub records: &'a [RemoteRecord],
}

/// The object tier.
#[derive(Debug, Default)]
pub(super) struct Remotes {
    /// Fetches are worth asking for.
    pub(super) up: bool,
    /// It takes records.
    pub(super) takes: bool,
    /// Where the remote nodes lie.
    places: BTreeMap<NodeId, ObjectPlace>,
    /// Records that wait to be given to the tier.
    pub(super) uploads: Uploads,
    pub(super) getting: u32,
    pub(super) getting_bytes: u64,
    pub(super) putting: u32,
    pub(super) reads: Edge,
    /// When a fetch last landed.
    measured: Time,
    /// The run that was started last, while it may go on.
    run: Option<Run>,
}

/// Records side by side in one pack that are fetched with one request.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Where it begins.
    first: ObjectPlace,
    /// Where it ends.
    end: u64,
}

impl Remotes {
    pub(super) fn new(up: bool) -> Self {
        Self { up, takes: up, ..Self::default() }
    }

    /// Whether a fetch from there may start. A run that has begun is fetched whole, and a new one begins where there is room
    /// for all of it: what is asked for by halves is asked for twice.
    pub(super) fn may_get(&mut self, from: ObjectPlace, object: ObjectConfig) -> bool {
        if self.goes_on(from, object) {
            if self.getting < object.gets_max {
                return true;
            }
            self.run = None;
        }
        let alone = if cfg!(kvd_bug = "get_overrun") { 0 } else { u64::from(from.bytes) };
        let run_bytes = object.run_bytes_max.max(alone);
        let room = self.getting_bytes + run_bytes <= object.get_bytes_max;
        self.getting == 0 || room && self.getting <= object.gets_max / 2
    }

    /// Whether the run that was started last goes on there.
    pub(super) fn goes_on(&self, from: ObjectPlace, object: ObjectConfig) -> bool {
        let begins = u64::from(from.offset);
        let run = self.run.filter(|run| run.first.pack == from.pack && run.end == begins);
        run.is_some_and(|run| begins + u64::from(from.bytes) - u64::from(run.first.offset) <= object.run_bytes_max)
    }

    fn started(&mut self, from: ObjectPlace, slot_bytes: u64, object: ObjectConfig, now: Time) {
        let first = self.run.filter(|_| self.goes_on(from, object)).map_or(from, |run| run.first);
        self.run = Some(Run { first, end: u64::from(from.offset) + u64::from(from.bytes) });
        self.getting += 1;
        self.getting_bytes += slot_bytes;
        self.reads.started(slot_bytes, now);
    }

    /// A fetch ended; `moved` is 0 for one that brought nothing, which says nothing about the next.
    pub(super) fn got(&mut self, bytes: u64, moved: u64, took: Duration, now: Time) {
        self.getting -= 1;
        self.getting_bytes -= bytes;
        if moved > 0 {
            self.reads.ended(bytes, moved, took, now);
            self.measured = now;
        } else {
            self.reads.dropped(bytes, now);
        }
    }

    /// How fast it is, as far as that was measured lately.
    pub(super) fn edge(&self, now: Time) -> Option<&Edge> {
        (now.since(self.measured) <= MEASURED_FOR).then_some(&self.reads)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn place(&self, id: NodeId) -> Option<ObjectPlace> {
        self.places.get(&id).copied()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.places.len() * 2 * size_of::<(NodeId, ObjectPlace)>() + self.uploads.memory_bytes()
    }
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// Whether the object tier answers reads, and takes records. While it does not, its records are misses, and those that
    /// are to be given to it wait.
    pub fn set_object_up(&mut self, reads: bool, writes: bool, now: Time) {
        (self.remotes.up, self.remotes.takes) = (reads, writes);
        self.work_some(now);
    }

    /// How long a prefix of the chain is here, without asking the object tier or telling the policy.
    pub fn blocks_here(&self, view: ViewId, hashes: &(impl HashSource + ?Sized)) -> u32 {
        self.views.get(view).map_or(0, |found| self.longest_prefix(found.lane, &found.group_key, hashes).0)
    }

    /// [`Ladder::match_prefix`] with what the catalog knows of the same chain. Records that a load would not fetch because
    /// computing them again is faster are left out.
    pub fn match_remote(
        &mut self,
        client: ClientSlot,
        view: ViewId,
        hashes: &(impl HashSource + ?Sized),
        remote: RemoteChain<'_>,
        want_lease: bool,
        now: Time,
    ) -> Matched {
        let known = remote.records.len();
        let pays = self.remotes_that_pay(view, known, now);
        let gated = (pays < known).then_some((remote.first + pays as u32, MissReason::SlowerThanRecompute));
        let tip = self.import(view, hashes, RemoteChain { records: &remote.records[..pays], ..remote }, now);
        // Holds the newcomers until the match has said how many of them it wants.
        tip.into_iter().for_each(|tip| self.hold(tip));
        let matched = self.match_gated(client, view, hashes, want_lease, gated, now);
        tip.into_iter().for_each(|tip| self.unhold(tip));
        matched
    }

    /// [`Ladder::prefetch`] with what the catalog knows of the same chain.
    pub fn prefetch_remote(
        &mut self,
        client: ClientSlot,
        view: ViewId,
        hashes: &(impl HashSource + ?Sized),
        remote: RemoteChain<'_>,
        now: Time,
    ) -> u32 {
        let tip = self.import(view, hashes, remote, now);
        tip.into_iter().for_each(|tip| self.hold(tip));
        let count = self.prefetch(client, view, hashes, now);
        tip.into_iter().for_each(|tip| self.unhold(tip));
        count
    }

    fn remotes_that_pay(&self, view: ViewId, count: usize, now: Time) -> usize {
        let Some(found) = self.views.get(view).filter(|_| self.config.gate) else { return count };
        let (Some(mut gate), Some(edge)) = (Gate::new(found.speed), self.remotes.edge(now)) else { return count };
        let bytes = u64::from(self.lanes.get(found.lane).slot_bytes);
        (0..count).for_each(|_| gate.fetch(edge, bytes));
        gate.paying() as usize
    }

    /// Makes nodes of records behind what is here. Returns the last block of the chain that is here then, if it is remote.
    fn import(
        &mut self,
        view: ViewId,
        hashes: &(impl HashSource + ?Sized),
        remote: RemoteChain<'_>,
        now: Time,
    ) -> Option<NodeId> {
        let max = self.config.object?.remotes_max as usize;
        let found = self.views.get(view)?;
        let (lane, group_key) = (found.lane, found.group_key);
        let mut tip = match remote.first.checked_sub(1) {
            Some(before) => self
                .find(&key_of(&group_key, hashes, before), lane)
                .filter(|id| self.nodes[*id].has(flag::ATTACHED) && self.nodes[*id].position == before)?,
            None => NodeId::NONE,
        };
        let end = hashes.len().saturating_sub(remote.first) as usize;
        for (position, record) in (remote.first..).zip(&remote.records[..remote.records.len().min(end)]) {
            let key = key_of(&group_key, hashes, position);
            let id = match self.find(&key, lane) {
                Some(id) => {
                    let node = &self.nodes[id];
                    if node.position != position || node.parent != tip || node.any(flag::LOOSE | flag::CUT) {
                        break;
                    }
                    if node.has(flag::ATTACHED) {
                        tip = id;
                        continue;
                    }
                    // Somebody is bringing it, or waits for its ancestors.
                    let busy = node.resident() || node.any(flag::FILLING | flag::FETCHING | flag::SPILLING);
                    if busy || self.remotes.len() >= max {
                        break;
                    }
                    id
                }
                None if self.remotes.len() >= max => break,
                None => match self.add_node(key, lane, position, tip) {
                    Some(id) => id,
                    None => break,
                },
            };
            // Its slot shall get a generation behind that when its space is given away.
            if newer(record.generation, self.generation) && !cfg!(kvd_bug = "import_generation_kept") {
                self.generation = record.generation;
            }
            let rank = tip.get().map_or(0, |parent| self.nodes[parent].rank);
            let held = &mut self.lanes.get_mut(lane).held;
            let node = &mut self.nodes[id];
            (node.generation, node.meta_checksum, node.rank) = (record.generation, record.meta_checksum, rank);
            held.take(node);
            node.set(flag::REMOTE | flag::UPLOADED);
            held.add(node);
            self.remotes.places.insert(id, record.place);
            self.counters.imported += 1;
            self.attach_or_wait(id, now);
            tip = id;
        }
        tip.get().filter(|id| self.nodes[*id].remote())
    }

    /// The copy in the object tier is not this node's any more.
    pub(super) fn clear_remote(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        debug_assert!(node.has(flag::REMOTE));
        let held = &mut self.lanes.get_mut(node.lane).held;
        held.take(node);
        node.clear(flag::REMOTE);
        held.add(node);
        self.remotes.places.remove(&id);
    }

    /// A remote node that nobody holds and nothing hangs on is of no use: the catalog knows it better.
    pub(super) fn forget_remote(&mut self, id: NodeId) {
        let node = &self.nodes[id];
        if node.remote() && node.holds == 0 && node.leaf() && !node.any(flag::FETCHING | flag::CUT) {
            self.clear_remote(id);
            self.nodes[id].clear(flag::ATTACHED | flag::PINNED);
        }
    }

    /// Whether a remote record may be fetched now.
    pub(super) fn may_get(&mut self, id: NodeId) -> bool {
        let from = self.remotes.place(id).zip(self.config.object);
        from.is_some_and(|(from, object)| self.remotes.may_get(from, object))
    }

    /// Whether a record is the next of the run that is being fetched.
    pub(super) fn goes_on(&self, id: NodeId) -> bool {
        let from = self.remotes.place(id).zip(self.config.object);
        from.is_some_and(|(from, object)| self.remotes.goes_on(from, object))
    }

    /// Starts to bring a remote record into the slot that was filled for it.
    pub(super) fn get(&mut self, id: NodeId, to: FillingSlot, now: Time) {
        let from = self.remotes.place(id).expect("a remote node has a place");
        self.hold(id);
        let slot_bytes = u64::from(self.lanes.get(self.nodes[id].lane).slot_bytes);
        let object = self.config.object.expect("it has remote nodes");
        self.remotes.started(from, slot_bytes, object, now);
        let slot = to.slot();
        let expect = self.entry(id, SlotState::Resident);
        let move_id = self.start(Flight::Get { node: id, from, to });
        self.moves.push_back(Move::Get { id: move_id, from, to: slot, expect });
    }

    /// What the catalog pointed at is not what was stored: it is never asked for again here.
    pub(super) fn quarantine_remote(&mut self, id: NodeId) {
        self.counters.corrupt_object += 1;
        self.drop_remote(id, MissReason::Corrupt);
    }

    pub(super) fn drop_remote(&mut self, id: NodeId, reason: MissReason) {
        self.hold(id);
        self.clear_remote(id);
        self.vanished(id, reason);
        self.unhold(id);
    }

    /// Blocks at the end of a matched chain that a load would have to get from the object tier: (the deepest block above
    /// them, how many).
    pub(super) fn remote_end(&self, deepest: NodeId, blocks: u32) -> (NodeId, u32) {
        let (mut at, mut count) = (deepest, 0);
        if self.remotes.len() == 0 {
            return (at, 0);
        }
        while count < blocks && !at.is_none() && self.nodes[at].remote() {
            count += 1;
            at = self.nodes[at].parent;
        }
        (at, count)
    }

    /// The tier that a block which is not in the arena comes from.
    pub(super) fn tier_below(&self, id: NodeId) -> Tier {
        if self.nodes[id].has(flag::REMOTE) { Tier::Object } else { Tier::Nvme }
    }
}
