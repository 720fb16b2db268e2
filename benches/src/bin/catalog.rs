//! What the catalog of the object tier costs: bytes on disk and of memory per entry, and the time of a lookup, of
//! learning and of a start. JSON on stdout.
//!
//! `cargo run -p kvd-benches --bin catalog -- [--entries N] [--folder PATH]`: packs of 64 records, keys as random as
//! real ones; default 10 000 000 entries, in a folder that is made and deleted.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvd_proto::{BlockKey, Shard};
use kvd_tiers::object::catalog::{Catalog, CatalogOptions};
use kvd_tiers::object::{IndexName, NodeName, PackEntry, PackIndex, PackName, Realm};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

const RECORDS_PER_PACK: u64 = 64;
const LOOKUPS: usize = 200_000;
const CHAINS: usize = 20_000;
/// What the extrapolation is for.
const MANY: f64 = 1e8;
/// Of memory, by the catalog's own account.
const PACK_BYTES: f64 = 21.0;
const READ: &str = "--read";
/// Compactions go on for a while after the last write; whoever waits longer measures an unsettled catalog and is told
/// so.
const SETTLE_MAX: Duration = Duration::from_secs(120);

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    entries: u64,
    packs: u64,
    /// Of adding all packs, one after the other.
    learn_entries_per_second: f64,
    /// Whether the last compaction was over before anything else was measured.
    settled: bool,
    disk_bytes: u64,
    disk_bytes_per_entry: f64,
    resident_bytes_per_entry: f64,
    read: Read,
    at_1e8_entries: Extrapolated,
}

/// What a process measures that does nothing but open the catalog and ask: its memory holds nothing that learning left
/// behind.
#[derive(Serialize, Deserialize)]
struct Read {
    open_ms: f64,
    /// Growth of the resident memory from before the catalog was opened to after all lookups.
    resident_bytes: u64,
    /// What the catalog says that it takes.
    own_memory_bytes: u64,
    hit_us: Percentiles,
    miss_us: Percentiles,
    /// A whole pack's records as one chain.
    chain_of_64_us: Percentiles,
}

#[derive(Serialize, Deserialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
}

/// Disk and start grow with the number of entries. Memory does not, but for the list of packs: cache and memtables are
/// bounded.
#[derive(Serialize)]
struct Extrapolated {
    disk_gib: f64,
    memory_mib: f64,
    open_seconds: f64,
}

struct Arguments {
    entries: u64,
    folder: PathBuf,
    /// What the program says to itself: the catalog is there, only ask it.
    read: bool,
}

fn arguments() -> Result<Arguments> {
    let folder = std::env::temp_dir().join(format!("kvd-bench-catalog-{}", std::process::id()));
    let mut arguments = Arguments { entries: 10_000_000, folder, read: false };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || given.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--entries" => arguments.entries = value()?.parse().context("--entries is a number")?,
            "--folder" => arguments.folder = value()?.into(),
            READ => arguments.read = true,
            other => bail!("{other} is not known here; only --entries and --folder are"),
        }
    }
    ensure!(arguments.entries >= RECORDS_PER_PACK, "--entries is at least one pack's {RECORDS_PER_PACK}");
    arguments.entries -= arguments.entries % RECORDS_PER_PACK;
    let there = arguments.folder.exists();
    ensure!(there == arguments.read, "{} is there already; it would be deleted", arguments.folder.display());
    Ok(arguments)
}

/// As good as random, and the same in every run: the finish of SplitMix64, twice.
fn random_bytes(number: u64) -> [u8; 16] {
    let half = |number: u64| {
        let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    let first = half(number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1));
    (u128::from(first) << 64 | u128::from(half(first.wrapping_add(number)))).to_le_bytes()
}

fn key(number: u64) -> BlockKey {
    BlockKey::new(random_bytes(number))
}

fn pack(number: u64, shard: &Shard) -> PackIndex {
    const RECORD_BYTES: u32 = 1 << 20;
    let entries: Vec<_> = (0u32..)
        .zip(number * RECORDS_PER_PACK..(number + 1) * RECORDS_PER_PACK)
        .map(|(place, block)| PackEntry {
            key: key(block),
            shard: shard.clone(),
            parent_key: (place > 0).then(|| key(block - 1)),
            group: 0,
            position: place,
            generation: place + 1,
            offset: place * RECORD_BYTES,
            record_bytes: RECORD_BYTES,
            payload_bytes: RECORD_BYTES - 4096,
            meta_checksum: !block,
        })
        .collect();
    PackIndex {
        pack: PackName::new(random_bytes(number | 1 << 63)),
        node: NodeName::new([1; 16]),
        realm: Realm { tenant: [2; 16], namespace: [3; 16] },
        created_ms: number,
        records_bytes: entries.len() as u64 * u64::from(RECORD_BYTES),
        entries,
    }
}

fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * 4096)
}

/// Waits until the catalog's files stay as they are.
fn settle(catalog: &Catalog) -> bool {
    let began = Instant::now();
    let mut before = 0;
    while began.elapsed() < SETTLE_MAX {
        let now = catalog.stats().bytes_on_disk;
        if now == before {
            return true;
        }
        before = now;
        std::thread::sleep(Duration::from_secs(3));
    }
    false
}

fn percentiles(mut times: Vec<Duration>) -> Percentiles {
    times.sort_unstable();
    let of = |per_mille: usize| {
        let time = times[(times.len() - 1) * per_mille / 1000];
        (time.as_secs_f64() * 1e7).round() / 1e1
    };
    Percentiles { p50: of(500), p99: of(990) }
}

fn lookups(catalog: &Catalog, shard: &Shard, keys: impl Iterator<Item = BlockKey>, found: bool) -> Result<Percentiles> {
    let mut times = Vec::with_capacity(LOOKUPS);
    for key in keys.take(LOOKUPS) {
        let started = Instant::now();
        let located = catalog.lookup(&key, shard)?;
        times.push(started.elapsed());
        ensure!(located.is_some() == found, "{key:?} was {}found", if found { "not " } else { "" });
    }
    Ok(percentiles(times))
}

fn chains(catalog: &Catalog, shard: &Shard, packs: u64, random: &mut SmallRng) -> Result<Percentiles> {
    let mut times = Vec::with_capacity(CHAINS);
    for _ in 0..CHAINS {
        let first = random.random_range(0..packs) * RECORDS_PER_PACK;
        let keys: Vec<_> = (first..first + RECORDS_PER_PACK).map(key).collect();
        let started = Instant::now();
        let located = catalog.lookup_chain(shard, &keys)?;
        times.push(started.elapsed());
        ensure!(located.len() == keys.len(), "a chain was found in part");
    }
    Ok(percentiles(times))
}

fn learn(catalog: &Catalog, shard: &Shard, packs: u64) -> Result<Duration> {
    let mut took = Duration::ZERO;
    for number in 0..packs {
        let index = pack(number, shard);
        let name = IndexName { node: index.node, seq: number + 1, pack: index.pack };
        let started = Instant::now();
        catalog.add(name, &index)?;
        took += started.elapsed();
    }
    Ok(took)
}

/// Opens the catalog and asks it, in a process of its own.
fn read(entries: u64, folder: &Path) -> Result<Read> {
    let (shard, packs) = (Shard::whole(32, 8)?, entries / RECORDS_PER_PACK);
    let before = resident_bytes()?;
    let started = Instant::now();
    let (catalog, opened) = Catalog::open(folder, CatalogOptions::default())?;
    let open = started.elapsed();
    ensure!(opened.fresh.is_none() && opened.packs == packs, "{opened:?}");
    let mut random = SmallRng::seed_from_u64(1);
    let mut below = random.clone();
    let hit_us = lookups(&catalog, &shard, (0..).map(|_: u64| key(below.random_range(0..entries))), true)?;
    let miss_us = lookups(&catalog, &shard, (entries..).map(key), false)?;
    let chain_of_64_us = chains(&catalog, &shard, packs, &mut random)?;
    Ok(Read {
        open_ms: (open.as_secs_f64() * 1e5).round() / 1e2,
        resident_bytes: resident_bytes()?.saturating_sub(before),
        own_memory_bytes: catalog.stats().memory_bytes,
        hit_us,
        miss_us,
        chain_of_64_us,
    })
}

fn measure(entries: u64, folder: &Path) -> Result<Report> {
    let packs = entries / RECORDS_PER_PACK;
    let (catalog, _) = Catalog::open(folder, CatalogOptions::default())?;
    let took = learn(&catalog, &Shard::whole(32, 8)?, packs)?;
    let settled = settle(&catalog);
    let disk_bytes = catalog.stats().bytes_on_disk;
    drop(catalog);
    let mut child = Command::new(std::env::current_exe()?);
    child.arg(READ).arg("--entries").arg(entries.to_string()).arg("--folder").arg(folder);
    let told = child.stderr(Stdio::inherit()).output()?;
    ensure!(told.status.success(), "the reading process failed");
    let read: Read = serde_json::from_slice(&told.stdout)?;
    let many = MANY / entries as f64;
    let more_packs_bytes = (MANY - entries as f64) / RECORDS_PER_PACK as f64 * PACK_BYTES;
    Ok(Report {
        bench: "catalog",
        entries,
        packs,
        learn_entries_per_second: (entries as f64 / took.as_secs_f64()).round(),
        settled,
        disk_bytes,
        disk_bytes_per_entry: disk_bytes as f64 / entries as f64,
        resident_bytes_per_entry: read.resident_bytes as f64 / entries as f64,
        at_1e8_entries: Extrapolated {
            disk_gib: disk_bytes as f64 * many / f64::from(1 << 30),
            memory_mib: (read.resident_bytes as f64 + more_packs_bytes) / f64::from(1 << 20),
            open_seconds: read.open_ms / 1e3 * many,
        },
        read,
    })
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    if arguments.read {
        println!("{}", serde_json::to_string(&read(arguments.entries, &arguments.folder)?)?);
        return Ok(());
    }
    let report = measure(arguments.entries, &arguments.folder);
    let deleted = std::fs::remove_dir_all(&arguments.folder);
    println!("{}", serde_json::to_string_pretty(&report?)?);
    Ok(deleted?)
}
