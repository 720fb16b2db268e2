//! `kvd scrub`: records at rest are verified.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Connection;
use super::admin::Admin;
use super::exit::{Exit, Outcome};
use super::follow::follow;
use super::output::{Output, bytes};
use crate::config::Rate;
use crate::service::proto::{self, Progress, Tier};

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd scrub
  kvd scrub --timeout 1h --json
  kvd scrub --tier object                      this node's packs, at 64 MiB a second
  kvd scrub --tier object --all-nodes --rate 500MiB/s --timeout 1d";

/// `kvd scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    #[command(flatten)]
    connection: Connection,
    /// Verify this tier, instead of DRAM and NVMe. Reading packs out of a bucket costs requests and traffic.
    #[arg(long)]
    tier: Option<ScrubbedTier>,
    /// The packs of all nodes of the tenant, not only those of this one.
    #[arg(long, requires = "tier")]
    all_nodes: bool,
    /// Read the store no faster; 64MiB/s where it is not given.
    #[arg(long, requires = "tier", value_parser = rate, value_name = "RATE")]
    rate: Option<u64>,
}

/// A tier that is verified by itself.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScrubbedTier {
    Object,
}

fn rate(text: &str) -> Result<u64, String> {
    let rate: Rate = text.parse()?;
    Ok(rate.0.unwrap_or(u64::MAX))
}

/// What a scrub of the object tier found.
#[derive(Serialize)]
struct Scrubbed {
    #[serde(flatten)]
    progress: Progress,
    damaged_packs: u64,
    bytes: u64,
}

/// Runs it.
///
/// # Errors
/// The daemon does not answer, has no such tier, or its store cannot be read.
pub fn run(args: &ScrubArgs, output: Output) -> Outcome {
    let request = proto::ScrubRequest {
        tier: args.tier.map_or(Tier::Unspecified, |ScrubbedTier::Object| Tier::Object).into(),
        all_nodes: args.all_nodes,
        bytes_per_second_max: args.rate.unwrap_or(0),
    };
    let (progress, last) = args
        .connection
        .run_long(async |mut admin: Admin| follow(admin.scrub(request).await?.into_inner(), output, "scrub").await)?;
    let whole = match args.tier {
        None => {
            output.show(&progress, |done| format!("verified {} copies, {} were corrupt", done.done, done.corrupt))?;
            progress.corrupt == 0
        }
        Some(ScrubbedTier::Object) => {
            let found = Scrubbed { progress, damaged_packs: last.damaged_packs, bytes: last.bytes };
            output.show(&found, object_text)?;
            progress.corrupt == 0 && last.damaged_packs == 0
        }
    };
    Ok(if whole { Exit::Ok } else { Exit::CheckFailed })
}

fn object_text(found: &Scrubbed) -> String {
    let read = format!(
        "verified {} records, {} read; {} were corrupt",
        found.progress.done,
        bytes(found.bytes),
        found.progress.corrupt
    );
    match found.damaged_packs {
        0 => read,
        packs => format!("{read}, in {packs} damaged packs: all that lies in those is a miss from now on"),
    }
}
