//! Unix sockets: file descriptors along with bytes, and who the peer is.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// File descriptors that one message may carry.
pub const FDS_PER_MESSAGE_MAX: usize = 8;

/// Sends bytes and, with the first of them, up to [`FDS_PER_MESSAGE_MAX`] descriptors. Returns how many bytes were sent; the
/// descriptors travel when that is at least one. Blocks as the socket does; never raises SIGPIPE.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > FDS_PER_MESSAGE_MAX || (bytes.is_empty() && !fds.is_empty()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "space for FDS_PER_MESSAGE_MAX was reserved above");
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// What one message brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 = the peer has closed its end.
    pub bytes: usize,
    /// Descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Receives bytes and up to [`FDS_PER_MESSAGE_MAX`] descriptors. A message with more is an error, and all its descriptors are
/// closed. Blocks as the socket does.
pub fn recv_with_fds(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    // Alignment may leave room for one descriptor more than asked for, so the count is checked as well.
    if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_PER_MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message carries too many file descriptors"));
    }
    Ok(Received { bytes: message.bytes, fds })
}

/// Who was at the other end of a Unix socket when it was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id as seen from here; `None` when the peer lives in a pid namespace that we cannot see.
    pub pid: Option<NonZeroU32>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// The peer's credentials (`SO_PEERCRED`).
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    // SAFETY: ucred is a plain C struct of three integers; any bytes are valid.
    unsafe { socket_option(socket, libc::SO_PEERCRED, &mut credentials) }?;
    let pid = u32::try_from(credentials.pid).ok().and_then(NonZeroU32::new);
    Ok(PeerCredentials { pid, uid: credentials.uid, gid: credentials.gid })
}

/// Reads a socket-level option whose value is a `T`.
///
/// # Safety
/// Any bytes must be a valid `T`.
pub(super) unsafe fn socket_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let wanted = libc::socklen_t::try_from(mem::size_of::<T>()).expect("option values are a few bytes long");
    let mut len = wanted;
    // SAFETY: `value` is valid for writes of `len` bytes, and the caller vouches that any bytes are a valid T.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut *value).cast(), &raw mut len)
    };
    match result {
        0 if len == wanted => Ok(()),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_travel_with_bytes() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"payload").unwrap();
        assert_eq!(send_with_fds(near.as_fd(), b"hello", &[file.as_fd(), near.as_fd()]).unwrap(), 5);
        let mut bytes = [0; 16];
        let mut received = recv_with_fds(far.as_fd(), &mut bytes).unwrap();
        assert_eq!((received.bytes, &bytes[..5], received.fds.len()), (5, &b"hello"[..], 2));
        let flags = rustix::io::fcntl_getfd(&received.fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mut copy = File::from(received.fds.remove(0));
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "payload");
        drop(near);
        drop(received);
        assert_eq!(recv_with_fds(far.as_fd(), &mut bytes).unwrap().bytes, 0);
    }

    #[test]
    fn surplus_descriptors_are_an_error_and_closed() {
        let (near, far) = UnixStream::pair().unwrap();
        assert!(send_with_fds(near.as_fd(), b"x", &[near.as_fd(); FDS_PER_MESSAGE_MAX + 1]).is_err());
        assert!(send_with_fds(near.as_fd(), b"", &[near.as_fd()]).is_err());
        // A hostile peer sends more than we ever would. The pipe's write end tells whether copies of it are still open here.
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let many = [writer.as_fd(); 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&near, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        assert!(recv_with_fds(far.as_fd(), &mut [0; 16]).is_err());
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0, "a copy of the write end is still open");
    }

    #[test]
    fn the_peer_is_who_connected() {
        let (near, _far) = UnixStream::pair().unwrap();
        let peer = peer_credentials(near.as_fd()).unwrap();
        assert_eq!(peer.pid.unwrap().get(), std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    }
}
