//! `kvd serve`: the daemon in the foreground.

use clap::Args;

use super::ConfigSources;
use super::exit::{Exit, Failure, Outcome};

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd serve
  kvd serve --config /etc/kvd.toml
  kvd serve --set data_dir=/var/lib/kvd --set tiers.dram.capacity=64GiB
  KVD__LOG__LEVEL=debug kvd serve

SIGHUP reads the configuration again, SIGTERM and SIGINT stop the daemon.";

/// `kvd serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    sources: ConfigSources,
}

/// Serves until a signal.
///
/// # Errors
/// The configuration is refused, or the daemon cannot start.
pub fn run(args: &ServeArgs) -> Outcome {
    let machine = crate::machine::SystemMachine::default();
    let loaded = args.sources.load()?;
    let _remarks = loaded.checked(&machine)?;
    Err(Failure::new(Exit::Failure, "not wired"))
}
