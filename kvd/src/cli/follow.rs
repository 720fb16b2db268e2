//! Long work of the daemon, followed to its end by a bar.

use tonic::{Status, Streaming};

use super::output::Output;
use crate::service::proto::{self, Progress};

/// A report of progress, whatever its message is called.
pub(super) trait Step {
    /// How far it is.
    fn progress(&self) -> Option<Progress>;
}

macro_rules! steps {
    ($($message:ident),*) => {$(
        impl Step for proto::$message {
            fn progress(&self) -> Option<Progress> {
                self.progress
            }
        }
    )*};
}
steps!(PurgeResponse, DrainResponse, ScrubResponse);

/// The last report, and what it says of progress.
pub(super) async fn follow<S: Step>(
    mut stream: Streaming<S>,
    output: Output,
    what: &str,
) -> Result<(Progress, S), Status> {
    let bar = output.progress(0, what);
    let mut last = None;
    while let Some(step) = stream.message().await? {
        if let Some(progress) = step.progress() {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
            last = Some((progress, step));
        }
    }
    bar.finish_and_clear();
    last.filter(|(progress, _)| progress.finished)
        .ok_or_else(|| Status::unavailable("the daemon ended the work before it was done"))
}
