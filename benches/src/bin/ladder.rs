//! The ladder alone, without I/O: what a match, a store and a start cost per record, and how much memory.
//!
//! `cargo run -p kvd-benches --bin ladder [RECORDS]`: chains of 1 000 blocks, records of 4 KiB; default 1 000 000.

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use kvd_proto::wire::slab::GrantedStatus;
use kvd_proto::{BlockHash, GroupKey, InstanceId, Interleave, NamespaceDigest, Shard, TenantKey, Time};
use kvd_tiers::ladder::{DeviceConfig, Ladder, LadderConfig, Move, Offer, Outcome, SlotTable, ViewSpec};
use kvd_tiers::policy::Lru;
use kvd_tiers::{
    ClientSlot, DeviceId, NvmeSlot, RestoredPlace, RestoredRecord, RestoredSegment, RestoredZone, SegmentId, SlotEntry,
    SlotId, SlotState, TenantId, ViewId, ZoneId,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CHAIN: u32 = 1000;
const SLOT: u32 = 8192;
const SLOTS: u32 = 8192;

/// A table that keeps nothing: what remains is the ladder's own cost.
struct NoTable;

impl SlotTable for NoTable {
    fn write(&mut self, slot: SlotId, entry: &SlotEntry) {
        black_box((slot, entry));
    }
    fn vacate(&mut self, slot: SlotId, generation: u32) {
        black_box((slot, generation));
    }
    fn pin(&mut self, slot: SlotId, client: ClientSlot) {
        black_box((slot, client));
    }
    fn unpin(&mut self, slot: SlotId, client: ClientSlot) {
        black_box((slot, client));
    }
    fn assign_segment(&mut self, segment: SegmentId, tenant: TenantId, slot_bytes: u32) -> bool {
        black_box((segment, tenant, slot_bytes));
        true
    }
    fn scrub(&mut self, segment: SegmentId) {
        black_box(segment);
    }
}

type Bench = Ladder<NoTable, Lru>;

fn view_spec() -> Result<ViewSpec, Box<dyn Error>> {
    let namespace = NamespaceDigest::new([1; 32]);
    Ok(ViewSpec {
        tenant: TenantId(1),
        namespace,
        group: 0,
        group_key: GroupKey::derive(&TenantKey::new([1; 32]), &namespace, 0),
        shard: Shard::new(0..32, 0..8, Interleave::WHOLE)?,
        payload_bytes: 4096,
        meta_bytes: 4096,
        block_tokens: 16,
        prefill_tokens_per_second: 0,
    })
}

fn hash(chain: u32, place: u32) -> Result<BlockHash, Box<dyn Error>> {
    Ok(BlockHash::new(&(u64::from(chain) << 32 | u64::from(place)).to_le_bytes())?)
}

fn chain(number: u32, count: u32) -> Result<Vec<BlockHash>, Box<dyn Error>> {
    (0..count).map(|place| hash(number, place)).collect()
}

fn config(records: u32, zones: u32) -> LadderConfig {
    let devices = if zones > 0 { vec![DeviceConfig { zones }] } else { Vec::new() };
    LadderConfig { lease_bytes_max: u64::MAX / 2, ..LadderConfig::new(records.div_ceil(SLOTS), devices) }
}

fn client() -> ClientSlot {
    ClientSlot::new(0).expect("0 is a client slot")
}

fn open(ladder: &mut Bench) -> Result<ViewId, Box<dyn Error>> {
    ladder.join(client(), InstanceId::new([1; 16]), TenantId(1), Time::ZERO)?;
    Ok(ladder.open_view(&view_spec()?)?)
}

fn store(ladder: &mut Bench, view: ViewId, hashes: &[BlockHash]) -> Result<u64, Box<dyn Error>> {
    let offer = Offer { parent: None, first_position: 0, hashes };
    let mut granted = Vec::with_capacity(hashes.len());
    let lease = ladder.offer(client(), view, &offer, Time::ZERO, &mut granted);
    let mut stored = 0;
    for block in granted.iter().filter(|block| block.status == GrantedStatus::Granted) {
        ladder.commit(client(), lease.expect("something was granted"), block.index, 7, Time::ZERO)?;
        stored += 1;
    }
    while let Some(next) = ladder.poll_move() {
        ladder.finished(
            next.id(),
            Outcome::Done { bytes: u64::from(SLOT), took: Duration::from_micros(50) },
            Time::ZERO,
        );
        black_box(matches!(next, Move::Spill { .. }));
    }
    Ok(stored)
}

fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    sorted[(sorted.len() - 1) * per_mille / 1000]
}

fn resident_bytes() -> Result<u64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    Ok(text.split(' ').nth(1).ok_or("statm has a second field")?.parse::<u64>()? * 4096)
}

fn bench_match(records: u32) -> Result<(), Box<dyn Error>> {
    let before = resident_bytes()?;
    let mut ladder = Ladder::new(config(records, 0), NoTable, Lru::default());
    let view = open(&mut ladder)?;
    let chains = records / CHAIN;
    let started = Instant::now();
    let mut stored = 0;
    for number in 0..chains {
        stored += store(&mut ladder, view, &chain(number, CHAIN)?)?;
    }
    let took = started.elapsed();
    println!("store      {stored} records, {} ns each (offer + commit)", took.as_nanos() as u64 / stored.max(1));
    println!(
        "memory     {:.1} B per record by its own count, {:.1} by resident pages",
        ladder.memory_bytes() as f64 / stored as f64,
        (resident_bytes()? - before) as f64 / stored as f64
    );
    let mut random = SmallRng::seed_from_u64(1);
    for (name, asked, lease) in [
        ("full hit, lease", CHAIN, true),
        ("full hit", CHAIN, false),
        ("900 of 1000", 1100, true),
        ("all miss", 0, true),
    ] {
        let mut times = Vec::new();
        for _ in 0..20_000 {
            let number = if asked == 0 { u32::MAX } else { random.random_range(0..chains) };
            let mut hashes = chain(number, CHAIN)?;
            if asked > CHAIN {
                // The tail belongs to another chain that nobody stored.
                for place in 900..CHAIN {
                    hashes[place as usize] = hash(u32::MAX, place)?;
                }
            }
            let started = Instant::now();
            let found = ladder.match_prefix(client(), view, &hashes, lease, Time::ZERO);
            times.push(started.elapsed());
            if let Some(lease) = found.lease {
                ladder.release(client(), lease, Time::ZERO);
            }
        }
        times.sort_unstable();
        println!("match      {name:16} p50 {:?} p99 {:?}", percentile(&times, 500), percentile(&times, 990));
    }
    let started = Instant::now();
    let mut stored = 0;
    for number in chains..chains + 200 {
        stored += store(&mut ladder, view, &chain(number, CHAIN)?)?;
    }
    println!(
        "turnover   {} ns per record (offer + commit + eviction)",
        started.elapsed().as_nanos() as u64 / stored.max(1)
    );
    Ok(())
}

fn entry(number: u32, key: &GroupKey, shard: &Shard, namespace_prefix: u64) -> Result<SlotEntry, Box<dyn Error>> {
    let (chain, place) = (number / CHAIN, number % CHAIN);
    let parent = if place > 0 { Some(key.block(&hash(chain, place - 1)?)) } else { None };
    Ok(SlotEntry {
        state: SlotState::Resident,
        generation: number + 1,
        tenant: TenantId(1),
        namespace_prefix,
        group: 0,
        shard: shard.clone(),
        key: key.block(&hash(chain, place)?),
        parent_key: parent,
        position: place,
        payload_bytes: 4096,
        meta_checksum: 7,
    })
}

/// A start: both tables name every record, in random order of chains.
fn bench_restore(records: u32, both: bool) -> Result<(), Box<dyn Error>> {
    let spec = view_spec()?;
    let prefix = u64::from_le_bytes(*spec.namespace.as_bytes().first_chunk().expect("32 bytes"));
    let mut entries = Vec::with_capacity(records as usize);
    for number in 0..records {
        entries.push(entry(number, &spec.group_key, &spec.shard, prefix)?);
    }
    let mut random = SmallRng::seed_from_u64(2);
    for place in (1..entries.len()).rev() {
        entries.swap(place, random.random_range(0..=place));
    }
    let before = resident_bytes()?;
    let extents = records.div_ceil(SLOTS);
    let mut ladder = Ladder::new(config(records, if both { extents } else { 0 }), NoTable, Lru::default());
    let started = Instant::now();
    for segment in 0..extents {
        let (segment, zone) = (SegmentId(segment), ZoneId(segment));
        ladder.restore_segment(RestoredSegment { segment, tenant: TenantId(1), slot_bytes: SLOT, generation_max: 0 });
        if both {
            ladder.restore_zone(RestoredZone { device: DeviceId(0), zone, slot_bytes: SLOT });
        }
    }
    for (number, entry) in entries.iter().enumerate() {
        let (extent, index) = (number as u32 / SLOTS, number as u32 % SLOTS);
        let place = RestoredPlace::Dram(SlotId::new(SegmentId(extent), index));
        ladder.restore(&RestoredRecord { place, slot_bytes: SLOT, entry: entry.clone() });
        if both {
            let place = RestoredPlace::Nvme(NvmeSlot::new(DeviceId(0), ZoneId(extent), index));
            ladder.restore(&RestoredRecord { place, slot_bytes: SLOT, entry: entry.clone() });
        }
    }
    let told = started.elapsed();
    ladder.restored(Time::ZERO);
    let took = started.elapsed();
    assert_eq!(ladder.counters().restore_dropped, 0);
    println!(
        "restore    {records} records{}, shuffled: {took:?} in all, of which linking {:?}; {:.1} B per record by its own count, {:.1} by resident pages",
        if both { " in both tiers" } else { "" },
        took - told,
        ladder.memory_bytes() as f64 / f64::from(records),
        (resident_bytes()? - before) as f64 / f64::from(records)
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let records = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    bench_match(records)?;
    bench_restore(2 * records, false)?;
    bench_restore(2 * records, true)
}
