//! How a command ends: a code for scripts, a sentence for people.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

/// The exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed; the message says why.
    Failure = 1,
    /// Wrong arguments or a wrong configuration; nothing was done.
    Usage = 2,
    /// No daemon answers on the socket, or not in time.
    Unavailable = 3,
    /// What was asked for is not there.
    NotFound = 4,
    /// Not allowed, or not confirmed.
    Denied = 5,
    /// A check failed, or the daemon runs degraded.
    CheckFailed = 6,
    /// Another daemon holds the data folder or the socket.
    AlreadyRunning = 7,
}

impl Exit {
    /// All of them, in the order of their codes.
    pub const ALL: [Exit; 8] = [
        Exit::Ok,
        Exit::Failure,
        Exit::Usage,
        Exit::Unavailable,
        Exit::NotFound,
        Exit::Denied,
        Exit::CheckFailed,
        Exit::AlreadyRunning,
    ];

    /// The code that the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for docs/exit-codes.md.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Ok => "Done.",
            Exit::Failure => "Failed; the message on standard error says why.",
            Exit::Usage => "Wrong arguments or a wrong configuration; nothing was done.",
            Exit::Unavailable => "No daemon answers on the socket, or it did not answer in time.",
            Exit::NotFound => "What was asked for is not there.",
            Exit::Denied => "Not allowed, or not confirmed (`--yes`).",
            Exit::CheckFailed => {
                "A check failed (`doctor`, `fsck`, `object verify`, `config check`, `scrub`, `drain`), or the daemon runs degraded (`status`)."
            }
            Exit::AlreadyRunning => "Another daemon holds the data folder or the socket.",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// docs/exit-codes.md, from the source.
pub fn exit_codes_markdown() -> String {
    let mut text = String::from(
        "# Exit codes\n\nEvery command of `kvd` ends with one of these; a test compares this page with the source.\n\n| code | meaning |\n|---|---|\n",
    );
    for exit in Exit::ALL {
        text.push_str(&format!("| {} | {} |\n", exit.code(), exit.meaning()));
    }
    text.push_str("\n`kvd demo` and `kvd bench object` that are interrupted end with 130, as shells count SIGINT.\n");
    text
}

/// Why a command did not do what it should.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The code to end with.
    pub code: Exit,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: Exit, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), remedy: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Failure {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        // A reader that has seen enough (`kvd sessions | head`) is no mistake of anybody.
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { Exit::Ok } else { Exit::Failure };
        Failure::new(code, error.to_string())
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        Failure::new(Exit::Usage, error.to_string())
    }
}

/// What a command function gives back.
pub type Outcome = Result<Exit, Failure>;
