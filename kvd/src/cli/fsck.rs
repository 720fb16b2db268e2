//! `kvd fsck`.
use super::exit::Outcome;
use super::output::Output;
/// args
#[derive(Debug, clap::Args)]
pub struct FsckArgs {
    #[command(flatten)]
    sources: super::ConfigSources,
}
/// run
pub fn run(args: &FsckArgs, _output: Output) -> Outcome {
    args.sources.load()?;
    Ok(super::exit::Exit::Ok)
}
