//! What engine processes do.

use std::ops::Range;
use std::time::Duration;

use kvd_proto::wire::slab::{GrantedStatus, LandedStatus};
use kvd_proto::{BlockHash, InstanceId, UnitOrder};
use kvd_tiers::ladder::{CommitError, LoadState, Offer, RemoteChain};
use kvd_tiers::record::{Metadata, SECTOR_BYTES, TokenIds, UnitChecksums};
use kvd_tiers::{ClientSlot, RequestId, ViewId};

use crate::blocks::{Block, unit_checksums};
use crate::engines::{Copied, Fill, Grant, Held, Place, Prefix, Process, Waiting};
use crate::questions::Purpose;
use crate::store::Row;
use crate::world::World;

/// Client processes at a time.
const PROCESSES_MAX: usize = 6;

impl World {
    pub(crate) fn engine_acts(&mut self) {
        let alive: Vec<usize> = (0..self.processes.len()).filter(|at| self.processes[*at].alive).collect();
        if alive.len() < 2 || (alive.len() < PROCESSES_MAX && self.random.percent(2)) {
            self.connect(None);
            return;
        }
        let at = self.random.pick(&alive);
        if self.daemon.is_none() || self.processes[at].epoch != self.epoch {
            if self.daemon.is_some() && self.random.percent(30) {
                self.connect(Some(at));
            } else if self.random.percent(50) {
                self.copy(at);
            } else {
                self.fill(at);
            }
            return;
        }
        match self.random.index(100) {
            0..14 => self.ask(at),
            14..30 => self.load(at),
            30..38 => self.copy(at),
            38..50 => self.release(at),
            50..62 => self.offer(at),
            62..78 => self.fill(at),
            78..94 => self.commit(at),
            94 => self.abandon(at),
            95..98 => self.prefetch(at),
            98 => self.borrow(at),
            _ => {
                let (_, view) = self.processes[at].views[0];
                let rate = self.random.pick(&[0, 0, 1_000_000, 10_000_000]);
                self.call(|ladder, _| ladder.set_prefill_rate(view, rate));
            }
        }
    }

    /// A process joins, or joins again after it has noticed that the daemon is another.
    fn connect(&mut self, again: Option<usize>) {
        if self.daemon.is_none() {
            return;
        }
        let at = again.unwrap_or_else(|| {
            let instance = self.random.index(self.make.instances);
            let tenant = self.names.lanes[instance % self.make.tenants * self.make.kinds].tenant;
            let client = self.free_client();
            self.processes.push(Process {
                alive: true,
                instance: InstanceId::new([instance as u8 + 1; 16]),
                tenant,
                client,
                epoch: self.epoch,
                views: Vec::new(),
                prefixes: Vec::new(),
                fills: Vec::new(),
            });
            self.processes.len() - 1
        });
        self.say(|| format!("{:?} connects, again: {again:?}", self.processes[at].client));
        self.forget_questions(at);
        let process = &mut self.processes[at];
        process.forget();
        process.epoch = self.epoch;
        let (client, instance, tenant) = (process.client, process.instance, process.tenant);
        let mut views = Vec::new();
        for (lane, found) in self.names.lanes.iter().enumerate() {
            if found.tenant == tenant {
                views.push((lane, self.names.view(lane)));
            }
        }
        let opened = self.call(|ladder, now| {
            if again.is_some() {
                ladder.rejoined(client, now);
            }
            ladder.join(client, instance, tenant, now).expect("fewer processes than instances");
            views.iter().map(|(lane, spec)| (*lane, ladder.open_view(spec).expect("few views"))).collect::<Vec<_>>()
        });
        match opened {
            Some(opened) => self.processes[at].views = opened,
            // Killed: it never heard of it, and comes again.
            None => self.processes[at].epoch = 0,
        }
    }

    fn free_client(&mut self) -> ClientSlot {
        let taken = |client: ClientSlot| {
            self.processes.iter().any(|process| process.alive && process.client == client)
                || self.burials.iter().any(|(_, buried, _)| *buried == client)
        };
        (0..64).filter_map(ClientSlot::new).find(|client| !taken(*client)).expect("few processes")
    }

    /// The first blocks of some chain, by a view of the process.
    fn chain(&mut self, at: usize) -> (kvd_tiers::ViewId, Vec<Block>) {
        let (lane, view) = self.random.pick(&self.processes[at].views);
        let chain = self.random.index(self.names.chains.len());
        let whole = self.names.chains[chain].blocks;
        let count = if self.random.percent(70) { whole } else { self.random.range(1..u64::from(whole) + 1) as u32 };
        (view, (0..count).map(|position| self.names.block(lane, chain, position)).collect())
    }

    pub(crate) fn hashes(&self, blocks: &[Block]) -> Vec<BlockHash> {
        blocks.iter().map(|block| self.names.hash(*block)).collect()
    }

    fn ask(&mut self, at: usize) {
        let (view, blocks) = self.chain(at);
        let want_lease = self.random.percent(75);
        if !self.ask_catalog(at, view, &blocks, Purpose::Match { want_lease }) {
            self.matching(at, view, &blocks, want_lease, None);
        }
    }

    /// A match is answered; `remote`: with what the catalog knows of the blocks from a place on.
    pub(crate) fn matching(
        &mut self,
        at: usize,
        view: ViewId,
        blocks: &[Block],
        want_lease: bool,
        remote: Option<(u32, &[Row])>,
    ) {
        let hashes = self.hashes(blocks);
        let client = self.processes[at].client;
        let (first, rows) = remote.unwrap_or((0, &[]));
        let (least, most) = self.walk(blocks, first, rows);
        let records: Vec<_> = rows.iter().map(|row| row.remote).collect();
        let matched = self.call_quietly(|ladder, now| match remote {
            None => ladder.match_prefix(client, view, &hashes, want_lease, now),
            Some(_) => {
                let remote = RemoteChain { first, records: &records };
                ladder.match_remote(client, view, &hashes, remote, want_lease, now)
            }
        });
        let Some(matched) = matched else { return };
        self.imported(&blocks[first as usize..], rows);
        self.hand_out();
        self.note(u64::from(matched.blocks));
        self.say(|| format!("{client:?} asks {blocks:?}: {matched:?} ({least}..={most})"));
        assert!(matched.blocks <= most, "{} blocks matched, a walk finds {most}", matched.blocks);
        assert!(want_lease || matched.blocks >= least, "{} blocks matched, a walk finds {least}", matched.blocks);
        assert!(matched.miss.is_some() || matched.blocks == blocks.len() as u32, "a miss has a reason: {matched:?}");
        let found = &blocks[..matched.blocks as usize];
        found.iter().for_each(|block| self.oracle.matched(*block));
        if let Some(lease) = matched.lease {
            let prefix = Prefix { lease, blocks: found.to_vec(), held: Vec::new() };
            self.processes[at].prefixes.push(prefix);
        }
    }

    /// A worker reads under the lease that another process of its engine got.
    fn borrow(&mut self, at: usize) {
        let (instance, epoch) = (self.processes[at].instance, self.epoch);
        let sibling = |other: &&Process| other.alive && other.instance == instance && other.epoch == epoch;
        let known: Vec<_> = self.processes[at].prefixes.iter().map(|prefix| prefix.lease).collect();
        let found = self.processes.iter().filter(sibling).flat_map(|other| &other.prefixes);
        let found = found.filter(|prefix| !known.contains(&prefix.lease)).map(|p| (p.lease, p.blocks.clone())).next();
        if let Some((lease, blocks)) = found {
            self.processes[at].prefixes.push(Prefix { lease, blocks, held: Vec::new() });
        }
    }

    fn prefix(&mut self, at: usize) -> Option<usize> {
        let count = self.processes[at].prefixes.len();
        (count > 0).then(|| self.random.index(count))
    }

    fn load(&mut self, at: usize) {
        let Some(which) = self.prefix(at) else { return self.ask(at) };
        let blocks = self.processes[at].prefixes[which].blocks.len();
        let first = if self.random.percent(70) { 0 } else { self.random.index(blocks) as u32 };
        let wait = [Duration::ZERO, Duration::from_micros(100), Duration::from_millis(3), Duration::from_millis(100)];
        let wait = self.random.pick(&wait);
        self.load_from(at, which, first, wait);
    }

    /// Loads a matched prefix from a block on.
    pub(crate) fn load_from(&mut self, at: usize, which: usize, first: u32, wait: Duration) {
        let (client, prefix) = (self.processes[at].client, &self.processes[at].prefixes[which]);
        let (lease, blocks) = (prefix.lease, prefix.blocks.clone());
        let count = blocks.len() as u32 - first;
        let deadline = self.now + wait;
        self.requests += 1;
        let request = RequestId(self.requests);
        let mut out = Vec::new();
        // Replies may come with the call: whoever waits must be known before.
        self.loads.insert(request, Waiting { process: at, lease, first, count, deadline, got: 0 });
        let state =
            self.call_quietly(|ladder, now| ladder.load(client, lease, first, count, deadline, request, now, &mut out));
        let Some(state) = state else { return };
        let mut got = 0;
        let table = self.table.clone();
        for landed in &out {
            if landed.status == LandedStatus::Landed {
                let index = first + got;
                let held = Held::new(&table, blocks[index as usize], index, *landed);
                self.processes[at].prefixes[which].held.push(held);
                got += 1;
            }
        }
        self.note(u64::from(got));
        self.say(|| format!("{client:?} loads {first}+{count} under {lease:?}: {out:?} {state:?}"));
        match state {
            LoadState::Done { reason } => {
                assert!(reason.is_some() || got == count, "{got} of {count} without a reason");
                self.loads.remove(&request);
            }
            LoadState::Pending => {
                assert!(deadline > self.now, "a load whose deadline has come does not wait");
                self.loads.get_mut(&request).expect("just inserted").got = got;
            }
        }
        self.hand_out();
    }

    fn copy(&mut self, at: usize) {
        let prefixes = self.processes[at].prefixes.iter().enumerate();
        let held = prefixes.flat_map(|(which, prefix)| (0..prefix.held.len()).map(move |one| (which, one)));
        let held: Vec<(usize, usize)> = held.collect();
        let Some((which, one)) = self.random.pick_any(&held) else { return };
        let prefix = &self.processes[at].prefixes[which];
        let (lease, held) = (prefix.lease, prefix.held[one].clone());
        let copied = held.copy(&self.names, &mut self.scratch);
        self.note(copied as u64);
        self.count(if copied == Copied::Right { "copies_right" } else { "copies_refused" });
        assert!(copied != Copied::Wrong, "wrong bytes for {:?} in {:?}", held.block, held.place.slot);
        let rotted = self.oracle.rotted.contains(&held.place.slot);
        assert!(
            copied == Copied::Right || rotted,
            "{:?} of {:?} changed in a client's hands",
            held.place.slot,
            held.block
        );
        let current = self.processes[at].epoch == self.epoch;
        if current && (copied == Copied::Refused || self.random.per_mille(5)) {
            self.oracle.cuts_allowed = true;
            self.say(|| format!("{:?} is told corrupt", held.block));
            let client = self.processes[at].client;
            self.call(|ladder, now| ladder.corrupt(client, lease, held.index, now));
        }
    }

    fn release(&mut self, at: usize) {
        let Some(which) = self.prefix(at) else { return };
        let client = self.processes[at].client;
        let prefix = self.processes[at].prefixes.swap_remove(which);
        self.say(|| format!("{client:?} releases {:?}", prefix.lease));
        if self.call(|ladder, now| ladder.release(client, prefix.lease, now)).is_none() {
            // Killed meanwhile: the process does not touch these slots any more all the same.
            self.note(1);
        }
    }

    fn offer(&mut self, at: usize) {
        let (view, blocks) = self.chain(at);
        let first = match self.random.index(8) {
            // Children before their parents.
            0 => self.random.index(blocks.len()),
            1 | 2 => 0,
            _ => (self.walk(&blocks, 0, &[]).1 as usize).min(blocks.len() - 1),
        };
        let count = (1 + self.random.index(4)).min(blocks.len() - first);
        self.offer_blocks(at, view, &blocks, first..first + count);
    }

    /// Offers these blocks of a chain.
    pub(crate) fn offer_blocks(&mut self, at: usize, view: ViewId, blocks: &[Block], range: Range<usize>) {
        let client = self.processes[at].client;
        let (first, count) = (range.start, range.len());
        let parent = first.checked_sub(1).map(|parent| self.names.hash(blocks[parent]));
        let wanted = &blocks[range];
        let hashes = self.hashes(wanted);
        let mut out = Vec::new();
        let offered = self.call(|ladder, now| {
            let offer = Offer { parent, first_position: first as u32, hashes: &hashes };
            ladder.offer(client, view, &offer, now, &mut out)
        });
        let Some(lease) = offered else { return };
        self.say(|| format!("{client:?} offers {wanted:?} under {lease:?}: {out:?}"));
        assert_eq!(out.len(), count, "an answer for each block");
        let mut grants = Vec::new();
        for (granted, block) in out.iter().zip(wanted) {
            self.note(granted.status as u64);
            if granted.status != GrantedStatus::Granted {
                // Room was made for it before there was none.
                if granted.status == GrantedStatus::Refused {
                    self.displaced(*block, None);
                }
                continue;
            }
            let lease = lease.expect("grants belong to a lease");
            let place = Place::granted(&self.table, granted);
            assert!(
                !self.touched().contains(&place.slot),
                "{:?} is granted while a live client may touch it",
                place.slot
            );
            let before = self.oracle.filling.insert(*block, (at, lease));
            assert!(before.is_none(), "{block:?} is filled twice at a time");
            self.oracle.rotted.remove(&place.slot);
            self.displaced(*block, Some(place.slot));
            let (index, generation, seed) = (granted.index, granted.generation, granted.seed);
            grants.push(Grant { index, block: *block, place, generation, seed, written: false });
        }
        if let Some(lease) = lease {
            self.processes[at].fills.push(Fill { lease, grants });
        }
    }

    /// Some open grant of the process: its lease's place and its own.
    fn grant(&mut self, at: usize, written: bool) -> Option<(usize, usize)> {
        let fills = self.processes[at].fills.iter().enumerate();
        let open =
            fills.flat_map(|(which, fill)| fill.grants.iter().enumerate().map(move |(one, grant)| (which, one, grant)));
        let open: Vec<_> = open.filter(|(_, _, g)| g.written == written).map(|(which, one, _)| (which, one)).collect();
        self.random.pick_any(&open)
    }

    fn fill(&mut self, at: usize) {
        let Some((which, one)) = self.grant(at, false) else { return };
        let grant = &mut self.processes[at].fills[which].grants[one];
        let bytes = self.names.bytes(grant.block);
        if self.random.percent(1) {
            // Stopped in the middle of its copy for good.
            grant.place.write(SECTOR_BYTES, &bytes[..bytes.len() / 2]);
            self.end_process(at);
            return;
        }
        grant.place.write(SECTOR_BYTES, &bytes);
        grant.written = true;
    }

    fn commit(&mut self, at: usize) {
        let Some((which, one)) = self.grant(at, true) else { return self.fill(at) };
        let (client, writer) = (self.processes[at].client, self.processes[at].instance);
        let (lease, grant) =
            (self.processes[at].fills[which].lease, self.processes[at].fills[which].grants[one].clone());
        let daemon = self.daemon.as_ref().expect("looked at before");
        let filling = daemon.ladder.filling(client, lease, grant.index).expect("a grant stays while its owner lives");
        assert_eq!(
            (filling.slot, filling.entry.generation),
            (grant.place.slot, grant.generation),
            "a grant keeps its slot"
        );
        let lane = &self.names.lanes[grant.block.lane];
        assert_eq!(filling.entry.key, self.names.key(grant.block));
        let payload = grant.place.payload(lane.payload_bytes as usize);
        let checksums: Vec<u8> =
            unit_checksums(&payload, lane.unit_bytes, grant.seed).iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let metadata = Metadata {
            namespace: lane.namespace,
            group: filling.entry.group,
            key: filling.entry.key,
            parent_key: filling.entry.parent_key,
            hash: filling.hash,
            parent_hash: filling.parent_hash,
            position: filling.entry.position,
            shard: lane.shard.clone(),
            unit_order: UnitOrder::TokenKvDim,
            writer,
            generation: filling.entry.generation,
            payload_bytes: lane.payload_bytes,
            algorithm: kvd_nixl::ChecksumAlgorithm::Xxh3,
            unit_bytes: lane.unit_bytes,
            checksums: UnitChecksums::new(&checksums),
            tokens: TokenIds::new(&[]),
        };
        let mut bytes = vec![0; SECTOR_BYTES];
        let sealed = metadata.encode(&mut bytes).expect("what the ladder says can be written down");
        grant.place.write(0, &bytes);
        self.oracle.committing(grant.block);
        // From here on it does not touch the slot, whether it hears an answer or not.
        let fills = &mut self.processes[at].fills;
        fills[which].grants.swap_remove(one);
        fills.retain(|fill| !fill.grants.is_empty());
        let committed = self.call(|ladder, now| ladder.commit(client, lease, grant.index, sealed, now));
        let Some(committed) = committed else { return };
        self.say(|| format!("{client:?} commits {:?} in {:?}: {committed:?}", grant.block, grant.place.slot));
        assert!(matches!(committed, Ok(()) | Err(CommitError::Unwanted)), "a commit is refused: {committed:?}");
        self.oracle.filling.remove(&grant.block);
    }

    fn abandon(&mut self, at: usize) {
        let count = self.processes[at].fills.len();
        if count == 0 {
            return;
        }
        let which = self.random.index(count);
        let outright = self.random.percent(50);
        self.abandon_fill(at, which, outright);
    }

    /// Gives up what is being filled under a lease: by its name, or as any lease.
    pub(crate) fn abandon_fill(&mut self, at: usize, which: usize, outright: bool) {
        let client = self.processes[at].client;
        let fill = self.processes[at].fills.swap_remove(which);
        self.say(|| format!("{client:?} abandons {:?}", fill.lease));
        self.oracle.filling.retain(|_, (filler, lease)| *filler != at || *lease != fill.lease);
        if outright {
            self.call(|ladder, now| ladder.abandon(client, fill.lease, now));
        } else {
            self.call(|ladder, now| ladder.release(client, fill.lease, now));
        }
    }

    fn prefetch(&mut self, at: usize) {
        let (view, blocks) = self.chain(at);
        if self.ask_catalog(at, view, &blocks, Purpose::Prefetch) {
            return;
        }
        let hashes = self.hashes(&blocks);
        let client = self.processes[at].client;
        self.call(|ladder, now| ladder.prefetch(client, view, &hashes, now));
    }
}
