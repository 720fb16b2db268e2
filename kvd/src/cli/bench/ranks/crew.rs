//! The processes of one engine: orders by line on standard input, answers by line of JSON on standard output.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::rank::Answer;
use super::{RanksArgs, failed};
use crate::cli::bench::node::Node;
use crate::cli::exit::Failure;

/// One process for each rank, gone with the value.
pub(super) struct Crew(Vec<Rank>);

struct Rank {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Crew {
    /// Starts the ranks of a size, and waits until each has its memory.
    pub(super) fn start(node: &Node, size: u16, args: &RanksArgs) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let mut crew = Self(Vec::new());
        for rank in 0..size {
            let mut command = Command::new(&program);
            command.args(["bench", "ranks", "--rank", &format!("{rank}/{size}"), "--mib", &args.mib.to_string()]);
            command.arg("--socket").arg(node.socket());
            if args.twin {
                command.arg("--twin");
            } else {
                let gpus = args.gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
                command.args(["--gpus", &gpus]);
            }
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let stdout = child.stdout.take().ok_or_else(|| failed("a rank without an output"))?;
            crew.0.push(Rank { child, answers: BufReader::new(stdout) });
        }
        crew.order("fill")?;
        Ok(crew)
    }

    /// Lets all ranks do it at the same time, and waits for the last; the sum of what they counted.
    pub(super) fn order(&mut self, order: &str) -> Result<u64, Failure> {
        for rank in &mut self.0 {
            let input = rank.child.stdin.as_mut().ok_or_else(|| failed("a rank without an input"))?;
            writeln!(input, "{order}")?;
        }
        self.0.iter_mut().try_fold(0, |sum, rank| {
            let mut line = String::new();
            rank.answers.read_line(&mut line)?;
            match serde_json::from_str(&line) {
                Ok(Answer::Done(count)) => Ok(sum + count),
                Ok(Answer::Failed(why)) => Err(failed(format!("a rank that shall {order}: {why}"))),
                Err(_) => Err(failed(format!("a rank that shall {order} has ended"))),
            }
        })
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            // It ends with its input; what counts is that it does.
            drop(rank.child.stdin.take());
            let _ = rank.child.wait();
        }
    }
}
