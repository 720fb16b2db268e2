//! The kvd program.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvd::cli::main()
}
