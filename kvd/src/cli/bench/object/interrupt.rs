//! SIGINT and SIGTERM: what runs ends early, and everything that the bench made goes as at any other end.

use std::thread;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::exit::{Exit, Failure};

/// How the bench ends when it was interrupted: what shells say of SIGINT.
const INTERRUPTED: i32 = 130;

/// Whether a signal came.
#[derive(Clone, Debug)]
pub(super) struct Interrupt {
    came: watch::Receiver<bool>,
}

impl Interrupt {
    /// From now on the first signal is told to those that ask, and a second one ends the process at once.
    pub(super) fn watch() -> Result<Interrupt, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupt, mut terminate) = {
            let _within = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let (tell, came) = watch::channel(false);
        let wait = move || {
            for again in [false, true] {
                runtime.block_on(async {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                });
                if again {
                    std::process::exit(INTERRUPTED);
                }
                eprintln!("\nkvd: interrupted; taking away what lies in the bucket");
                let _ = tell.send(true);
            }
        };
        thread::Builder::new().name("kvd-signals".into()).spawn(wait)?;
        Ok(Interrupt { came })
    }

    /// Whether one came.
    pub(super) fn came(&self) -> bool {
        *self.came.borrow()
    }

    /// An error once one came.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.came() { Err(interrupted()) } else { Ok(()) }
    }

    /// The work, or an error as soon as a signal comes: what was being waited for is dropped.
    pub(super) async fn or<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut came = self.came.clone();
        tokio::select! {
            done = work => done,
            // The sender lives as long as the process.
            _ = came.wait_for(|came| *came) => Err(interrupted()),
        }
    }

    /// Ends the process as shells expect it, where a signal came.
    pub(super) fn end(&self) {
        if self.came() {
            std::process::exit(INTERRUPTED);
        }
    }
}

fn interrupted() -> Failure {
    Failure::new(Exit::Failure, "interrupted")
}
