//! Keeps the process joined: notices the end of a session, waits until nothing of it is under way, joins the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::sys::Signal;
use kvd_proto::Epoch;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;

use super::Shared;
use crate::session::{CONTROL_WAIT, Session, connect, timespec};

const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// After a session in which the daemon served.
const BACKOFF_SERVED_MAX: Duration = Duration::from_millis(50);
/// How often the keeper looks whether the last copy of an ended session is over.
const DRAIN_LOOK: Duration = Duration::from_millis(2);

/// The keeper's thread. Ends when the last handle of the engine has gone.
pub(super) fn keep_joined(shared: &Shared, mut session: Option<Arc<Session>>) {
    let mut replaces = None;
    let mut backoff = BACKOFF_MIN;
    loop {
        if let Some(open) = session.take() {
            let joined = Instant::now();
            wait_for_end(shared, &open);
            if shared.stopping() && !open.link.is_down() {
                open.goodbye();
            }
            open.link.shut();
            shared.publish(None);
            drain(shared, &open);
            if open.is_copying() {
                // A device that hangs has some of its slots. To let go of the others' pins could wait for it, too.
                std::mem::forget((open.clone(), shared.kept.clone()));
            }
            replaces = Some((open.terms.epoch, open.terms.client_slot));
            // A daemon that greets and hangs up is not asked without a pause; one that served a moment is back soon, as often as that
            // happens.
            if joined.elapsed() >= BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            } else if !shared.stopping() {
                let most = if open.link.has_answered() { BACKOFF_SERVED_MAX } else { BACKOFF_MAX };
                backoff = backoff.min(most);
                sleep(shared, backoff);
                backoff = (backoff * 2).min(most);
            }
        }
        if shared.stopping() {
            return;
        }
        session = join(shared, replaces);
        match &session {
            Some(joined) => {
                shared.publish(Some(joined.clone()));
                // The daemon may have an arena of its own again. Unmapped and unpinned beside the engine's calls.
                shared.kept.let_go_of_stale();
            }
            None => {
                sleep(shared, backoff);
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

fn join(shared: &Shared, replaces: Option<(Epoch, u32)>) -> Option<Arc<Session>> {
    let greeting = crate::session::Greeting { replaces, ..shared.greeting() };
    let deadline = Instant::now() + CONTROL_WAIT;
    let session = connect(&shared.options.socket, &greeting, shared.wake.clone(), &shared.kept, deadline).ok()?;
    Some(Arc::new(session))
}

/// Returns when the daemon has hung up, the link has failed, or the engine goes.
fn wait_for_end(shared: &Shared, session: &Session) {
    while !shared.stopping() && !session.link.is_down() {
        let hangup = PollFd::from_borrowed_fd(session.control.socket(), PollFlags::RDHUP);
        let wake = PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN);
        let mut fds = [hangup, wake];
        match poll(&mut fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => return,
            Ok(_) => drop(shared.wake.drain()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Before a rejoin nothing of the old session may touch the arena: the new Hello says so. A thread that was stopped in the
/// middle of a copy keeps this process out, and only itself in danger.
fn drain(shared: &Shared, session: &Session) {
    while session.is_copying() && !shared.stopping() {
        std::thread::sleep(DRAIN_LOOK);
    }
}

/// Sleeps, but not longer than the engine lives.
fn sleep(shared: &Shared, time: Duration) {
    let mut fds = [PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN)];
    // Woken early it tries early.
    let _ = poll(&mut fds, Some(&timespec(time)));
    let _ = shared.wake.drain();
}
