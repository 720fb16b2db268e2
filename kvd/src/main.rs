//! The kvd program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    kvd::cli::main()
}
