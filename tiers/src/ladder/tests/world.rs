//! A world for the ladder: an arena, devices and clients as plain maps, which check every rule of the port as they go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvd_proto::wire::slab::{Granted, GrantedStatus, Landed, LandedStatus};
use kvd_proto::{BlockHash, BlockKey, GroupKey, InstanceId, Interleave, NamespaceDigest, Shard, TenantKey, Time};

use crate::ids::{
    ClientSlot, DeviceId, FencedSlot, LeaseId, MoveId, NvmeSlot, ObjectPlace, RequestId, RestoredPlace, RestoredRecord,
    RestoredSegment, RestoredZone, SegmentId, SlotEntry, SlotId, SlotState, TenantId, ViewId, ZoneId,
};
use crate::ladder::{
    DeviceFault, Ladder, LadderConfig, LoadState, Matched, Move, Offer, Outcome, RemoteChain, RemoteRecord, SlotTable,
    VerifyPlace, ViewSpec,
};
use crate::policy::{Adaptive, Lru, Policy};

/// What lies in a slot: which sealing of which block. `None` in its place: garbage.
pub(super) type Bytes = (BlockKey, u32, u64);

/// The arena: table, pins and bytes.
#[derive(Default, Clone)]
pub(super) struct Arena {
    pub(super) entries: BTreeMap<SlotId, SlotEntry>,
    pub(super) pins: BTreeMap<SlotId, u64>,
    pub(super) segments: BTreeMap<SegmentId, (TenantId, u32)>,
    pub(super) generations: BTreeMap<SegmentId, u32>,
    pub(super) bytes: BTreeMap<SlotId, Option<Bytes>>,
    scrubbed: BTreeSet<SegmentId>,
    /// There is no memory for another segment.
    pub(super) barren: bool,
    /// Slots that a fetch or a spill touches.
    moving: BTreeSet<SlotId>,
}

impl SlotTable for Arena {
    fn write(&mut self, slot: SlotId, entry: &SlotEntry) {
        let (tenant, slot_bytes) = self.segments[&slot.segment()];
        assert_eq!(tenant, entry.tenant, "a tenant's record lies in its own segment");
        assert!((slot.index() + 1) * slot_bytes <= crate::SEGMENT_BYTES);
        let before = self.entries.get(&slot).map_or(SlotState::Vacant, |entry| entry.state);
        match entry.state {
            SlotState::Filling => {
                assert_eq!(before, SlotState::Vacant, "{slot:?} is filled once");
                assert_eq!(self.pins.get(&slot).copied().unwrap_or(0), 0, "{slot:?} is nobody's when it is given away");
                assert!(!self.moving.contains(&slot), "{slot:?} is not under a move");
            }
            SlotState::Resident => {
                assert_eq!(before, SlotState::Filling, "{slot:?} is published after it was filled");
                let found = self.bytes.get(&slot).copied().flatten();
                let wanted = (entry.key, entry.generation, entry.meta_checksum);
                assert_eq!(found, Some(wanted), "{slot:?} is published with its own bytes");
            }
            SlotState::Vacant => panic!("vacate says that"),
        }
        let max = self.generations.entry(slot.segment()).or_default();
        *max = (*max).max(entry.generation);
        self.entries.insert(slot, entry.clone());
    }

    fn vacate(&mut self, slot: SlotId, generation: u32) {
        let entry = self.entries.remove(&slot).expect("what is vacated was used");
        assert_ne!(entry.generation, generation, "the generation changes before the space is given away");
        let max = self.generations.entry(slot.segment()).or_default();
        *max = (*max).max(generation);
    }

    fn pin(&mut self, slot: SlotId, client: ClientSlot) {
        *self.pins.entry(slot).or_default() |= client.bit();
    }

    fn unpin(&mut self, slot: SlotId, client: ClientSlot) {
        *self.pins.entry(slot).or_default() &= !client.bit();
    }

    fn assign_segment(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool {
        if self.barren {
            return false;
        }
        let here = SlotId::new(segment, 0)..=SlotId::new(segment, (1 << 13) - 1);
        assert_eq!(self.entries.range(here.clone()).count(), 0, "{segment:?} is empty");
        assert!(self.pins.range(here).all(|(_, pins)| *pins == 0), "nobody holds slots of {segment:?}");
        if let Some((before, _)) = self.segments.get(&segment) {
            assert!(*before == tenant || self.scrubbed.remove(&segment), "{segment:?} is scrubbed between tenants");
        }
        self.segments.insert(segment, (tenant, slot_bytes));
        true
    }

    fn scrub(&mut self, segment: SegmentId) {
        self.scrubbed.insert(segment);
        self.bytes.retain(|slot, _| slot.segment() != segment);
    }
}

/// A device: what its table names, and the bytes.
#[derive(Default, Clone)]
pub(super) struct Disk {
    pub(super) table: BTreeMap<NvmeSlot, SlotEntry>,
    pub(super) zones: BTreeMap<ZoneId, u32>,
    pub(super) bytes: BTreeMap<NvmeSlot, Option<Bytes>>,
}

/// The object tier and its catalog: what lies where, and what is said to.
#[derive(Default, Clone)]
pub(super) struct Store {
    pub(super) records: BTreeMap<ObjectPlace, Option<Bytes>>,
    pub(super) catalog: BTreeMap<(BlockKey, String), RemoteRecord>,
    /// The pack that is being filled, and where its next record goes.
    pack: (u32, u32),
}

/// A pack ends with the record that reaches so far.
const PACK_BYTES: u32 = 32 << 20;

impl Store {
    fn name(key: BlockKey, shard: &Shard) -> (BlockKey, String) {
        (key, format!("{shard:?}"))
    }

    pub(super) fn find(&self, key: BlockKey, shard: &Shard) -> Option<RemoteRecord> {
        self.catalog.get(&Self::name(key, shard)).copied()
    }

    fn put(&mut self, entry: &SlotEntry, bytes: Bytes) -> u64 {
        let name = Self::name(entry.key, &entry.shard);
        if self.catalog.contains_key(&name) {
            return 0;
        }
        let (pack, offset) = self.pack;
        let place = ObjectPlace { pack, offset, bytes: entry.payload_bytes + 4096 };
        let end = offset + place.bytes;
        self.pack = if end >= PACK_BYTES { (pack + 1, 0) } else { (pack, end) };
        self.records.insert(place, Some(bytes));
        let record = RemoteRecord { place, generation: entry.generation, meta_checksum: entry.meta_checksum };
        self.catalog.insert(name, record);
        u64::from(place.bytes)
    }
}

/// One (tenant, shard) that clients use.
#[derive(Clone)]
pub(super) struct Kind {
    pub(super) spec: ViewSpec,
}

pub(super) fn kind(tenant: u8, heads: std::ops::Range<u16>, slot_bytes: u32) -> Kind {
    let namespace = NamespaceDigest::new([7; 32]);
    Kind {
        spec: ViewSpec {
            tenant: TenantId(u64::from(tenant)),
            namespace,
            group: 0,
            group_key: GroupKey::derive(&TenantKey::new([tenant; 32]), &namespace, 0),
            shard: Shard::new(0..4, heads, Interleave::WHOLE).unwrap(),
            payload_bytes: slot_bytes - 4096,
            meta_bytes: 4096,
            block_tokens: 16,
            prefill_tokens_per_second: 0,
        },
    }
}

pub(super) fn hash(number: u32) -> BlockHash {
    BlockHash::new(&number.to_le_bytes()).unwrap()
}

/// The chain of blocks `from..to`, each named by `salt` and its place.
pub(super) fn chain(salt: u32, count: u32) -> Vec<BlockHash> {
    (0..count).map(|place| hash(salt << 16 | place)).collect()
}

pub(super) struct World {
    pub(super) ladder: Ladder<Arena, Box<dyn Policy>>,
    adaptive: bool,
    pub(super) disks: Vec<Disk>,
    pub(super) store: Store,
    pub(super) moves: BTreeMap<MoveId, Move>,
    pub(super) replies: Vec<(RequestId, Landed)>,
    pub(super) ends: BTreeMap<RequestId, super::super::moves::LoadEnd>,
    pub(super) now: Time,
}

pub(super) fn client(number: u8) -> ClientSlot {
    ClientSlot::new(number).unwrap()
}

pub(super) fn instance(number: u8) -> InstanceId {
    InstanceId::new([number; 16])
}

impl World {
    pub(super) fn new(config: LadderConfig) -> Self {
        Self::with_policy(config, false)
    }

    fn policy(adaptive: bool) -> Box<dyn Policy> {
        if adaptive { Box::new(Adaptive::new(16)) } else { Box::new(Lru::default()) }
    }

    pub(super) fn with_policy(config: LadderConfig, adaptive: bool) -> Self {
        let disks = config.devices.iter().map(|_| Disk::default()).collect();
        Self {
            ladder: Ladder::new(config, Arena::default(), Self::policy(adaptive)),
            adaptive,
            disks,
            store: Store::default(),
            moves: BTreeMap::new(),
            replies: Vec::new(),
            ends: BTreeMap::new(),
            now: Time::from_nanos(1),
        }
    }

    /// A client and its view.
    pub(super) fn open(&mut self, number: u8, kind: &Kind) -> ViewId {
        self.ladder.join(client(number), instance(number), kind.spec.tenant, self.now).unwrap();
        self.ladder.open_view(&kind.spec).unwrap()
    }

    /// What a shell does after each call. Checks everything.
    pub(super) fn settle(&mut self) {
        while let Some(next) = self.ladder.poll_move() {
            self.begin(&next);
            assert!(self.moves.insert(next.id(), next).is_none());
        }
        while let Some(reply) = self.ladder.poll_reply() {
            for landed in reply.landed {
                self.check_landed(&landed, reply.client);
                self.replies.push((reply.request, landed));
            }
            if let Some(end) = reply.end {
                assert!(self.ends.insert(reply.request, end).is_none(), "a load ends once");
            }
        }
        self.ladder.self_check();
    }

    fn begin(&mut self, next: &Move) {
        let arena = self.ladder.table_mut();
        match next {
            Move::Spill { from, to, entry, .. } => {
                assert_eq!(arena.entries[from].key, entry.key);
                arena.moving.insert(*from);
                assert!(!self.disks[usize::from(to.device().0)].table.contains_key(to), "{to:?} was vacated");
            }
            Move::Fetch { from, to, expect, .. } => {
                assert_eq!(arena.entries[to].state, SlotState::Filling);
                arena.bytes.insert(*to, None);
                arena.moving.insert(*to);
                assert_eq!(
                    self.disks[usize::from(from.device().0)].table.get(from),
                    Some(expect),
                    "{from:?} is named so"
                );
            }
            Move::Put { from, entry, .. } => {
                assert_eq!(arena.entries[from].key, entry.key);
                arena.moving.insert(*from);
            }
            Move::Get { to, .. } => {
                assert_eq!(arena.entries[to].state, SlotState::Filling);
                arena.bytes.insert(*to, None);
                arena.moving.insert(*to);
            }
            Move::Vacate { .. } | Move::FormatZone { .. } | Move::Verify { .. } | Move::Probe { .. } => {}
        }
    }

    fn check_landed(&self, landed: &Landed, client: ClientSlot) {
        if landed.status == LandedStatus::Missed {
            return;
        }
        let slot = SlotId::new(SegmentId(landed.segment), (landed.offset / u64::from(landed.slot_bytes)) as u32);
        let arena = self.ladder.table();
        assert_ne!(arena.pins[&slot] & client.bit(), 0, "{slot:?} is pinned before the reply");
        // A purge may have taken the record away since; the pin keeps its bytes.
        if let Some(entry) = arena.entries.get(&slot) {
            assert_eq!(entry.state, SlotState::Resident);
            assert_eq!((entry.generation, entry.meta_checksum), (landed.generation, landed.meta_checksum));
        }
        let found = arena.bytes[&slot].map(|(_, generation, checksum)| (generation, checksum));
        assert_eq!(found, Some((landed.generation, landed.meta_checksum)), "the bytes of {slot:?}");
    }

    /// Ends a move as the device would, or with the trouble given. Returns what the shell reports.
    pub(super) fn finish(&mut self, id: MoveId, trouble: Option<DeviceFault>) -> Outcome {
        let ended = self.moves.remove(&id).expect("it is in flight");
        let arena = self.ladder.table_mut();
        let took = Duration::from_millis(1);
        let done = |bytes| Outcome::Done { bytes, took };
        let mut outcome = done(0);
        match &ended {
            Move::Spill { from, to, entry, .. } => {
                let uploaded = |other: &Move| matches!(other, Move::Put { from: slot, .. } if slot == from);
                if !self.moves.values().any(uploaded) {
                    arena.moving.remove(from);
                }
                let disk = &mut self.disks[usize::from(to.device().0)];
                let found = arena.bytes.get(from).copied().flatten();
                if found != Some((entry.key, entry.generation, entry.meta_checksum)) {
                    outcome = Outcome::Corrupt;
                } else if trouble.is_none() {
                    disk.bytes.insert(*to, found);
                    disk.table.insert(*to, entry.clone());
                    outcome = done(u64::from(disk.zones[&to.zone()]));
                }
            }
            Move::Fetch { from, to, expect, .. } => {
                arena.moving.remove(to);
                let disk = &self.disks[usize::from(from.device().0)];
                let found = disk.bytes.get(from).copied().flatten();
                if found != Some((expect.key, expect.generation, expect.meta_checksum)) {
                    outcome = Outcome::Corrupt;
                } else if trouble.is_none() {
                    arena.bytes.insert(*to, found);
                    outcome = done(u64::from(disk.zones[&from.zone()]));
                }
            }
            Move::Put { from, entry, .. } => {
                // A spill of the same slot may go on.
                let spilled = |other: &Move| matches!(other, Move::Spill { from: slot, .. } if slot == from);
                if !self.moves.values().any(spilled) {
                    arena.moving.remove(from);
                }
                match arena.bytes.get(from).copied().flatten() {
                    Some(found) if found == (entry.key, entry.generation, entry.meta_checksum) => {
                        if trouble.is_none() {
                            outcome = done(self.store.put(entry, found));
                        }
                    }
                    _ => outcome = Outcome::Corrupt,
                }
            }
            Move::Get { from, to, expect, .. } => {
                arena.moving.remove(to);
                match self.store.records.get(from) {
                    None => outcome = Outcome::Missing,
                    Some(found) if *found == Some((expect.key, expect.generation, expect.meta_checksum)) => {
                        if trouble.is_none() {
                            arena.bytes.insert(*to, *found);
                            outcome = done(u64::from(from.bytes));
                        }
                    }
                    Some(_) => outcome = Outcome::Corrupt,
                }
            }
            Move::Vacate { slot, .. } => {
                if trouble.is_none() {
                    self.disks[usize::from(slot.device().0)].table.remove(slot);
                }
            }
            Move::FormatZone { device, zone, slot_bytes, .. } => {
                let disk = &mut self.disks[usize::from(device.0)];
                assert!(disk.table.keys().all(|slot| slot.zone() != *zone), "{zone:?} is empty");
                if trouble.is_none() {
                    disk.zones.insert(*zone, *slot_bytes);
                }
            }
            Move::Verify { place, expect, .. } => {
                let found = match place {
                    VerifyPlace::Dram(slot) => arena.bytes.get(slot).copied().flatten(),
                    VerifyPlace::Nvme(slot) => {
                        self.disks[usize::from(slot.device().0)].bytes.get(slot).copied().flatten()
                    }
                };
                if found != Some((expect.key, expect.generation, expect.meta_checksum)) {
                    outcome = Outcome::Corrupt;
                }
            }
            Move::Probe { .. } => {}
        }
        if let Some(fault) = trouble
            && !matches!(outcome, Outcome::Corrupt | Outcome::Missing)
            && !matches!(ended, Move::Verify { place: VerifyPlace::Dram(_), .. })
        {
            outcome = Outcome::Failed(fault);
        }
        self.ladder.finished(id, outcome, self.now);
        self.settle();
        outcome
    }

    /// Ends all moves, and what follows from them, without trouble.
    pub(super) fn run(&mut self) {
        self.settle();
        for _ in 0..10_000 {
            if let Some(id) = self.moves.keys().next().copied() {
                self.finish(id, None);
            } else if self.ladder.poll_timeout() == Some(Time::ZERO) {
                self.tick(Duration::ZERO);
            } else {
                return;
            }
        }
        panic!("the world comes to rest");
    }

    pub(super) fn tick(&mut self, passed: Duration) {
        self.now = self.now + passed;
        self.ladder.tick(self.now);
        self.settle();
    }

    pub(super) fn matched(&mut self, number: u8, view: ViewId, hashes: &[BlockHash], lease: bool) -> Matched {
        let found = self.ladder.match_prefix(client(number), view, hashes, lease, self.now);
        self.settle();
        found
    }

    /// A match that asks the catalog where the ladder falls short.
    pub(super) fn matched_remote(
        &mut self,
        number: u8,
        view: ViewId,
        kind: &Kind,
        hashes: &[BlockHash],
        lease: bool,
    ) -> Matched {
        let first = self.ladder.blocks_here(view, hashes);
        let keys = hashes[first as usize..].iter().map(|hash| kind.spec.group_key.block(hash));
        let records: Vec<_> = keys.map_while(|key| self.store.find(key, &kind.spec.shard)).collect();
        let remote = RemoteChain { first, records: &records };
        let found = self.ladder.match_remote(client(number), view, hashes, remote, lease, self.now);
        self.settle();
        found
    }

    pub(super) fn offer(
        &mut self,
        number: u8,
        view: ViewId,
        hashes: &[BlockHash],
        first: usize,
    ) -> (Option<LeaseId>, Vec<Granted>) {
        let parent = first.checked_sub(1).map(|before| hashes[before]);
        let offer = Offer { parent, first_position: first as u32, hashes: &hashes[first..] };
        let mut out = Vec::new();
        let lease = self.ladder.offer(client(number), view, &offer, self.now, &mut out);
        for granted in out.iter().filter(|granted| granted.status == GrantedStatus::Granted) {
            let slot = SlotId::new(SegmentId(granted.segment), (granted.offset / u64::from(granted.slot_bytes)) as u32);
            assert_ne!(self.ladder.table().pins[&slot] & client(number).bit(), 0, "{slot:?} is pinned for its writer");
            self.ladder.table_mut().bytes.insert(slot, None);
        }
        self.settle();
        (lease, out)
    }

    /// Fills and commits one granted block.
    pub(super) fn commit(&mut self, number: u8, lease: LeaseId, index: u32) -> bool {
        let Some(filling) = self.ladder.filling(client(number), lease, index) else { return false };
        let checksum = u64::from(filling.entry.generation) ^ 0xabcd;
        let bytes = (filling.entry.key, filling.entry.generation, checksum);
        self.ladder.table_mut().bytes.insert(filling.slot, Some(bytes));
        let result = self.ladder.commit(client(number), lease, index, checksum, self.now);
        self.settle();
        result.is_ok()
    }

    /// Offers and commits what is not there, in order. Returns how many blocks were granted.
    pub(super) fn store(&mut self, number: u8, view: ViewId, hashes: &[BlockHash]) -> u32 {
        let (lease, granted) = self.offer(number, view, hashes, 0);
        let granted: Vec<_> = granted.iter().filter(|g| g.status == GrantedStatus::Granted).map(|g| g.index).collect();
        for index in &granted {
            assert!(self.commit(number, lease.unwrap(), *index));
        }
        granted.len() as u32
    }

    pub(super) fn load(
        &mut self,
        number: u8,
        lease: LeaseId,
        range: std::ops::Range<u32>,
        wait: Duration,
        request: u64,
    ) -> (LoadState, Vec<Landed>) {
        let mut out = Vec::new();
        let deadline = self.now + wait;
        let (first, count) = (range.start, range.end - range.start);
        let state =
            self.ladder.load(client(number), lease, first, count, deadline, RequestId(request), self.now, &mut out);
        out.iter().for_each(|landed| self.check_landed(landed, client(number)));
        self.settle();
        (state, out)
    }

    pub(super) fn release(&mut self, number: u8, lease: LeaseId) {
        self.ladder.release(client(number), lease, self.now);
        self.settle();
    }

    /// The daemon is killed: a new ladder starts from the tables. Moves in flight are lost, clients of the old one still hold
    /// their slots.
    pub(super) fn restart(&mut self) {
        let mut arena = self.ladder.table().clone();
        arena.moving.clear();
        let filling: Vec<_> =
            arena.entries.iter().filter(|(_, e)| e.state == SlotState::Filling).map(|(s, _)| *s).collect();
        arena.entries.retain(|slot, _| !filling.contains(slot));
        let config = self.ladder.config().clone();
        let segments: Vec<_> = arena.segments.iter().map(|(segment, found)| (*segment, *found)).collect();
        let generations = arena.generations.clone();
        let entries = arena.entries.clone();
        let pins = arena.pins.clone();
        self.ladder = Ladder::new(config, arena, Self::policy(self.adaptive));
        for (segment, (tenant, slot_bytes)) in segments {
            let generation_max = generations.get(&segment).copied().unwrap_or(0);
            self.ladder.restore_segment(RestoredSegment { segment, tenant, slot_bytes, generation_max });
        }
        for (slot, entry) in entries {
            let slot_bytes = entry.payload_bytes + 4096;
            self.ladder.restore(&RestoredRecord { place: RestoredPlace::Dram(slot), slot_bytes, entry });
        }
        for (number, disk) in self.disks.iter().enumerate() {
            for (zone, slot_bytes) in &disk.zones {
                let device = DeviceId(number as u8);
                self.ladder.restore_zone(RestoredZone { device, zone: *zone, slot_bytes: *slot_bytes });
            }
            for (slot, entry) in &disk.table {
                let slot_bytes = entry.payload_bytes + 4096;
                let entry = entry.clone();
                self.ladder.restore(&RestoredRecord { place: RestoredPlace::Nvme(*slot), slot_bytes, entry });
            }
        }
        for (slot, clients) in pins {
            self.ladder.fence(FencedSlot { slot, clients });
        }
        self.moves.clear();
        self.replies.clear();
        self.ladder.restored(self.now);
        self.settle();
    }
}
