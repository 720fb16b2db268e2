//! `kvd fsck`: verifies the NVMe files of a stopped daemon and writes nothing.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use kvd_nixl::io::{BlockingIo, BlockingOptions, FileOptions, IoFile};
use kvd_nixl::sys::OfdLock;
use kvd_tiers::nvme::{self, BadRecord, FsckReport};
use serde::Serialize;

use super::ConfigSources;
use super::exit::{Exit, Failure, Outcome};
use super::output::{Output, bytes};

/// Bad records named on a terminal; `--json` names the first thousand.
const SHOWN_MAX: usize = 10;

/// `kvd fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    #[command(flatten)]
    sources: ConfigSources,
    /// Check these files or block devices instead of those of the configuration.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// What was found on one device.
#[derive(Debug, Serialize)]
struct Checked {
    path: PathBuf,
    ok: bool,
    /// Why nothing could be checked.
    error: Option<String>,
    /// Why the next daemon would begin anew on it.
    unformatted: Option<&'static str>,
    /// It had a directory before, so what it held is lost.
    directory_lost: bool,
    zones: u64,
    records: u64,
    bytes: u64,
    bad_records: u64,
    bad: Vec<Bad>,
    /// A page that was being written when the daemon died is no damage.
    journal_pages_incomplete: u64,
    sectors_unreadable: u64,
}

#[derive(Debug, Serialize)]
struct Bad {
    zone: u32,
    slot: u32,
    key: String,
    failure: String,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    devices: Vec<Checked>,
}

/// Checks every device.
///
/// # Errors
/// A daemon uses a device, a path does not exist, or the configuration is wrong.
pub fn run(args: &FsckArgs, output: Output) -> Outcome {
    let paths = if args.paths.is_empty() { args.sources.load()?.config.tiers.nvme.paths } else { args.paths.clone() };
    let devices = paths.iter().map(|path| check(path, output)).collect::<Result<Vec<_>, _>>()?;
    let report = Report { ok: devices.iter().all(|device| device.ok), devices };
    output.show(&report, |report| report.devices.iter().map(text).collect())?;
    Ok(if report.ok { Exit::Ok } else { Exit::CheckFailed })
}

fn check(path: &Path, output: Output) -> Result<Checked, Failure> {
    let shown = path.display();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("{shown} does not exist"))
            .remedy("name the data folder with --set data_dir=..., the file with --config, or the device itself"),
        io::ErrorKind::PermissionDenied => Failure::new(Exit::Denied, format!("{shown} may not be opened"))
            .remedy("run this as the user that runs kvd"),
        _ => Failure::new(Exit::Failure, format!("{shown}: {error}")),
    };
    let file = Arc::new(IoFile::open(path, FileOptions { create: false, direct: true }).map_err(failed)?);
    let Some(_lock) = OfdLock::try_lock(file.as_fd()).map_err(failed)? else {
        return Err(Failure::new(Exit::AlreadyRunning, format!("a daemon uses {shown}"))
            .remedy("`kvd scrub` verifies the records of a running daemon; or stop it first"));
    };
    let size = file.bytes().map_err(failed)?;
    let mut io = BlockingIo::new(BlockingOptions::default()).map_err(failed)?;
    let file = io.add_file(file).map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
    let bar = output.progress(0, &format!("{shown}"));
    let report = nvme::fsck(&mut io, file, size, &mut |progress| {
        bar.set_length(progress.records);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    Ok(match report {
        Ok(report) => checked(path, report),
        Err(error) => Checked { ok: false, error: Some(error.to_string()), ..checked(path, FsckReport::default()) },
    })
}

fn checked(path: &Path, report: FsckReport) -> Checked {
    let bad = |record: BadRecord| Bad {
        zone: record.slot.zone().0,
        slot: record.slot.index(),
        key: record.entry.key.to_string(),
        failure: record.failure.to_string(),
    };
    Checked {
        path: path.to_owned(),
        ok: report.bad_count == 0 && report.sectors_unreadable == 0 && !report.directory_lost,
        error: None,
        unformatted: report.unformatted,
        directory_lost: report.directory_lost,
        zones: report.zones,
        records: report.records,
        bytes: report.bytes,
        bad_records: report.bad_count,
        bad: report.bad.into_iter().map(bad).collect(),
        journal_pages_incomplete: report.pages_damaged,
        sectors_unreadable: report.sectors_unreadable,
    }
}

fn text(device: &Checked) -> String {
    let mut text = format!("{}: ", device.path.display());
    match (&device.error, device.unformatted) {
        (Some(error), _) => text.push_str(&format!("cannot be used: {error}\n")),
        (None, Some(why)) if device.directory_lost => text.push_str(&format!(
            "DAMAGED: {why}; whatever it held is lost, and the next daemon formats it anew\n  \
             remedy: look at the disk's health; then start kvd, whose engines compute and store the blocks again, or put \
             a copy of the file back first\n"
        )),
        (None, Some(why)) => text.push_str(&format!("holds no records ({why}); the next daemon formats it\n")),
        (None, None) => text.push_str(&format!(
            "{}; {} records in {} zones, {} read and verified, {} bad, {} sectors of the directory unreadable\n",
            if device.ok { "ok" } else { "DAMAGED" },
            device.records,
            device.zones,
            bytes(device.bytes),
            device.bad_records,
            device.sectors_unreadable
        )),
    }
    for bad in device.bad.iter().take(SHOWN_MAX) {
        text.push_str(&format!("  zone {} slot {} ({}): {}\n", bad.zone, bad.slot, bad.key, bad.failure));
    }
    if device.bad_records > SHOWN_MAX as u64 {
        text.push_str(&format!(
            "  and {} more; --json names the first thousand\n",
            device.bad_records - SHOWN_MAX as u64
        ));
    }
    if device.bad_records > 0 {
        text.push_str("  bad records are never served: they are misses, and fall when they are read or scrubbed\n");
    }
    text
}
