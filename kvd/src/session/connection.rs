//! One connection: bounded buffers in both directions, and when its peer is cut for being slow.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kvd_nixl::sys::{PeerCredentials, Pidfd, recv_with_fds, send_with_fds};
use kvd_proto::Time;
use kvd_proto::wire::session::{Body, FrameError, decode_frame, encode_frame};

use crate::session::SessionId;

/// How long a peer may take over its Hello, over the rest of a frame that it has begun, or to take an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Answers that may wait for a peer; while they do, nothing more is read from it.
const ANSWERS_WAITING_MAX: usize = 8;
const READ_BYTES: usize = 16 * 1024;
/// Reads in one go, so that one busy peer does not starve the others.
const READS_PER_TURN: usize = 4;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its Hello has not come.
    Greeting,
    /// A session.
    Open(SessionId),
    /// The socket is gone, the process lives.
    Detached(SessionId),
    /// Closes once its last answer is out.
    Closing,
}

/// An answer on its way.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// What reading came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// The peer is there.
    Open,
    /// It closed its end, or the socket failed.
    HungUp,
}

/// One peer.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Option<UnixStream>,
    pub(super) pidfd: Pidfd,
    pub(super) credentials: PeerCredentials,
    pub(super) stage: Stage,
    inbox: Vec<u8>,
    outbox: VecDeque<Outgoing>,
    /// When the peer must have gone on.
    cut_at: Option<Time>,
}

impl Connection {
    pub(super) fn new(socket: UnixStream, pidfd: Pidfd, credentials: PeerCredentials, now: Time) -> Self {
        Self {
            socket: Some(socket),
            pidfd,
            credentials,
            stage: Stage::Greeting,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            cut_at: Some(now.after(PATIENCE)),
        }
    }

    /// A process of an earlier epoch of which only the death matters.
    pub(super) fn watch(session: SessionId, pidfd: Pidfd) -> Self {
        Self {
            socket: None,
            pidfd,
            credentials: PeerCredentials { pid: None, uid: u32::MAX, gid: u32::MAX },
            stage: Stage::Detached(session),
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            cut_at: None,
        }
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Closes the socket; the process is still watched.
    pub(super) fn close_socket(&mut self) {
        self.socket = None;
        self.inbox = Vec::new();
        self.outbox.clear();
        self.cut_at = None;
    }

    pub(super) const fn cut_at(&self) -> Option<Time> {
        self.cut_at
    }

    /// Whether answers wait for the peer, so that the socket must be watched for room and nothing more is read.
    pub(super) fn is_writing(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether a whole message was read that has not been taken: nothing more is read before it is, so that a peer that
    /// sends faster than it is served waits, and its inbox does not grow.
    pub(super) fn has_message(&self) -> bool {
        received_enough(&self.inbox)
    }

    pub(super) fn has_room(&self) -> bool {
        self.outbox.len() < ANSWERS_WAITING_MAX
    }

    /// Reads what is there, a bounded piece of it.
    pub(super) fn read(&mut self) -> Read {
        let Some(socket) = &self.socket else { return Read::HungUp };
        let mut piece = [0; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            // Descriptors that a client sends are nothing that we asked for: dropping closes them.
            match recv_with_fds(socket.as_fd(), &mut piece) {
                Ok(received) if received.bytes == 0 => return Read::HungUp,
                Ok(received) => self.inbox.extend_from_slice(&piece[..received.bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Open,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Read::HungUp,
            }
            if received_enough(&self.inbox) {
                return Read::Open;
            }
        }
        Read::Open
    }

    /// The next whole message.
    pub(super) fn next_message(&mut self) -> Result<Option<Body>, FrameError> {
        let Some((body, used)) = decode_frame(&self.inbox)? else { return Ok(None) };
        self.inbox.drain(..used);
        self.cut_at = None;
        Ok(Some(body))
    }

    /// Queues an answer. Ours are small, so encoding cannot fail for length.
    pub(super) fn answer(&mut self, body: Body, fds: Vec<OwnedFd>) {
        match encode_frame(body) {
            Ok(bytes) => self.outbox.push_back(Outgoing { bytes, sent: 0, fds }),
            Err(error) => tracing::error!(%error, "an answer that does not fit a frame was dropped"),
        }
    }

    /// Sends what the peer takes.
    pub(super) fn flush(&mut self) -> Read {
        let Some(socket) = &self.socket else { return Read::HungUp };
        while let Some(answer) = self.outbox.front_mut() {
            let fds: Vec<_> = answer.fds.iter().map(AsFd::as_fd).collect();
            match send_with_fds(socket.as_fd(), &answer.bytes[answer.sent..], &fds) {
                Ok(sent) => {
                    answer.sent += sent;
                    if sent > 0 {
                        answer.fds.clear();
                    }
                    if answer.sent == answer.bytes.len() {
                        self.outbox.pop_front();
                        self.cut_at = None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Open,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Read::HungUp,
            }
        }
        Read::Open
    }

    /// Sets the time by which the peer must go on: an open session that owes us nothing may be silent for ever.
    pub(super) fn renew_patience(&mut self, now: Time) {
        let owes = match self.stage {
            Stage::Greeting | Stage::Closing => true,
            Stage::Open(_) => self.is_writing() || !self.inbox.is_empty(),
            Stage::Detached(_) => false,
        };
        self.cut_at = match (owes, self.cut_at) {
            (false, _) => None,
            // Bytes that trickle do not renew it; a whole message or answer does.
            (true, Some(at)) => Some(at),
            (true, None) => Some(now.after(PATIENCE)),
        };
    }
}

/// A whole frame and more is there: decode before reading on, so that the inbox stays bounded.
fn received_enough(inbox: &[u8]) -> bool {
    inbox.first_chunk::<4>().is_some_and(|length| inbox.len() - 4 >= u32::from_le_bytes(*length) as usize)
}
