//! Wake-ups between threads and processes: [`EventFd`] inside one process, [`Bell`] towards a peer that is not trusted.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Something that wakes a sleeper and can be slept on (also through epoll or an async runtime: it is readable when signalled).
pub trait Signal: AsFd {
    /// Wakes the sleeper, now or at its next wait. Never blocks.
    fn signal(&self) -> io::Result<()>;

    /// Takes away all signals given so far. Never blocks.
    fn drain(&self) -> io::Result<()>;

    /// Sleeps until signalled (true), without draining, or until `timeout` is over (false; `None` waits without limit).
    fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut fds = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            // A signal handler ran; callers look at their condition and their deadline anyway.
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// An eventfd, for wake-ups inside one process.
///
/// Both sides of an eventfd share one open file description, so a hostile peer could clear its `O_NONBLOCK`, fill the counter and
/// hang the other side in `signal`. Between processes use [`Bell`].
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new eventfd: not signalled, non-blocking, close-on-exec.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Another handle on the same eventfd.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl Signal for EventFd {
    fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            // A full counter is a signal that nobody has taken yet.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn drain(&self) -> io::Result<()> {
        match rustix::io::read(&self.0, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end of a pair that wakes in both directions across processes.
///
/// A socket pair: each end is its own open file description and every call carries its own `MSG_DONTWAIT`, so nothing that the peer
/// does can make `signal` or `drain` block. A peer that is gone shows as `BrokenPipe` in `signal` and `UnexpectedEof` in `drain`.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// Two connected ends; one is sent to the peer.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// Takes over an end received from the peer that made the pair.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Signal for Bell {
    fn signal(&self) -> io::Result<()> {
        match send(&self.0, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            // A full socket is a signal that nobody has taken yet.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(Errno::CONNRESET) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn drain(&self) -> io::Result<()> {
        // A peer can refill while we drain: one bounded read. What is left wakes the sleeper once more, for nothing.
        match recv(&self.0, &mut [0u8; 256][..], RecvFlags::DONTWAIT) {
            // A peer that dies with our signals unread resets the connection.
            Ok((_, 0)) | Err(Errno::CONNRESET) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Bell> for OwnedFd {
    fn from(bell: Bell) -> Self {
        bell.0
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    fn wakes_and_drains(near: &impl Signal, far: &impl Signal) -> io::Result<()> {
        assert!(!near.wait(Some(Duration::ZERO))?);
        near.drain()?;
        far.signal()?;
        far.signal()?;
        assert!(near.wait(None)?);
        near.drain()?;
        assert!(!near.wait(Some(Duration::from_millis(1)))?);
        Ok(())
    }

    #[test]
    fn signals_are_kept_until_drained() {
        let event = EventFd::new().unwrap();
        wakes_and_drains(&event, &event.try_clone().unwrap()).unwrap();
        let (ours, theirs) = Bell::pair().unwrap();
        wakes_and_drains(&ours, &theirs).unwrap();
        wakes_and_drains(&theirs, &ours).unwrap();
    }

    #[test]
    fn a_peer_that_never_drains_or_makes_its_end_blocking_cannot_block_the_ringer() {
        let (ours, theirs) = Bell::pair().unwrap();
        rustix::io::ioctl_fionbio(&theirs, false).unwrap();
        for _ in 0..100_000 {
            ours.signal().unwrap();
        }
        ours.drain().unwrap();
        drop(theirs);
        assert_eq!(ours.signal().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(ours.drain().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
