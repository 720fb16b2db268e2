//! `kvd bench match`: prefix matches through the ring, lease included, among many resident records.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use kvd_client::{BlockMemory, StoreRequest, View};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_proto::BlockHash;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::cpu::load_average;
use super::engine::{Shape, chain_hash, join};
use super::node::{Node, NodeOptions, PIECE_BYTES, connection, status};
use super::stats::Latency;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::output::{Output, pairs};

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench match                              a million records: needs 9 GiB of shared memory for a minute
  kvd bench match --records 200000 --json      a smaller one
  kvd bench match --socket /run/kvd.sock       with a daemon that runs already; its blocks of the bench stay";

const PAYLOAD_BYTES: u32 = 4096;
/// A sector of metadata in front of the payload.
const SLOT_BYTES: u64 = 8192;
/// Mooncake's batch_is_exist of 1 000 keys, on loopback; reference/baselines.
const PEER_US: f64 = 233.0;
const WARM_UP: usize = 2_000;
const IDLE_PAUSE: Duration = Duration::from_millis(5);
/// Chains that are walked block by block.
const WALKS: usize = 8;
/// Chains that are asked for cut, diverted and overlong.
const CHECKS: usize = 400;

/// `kvd bench match`.
#[derive(Debug, Args)]
pub struct MatchArgs {
    /// Records that are resident while it measures.
    #[arg(long, default_value_t = 1_000_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1000..))]
    records: u32,
    /// Blocks of each prefix asked for.
    #[arg(long, default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=4096))]
    prefix: u32,
    /// Matches that are timed.
    #[arg(long, default_value_t = 20_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(100..))]
    samples: u32,
    /// Measure a daemon that runs already instead of one of the bench's own.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    records: u64,
    chains: usize,
    prefix_blocks: u32,
    /// From the call to the lease, one request after the other.
    match_us: Latency,
    /// The same with giving the lease back.
    match_and_release_us: Latency,
    /// One request every 5 ms: the daemon sleeps and is woken.
    idle_wake_us: Latency,
    limit: Limit,
    peer: Peer,
    required_us: Required,
    within_required: bool,
    /// Answers that were compared with a plain walk, and how many differed.
    compared: u64,
    different: u64,
    fill: Fill,
    load_average: f64,
}

/// What a match cannot be faster than, from the same run.
#[derive(Debug, Serialize)]
struct Limit {
    /// A match of one block: the way to the daemon and back.
    one_block_us: f64,
    /// Putting the hashes of the prefix where the daemon reads them.
    hashes_us: f64,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Peer {
    mooncake_batch_is_exist_1000_us: f64,
}

#[derive(Debug, Serialize)]
struct Required {
    p50: f64,
    p99: f64,
}

/// What storing the records cost.
#[derive(Debug, Serialize)]
struct Fill {
    seconds: f64,
    us_per_record: f64,
    daemon_bytes_per_record: Option<f64>,
    index_bytes_per_record: f64,
}

/// Measures.
pub(super) fn run(args: &MatchArgs, output: Output) -> Outcome {
    let node = match args.socket {
        Some(_) => None,
        None => Some(Node::start(&options(args.records))?),
    };
    let socket = node.as_ref().map_or_else(|| args.socket.clone().unwrap_or_default(), Node::socket);
    let connection = node.as_ref().map_or_else(|| connection(&socket), Node::connection);
    let (_engine, view) = join(&socket, 1, Shape::plain(PAYLOAD_BYTES))?;
    let memory_before = node.as_ref().map(Node::memory_bytes).transpose()?;
    let index_before = status(&connection)?.index_bytes;
    let chains = plan(args.records, args.prefix);
    let started = Instant::now();
    let records = fill(&view, &chains, output)?;
    let seconds = started.elapsed().as_secs_f64();
    let index = status(&connection)?.index_bytes.saturating_sub(index_before);
    let memory = node.as_ref().map(Node::memory_bytes).transpose()?;
    let memory = memory.zip(memory_before).map(|(after, before)| after.saturating_sub(before));
    let per_record = |bytes: u64| (bytes as f64 / records.max(1) as f64 * 10.0).round() / 10.0;
    let fill = Fill {
        seconds: (seconds * 10.0).round() / 10.0,
        us_per_record: (seconds * 1e8 / records.max(1) as f64).round() / 100.0,
        daemon_bytes_per_record: memory.map(per_record),
        index_bytes_per_record: per_record(index),
    };
    let report = measure(args, &view, &chains, records, fill)?;
    let right = report.different == 0;
    output.show(&report, text)?;
    Ok(if right { Exit::Ok } else { Exit::CheckFailed })
}

fn options(records: u32) -> NodeOptions {
    // Eight segments beyond the records: some stay half empty, and nothing may fall while it is counted.
    let pieces = (u64::from(records) * SLOT_BYTES).div_ceil(PIECE_BYTES) + 8;
    NodeOptions {
        label: "node",
        dram_bytes: pieces * PIECE_BYTES,
        nvme_bytes: None,
        base: std::env::temp_dir(),
        set: Vec::new(),
    }
}

/// A chain of its own, or one that leaves an earlier one at some block.
#[derive(Clone, Copy, Debug)]
struct Chain {
    number: u64,
    /// Up to this block it is another chain.
    forks_at: u32,
    from: u64,
    blocks: u32,
}

impl Chain {
    fn hash(&self, position: u32) -> BlockHash {
        chain_hash(if position < self.forks_at { self.from } else { self.number }, position)
    }

    fn hashes(&self, count: u32) -> Vec<BlockHash> {
        (0..count).map(|position| self.hash(position)).collect()
    }
}

/// Chains of one to one and a half prefixes; every fourth one leaves the one before it half way or so.
fn plan(records: u32, prefix: u32) -> Vec<Chain> {
    let mut random = SmallRng::seed_from_u64(10);
    let mut chains: Vec<Chain> = Vec::new();
    let mut left = records;
    while left >= prefix {
        let number = chains.len() as u64 + 1;
        let own = prefix + random.random_range(0..=prefix / 2);
        let (forks_at, from) = match chains.last() {
            Some(last) if number.is_multiple_of(4) && last.forks_at == 0 => {
                (random.random_range(1..last.blocks.min(prefix).max(2)), last.number)
            }
            _ => (0, 0),
        };
        let stored = own.min(left);
        chains.push(Chain { number, forks_at, from, blocks: forks_at + stored });
        left -= stored;
    }
    chains
}

fn fill(view: &View, chains: &[Chain], output: Output) -> Result<u64, Failure> {
    let bytes = PAYLOAD_BYTES as usize;
    let memory: Arc<dyn Memory> = Arc::new(Region::new(bytes)?);
    memory.write(0, &vec![0x5a; bytes]).map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
    let source = BlockMemory::contiguous(MemoryExtent::whole(memory));
    let total: u64 = chains.iter().map(|chain| u64::from(chain.blocks - chain.forks_at)).sum();
    let bar = output.progress(total, "storing records");
    for chain in chains {
        let hashes: Vec<BlockHash> = (chain.forks_at..chain.blocks).map(|position| chain.hash(position)).collect();
        let sources = vec![source.clone(); hashes.len()];
        let parent = chain.forks_at.checked_sub(1).map(|position| chain.hash(position));
        let store =
            StoreRequest { parent, first_position: chain.forks_at, hashes: &hashes, sources: &sources, tokens: &[] };
        let stored = view.store(&store);
        if stored.refused > 0 {
            let reason = stored.reason.map_or("", |reason| reason.as_str());
            let message = format!("the daemon refused {} of {} blocks: {reason}", stored.refused, hashes.len());
            return Err(Failure::new(Exit::Failure, message).remedy("give it a larger DRAM tier, or ask for fewer"));
        }
        bar.inc(hashes.len() as u64);
    }
    bar.finish_and_clear();
    Ok(total)
}

fn measure(args: &MatchArgs, view: &View, chains: &[Chain], records: u64, fill: Fill) -> Result<Report, Failure> {
    let mut random = SmallRng::seed_from_u64(11);
    let (compared, different) = compare(view, chains, args.prefix, &mut random);
    let mut prefixes = || chains[random.random_range(0..chains.len())].hashes(args.prefix);
    let (mut matches, mut rounds, mut ones) = (Vec::new(), Vec::new(), Vec::new());
    let mut short = 0;
    for sample in 0..WARM_UP + args.samples as usize {
        let hashes = prefixes();
        let started = Instant::now();
        let found = view.match_prefix(&hashes);
        let matched = started.elapsed();
        short += u64::from(found.blocks() != args.prefix);
        found.release();
        if sample >= WARM_UP {
            matches.push(matched);
            rounds.push(started.elapsed());
        }
    }
    for _ in 0..2_000 {
        let hashes = prefixes();
        let started = Instant::now();
        view.match_prefix(&hashes[..1]).release();
        ones.push(started.elapsed());
    }
    let mut idle = Vec::new();
    for _ in 0..200 {
        let hashes = prefixes();
        thread::sleep(IDLE_PAUSE);
        let started = Instant::now();
        let found = view.match_prefix(&hashes);
        idle.push(started.elapsed());
        short += u64::from(found.blocks() != args.prefix);
    }
    let match_us = Latency::of(matches);
    let (one_block_us, hashes_us) = (Latency::of(ones).p50, hashes_us(args.prefix, &mut prefixes)?);
    let required_us = Required { p50: 15.0, p99: 60.0 };
    Ok(Report {
        records,
        chains: chains.len(),
        prefix_blocks: args.prefix,
        within_required: match_us.p50 <= required_us.p50 && match_us.p99 <= required_us.p99,
        limit: Limit {
            one_block_us,
            hashes_us,
            ratio: ((one_block_us + hashes_us) / match_us.p50 * 1000.0).round() / 1000.0,
        },
        match_us,
        match_and_release_us: Latency::of(rounds),
        idle_wake_us: Latency::of(idle),
        peer: Peer { mooncake_batch_is_exist_1000_us: PEER_US },
        required_us,
        compared,
        different: different + short,
        fill,
        load_average: load_average(),
    })
}

/// A plain copy of so many hashes into memory that was just used by somebody else.
fn hashes_us(prefix: u32, prefixes: &mut impl FnMut() -> Vec<BlockHash>) -> Result<f64, Failure> {
    let slab: Arc<dyn Memory> = Arc::new(Region::new(prefix as usize * 32)?);
    let samples = (0..500).map(|_| {
        let bytes: Vec<u8> = prefixes().iter().flat_map(BlockHash::padded).collect();
        let started = Instant::now();
        let written = slab.write(0, &bytes);
        let took = started.elapsed();
        written.map(|()| took).map_err(|error| Failure::new(Exit::Failure, error.to_string()))
    });
    Ok(Latency::of(samples.collect::<Result<Vec<_>, _>>()?).p50)
}

/// Asks for chains whose true answer is known: whole, cut, going on elsewhere, going on beyond their end; and walks some
/// block by block. How many answers were compared, how many were wrong.
fn compare(view: &View, chains: &[Chain], prefix: u32, random: &mut SmallRng) -> (u64, u64) {
    let (mut compared, mut different) = (0, 0);
    let mut expect = |hashes: &[BlockHash], blocks: u32| {
        compared += 1;
        different += u64::from(view.match_prefix(hashes).blocks() != blocks);
    };
    for _ in 0..CHECKS {
        let chain = chains[random.random_range(0..chains.len())];
        let mut hashes = chain.hashes(chain.blocks);
        let cut = random.random_range(1..=chain.blocks);
        expect(&hashes[..cut as usize], cut);
        hashes.extend((0..prefix / 4).map(|position| chain_hash(u64::MAX, position)));
        expect(&hashes, chain.blocks);
        hashes.truncate(chain.blocks as usize);
        let diverted = random.random_range(0..chain.blocks);
        (diverted..chain.blocks).for_each(|at| hashes[at as usize] = chain_hash(u64::MAX - 1, at));
        expect(&hashes, diverted);
        // Here again behind a stranger: a jump must not land there.
        hashes[chain.blocks as usize - 1] = chain.hash(diverted);
        expect(&hashes, if diverted + 1 == chain.blocks { chain.blocks } else { diverted });
    }
    for chain in chains.iter().take(WALKS) {
        let mut hashes = chain.hashes(chain.blocks.min(prefix));
        let diverted = random.random_range(0..hashes.len());
        (diverted..hashes.len()).for_each(|at| hashes[at] = chain_hash(u64::MAX - 2, at as u32));
        let steps =
            (1..=hashes.len()).take_while(|&count| view.match_prefix(&hashes[..count]).blocks() == count as u32);
        let walked = steps.count() as u32;
        expect(&hashes, walked);
    }
    (compared, different)
}

fn text(report: &Report) -> String {
    let fill = &report.fill;
    let memory =
        fill.daemon_bytes_per_record.map_or_else(|| "not measured".to_owned(), |bytes| format!("{bytes} bytes"));
    pairs(&[
        ("records", format!("{} in {} chains", report.records, report.chains)),
        ("match, lease included", format!("{} ({} blocks, busy)", report.match_us.text(), report.prefix_blocks)),
        ("  required", format!("{} us p50, {} us p99", report.required_us.p50, report.required_us.p99)),
        ("  limit", {
            let limit = &report.limit;
            format!(
                "{:.1} us to ask + {:.1} us of hashes; {:.2} of it reached",
                limit.one_block_us, limit.hashes_us, limit.ratio
            )
        }),
        ("  peer", format!("{} us, Mooncake batch_is_exist(1000)", report.peer.mooncake_batch_is_exist_1000_us)),
        ("match and release", report.match_and_release_us.text()),
        ("idle core, woken", report.idle_wake_us.text()),
        ("plain walk", format!("{} answers compared, {} different", report.compared, report.different)),
        ("storing", format!("{} us per record", fill.us_per_record)),
        ("memory per record", format!("{memory} of the daemon, {} bytes of index", fill.index_bytes_per_record)),
        ("load average", format!("{:.2}", report.load_average)),
    ])
}
