//! `kvd config`: check, explain, show, schema, reload.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::admin::Admin;
use super::exit::{Exit, Failure, Outcome};
use super::output::{Output, pairs, table};
use super::{ConfigSources, Connection};
use crate::config::{self, Problem, Severity, Sources};
use crate::machine::SystemMachine;
use crate::service::proto;

pub(super) const EXAMPLES: &str = "\
Examples:
  kvd config check --config /etc/kvd.toml
  kvd config explain tiers.dram.capacity
  kvd config show --set tiers.dram.capacity=8GiB
  kvd config schema > kvd.schema.json";

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Tell everything that is wrong, with file, line, key and remedy; ends with 6 when the daemon would not start.
    #[command(
        after_help = "Examples:\n  kvd config check --config /etc/kvd.toml\n  kvd config check --set tiers.dram.capacity=64GiB --json"
    )]
    Check(ConfigSources),
    /// Explain one key, or list all.
    #[command(after_help = "Examples:\n  kvd config explain\n  kvd config explain gate.enabled")]
    Explain {
        /// The key, such as tiers.dram.capacity.
        key: Option<String>,
    },
    /// Print every value in force and where it was set.
    #[command(after_help = "Examples:\n  kvd config show --config /etc/kvd.toml\n  kvd config show --running")]
    Show(ShowArgs),
    /// Print the JSON schema of the file.
    #[command(after_help = "Examples:\n  kvd config schema > kvd.schema.json")]
    Schema,
    /// Print the reference of all keys in Markdown.
    #[command(after_help = "Examples:\n  kvd config reference > docs/configuration.md")]
    Reference,
    /// Let the running daemon read its configuration again.
    #[command(after_help = "Examples:\n  kvd config reload")]
    Reload(Connection),
}

/// `kvd config show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    sources: ConfigSources,
    /// What the running daemon uses, instead of what one started now would.
    #[arg(long)]
    running: bool,
    #[command(flatten)]
    connection: Connection,
}

impl ConfigSources {
    /// Loads them with the environment of this process.
    pub(super) fn load(&self) -> Result<config::Loaded, config::ConfigError> {
        config::load(&self.sources(), &SystemMachine::default())
    }

    /// These sources and the environment of this process.
    pub(super) fn sources(&self) -> Sources {
        Sources::of_process(self.config.clone(), self.assignments.clone())
    }
}

/// Runs one of them.
///
/// # Errors
/// The configuration is wrong, or the daemon does not answer.
pub fn run(command: &ConfigCommand, output: Output) -> Outcome {
    match command {
        ConfigCommand::Check(sources) => check(sources, output),
        ConfigCommand::Explain { key } => explain(key.as_deref(), output),
        ConfigCommand::Show(args) => show(args, output),
        ConfigCommand::Schema => {
            output.show(&config::schema(), |schema| format!("{schema:#}"))?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Reference => {
            output.show(&config::reference_markdown(), Clone::clone)?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Reload(connection) => reload(connection, output),
    }
}

#[derive(Serialize)]
struct Checked {
    ok: bool,
    problems: Vec<Problem>,
}

fn check(sources: &ConfigSources, output: Output) -> Outcome {
    let problems = match sources.load() {
        Ok(loaded) => config::check(&loaded, &SystemMachine::default()),
        Err(error) => error.problems,
    };
    let ok = problems.iter().all(|problem| problem.severity != Severity::Error);
    output.show(&Checked { ok, problems }, |checked| {
        let mut text: String = checked.problems.iter().map(|problem| format!("{problem}\n")).collect();
        text.push_str(if checked.ok { "ok: the daemon would start" } else { "refused: the daemon would not start" });
        text
    })?;
    Ok(if ok { Exit::Ok } else { Exit::CheckFailed })
}

#[derive(Serialize)]
struct Explained {
    key: String,
    description: String,
    takes: String,
    default: String,
    example: String,
    environment: String,
    reloadable: bool,
}

impl From<config::Key> for Explained {
    fn from(key: config::Key) -> Explained {
        Explained {
            environment: key.variable(),
            key: key.path,
            description: key.description,
            takes: key.kind,
            default: key.default,
            example: key.example,
            reloadable: key.reloadable,
        }
    }
}

fn explain(key: Option<&str>, output: Output) -> Outcome {
    let Some(path) = key else {
        let all: Vec<Explained> = config::keys().into_iter().map(Explained::from).collect();
        output.show(&all, |all| {
            table(
                &["key", "takes", "default"],
                all.iter().map(|key| vec![key.key.clone(), key.takes.clone(), key.default.clone()]),
            )
        })?;
        return Ok(Exit::Ok);
    };
    let Some(key) = config::find(path) else {
        let failure = Failure::new(Exit::NotFound, format!("unknown key `{path}`"));
        return Err(failure.remedy(match config::suggest(path, &config::keys()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`kvd config explain` lists every key".to_owned(),
        }));
    };
    output.show(&Explained::from(key), |key| {
        let change = if key.reloadable { "at once: SIGHUP or `kvd config reload`" } else { "at the next start" };
        let rows = pairs(&[
            ("takes", key.takes.clone()),
            ("default", key.default.clone()),
            ("example", format!("{} = {}", key.key, key.example)),
            ("environment", key.environment.clone()),
            ("changes", change.to_owned()),
        ]);
        format!("{}\n{}\n\n{rows}", key.key, key.description)
    })?;
    Ok(Exit::Ok)
}

fn show(args: &ShowArgs, output: Output) -> Outcome {
    let reply = if args.running {
        args.connection
            .run(async |mut admin: Admin| Ok(admin.get_config(proto::GetConfigRequest {}).await?.into_inner()))?
    } else {
        proto::GetConfigResponse { values: crate::service::config_values(&args.sources.load()?) }
    };
    output.show(&reply, |reply| {
        let rows = reply.values.iter().map(|value| vec![value.key.clone(), value.value.clone(), value.origin.clone()]);
        table(&["key", "value", "from"], rows)
    })?;
    Ok(Exit::Ok)
}

fn reload(connection: &Connection, output: Output) -> Outcome {
    let reply = connection
        .run(async |mut admin: Admin| Ok(admin.reload_config(proto::ReloadConfigRequest {}).await?.into_inner()))?;
    output.show(&reply, |reply| {
        let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        format!("changed: {}\nneeds a restart: {}", list(&reply.applied), list(&reply.needs_restart))
    })?;
    Ok(Exit::Ok)
}
