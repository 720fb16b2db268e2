//! `kvd doctor` on the command line.

use clap::Args;

use super::ConfigSources;
use super::exit::{Exit, Outcome};
use super::output::{Output, colours};
use crate::config::Severity;
use crate::doctor::{Report, examine};
use crate::machine::SystemMachine;

/// `kvd doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    sources: ConfigSources,
    /// Show the checks that passed too.
    #[arg(long, short)]
    verbose: bool,
}

/// Examines this machine.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &DoctorArgs, output: Output) -> Outcome {
    let report = examine(&args.sources.sources(), &SystemMachine::default());
    output.show(&report, |report| text(report, args.verbose))?;
    Ok(if report.failed == 0 { Exit::Ok } else { Exit::CheckFailed })
}

fn text(report: &Report, verbose: bool) -> String {
    let colour = |severity: Severity| match severity {
        _ if !colours() => ("", ""),
        Severity::Ok => ("\x1b[32m", "\x1b[0m"),
        Severity::Warning => ("\x1b[33m", "\x1b[0m"),
        Severity::Error => ("\x1b[31m", "\x1b[0m"),
    };
    let mut text = String::new();
    for finding in &report.findings {
        if finding.severity == Severity::Ok && !verbose {
            continue;
        }
        let (on, off) = colour(finding.severity);
        text.push_str(&format!(
            "{on}{:7}{off}  {:18}  {}\n",
            finding.severity.to_string(),
            finding.check,
            finding.cause
        ));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("{:29}remedy: {remedy}\n", ""));
        }
    }
    text.push_str(&format!("{} checks: {} failed, {} warnings\n", report.checks, report.failed, report.warnings));
    text
}
