//! Processes that can be told apart from a later one with the same number.

use super::socket::{peer_credentials, socket_option};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `SO_PEERPIDFD` of Linux 6.5, not in libc yet.
const SO_PEERPIDFD: libc::c_int = 77;

/// When a process started, in clock ticks since boot: with the pid it names one process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StartTime(pub u64);

impl StartTime {
    /// The start time of a process; `None` when there is no such process.
    pub fn of(pid: NonZeroU32) -> io::Result<Option<Self>> {
        let stat = match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        parse_stat(&stat).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The start time of this process.
    pub fn own() -> io::Result<Self> {
        let pid = NonZeroU32::new(std::process::id()).expect("no process has the number 0");
        Self::of(pid)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Field 22 of /proc/PID/stat. The name in field 2 may hold anything, parentheses too, so fields count from the last one.
fn parse_stat(stat: &[u8]) -> Option<StartTime> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(&stat[after_name..]).ok()?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok().map(StartTime)
}

/// A handle on one process, readable (poll, epoll) once that process has ended; its number may be reused, the handle is not fooled.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process that connected the socket, even if a child keeps the socket open.
    ///
    /// Kernels before 6.5 lack `SO_PEERPIDFD`; there the pid of `SO_PEERCRED` is opened, which is right unless the peer died and its
    /// number was reused between its `connect` and this call.
    pub fn from_peer(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut fd: RawFd = -1;
        // SAFETY: any bytes are a valid integer.
        match unsafe { socket_option(socket, SO_PEERPIDFD, &mut fd) } {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            Ok(()) => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Self::from_peer_credentials(socket),
            Err(error) => Err(error),
        }
    }

    fn from_peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let pid = peer_credentials(socket)?.pid.ok_or(io::ErrorKind::NotFound)?;
        Self::open_number(pid)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The process `pid` if it is the one that started at `start_time`; `None` when that one is gone.
    pub fn open(pid: NonZeroU32, start_time: StartTime) -> io::Result<Option<Self>> {
        // Opened first, compared second: the number cannot change hands while the handle is open and its process not reaped, and
        // if it was reused before, the start time differs.
        let Some(handle) = Self::open_number(pid)? else { return Ok(None) };
        Ok((StartTime::of(pid)? == Some(start_time)).then_some(handle))
    }

    fn open_number(pid: NonZeroU32) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid.get()).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self(fd))),
            // ESRCH: gone. EINVAL: the number belongs to a thread now, so the process is gone as well.
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the process has ended (all its threads; a zombie counts as ended).
    pub fn is_dead(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = b"42 (evil) 1 2 (x)) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 987654 1000 2";
        assert_eq!(parse_stat(stat), Some(StartTime(987_654)));
        assert_eq!(parse_stat(b"42 (short) S 1 2"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    #[cfg(not(miri))]
    fn a_process_is_alive_until_it_ends_and_its_start_time_tells_it_apart() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = NonZeroU32::new(child.id()).unwrap();
        let start = StartTime::of(pid).unwrap().unwrap();
        let handle = Pidfd::open(pid, start).unwrap().unwrap();
        assert!(!handle.is_dead().unwrap());
        assert!(Pidfd::open(pid, StartTime(start.0 - 1)).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(handle.is_dead().unwrap());
        assert!(Pidfd::open(pid, start).unwrap().is_none());
        assert!(StartTime::of(pid).unwrap().is_none());
        StartTime::own().unwrap();
    }

    #[test]
    #[cfg(not(miri))]
    fn the_peer_of_a_socket_is_found_by_both_ways() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!Pidfd::from_peer(near.as_fd()).unwrap().is_dead().unwrap());
        assert!(!Pidfd::from_peer_credentials(near.as_fd()).unwrap().is_dead().unwrap());
    }
}
