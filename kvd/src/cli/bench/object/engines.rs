//! Engines that store and load chains at the same time, every byte of which follows from its place.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvd_client::{BlockMemory, Engine, StoreRequest, View};
use kvd_nixl::sys::MemoryExtent;
use kvd_proto::BlockHash;

use super::ENGINES;
use super::bucket::failed;
use super::interrupt::Interrupt;
use super::pace::Pace;
use super::plan::Plan;
use crate::cli::bench::engine::{chain_hash, join};
use crate::cli::exit::{Exit, Failure};
use crate::cli::replay::payload::Words;

/// Engines of one daemon.
pub(super) struct Engines<'a> {
    joined: Vec<(Engine, View)>,
    plan: &'a Plan,
    interrupt: Interrupt,
}

impl<'a> Engines<'a> {
    pub(super) fn join(socket: &Path, plan: &'a Plan, interrupt: &Interrupt) -> Result<Engines<'a>, Failure> {
        let joined = (0..ENGINES).map(|number| join(socket, number as u8 + 1, plan.shape));
        Ok(Engines { joined: joined.collect::<Result<_, Failure>>()?, plan, interrupt: interrupt.clone() })
    }

    /// Stores every chain of a round out of memory, as far as it may.
    pub(super) fn store(&self, round: u32, memory: &MemoryExtent, pace: &Pace) -> Result<(), Failure> {
        let stored = self.each_chain(|view, chain| {
            if !pace.wait(chain) {
                return Ok(());
            }
            let (hashes, places) = (self.hashes(round, chain), self.places(memory, chain)?);
            let store =
                StoreRequest { parent: None, first_position: 0, hashes: &hashes, sources: &places, tokens: &[] };
            let stored = view.store(&store);
            if stored.granted as usize == hashes.len() {
                return Ok(());
            }
            Err(failed(format!("the daemon took {} of {} blocks: {stored:?}", stored.granted, hashes.len())))
        });
        stored.inspect_err(|_| pace.end())
    }

    /// Loads every chain of a round into memory, all of it from the store.
    pub(super) fn load(&self, round: u32, memory: &MemoryExtent) -> Result<(), Failure> {
        self.each_chain(|view, chain| {
            let (hashes, places) = (self.hashes(round, chain), self.places(memory, chain)?);
            let blocks = hashes.len() as u32;
            let found = view.match_prefix(&hashes);
            let loaded = view.load(&found, 0..blocks, &places);
            if (loaded.blocks, loaded.from_object) == (blocks, blocks) {
                return Ok(());
            }
            let why = (found.blocks(), found.reason());
            Err(failed(format!("{} of {blocks} blocks came from the store: {why:?}, {loaded:?}", loaded.from_object)))
        })
    }

    /// Each engine takes the next chain that nobody has taken, until there is none or one fails.
    fn each_chain(&self, work: impl Fn(&View, usize) -> Result<(), Failure> + Sync) -> Result<(), Failure> {
        let next = AtomicUsize::new(0);
        // Guards the first failure; held for an instruction, and no other lock is taken under it.
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for (_, view) in &self.joined {
                scope.spawn(|| {
                    loop {
                        // Relaxed: a number is handed out, nothing with it.
                        let chain = next.fetch_add(1, Ordering::Relaxed);
                        if chain >= self.plan.packs {
                            return;
                        }
                        if let Err(error) = self.interrupt.check().and_then(|()| work(view, chain)) {
                            next.store(self.plan.packs, Ordering::Relaxed);
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            return;
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn hashes(&self, round: u32, chain: usize) -> Vec<BlockHash> {
        let chain = u64::from(round) << 32 | chain as u64;
        (0..self.plan.pack_records as u32).map(|position| chain_hash(chain, position)).collect()
    }

    fn places(&self, memory: &MemoryExtent, chain: usize) -> Result<Vec<BlockMemory<'static>>, Failure> {
        let blocks = blocks(self.plan, chain);
        blocks.map(|block| Ok(BlockMemory::contiguous(place(self.plan, memory, block)?))).collect()
    }
}

/// The blocks of a chain among those of all chains.
fn blocks(plan: &Plan, chain: usize) -> std::ops::Range<usize> {
    chain * plan.pack_records..(chain + 1) * plan.pack_records
}

fn place(plan: &Plan, memory: &MemoryExtent, block: usize) -> Result<MemoryExtent, Failure> {
    let bytes = plan.shape.block_bytes();
    memory.part(block * bytes, bytes).map_err(failed)
}

fn words(round: u32, block: usize) -> Words {
    Words::of(u64::from(round) << 32 | block as u64)
}

/// Writes the blocks of a round into memory.
pub(super) fn fill(plan: &Plan, round: u32, memory: &MemoryExtent) -> Result<(), Failure> {
    let mut bytes = vec![0; plan.shape.block_bytes()];
    for block in 0..plan.packs * plan.pack_records {
        words(round, block).fill(&mut bytes);
        place(plan, memory, block)?.write(0, &bytes).map_err(failed)?;
    }
    Ok(())
}

/// The blocks of a round are in memory, byte for byte.
pub(super) fn check(plan: &Plan, round: u32, memory: &MemoryExtent) -> Result<(), Failure> {
    let mut bytes = vec![0; plan.shape.block_bytes()];
    for block in 0..plan.packs * plan.pack_records {
        place(plan, memory, block)?.read(0, &mut bytes).map_err(failed)?;
        if !words(round, block).are(&bytes) {
            return Err(Failure::new(Exit::CheckFailed, format!("block {block} of round {round} came back wrong")));
        }
    }
    Ok(())
}
