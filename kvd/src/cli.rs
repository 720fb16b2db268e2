//! The command line of `kvd`: one binary for the daemon, its operator and its benches.
//!
//! Every command prints tables for people and one JSON object with `--json`; progress and errors go to standard error;
//! the exit codes are those of [`exit::Exit`]. This is the only part of the crate that may use `kvd-client`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use exit::{Exit, Failure, Outcome};
use output::Output;

pub mod act;
pub mod admin;
pub mod bench;
pub mod configure;
pub mod demo;
pub mod exit;
mod follow;
pub mod fsck;
pub mod look;
pub mod object;
pub mod output;
pub mod replay;
pub mod scrub;
pub mod selftest;
pub mod serve;
pub mod tiers;
pub mod top;

const EXAMPLES: &str = "\
Examples:
  kvd serve                                    serve from a private data folder, DRAM and NVMe on
  kvd status                                   is it well?
  kvd explain 5f3a...                          why is this block a hit or a miss?
  kvd doctor                                   what is wrong with this machine?

Exit codes: 0 ok, 1 failure, 2 usage, 3 unavailable, 4 not found, 5 denied, 6 degraded or check failed, 7 already running";

/// KV cache daemon of a GPU node.
#[derive(Debug, Parser)]
#[command(name = "kvd", version, about, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print one JSON object instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// Where the daemon is, and how long to wait for it.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// The engine socket of the daemon; the admin socket is this followed by .admin.
    #[arg(long, env = "KVD_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The admin socket, where the configuration moved it.
    #[arg(long, env = "KVD_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// How long to wait for an answer; 10 s, or 1 h for drain, purge and scrub.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout: Option<std::time::Duration>,
}

/// Where the configuration is.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigSources {
    /// TOML configuration file; without one, defaults for this machine are used.
    #[arg(long, env = "KVD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, over file and environment; may be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub assignments: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    #[command(after_help = serve::EXAMPLES)]
    Serve(serve::ServeArgs),
    /// Show how the daemon is; ends with 6 when it is degraded.
    #[command(after_help = "Examples:\n  kvd status\n  kvd status --json | jq .state\n  kvd status --metrics")]
    Status(look::StatusArgs),
    /// Watch the daemon: hits, tiers and devices, refreshed.
    #[command(after_help = "Examples:\n  kvd top\n  kvd top --interval 5s\n  kvd top --json --count 1")]
    Top(top::TopArgs),
    /// List the tiers: size, use, bandwidth; or show the object tier in full.
    #[command(after_help = tiers::EXAMPLES)]
    Tiers(tiers::TiersArgs),
    /// List the NVMe devices and their errors.
    #[command(after_help = "Examples:\n  kvd devices\n  kvd devices --json | jq '.devices[].errors'")]
    Devices(Connection),
    /// List the engine processes that are joined.
    #[command(after_help = "Examples:\n  kvd sessions\n  kvd sessions --limit 10 --json")]
    Sessions(look::ListArgs),
    /// List the namespaces (model, layout, dtype) and what they hold.
    #[command(after_help = "Examples:\n  kvd namespaces\n  kvd namespaces --json | jq -r '.namespaces[].digest'")]
    Namespaces(look::ListArgs),
    /// List the leases: who holds which memory.
    #[command(after_help = "Examples:\n  kvd leases\n  kvd leases --json | jq '[.leases[].bytes] | add'")]
    Leases(look::ListArgs),
    /// Keep blocks from falling until they are unpinned.
    #[command(after_help = "Examples:\n  kvd pin 5f3a... 77c0...\n  kvd pin --namespace 9c41 5f3a...")]
    Pin(act::SelectionArgs),
    /// Let pinned blocks fall again.
    #[command(after_help = "Examples:\n  kvd unpin 5f3a...")]
    Unpin(act::SelectionArgs),
    /// Drop blocks from one tier, or from all.
    #[command(after_help = "Examples:\n  kvd evict 5f3a...\n  kvd evict --tier dram --yes 5f3a...")]
    Evict(act::EvictArgs),
    /// Forget a namespace, or everything.
    #[command(
        after_help = "Examples:\n  kvd purge --namespace 9c41\n  kvd purge --tenant default\n  kvd purge --all --yes"
    )]
    Purge(act::PurgeArgs),
    /// Bring blocks from NVMe to DRAM ahead of use.
    #[command(after_help = "Examples:\n  kvd prefetch 5f3a... 77c0...")]
    Prefetch(act::SelectionArgs),
    /// Write to NVMe what only DRAM holds, and wait for it.
    #[command(after_help = "Examples:\n  kvd drain\n  kvd drain --timeout 5m --json")]
    Drain(Connection),
    /// Verify every record at rest; ends with 6 when one was corrupt.
    #[command(after_help = scrub::EXAMPLES)]
    Scrub(scrub::ScrubArgs),
    /// Say why a block is a hit or a miss; ends with 4 when nothing knows it.
    #[command(after_help = "Examples:\n  kvd explain 5f3a0c...\n  kvd explain --namespace 9c41 --json 5f3a0c...")]
    Explain(look::ExplainArgs),
    /// Check machine and configuration; ends with 6 when a check fails.
    #[command(after_help = "Examples:\n  kvd doctor\n  kvd doctor --config /etc/kvd.toml --json")]
    Doctor(selftest::DoctorArgs),
    /// Check, explain and show the configuration.
    #[command(subcommand, after_help = configure::EXAMPLES)]
    Config(configure::ConfigCommand),
    /// Verify the NVMe files of a stopped daemon without writing to them; ends with 6 when one is damaged.
    #[command(after_help = "Examples:\n  kvd fsck\n  kvd fsck --set data_dir=/var/lib/kvd --json")]
    Fsck(fsck::FsckArgs),
    /// List, verify or clean up what lies in the object tier's store.
    #[command(subcommand, after_help = object::EXAMPLES)]
    Object(object::ObjectCommand),
    /// Play a trace of real requests as one or more engines, every loaded byte checked.
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),
    /// Show it all in a few minutes: serve, replay, SIGKILL half way, restart, and what survived.
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Measure what this product promises on this machine.
    #[command(subcommand, after_help = bench::EXAMPLES)]
    Bench(bench::BenchCommand),
    /// Print the completions of a shell.
    #[command(
        after_help = "Examples:\n  kvd completions bash > /etc/bash_completion.d/kvd\n  kvd completions fish > ~/.config/fish/completions/kvd.fish"
    )]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as errors too; they go to standard output and end well.
            let code = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            return match error.print() {
                Ok(()) => code.into(),
                Err(_) => Exit::Failure.into(),
            };
        }
    };
    let output = Output::new(cli.json);
    match run(cli.command, output) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            report(&failure, output);
            failure.code.into()
        }
    }
}

fn run(command: Command, output: Output) -> Outcome {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Status(args) => look::status(&args, output),
        Command::Top(args) => top::run(&args, output),
        Command::Tiers(args) => tiers::run(&args, output),
        Command::Devices(connection) => look::devices(&connection, output),
        Command::Sessions(args) => look::sessions(&args, output),
        Command::Namespaces(args) => look::namespaces(&args, output),
        Command::Leases(args) => look::leases(&args, output),
        Command::Pin(args) => act::pin(&args, output),
        Command::Unpin(args) => act::unpin(&args, output),
        Command::Evict(args) => act::evict(&args, output),
        Command::Purge(args) => act::purge(&args, output),
        Command::Prefetch(args) => act::prefetch(&args, output),
        Command::Drain(connection) => act::drain(&connection, output),
        Command::Scrub(args) => scrub::run(&args, output),
        Command::Explain(args) => look::explain(&args, output),
        Command::Doctor(args) => selftest::run(&args, output),
        Command::Config(command) => configure::run(&command, output),
        Command::Fsck(args) => fsck::run(&args, output),
        Command::Object(command) => object::run(&command, output),
        Command::Replay(args) => replay::run(&args, output),
        Command::Demo(args) => demo::run(&args, output),
        Command::Bench(command) => bench::run(&command, output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kvd", &mut io::stdout());
            Ok(Exit::Ok)
        }
    }
}

fn report(failure: &Failure, output: Output) {
    if failure.code == Exit::Ok {
        return;
    }
    if output.is_json() {
        let object = serde_json::json!({ "error": failure });
        eprintln!("{object}");
    } else {
        eprintln!("kvd: {failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.len() > 10, "{} says nothing of itself", command.get_name());
            if command.get_name() != "help" {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(&format!("kvd {}", command.get_name())), "{} has no example", command.get_name());
            }
        }
    }
}
