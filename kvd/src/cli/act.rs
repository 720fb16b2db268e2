//! Commands that change what the daemon holds.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Connection;
use super::admin::Admin;
use super::exit::{Exit, Outcome};
use super::follow::follow;
use super::output::Output;
use crate::service::proto::{self, Tier};

/// Blocks by hash.
#[derive(Debug, Args)]
pub struct SelectionArgs {
    #[command(flatten)]
    connection: Connection,
    /// Only in this namespace: its digest, or the beginning of it.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "DIGEST")]
    namespace: String,
    /// Hashes of blocks in hexadecimal, as the engine names them.
    #[arg(required = true, num_args = 1..=4096, value_parser = hash)]
    hashes: Vec<String>,
}

/// `kvd evict`.
#[derive(Debug, Args)]
pub struct EvictArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Only out of this tier.
    #[arg(long)]
    tier: Option<TierName>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// `kvd purge`: of this node, and of the store that it shares with others. What other nodes hold themselves is purged on each of
/// them.
#[derive(Debug, Args)]
pub struct PurgeArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    target: PurgeTarget,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PurgeTarget {
    /// Forget this namespace: its digest, or the beginning of it.
    #[arg(long, value_name = "DIGEST")]
    namespace: Option<String>,
    /// Forget everything of this tenant; a daemon serves one, `default`.
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Forget everything.
    #[arg(long)]
    all: bool,
}

/// A tier that blocks can be evicted from.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TierName {
    Dram,
    Nvme,
}

/// Takes a block hash in hexadecimal, so that a slip is found before the daemon is asked.
pub(super) fn hash(text: &str) -> Result<String, String> {
    let hash: Result<kvd_proto::BlockHash, _> = text.parse();
    hash.map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// What an order did, in every command's `--json`.
#[derive(Serialize)]
struct Changed {
    blocks: u64,
    skipped: u64,
}

impl Changed {
    fn show(&self, verb: &str, output: Output) -> Outcome {
        output.show(self, |changed| match changed.skipped {
            0 => format!("{verb} {} blocks", changed.blocks),
            skipped => format!("{verb} {} blocks; {skipped} are not known or are held", changed.blocks),
        })?;
        Ok(if self.blocks == 0 && self.skipped > 0 { Exit::NotFound } else { Exit::Ok })
    }
}

impl SelectionArgs {
    fn selection(&self) -> Option<proto::Selection> {
        Some(proto::Selection { namespace: self.namespace.clone(), hashes: self.hashes.clone() })
    }
}

/// `kvd pin`.
///
/// # Errors
/// The daemon does not answer or refuses.
pub fn pin(args: &SelectionArgs, output: Output) -> Outcome {
    let request = proto::PinRequest { selection: args.selection() };
    let reply = args.connection.run(async |mut admin: Admin| Ok(admin.pin(request).await?.into_inner()))?;
    Changed { blocks: reply.blocks, skipped: reply.skipped }.show("pinned", output)
}

/// `kvd unpin`.
///
/// # Errors
/// The daemon does not answer or refuses.
pub fn unpin(args: &SelectionArgs, output: Output) -> Outcome {
    let request = proto::UnpinRequest { selection: args.selection() };
    let reply = args.connection.run(async |mut admin: Admin| Ok(admin.unpin(request).await?.into_inner()))?;
    Changed { blocks: reply.blocks, skipped: reply.skipped }.show("unpinned", output)
}

/// `kvd evict`.
///
/// # Errors
/// Not confirmed, or the daemon does not answer or refuses.
pub fn evict(args: &EvictArgs, output: Output) -> Outcome {
    let count = args.selection.hashes.len();
    output.confirm(args.yes, &format!("Drop {count} blocks?"))?;
    let tier = match args.tier {
        None => Tier::Unspecified,
        Some(TierName::Dram) => Tier::Dram,
        Some(TierName::Nvme) => Tier::Nvme,
    };
    let request = proto::EvictRequest { selection: args.selection.selection(), tier: tier.into() };
    let reply = args.selection.connection.run(async |mut admin: Admin| Ok(admin.evict(request).await?.into_inner()))?;
    Changed { blocks: reply.blocks, skipped: reply.skipped }.show("evicted", output)
}

/// `kvd prefetch`.
///
/// # Errors
/// The daemon does not answer or refuses.
pub fn prefetch(args: &SelectionArgs, output: Output) -> Outcome {
    let request = proto::PrefetchRequest { selection: args.selection() };
    let reply = args.connection.run(async |mut admin: Admin| Ok(admin.prefetch(request).await?.into_inner()))?;
    Changed { blocks: reply.blocks, skipped: reply.skipped }.show("prefetching", output)
}

/// `kvd purge`.
///
/// # Errors
/// Not confirmed, or the daemon does not answer or refuses.
pub fn purge(args: &PurgeArgs, output: Output) -> Outcome {
    let all = "everything this daemon holds, and all of its tenant in the object tier, of every node";
    let (target, what) = match &args.target {
        PurgeTarget { namespace: Some(namespace), .. } => {
            let what = format!("all blocks of namespace {namespace}, in the object tier those of every node");
            (proto::purge_request::Target::Namespace(namespace.clone()), what)
        }
        PurgeTarget { tenant: Some(tenant), .. } => {
            (proto::purge_request::Target::Tenant(tenant.clone()), all.to_owned())
        }
        PurgeTarget { all: _, .. } => (proto::purge_request::Target::Everything(true), all.to_owned()),
    };
    output.confirm(args.yes, &format!("Forget {what}?"))?;
    let request = proto::PurgeRequest { target: Some(target) };
    let (done, _) = args
        .connection
        .run_long(async |mut admin: Admin| follow(admin.purge(request).await?.into_inner(), output, "purge").await)?;
    output.show(&done, |done| format!("purged {} blocks", done.done))?;
    Ok(Exit::Ok)
}

/// `kvd drain`.
///
/// # Errors
/// The daemon does not answer or refuses.
pub fn drain(connection: &Connection, output: Output) -> Outcome {
    let (done, _) = connection.run_long(async |mut admin: Admin| {
        follow(admin.drain(proto::DrainRequest {}).await?.into_inner(), output, "drain").await
    })?;
    output.show(&done, |done| match done.skipped {
        0 => format!("wrote {} records to NVMe", done.done),
        left => format!(
            "wrote {} records to NVMe; {left} stay in DRAM alone: the devices have no room for them or take no writes (see `kvd devices`), or they wait for blocks before them",
            done.done
        ),
    })?;
    Ok(if done.skipped == 0 { Exit::Ok } else { Exit::CheckFailed })
}
