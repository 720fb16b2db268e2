//! The object store of a world, which outlives the daemon and its machine; other nodes of the pool write to it as well. And
//! this node's catalog of it, which is late and may be wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::sys::unit_seed;
use kvd_proto::{BlockKey, InstanceId, UnitOrder, checksum_seed};
use kvd_tiers::ObjectPlace;
use kvd_tiers::ladder::{Purge, RemoteRecord, Turns};
use kvd_tiers::object::NodeName;
use kvd_tiers::record::{Metadata, SECTOR_BYTES, TokenIds, UnitChecksums};

use crate::blocks::{Block, Names};
use crate::config::{Disks, ObjectHabits};
use crate::random::Random;

/// Packs in the store beyond which other nodes publish nothing.
const PACKS_MAX: usize = 48;

/// A record as its writer sealed it.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) key: BlockKey,
    pub(crate) generation: u32,
    pub(crate) meta_checksum: u64,
    /// Its slot's, as every record's: what lies behind the payload is not kept here.
    pub(crate) slot_bytes: u32,
    pub(crate) bytes: Vec<u8>,
    /// When it was stored, by the oracle's count.
    pub(crate) since: u64,
}

/// Records of one lane, side by side.
pub(crate) struct Pack {
    lane: usize,
    records: Vec<Record>,
}

/// Where the catalog says that a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) pack: u32,
    pub(crate) remote: RemoteRecord,
    pub(crate) since: u64,
}

/// What this node has learned of packs.
#[derive(Default)]
pub(crate) struct Catalog {
    /// Packs by the number that the catalog gave them.
    numbers: BTreeMap<u32, u32>,
    rows: BTreeMap<BlockKey, Row>,
    next: u32,
}

/// The store, and whether it answers.
pub(crate) struct Store {
    /// Chance of everything that has to do with the store: a world without one draws what it always drew.
    pub(crate) chance: Random,
    pub(crate) habits: ObjectHabits,
    pub(crate) catalog: Catalog,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    packs: BTreeMap<u32, Pack>,
    next: u32,
    /// Of each lane, the first pack that no purge which is over has taken.
    purged_below: BTreeMap<usize, u32>,
    blocks: BTreeMap<BlockKey, Block>,
}

/// What came of reading a record.
pub(crate) enum Read<'a> {
    Bytes(&'a [u8]),
    /// The pack is gone, or shorter than that.
    Gone,
}

/// What happens to a store by itself.
pub(crate) enum Happening {
    Nothing,
    Published(Vec<Block>),
    Learned,
    Vanished,
    Rotted,
    Turns(Turns),
    Purge(Purge),
}

impl Catalog {
    pub(crate) fn lookup(&self, key: &BlockKey) -> Option<Row> {
        self.rows.get(key).copied().filter(|row| self.numbers.contains_key(&row.remote.place.pack))
    }

    /// The pack that goes by a number.
    pub(crate) fn pack(&self, number: u32) -> Option<u32> {
        self.numbers.get(&number).copied()
    }

    fn knows(&self, pack: u32) -> bool {
        self.numbers.values().any(|known| *known == pack)
    }

    /// A pack that is not what it should be is asked for nothing more, until it is learned anew.
    pub(crate) fn forget(&mut self, pack: u32) {
        self.numbers.retain(|_, known| *known != pack);
    }

    fn learn(&mut self, id: u32, pack: &Pack) {
        if self.knows(id) {
            return;
        }
        self.next += 1;
        let number = self.next;
        self.numbers.insert(number, id);
        let mut offset = 0;
        for record in &pack.records {
            let bytes = record.slot_bytes;
            let place = ObjectPlace { pack: number, offset, bytes };
            offset += bytes;
            let (generation, meta_checksum) = (record.generation, record.meta_checksum);
            let remote = RemoteRecord { place, generation, meta_checksum };
            self.rows.insert(record.key, Row { pack: id, remote, since: record.since });
        }
    }
}

impl Store {
    pub(crate) fn new(habits: ObjectHabits, names: &Names, chance: Random) -> Self {
        let blocks = names.all().into_iter().map(|block| (names.key(block), block)).collect();
        Self {
            chance,
            habits,
            catalog: Catalog::default(),
            reads: true,
            writes: true,
            packs: BTreeMap::new(),
            next: 1,
            purged_below: BTreeMap::new(),
            blocks,
        }
    }

    pub(crate) fn lies(&self) -> bool {
        self.habits.manners == Disks::Lying
    }

    pub(crate) fn block(&self, key: &BlockKey) -> Block {
        self.blocks[key]
    }

    /// A pack is there from now on; who wrote it knows it at once, the others learn of it.
    pub(crate) fn publish(&mut self, lane: usize, records: Vec<Record>, own: bool) {
        let pack = Pack { lane, records };
        if own {
            self.catalog.learn(self.next, &pack);
        }
        self.packs.insert(self.next, pack);
        self.next += 1;
    }

    /// The bytes of a record where the catalog's `number` says.
    pub(crate) fn read(&self, place: ObjectPlace) -> Read<'_> {
        let pack = self.catalog.pack(place.pack).and_then(|id| self.packs.get(&id));
        let mut offset = 0;
        for record in pack.map_or(&[][..], |pack| &pack.records) {
            let bytes = record.slot_bytes;
            if (offset, bytes) == (place.offset, place.bytes) {
                return Read::Bytes(&record.bytes);
            }
            offset += bytes;
        }
        Read::Gone
    }

    /// Bytes of some record, as long as these.
    pub(crate) fn others_bytes(&mut self, len: usize) -> Vec<u8> {
        let alike = |record: &&Record| record.bytes.len() == len;
        let all: Vec<&Record> = self.packs.values().flat_map(|pack| &pack.records).filter(alike).collect();
        if all.is_empty() { vec![0; len] } else { all[self.chance.index(all.len())].bytes.clone() }
    }

    /// Something happens to the store, or to what this node knows of it. `learns`: this node's daemon lives.
    pub(crate) fn happen(&mut self, names: &Names, serial: u64, learns: bool) -> Happening {
        match self.chance.index(20) {
            0..6 => self.others_publish(names, serial),
            6..10 if learns => self.learn(),
            10 | 11 => self.vanish(),
            12 if learns => {
                self.reconcile();
                Happening::Learned
            }
            13 | 14 if self.lies() => self.rot(),
            15 | 16 if self.habits.manners != Disks::Sound => {
                (self.reads, self.writes) = (self.chance.percent(60), self.chance.percent(60));
                Happening::Nothing
            }
            17 => {
                (self.reads, self.writes) = (true, true);
                Happening::Nothing
            }
            18 if learns => {
                let others = (0..self.chance.range(0..4)).map(|node| NodeName::new([node as u8 + 1; 16]));
                let wait = self.chance.micros(0..20_000);
                Happening::Turns(Turns::new(NodeName::new([9; 16]), others, wait))
            }
            19 if learns && self.chance.percent(25) => {
                let lane = &names.lanes[self.chance.index(names.lanes.len())];
                Happening::Purge(Purge::Namespace(lane.tenant, lane.namespace))
            }
            _ => Happening::Nothing,
        }
    }

    /// Another node stores what this one may never have seen.
    fn others_publish(&mut self, names: &Names, serial: u64) -> Happening {
        if self.packs.len() >= PACKS_MAX {
            return Happening::Nothing;
        }
        let lane = self.chance.index(names.lanes.len());
        let chain = self.chance.index(names.chains.len());
        let whole = names.chains[chain].blocks;
        let first = if self.chance.percent(60) { 0 } else { self.chance.range(0..u64::from(whole)) as u32 };
        let count = (1 + self.chance.index(8) as u32).min(whole - first);
        let blocks: Vec<Block> = (first..first + count).map(|position| names.block(lane, chain, position)).collect();
        let mut records = Vec::new();
        for block in &blocks {
            let generation = self.chance.range(1..1 << 20) as u32;
            records.push(seal(names, *block, generation, serial));
        }
        self.publish(lane, records, false);
        Happening::Published(blocks)
    }

    fn learn(&mut self) -> Happening {
        for (id, pack) in &self.packs {
            if self.chance.percent(60) {
                self.catalog.learn(*id, pack);
            }
        }
        Happening::Learned
    }

    /// A pack is collected, or purged by another node; the catalog does not hear of it.
    fn vanish(&mut self) -> Happening {
        let ids: Vec<u32> = self.packs.keys().copied().collect();
        if let Some(id) = self.chance.pick_any(&ids) {
            self.packs.remove(&id);
        }
        Happening::Vanished
    }

    /// The catalog is compared with all that is there.
    fn reconcile(&mut self) {
        let packs = &self.packs;
        self.catalog.numbers.retain(|_, id| packs.contains_key(id));
    }

    fn rot(&mut self) -> Happening {
        let ids: Vec<u32> = self.packs.keys().copied().collect();
        let Some(pack) = self.chance.pick_any(&ids).and_then(|id| self.packs.get_mut(&id)) else {
            return Happening::Nothing;
        };
        let record = self.chance.index(pack.records.len());
        let bytes = &mut pack.records[record].bytes;
        let bit = self.chance.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        Happening::Rotted
    }

    /// Power is lost: what the catalog wrote last may be.
    pub(crate) fn lose_power(&mut self) {
        let keep = self.chance.pick(&[0, 50, 90, 100]);
        let chance = &mut self.chance;
        self.catalog.numbers.retain(|_, _| chance.percent(keep));
    }

    /// Deletes one pack of the purge, or finds that all are gone: `true`.
    pub(crate) fn purge_one(&mut self, names: &Names, purge: Purge) -> bool {
        self.reconcile();
        let next = self.packs.iter().find(|(_, pack)| takes(names, purge, pack.lane)).map(|(id, _)| *id);
        if let Some(id) = next {
            self.packs.remove(&id);
            self.catalog.forget(id);
            return false;
        }
        for lane in (0..names.lanes.len()).filter(|lane| takes(names, purge, *lane)) {
            self.purged_below.insert(lane, self.next);
        }
        true
    }

    /// Whether a purge that is over has taken the pack.
    pub(crate) fn was_purged(&self, lane: usize, pack: u32) -> bool {
        self.purged_below.get(&lane).is_some_and(|below| pack < *below)
    }

    pub(crate) fn delay(&mut self) -> Duration {
        match self.chance.index(20) {
            0 => self.chance.micros(10_000..60_000),
            1..5 => self.chance.micros(500..5_000),
            _ => self.chance.micros(0..500),
        }
    }
}

/// Whether a purge takes records of this lane.
pub(crate) fn takes(names: &Names, purge: Purge, lane: usize) -> bool {
    let found = &names.lanes[lane];
    match purge {
        Purge::All => true,
        Purge::Tenant(tenant) => tenant == found.tenant,
        Purge::Namespace(tenant, digest) => (tenant, digest) == (found.tenant, found.namespace),
    }
}

/// The record of a block as another node's engine sealed it.
fn seal(names: &Names, block: Block, generation: u32, since: u64) -> Record {
    let lane = &names.lanes[block.lane];
    let (key, payload) = (names.key(block), names.bytes(block));
    let seed = checksum_seed(&key, &lane.shard);
    let algorithm = ChecksumAlgorithm::Xxh3;
    let units = payload.chunks(lane.unit_bytes as usize).enumerate();
    let checksums: Vec<u8> =
        units.flat_map(|(unit, bytes)| algorithm.checksum(unit_seed(seed, unit as u32), bytes).to_le_bytes()).collect();
    let parent = names.parent(block);
    let metadata = Metadata {
        namespace: lane.namespace,
        group: names.group(block.lane),
        key,
        parent_key: parent.map(|parent| names.key(parent)),
        hash: names.hash(block),
        parent_hash: parent.map(|parent| names.hash(parent)),
        position: block.position,
        shard: lane.shard.clone(),
        unit_order: UnitOrder::TokenKvDim,
        writer: InstanceId::new([0xEE; 16]),
        generation,
        payload_bytes: lane.payload_bytes,
        algorithm,
        unit_bytes: lane.unit_bytes,
        checksums: UnitChecksums::new(&checksums),
        tokens: TokenIds::new(&[]),
    };
    let mut bytes = vec![0; SECTOR_BYTES];
    let meta_checksum = metadata.encode(&mut bytes).expect("a record that another node could seal");
    bytes.extend_from_slice(&payload);
    bytes.resize(SECTOR_BYTES + payload.len().next_multiple_of(SECTOR_BYTES), 0);
    Record { key, generation, meta_checksum, slot_bytes: lane.slot_bytes, bytes, since }
}
