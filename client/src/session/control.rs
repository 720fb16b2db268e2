//! Messages on the session's socket: one exchange at a time, each with a deadline.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use kvd_nixl::sys::{recv_with_fds, send_with_fds};
use kvd_proto::wire::session::{Body, decode_frame, encode_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const READ_BYTES: usize = 16 * 1024;
/// Descriptors that may wait for their message: those of a Welcome and of a few segments that came too late.
const FDS_MAX: usize = 16;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlError {
    /// The deadline passed. The answer may still come; the next exchange skips it.
    Timeout,
    /// The socket is at its end, or the peer does not speak the protocol.
    Broken,
}

/// The session's socket.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    /// Guards the exchange: held from the first byte sent to the answer.
    stream: Mutex<Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    inbox: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    /// Answers that nobody waits for any more.
    skip: u32,
}

impl Control {
    /// Takes over a connected, non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, stream: Mutex::default() }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message and waits for its answer, with the descriptor that came with it.
    pub(crate) fn ask(&self, body: Body, deadline: Instant) -> Result<(Body, Option<OwnedFd>), ControlError> {
        let mut stream = self.lock(deadline)?;
        // Who can have no answer any more does not ask: the daemon may be behind.
        if Instant::now() >= deadline {
            return Err(ControlError::Timeout);
        }
        self.send(body, deadline)?;
        // Until its answer is here it is one to skip, should the deadline pass.
        stream.skip += 1;
        while stream.skip > 1 {
            self.receive(&mut stream, deadline)?;
            stream.skip -= 1;
        }
        let (answer, mut fds) = self.receive(&mut stream, deadline)?;
        stream.skip -= 1;
        Ok((answer, fds.pop()))
    }

    /// The first exchange: Hello, and the answer with its descriptors.
    pub(super) fn greet(&self, hello: Body, deadline: Instant) -> Result<(Body, Vec<OwnedFd>), ControlError> {
        let mut stream = self.lock(deadline)?;
        self.send(hello, deadline)?;
        self.receive(&mut stream, deadline)
    }

    fn lock(&self, deadline: Instant) -> Result<MutexGuard<'_, Stream>, ControlError> {
        loop {
            match self.stream.try_lock() {
                Ok(stream) => return Ok(stream),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(ControlError::Timeout),
                // Exchanges are rare (views, first touch of a segment) and take some 50 us.
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    fn send(&self, body: Body, deadline: Instant) -> Result<(), ControlError> {
        let bytes = encode_frame(body).map_err(|_| ControlError::Broken)?;
        let mut sent = 0;
        while sent < bytes.len() {
            match send_with_fds(self.socket.as_fd(), &bytes[sent..], &[]) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match wait(self.socket.as_fd(), PollFlags::OUT, deadline) {
                        // Half a frame out: the stream cannot be used any more.
                        Err(ControlError::Timeout) if sent > 0 => return Err(ControlError::Broken),
                        result => result?,
                    }
                }
                Err(_) => return Err(ControlError::Broken),
            }
        }
        Ok(())
    }

    fn receive(&self, stream: &mut Stream, deadline: Instant) -> Result<(Body, Vec<OwnedFd>), ControlError> {
        loop {
            if let Some((body, used)) = decode_frame(&stream.inbox).map_err(|_| ControlError::Broken)? {
                stream.inbox.drain(..used);
                let wanted = match &body {
                    Body::Welcome(_) => 2,
                    Body::SegmentFd(_) => 1,
                    _ => 0,
                };
                if stream.fds.len() < wanted {
                    return Err(ControlError::Broken);
                }
                return Ok((body, stream.fds.drain(..wanted).collect()));
            }
            let mut piece = [0; READ_BYTES];
            match recv_with_fds(self.socket.as_fd(), &mut piece) {
                Ok(received) if received.bytes == 0 => return Err(ControlError::Broken),
                Ok(received) => {
                    stream.inbox.extend_from_slice(&piece[..received.bytes]);
                    stream.fds.extend(received.fds);
                    if stream.fds.len() > FDS_MAX {
                        return Err(ControlError::Broken);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.socket.as_fd(), PollFlags::IN, deadline)?;
                }
                Err(_) => return Err(ControlError::Broken),
            }
        }
    }
}

/// Waits until the socket can be used, or fails; both show when it is used.
fn wait(socket: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> Result<(), ControlError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = timespec(left);
    match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], Some(&timeout)) {
        Ok(0) => Err(ControlError::Timeout),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(_) => Err(ControlError::Broken),
    }
}

pub(crate) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}
