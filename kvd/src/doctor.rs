//! Checks of machine and configuration: each says what is wrong, how bad it is and what to do about it.
//!
//! The machine comes in as [`Machine`](crate::machine::Machine), so that every fault can be seeded in a test. The
//! checks of [`config::check`] are part of the examination: what stops a start is found here first.

use serde::Serialize;

use crate::config::{self, Config, Severity, Sources};
use crate::machine::Machine;

mod checks;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, or what is well.
    pub cause: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// All findings, worst first.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How many checks were made.
    pub checks: usize,
    /// How many found an error.
    pub failed: usize,
    /// How many found something that could be better.
    pub warnings: usize,
    /// One for each thing found, and one for each check that found nothing.
    pub findings: Vec<Finding>,
}

/// One check.
struct Check {
    name: &'static str,
    run: fn(&Config, &dyn Machine, &mut Notes),
}

/// Where a check writes what it finds.
struct Notes {
    check: &'static str,
    findings: Vec<Finding>,
}

impl Notes {
    fn say(&mut self, severity: Severity, cause: impl Into<String>, remedy: Option<String>) {
        self.findings.push(Finding { check: self.check, severity, cause: cause.into(), remedy });
    }

    fn ok(&mut self, cause: impl Into<String>) {
        self.say(Severity::Ok, cause, None);
    }

    fn warn(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.say(Severity::Warning, cause, Some(remedy.into()));
    }

    fn fail(&mut self, cause: impl Into<String>, remedy: impl Into<String>) {
        self.say(Severity::Error, cause, Some(remedy.into()));
    }
}

/// Runs every check for the configuration of these sources on this machine.
pub fn examine(sources: &Sources, machine: &dyn Machine) -> Report {
    let mut findings = Vec::new();
    let from_problem = |problem: config::Problem| Finding {
        check: "config",
        severity: problem.severity,
        cause: config::Problem { severity: Severity::Error, remedy: None, ..problem.clone() }.to_string(),
        remedy: problem.remedy,
    };
    let mut checks = 1;
    match config::load(sources, machine) {
        Err(error) => findings.extend(error.problems.into_iter().map(from_problem)),
        Ok(loaded) => {
            let problems = config::check(&loaded, machine);
            if problems.is_empty() {
                findings.push(Finding {
                    check: "config",
                    severity: Severity::Ok,
                    cause: "fits together and fits this machine".into(),
                    remedy: None,
                });
            }
            findings.extend(problems.into_iter().map(from_problem));
            for check in checks::ALL {
                let mut notes = Notes { check: check.name, findings: Vec::new() };
                (check.run)(&loaded.config, machine, &mut notes);
                findings.append(&mut notes.findings);
                checks += 1;
            }
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    Report { checks, failed: count(Severity::Error), warnings: count(Severity::Warning), findings }
}

#[cfg(test)]
mod tests;
