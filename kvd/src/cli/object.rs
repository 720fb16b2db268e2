//! `kvd object`: the object tier's store as the configuration names it, whether or not a daemon runs.

use clap::{Args, Subcommand};
use kvd_tiers::object::IndexName;
use serde::Serialize;

use super::ConfigSources;
use super::exit::{Exit, Failure, Outcome};
use super::output::{Output, bytes, seconds, table};
use crate::core::ObjectOptions;
use crate::object::inspecting::{Found, Inspector, Pace};
use crate::object::limits::Limits;
use crate::object::store::{Fault, Store, StoreError};

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd object ls --config /etc/kvd.toml
  kvd object verify --set tiers.object.url=s3://bucket/prefix --json
  kvd object gc --dry-run";

/// Damages named of one pack on a terminal; `--json` names all.
const SHOWN_MAX: usize = 10;

/// What to do with the store.
#[derive(Debug, Subcommand)]
pub enum ObjectCommand {
    /// List the packs: who wrote them, when, how many records.
    #[command(after_help = "Examples:\n  kvd object ls\n  kvd object ls --json | jq '[.packs[].bytes] | add'")]
    Ls(ConfigSources),
    /// Read every pack and verify every record; ends with 6 when one is damaged.
    #[command(after_help = "Examples:\n  kvd object verify\n  kvd object verify --json | jq '.damaged'")]
    Verify(ConfigSources),
    /// Delete now what the collector would: packs that are too old by tiers.object.expire_after and tiers.object.limits, and what crashes left behind.
    #[command(after_help = "Examples:\n  kvd object gc --dry-run\n  kvd object gc --config /etc/kvd.toml")]
    Gc(GcArgs),
}

/// `kvd object gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    #[command(flatten)]
    sources: ConfigSources,
    /// Only tell what would go.
    #[arg(long)]
    dry_run: bool,
}

/// Runs one of them.
///
/// # Errors
/// The configuration is wrong, has no object tier, or its store does not answer.
pub fn run(command: &ObjectCommand, output: Output) -> Outcome {
    match command {
        ObjectCommand::Ls(sources) => on_store(sources, true, async |look, _| ls(look, output).await),
        ObjectCommand::Verify(sources) => on_store(sources, true, async |look, _| verify(look, output).await),
        ObjectCommand::Gc(args) => on_store(&args.sources, args.dry_run, async |look, options| {
            gc(look, &limits(&args.sources, options)?, args.dry_run, output).await
        }),
    }
}

/// Opens the store, and lets somebody look at it.
fn on_store(
    sources: &ConfigSources,
    read_only: bool,
    work: impl AsyncFnOnce(&Inspector<'_>, &ObjectOptions) -> Outcome,
) -> Outcome {
    let mut options = sources.load()?.config.object_options().ok_or_else(|| {
        Failure::new(Exit::Usage, "this configuration has no object tier")
            .remedy("give the daemon's own with --config, or set tiers.object.enabled and tiers.object.url with --set")
    })?;
    if options.url.folder().is_some_and(|folder| !folder.exists()) {
        return Err(Failure::new(Exit::NotFound, format!("{} does not exist", options.url))
            .remedy("name the data folder with --set data_dir=..., or the store with --set tiers.object.url=..."));
    }
    options.writable &= !read_only;
    let store = Store::open(&options).map_err(|error: StoreError| Failure::new(Exit::Failure, error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(work(&Inspector::new(&store, &options), &options));
    // Work on a folder that hangs is not waited for.
    runtime.shutdown_background();
    outcome
}

fn of_store(fault: Fault) -> Failure {
    let code = match fault {
        Fault::Denied(_) | Fault::ReadOnly => Exit::Denied,
        Fault::NotFound
        | Fault::NoBucket(_)
        | Fault::Throttled(_)
        | Fault::Unreachable(_)
        | Fault::Stalled(_)
        | Fault::Timeout
        | Fault::Short { .. }
        | Fault::Long { .. }
        | Fault::Server(_)
        | Fault::Full(_)
        | Fault::Open
        | Fault::Other(_) => Exit::Failure,
    };
    Failure::new(code, fault.to_string()).remedy("`kvd doctor` tells what is wrong with the store")
}

#[derive(Serialize)]
struct Packs {
    packs: Vec<Pack>,
}

#[derive(Serialize)]
struct Pack {
    pack: String,
    node: String,
    created_ms: u64,
    age_seconds: u64,
    bytes: u64,
    records: u64,
    /// Why nothing is known of it.
    error: Option<String>,
}

fn pack(found: Found, now_ms: u64) -> Pack {
    let IndexName { pack, node, .. } = found.name;
    let empty = Pack {
        pack: pack.to_string(),
        node: node.to_string(),
        created_ms: 0,
        age_seconds: 0,
        bytes: 0,
        records: 0,
        error: None,
    };
    match found.index {
        Ok(index) => Pack {
            created_ms: index.created_ms,
            age_seconds: now_ms.saturating_sub(index.created_ms) / 1000,
            bytes: index.pack_bytes(),
            records: index.entries.len() as u64,
            ..empty
        },
        Err(error) => Pack { error: Some(error), ..empty },
    }
}

async fn ls(look: &Inspector<'_>, output: Output) -> Outcome {
    let names = look.names().await.map_err(of_store)?;
    let bar = output.progress(names.len() as u64, "packs");
    let now_ms = crate::object::unix_ms();
    let mut packs = Vec::with_capacity(names.len());
    for name in names {
        packs.extend(look.look(name).await.map_err(of_store)?.map(|found| pack(found, now_ms)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    output.show(&Packs { packs }, |Packs { packs }| {
        let rows = packs.iter().map(|pack| {
            let known = |text: String| if pack.error.is_some() { "-".to_owned() } else { text };
            vec![
                pack.pack.clone(),
                pack.node.clone(),
                known(seconds(pack.age_seconds)),
                known(bytes(pack.bytes)),
                known(pack.records.to_string()),
                pack.error.clone().unwrap_or_default(),
            ]
        });
        let total: u64 = packs.iter().map(|pack| pack.bytes).sum();
        let table = table(&["pack", "node", "age", "bytes", "records", "error"], rows);
        format!("{table}\n{} packs, {}\n", packs.len(), bytes(total))
    })?;
    Ok(Exit::Ok)
}

#[derive(Serialize, Default)]
struct Report {
    ok: bool,
    packs: u64,
    records: u64,
    bytes: u64,
    damaged: Vec<Damaged>,
}

#[derive(Serialize)]
struct Damaged {
    pack: String,
    node: String,
    damages: Vec<String>,
}

async fn verify(look: &Inspector<'_>, output: Output) -> Outcome {
    let names = look.names().await.map_err(of_store)?;
    let bar = output.progress(names.len() as u64, "verify packs");
    let mut report = Report::default();
    let mut pace = Pace::unlimited();
    for name in names {
        if let Some(found) = look.verify(name, &mut pace).await.map_err(of_store)? {
            report.packs += 1;
            report.records += found.records;
            report.bytes += found.bytes;
            if !found.damaged.is_empty() {
                let (pack, node) = (name.pack.to_string(), name.node.to_string());
                report.damaged.push(Damaged { pack, node, damages: found.damaged });
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.ok = report.damaged.is_empty();
    output.show(&report, text)?;
    Ok(if report.ok { Exit::Ok } else { Exit::CheckFailed })
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{}; {} packs with {} records, {} read and verified, {} packs damaged\n",
        if report.ok { "ok" } else { "DAMAGED" },
        report.packs,
        report.records,
        bytes(report.bytes),
        report.damaged.len()
    );
    for pack in &report.damaged {
        text.push_str(&format!("  pack {} of node {}:\n", pack.pack, pack.node));
        pack.damages.iter().take(SHOWN_MAX).for_each(|damage| text.push_str(&format!("    {damage}\n")));
        if pack.damages.len() > SHOWN_MAX {
            text.push_str(&format!("    and {} more; --json names all\n", pack.damages.len() - SHOWN_MAX));
        }
    }
    if !report.ok {
        text.push_str("  bad records are never served: they are misses\n");
    }
    text
}

#[derive(Serialize)]
struct Gone {
    dry_run: bool,
    expired: u64,
    expired_bytes: u64,
    orphans: u64,
    orphan_bytes: u64,
    leftovers: u64,
    /// Packs, too old or orphaned.
    packs: Vec<String>,
}

/// Limits by namespace are found by the tenant's key: without it, packs would be taken for somebody else's.
fn limits(sources: &ConfigSources, options: &ObjectOptions) -> Result<Limits, Failure> {
    if options.limits.is_empty() {
        return Ok(Limits::of_all(options));
    }
    let key = sources.load()?.config.tenant_key().map_err(|error| {
        Failure::new(Exit::Failure, format!("tiers.object.limits need the tenant's secret: {error}"))
            .remedy("run this as the user that runs kvd, with the daemon's own configuration")
    })?;
    Ok(Limits::new(options, &key))
}

async fn gc(look: &Inspector<'_>, limits: &Limits, dry_run: bool, output: Output) -> Outcome {
    let bar = output.progress(0, "collect");
    let collected = look.collect(limits, !dry_run).await.map_err(of_store)?;
    bar.finish_and_clear();
    let (expired, orphans) = (&collected.expired, &collected.left.orphans);
    let too_old = expired.iter().map(|(name, _)| name.pack);
    let gone = Gone {
        dry_run,
        expired: expired.len() as u64,
        expired_bytes: expired.iter().map(|(_, bytes)| bytes).sum(),
        orphans: orphans.len() as u64,
        orphan_bytes: orphans.iter().map(|(_, bytes)| bytes).sum(),
        leftovers: collected.left.others.len() as u64,
        packs: too_old.chain(orphans.iter().map(|(pack, _)| *pack)).map(|pack| pack.to_string()).collect(),
    };
    output.show(&gone, |gone| {
        format!(
            "{} {} packs that are too old ({}), {} packs without an index ({}), {} other objects\n",
            if gone.dry_run { "would delete" } else { "deleted" },
            gone.expired,
            bytes(gone.expired_bytes),
            gone.orphans,
            bytes(gone.orphan_bytes),
            gone.leftovers
        )
    })?;
    Ok(Exit::Ok)
}
