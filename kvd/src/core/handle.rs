//! How other threads speak to the core.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use kvd_nixl::sys::{EventFd, Signal};
use kvd_proto::Epoch;
use tokio::sync::oneshot;

use crate::core::admin::{AdminCommand, AdminError, AdminReply};
use crate::metrics::counters::Counters;

/// Admin commands that may wait for the core; operators are few and each command is bounded work.
const COMMANDS_WAITING_MAX: usize = 64;

/// A command and where its answer goes.
pub(crate) struct Asked {
    pub(crate) command: AdminCommand,
    pub(crate) answer: oneshot::Sender<Result<AdminReply, AdminError>>,
}

/// Speaks to the core thread. Cheap to clone; works from async and blocking code.
#[derive(Clone)]
pub struct CoreHandle {
    commands: Sender<Asked>,
    doorbell: Arc<EventFd>,
    counters: Arc<Counters>,
    epoch: Epoch,
}

impl CoreHandle {
    /// A handle, and the core's end of it.
    pub(crate) fn new(doorbell: Arc<EventFd>, counters: Arc<Counters>, epoch: Epoch) -> (Self, Receiver<Asked>) {
        let (commands, receiver) = bounded(COMMANDS_WAITING_MAX);
        (Self { commands, doorbell, counters, epoch }, receiver)
    }

    /// Asks the core. Dropping the future leaves the command to be carried out unheard.
    pub async fn ask(&self, command: AdminCommand) -> Result<AdminReply, AdminError> {
        self.send(command)?.await.map_err(|_| AdminError::Stopping)?
    }

    /// Asks the core from a thread without a runtime.
    pub fn ask_blocking(&self, command: AdminCommand) -> Result<AdminReply, AdminError> {
        self.send(command)?.blocking_recv().map_err(|_| AdminError::Stopping)?
    }

    fn send(&self, command: AdminCommand) -> Result<oneshot::Receiver<Result<AdminReply, AdminError>>, AdminError> {
        let (answer, receiver) = oneshot::channel();
        match self.commands.try_send(Asked { command, answer }) {
            Ok(()) => {
                // A lost wake-up delays the answer to the core's next turn, no more.
                let _ = self.doorbell.signal();
                Ok(receiver)
            }
            Err(TrySendError::Full(_)) => Err(AdminError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(AdminError::Stopping),
        }
    }

    /// What the daemon counts.
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The number of this start.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }
}
