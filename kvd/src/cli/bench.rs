//! `kvd bench`: the figures that this product promises, measured on this machine, each beside its limit.
//!
//! Every bench crosses the session ring and the full record path unless it is named `raw`. A bench that needs a daemon starts
//! one of its own, on scratch folders that it removes.

use clap::Subcommand;

use super::exit::Outcome;
use super::output::Output;

mod copying;
mod cpu;
mod engine;
mod hbm;
mod join;
mod matching;
mod node;
mod nvme;
mod object;
mod ranks;
mod recover;
mod stats;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd bench match                              1 000-block prefixes among a million records
  kvd bench copy --json                        engine memory <-> DRAM, checksums on, against a raw copy
  kvd bench hbm                                a GPU's memory <-> DRAM, checksums on, against the bus
  kvd bench join                               an engine's start beside an arena of 60 GiB, on a GPU
  kvd bench ranks                              what another tensor parallel size wrote, on a GPU
  kvd bench nvme --path /var/lib/kvd           reads and writes of records, against fio on the same file
  kvd bench object --url s3://bucket/prefix    packs and ranges, against a plain client of the same store
  kvd bench recover --records 100000           memory per record, and the time back after SIGKILL";

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How long a prefix match takes, lease included.
    #[command(after_help = matching::EXAMPLES)]
    Match(matching::MatchArgs),
    /// How fast blocks go between an engine's memory and the DRAM tier, checksums on.
    #[command(after_help = copying::EXAMPLES)]
    Copy(copying::CopyArgs),
    /// How fast blocks go between a GPU's memory and the DRAM tier, checksums on.
    #[command(after_help = hbm::EXAMPLES)]
    Hbm(hbm::HbmArgs),
    /// How soon an engine that starts beside a full arena moves its first block, and has all of it pinned.
    #[command(after_help = join::EXAMPLES)]
    Join(join::JoinArgs),
    /// How fast ranks of each tensor parallel size read what those of the others wrote, each rank a process.
    #[command(after_help = ranks::EXAMPLES)]
    Ranks(ranks::RanksArgs),
    /// How fast records go between DRAM and a disk, and what of it is the disk.
    #[command(after_help = nvme::EXAMPLES)]
    Nvme(nvme::NvmeArgs),
    /// How fast blocks go to an object store and come back on another node, beside a plain client.
    #[command(after_help = object::EXAMPLES)]
    Object(object::ObjectArgs),
    /// What a record costs the daemon in memory, and how soon a successor serves after SIGKILL.
    #[command(after_help = recover::EXAMPLES)]
    Recover(recover::RecoverArgs),
}

/// Measures.
///
/// # Errors
/// The machine lacks what the bench needs, or a daemon does not do as it should.
pub fn run(command: &BenchCommand, output: Output) -> Outcome {
    match command {
        BenchCommand::Match(args) => matching::run(args, output),
        BenchCommand::Copy(args) => copying::run(args, output),
        BenchCommand::Hbm(args) => hbm::run(args, output),
        BenchCommand::Join(args) => join::run(args, output),
        BenchCommand::Ranks(args) => ranks::run(args, output),
        BenchCommand::Nvme(args) => nvme::run(args, output),
        BenchCommand::Object(args) => object::run(args, output),
        BenchCommand::Recover(args) => recover::run(args, output),
    }
}
