//! Random events against a plain oracle: clients that store, match, load, vanish; devices that fail, corrupt and answer in
//! any order; purges, restarts. After every step all invariants hold, and a match equals a plain walk over the tables.
//! A failing seed is printed by the panic message; run it again with `KVD_SEED=n`.

use std::collections::BTreeMap;
use std::time::Duration;

use kvd_proto::wire::slab::GrantedStatus;
use kvd_proto::{BlockHash, Tier, Time};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::world::{Kind, World, client, hash, instance, kind};
use crate::ids::{LeaseId, SlotState, ViewId};
use crate::ladder::{
    Counters, DeviceConfig, DeviceFault, LadderConfig, LoadState, ObjectConfig, Outcome, Purge, Turns,
};
use crate::object::NodeName;
use crate::{DeviceId, NvmeSlot, SegmentId};

const CLIENTS: u8 = 4;
const BLOCKS: u32 = 60;

struct Actor {
    views: Vec<ViewId>,
    matches: Vec<(LeaseId, u32)>,
    fills: Vec<(LeaseId, Vec<u32>)>,
}

struct Play {
    world: World,
    random: SmallRng,
    /// Of each block of the universe, the one before it.
    parents: Vec<Option<u32>>,
    kinds: Vec<Kind>,
    actors: Vec<Actor>,
    requests: u64,
    out_of_order: bool,
    object_up: bool,
    /// What ladders before the last restart counted.
    counted: Counted,
}

type Counted = BTreeMap<&'static str, u64>;

fn config(random: &mut SmallRng) -> LadderConfig {
    let devices = (0..random.random_range(0..3)).map(|_| DeviceConfig { zones: random.random_range(1..5) }).collect();
    LadderConfig {
        leases_max: 12,
        lease_bytes_max: 20 * (8 << 20),
        lease_idle: Duration::from_secs(5),
        orphans_max: 4,
        orphan_wait: Duration::from_secs(2),
        spill_queue_max: 6,
        spills_max: 2,
        fetches_max: 2,
        vacates_max: 2,
        loads_max: 4,
        breaker_errors: 3,
        work_per_call: random.random_range(1..20),
        floor_bytes: random.random_range(0..3) * (8 << 20),
        gate: random.random_bool(0.5),
        object: random.random_bool(0.7).then(|| ObjectConfig {
            writes: random.random_bool(0.9),
            gets_max: random.random_range(1..6),
            get_bytes_max: random.random_range(1..64) << 20,
            run_bytes_max: random.random_range(1..32) << 20,
            puts_max: 2,
            queue_max: 4,
            remotes_max: random.random_range(1..12),
        }),
        ..LadderConfig::new(random.random_range(1..5), devices)
    }
}

impl Play {
    fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let world = World::with_policy(config(&mut random), seed % 2 == 1);
        // A forest of few trees with long stems: shared prefixes, forks, and leaves.
        let parents = (0..BLOCKS).map(|block| match block {
            0..3 => None,
            _ if random.random_bool(0.7) => Some(block - 3),
            _ => Some(random.random_range(0..block)),
        });
        let parents = parents.collect();
        let mut slow = kind(1, 0..4, 8 << 20);
        slow.spec.prefill_tokens_per_second = 1000;
        let kinds = vec![kind(1, 0..8, 8 << 20), slow, kind(2, 0..8, 16 << 20)];
        let mut play = Self {
            world,
            random,
            parents,
            kinds,
            actors: Vec::new(),
            requests: 0,
            out_of_order: false,
            object_up: true,
            counted: Counted::new(),
        };
        for number in 0..CLIENTS {
            let actor = play.join(number);
            play.actors.push(actor);
        }
        play
    }

    /// The last client is of another tenant.
    fn kinds_of(number: u8) -> std::ops::Range<usize> {
        if number + 1 == CLIENTS { 2..3 } else { 0..2 }
    }

    fn join(&mut self, number: u8) -> Actor {
        let kinds = Self::kinds_of(number);
        let tenant = self.kinds[kinds.start].spec.tenant;
        // Two clients are one engine instance.
        let member = instance(number / 2 + 10 * u8::from(number + 1 == CLIENTS));
        self.world.ladder.join(client(number), member, tenant, self.world.now).unwrap();
        let views = kinds.map(|kind| self.world.ladder.open_view(&self.kinds[kind].spec).unwrap()).collect();
        Actor { views, matches: Vec::new(), fills: Vec::new() }
    }

    fn chain(&mut self) -> Vec<BlockHash> {
        let mut at = Some(self.random.random_range(0..BLOCKS));
        let mut blocks = Vec::new();
        while let Some(block) = at {
            blocks.push(hash(block));
            at = self.parents[block as usize];
        }
        blocks.reverse();
        blocks
    }

    fn someone(&mut self) -> (u8, usize) {
        let number = self.random.random_range(0..CLIENTS);
        let view = self.random.random_range(0..self.actors[usize::from(number)].views.len());
        (number, view)
    }

    /// Length of the prefix that the tables name, block by block: the oracle.
    fn plain_walk(&self, kind: usize, view: ViewId, hashes: &[BlockHash]) -> u32 {
        self.walk(kind, view, hashes, false)
    }

    /// The same with what the catalog knows, where that is asked.
    fn walk(&self, kind: usize, view: ViewId, hashes: &[BlockHash], catalog: bool) -> u32 {
        let spec = &self.kinds[kind].spec;
        let key = |index: usize| spec.group_key.block(&hashes[index]);
        let named = |entry: &crate::SlotEntry, index: usize| {
            entry.state == SlotState::Resident
                && entry.key == key(index)
                && entry.shard == spec.shard
                && entry.parent_key == index.checked_sub(1).map(key)
        };
        let here = |index: usize| {
            let dram = self.world.ladder.table().entries.values().any(|entry| named(entry, index));
            let remote = self.object_up && self.world.ladder.lies_remote(view, &key(index));
            // A device's table may name what the ladder already gave up: then its entry waits to be vacated.
            let cataloged = catalog && self.world.store.find(key(index), &spec.shard).is_some();
            dram || remote
                || cataloged
                || self.world.disks.iter().enumerate().any(|(number, disk)| {
                    self.world.ladder.device_readable(DeviceId(number as u8))
                        && disk.table.iter().any(|(slot, entry)| named(entry, index) && self.known(*slot))
                })
        };
        (0..hashes.len()).take_while(|index| here(*index)).count() as u32
    }

    fn known(&self, slot: NvmeSlot) -> bool {
        self.world.ladder.publishes(slot)
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..16 => self.matching(),
            16..32 => self.offering(),
            32..50 => self.committing(),
            50..60 => self.loading(),
            60..66 => self.releasing(),
            66..88 => self.finishing(),
            88..93 => {
                let passed = Duration::from_millis(self.random.random_range(0..1500));
                self.world.tick(passed);
            }
            93..95 => self.dying(),
            95..97 => self.operating(),
            97..99 => self.flipping(),
            _ => self.restarting(),
        }
    }

    fn matching(&mut self) {
        let (number, view) = self.someone();
        let hashes = self.chain();
        let lease = self.random.random_bool(0.6);
        let kind = Self::kinds_of(number).start + view;
        let id = self.actors[usize::from(number)].views[view];
        let expected = self.plain_walk(kind, id, &hashes);
        if self.random.random_bool(0.1) {
            self.world.ladder.prefetch(client(number), id, &hashes, self.world.now);
            self.world.settle();
        }
        let expected = expected.min(self.plain_walk(kind, id, &hashes));
        if self.world.ladder.config().object.is_some() && self.random.random_bool(0.5) {
            return self.matching_remote(number, id, kind, &hashes, lease);
        }
        let found = self.world.matched(number, id, &hashes, lease);
        if found.miss != Some(kvd_proto::MissReason::Quota) {
            assert_eq!(found.blocks, expected, "a match equals a plain walk");
        }
        assert!(found.blocks <= expected);
        assert_eq!(found.miss.is_none(), found.blocks == hashes.len() as u32);
        if let Some(lease) = found.lease {
            self.actors[usize::from(number)].matches.push((lease, found.blocks));
        }
    }

    /// What the catalog knows comes behind what is here, as far as there is room for it.
    fn matching_remote(&mut self, number: u8, view: ViewId, kind: usize, hashes: &[BlockHash], lease: bool) {
        let here = self.plain_walk(kind, view, hashes);
        let most = self.walk(kind, view, hashes, true);
        let found = self.world.matched_remote(number, view, &self.kinds[kind].clone(), hashes, lease);
        let quota = found.miss == Some(kvd_proto::MissReason::Quota);
        assert!(found.blocks <= most && (quota || found.blocks >= here), "{here} <= {} <= {most}", found.blocks);
        assert_eq!(found.miss.is_none(), found.blocks == hashes.len() as u32);
        if let Some(lease) = found.lease {
            self.actors[usize::from(number)].matches.push((lease, found.blocks));
        }
    }

    fn offering(&mut self) {
        let (number, view) = self.someone();
        let hashes = self.chain();
        let first = if self.random.random_bool(0.8) { 0 } else { self.random.random_range(0..hashes.len()) };
        let id = self.actors[usize::from(number)].views[view];
        let (lease, granted) = self.world.offer(number, id, &hashes, first);
        assert_eq!(granted.len(), hashes.len() - first, "an answer per block");
        let open: Vec<u32> =
            granted.iter().filter(|g| g.status == GrantedStatus::Granted).map(|granted| granted.index).collect();
        assert_eq!(lease.is_some(), !open.is_empty());
        if let Some(lease) = lease {
            self.actors[usize::from(number)].fills.push((lease, open));
        }
    }

    fn committing(&mut self) {
        let (number, _) = self.someone();
        let actor = &mut self.actors[usize::from(number)];
        if actor.fills.is_empty() {
            return;
        }
        let fill = self.random.random_range(0..actor.fills.len());
        let (lease, open) = &mut actor.fills[fill];
        let lease = *lease;
        if self.random.random_bool(0.1) {
            actor.fills.swap_remove(fill);
            self.world.ladder.abandon(client(number), lease, self.world.now);
            self.world.settle();
            return;
        }
        let place = if self.out_of_order { self.random.random_range(0..open.len()) } else { 0 };
        let index = open.remove(place);
        if open.is_empty() {
            actor.fills.swap_remove(fill);
        }
        self.world.commit(number, lease, index);
    }

    fn loading(&mut self) {
        let (number, _) = self.someone();
        // A process of the same instance may load under the lease as well.
        let owner = if number < 2 && self.random.random_bool(0.3) { 1 - number } else { number };
        let leases = &self.actors[usize::from(owner)].matches;
        if leases.is_empty() {
            return;
        }
        let (lease, blocks) = leases[self.random.random_range(0..leases.len())];
        let first = self.random.random_range(0..blocks);
        let wait = Duration::from_millis(self.random.random_range(0..200));
        self.requests += 1;
        let (state, landed) = self.world.load(number, lease, first..blocks, wait, self.requests);
        if let LoadState::Done { reason: None } = state {
            assert_eq!(landed.len() as u32, blocks - first, "all landed");
        }
        if self.random.random_bool(0.05) {
            self.world.ladder.corrupt(client(number), lease, first, self.world.now);
            self.world.settle();
        }
    }

    fn releasing(&mut self) {
        let (number, _) = self.someone();
        let leases = &mut self.actors[usize::from(number)].matches;
        if !leases.is_empty() {
            let place = self.random.random_range(0..leases.len());
            let (lease, _) = leases.swap_remove(place);
            self.world.release(number, lease);
        }
    }

    fn finishing(&mut self) {
        for _ in 0..self.random.random_range(1..4) {
            let count = self.world.moves.len();
            if count == 0 {
                return;
            }
            let place = self.random.random_range(0..count);
            let id = *self.world.moves.keys().nth(place).unwrap();
            let faults = [DeviceFault::Io, DeviceFault::NoSpace, DeviceFault::ReadOnly, DeviceFault::Gone];
            let fault = self.random.random_bool(0.06).then(|| faults[self.random.random_range(0..4)]);
            self.world.now = self.world.now + Duration::from_micros(self.random.random_range(0..3000));
            let outcome = self.world.finish(id, fault);
            assert!(fault.is_some() || !matches!(outcome, Outcome::Failed(_)));
        }
    }

    fn dying(&mut self) {
        let (number, _) = self.someone();
        self.world.ladder.client_died(client(number), self.world.now);
        self.world.settle();
        self.actors[usize::from(number)] = self.join(number);
        self.world.settle();
    }

    fn operating(&mut self) {
        let key = self.kinds[0].spec.group_key.block(&hash(self.random.random_range(0..BLOCKS)));
        let now = self.world.now;
        let ladder = &mut self.world.ladder;
        match self.random.random_range(0..12) {
            11 => {
                self.object_up ^= true;
                ladder.set_object_up(self.object_up, self.random.random_bool(0.5), now);
                let others = (0..self.random.random_range(0..4)).map(|node| NodeName::new([node; 16]));
                let turns = Turns::new(NodeName::new([9; 16]), others, Duration::from_millis(20));
                ladder.set_object_turns(turns, now);
            }
            0 => assert!(ladder.pin(&key, true) < 3),
            1 | 2 => assert!(ladder.pin(&key, false) < 3),
            3 => {
                let tier = [None, Some(Tier::Dram), Some(Tier::Nvme)][self.random.random_range(0..3)];
                assert!(ladder.evict(&key, tier, now) < 3);
            }
            4 => ladder.purge(Purge::Tenant(self.kinds[0].spec.tenant), now),
            5 => ladder.purge(Purge::Namespace(self.kinds[0].spec.tenant, self.kinds[0].spec.namespace), now),
            6 => ladder.scrub(true, now),
            7 => ladder.drain(true, now),
            8 => drop(ladder.lose_segment(SegmentId(self.random.random_range(0..3)), now)),
            9 => ladder.table_mut().barren ^= true,
            _ => assert_eq!(ladder.explain(&key).key, key),
        }
        self.world.settle();
        if self.random.random_bool(0.7) {
            self.world.ladder.drain(false, now);
        }
        self.world.settle();
    }

    /// A copy on a device or in the object tier rots, or goes.
    fn flipping(&mut self) {
        let records = &mut self.world.store.records;
        if !records.is_empty() && self.random.random_bool(0.5) {
            let place = *records.keys().nth(self.random.random_range(0..records.len())).unwrap();
            match self.random.random_bool(0.8) {
                true => drop(records.insert(place, None)),
                false => drop(records.remove(&place)),
            }
            return;
        }
        if self.world.disks.is_empty() {
            return;
        }
        let disk = self.random.random_range(0..self.world.disks.len());
        let disk = &mut self.world.disks[disk];
        let count = disk.bytes.len();
        if count > 0 {
            let place = self.random.random_range(0..count);
            *disk.bytes.values_mut().nth(place).unwrap() = None;
        }
    }

    fn restarting(&mut self) {
        if self.random.random_bool(0.6) {
            return;
        }
        self.count();
        self.world.restart();
        self.object_up = true;
        for number in 0..CLIENTS {
            self.actors[usize::from(number)] = self.join(number);
            if self.random.random_bool(0.8) {
                self.world.ladder.rejoined(client(number), self.world.now);
            } else {
                self.world.ladder.client_died(client(number), self.world.now);
                self.actors[usize::from(number)] = self.join(number);
            }
            self.world.settle();
        }
    }

    fn count(&mut self) {
        for (name, count) in counts(self.world.ladder.counters()) {
            *self.counted.entry(name).or_default() += count;
        }
    }

    /// Time goes on and devices answer, until nothing is left to do.
    fn rest(&mut self) {
        for quiet in 0..200_000_u32 {
            self.world.tick(Duration::from_secs(5));
            while let Some(id) = self.world.moves.keys().next().copied() {
                self.world.finish(id, None);
            }
            if quiet > 20 && self.world.ladder.poll_timeout() != Some(Time::ZERO) {
                return;
            }
        }
        panic!("the ladder comes to rest: {}", self.world.ladder.why_busy());
    }

    /// Everything lets go: what is left is records and nothing else.
    fn finale(&mut self) {
        for number in 0..CLIENTS {
            self.world.ladder.client_died(client(number), self.world.now);
        }
        self.rest();
        let stats = self.world.ladder.stats();
        assert_eq!((stats.leases, stats.lease_bytes, stats.pins), (0, 0, 0), "nobody holds anything");
        assert_eq!((stats.loads_waiting, stats.orphans, stats.instances), (0, 0, 0));
        assert!(!stats.cascade_open);
        assert!(self.world.ladder.table().pins.values().all(|pins| *pins == 0));
        self.world.ladder.purge(Purge::All, self.world.now);
        self.rest();
        let stats = self.world.ladder.stats();
        assert_eq!((stats.nodes, stats.dram_slots_used, stats.records), (0, 0, 0), "a purge leaves nothing");
        assert!(stats.devices.iter().all(|device| device.slots_used + u64::from(device.vacating) == 0));
        assert!(self.world.disks.iter().all(|disk| disk.table.is_empty()), "devices name nothing");
    }
}

fn play(seed: u64, steps: u32) -> Counted {
    let mut play = Play::new(seed);
    play.out_of_order = seed.is_multiple_of(3);
    for _ in 0..steps {
        play.step();
        play.world.replies.clear();
    }
    play.count();
    play.finale();
    play.counted
}

fn counts(counters: &Counters) -> [(&'static str, u64); 18] {
    [
        ("committed", counters.committed),
        ("fetched", counters.fetched),
        ("spilled", counters.spilled),
        ("dram_evictions", counters.dram_evictions),
        ("nvme_evictions", counters.nvme_evictions),
        ("corrupt_nvme", counters.corrupt_nvme),
        ("cuts", counters.cuts),
        ("orphans_expired", counters.orphans_expired),
        ("segments_drained", counters.segments_drained),
        ("segments_lost", counters.segments_lost),
        ("nvme_hits", counters.nvme_hits),
        ("restored", counters.restored),
        ("verified", counters.verified),
        ("leases_expired", counters.leases_expired),
        ("uploaded", counters.uploaded),
        ("imported", counters.imported),
        ("got", counters.got),
        ("corrupt_object", counters.corrupt_object),
    ]
}

#[test]
fn random_events_keep_every_invariant() {
    if let Ok(seed) = std::env::var("KVD_SEED") {
        play(seed.parse().unwrap(), 1500);
        return;
    }
    let seeds = std::env::var("KVD_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let mut sums = Counted::new();
    for seed in 0..seeds {
        let found = std::panic::catch_unwind(|| play(seed, 1500));
        match found {
            Ok(counts) => counts.into_iter().for_each(|(name, count)| *sums.entry(name).or_default() += count),
            Err(_) => panic!("seed {seed}: run again with KVD_SEED={seed}"),
        }
    }
    // A world in which nothing happens proves nothing.
    for (name, sum) in &sums {
        assert!(*sum > seeds / 2, "{name} happened {sum} times only: {sums:?}");
    }
}

#[test]
fn the_same_events_give_the_same_moves() {
    let run = || {
        let mut play = Play::new(42);
        (0..500).for_each(|_| play.step());
        let moves: Vec<_> = play.world.moves.values().cloned().collect();
        (moves, play.world.now, *play.world.ladder.counters())
    };
    assert_eq!(run(), run());
    assert!(run().1 > Time::ZERO);
}
