//! The Unix socket on which engines connect: one daemon per path, and no connection storm takes the last descriptor.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kvd_nixl::sys::OfdLock;
use rustix::io::Errno;
use thiserror::Error;

/// Why the socket is not served.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another daemon serves it.
    #[error("another kvd serves {0}")]
    InUse(PathBuf),
    /// Something else has its name.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What an accept came to.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection, non-blocking.
    Connection(UnixStream),
    /// Nobody is waiting.
    Nobody,
    /// No descriptor was left: the peer was turned away. Look again after a pause.
    Exhausted,
}

/// A bound and listening socket. Its name is removed with it.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// A descriptor that can be given up to turn a peer away when none is left.
    reserve: Option<File>,
    _lock: OfdLock,
}

impl Listener {
    /// Takes over `path`. Its folder is made with mode 0700 if it is missing; the socket gets `mode`. A socket left behind by
    /// a daemon that is gone is replaced: the lock beside it, not its existence, says whether it is in use.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ListenError::Io { doing, path, source }
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed("making the folder", folder))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock_file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock_file = lock_file.map_err(failed("opening the lock", &lock_path))?;
        let lock = OfdLock::try_lock(lock_file.as_fd()).map_err(failed("locking", &lock_path))?;
        let lock = lock.ok_or_else(|| ListenError::InUse(path.to_owned()))?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).map_err(failed("removing the stale socket", path))?;
            }
            Ok(_) => return Err(ListenError::NotASocket(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at", path)(error)),
        }
        let reserve = Some(File::open("/dev/null").map_err(failed("opening", Path::new("/dev/null")))?);
        let listener = UnixListener::bind(path).map_err(failed("binding", path))?;
        let listener = Self { listener, path: path.to_owned(), reserve, _lock: lock };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("setting the mode of", path))?;
        listener.listener.set_nonblocking(true).map_err(failed("preparing", path))?;
        Ok(listener)
    }

    /// Takes one waiting connection.
    pub(crate) fn accept(&mut self) -> io::Result<Accepted> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                if self.reserve.is_none() {
                    self.reserve = File::open("/dev/null").ok();
                }
                Ok(Accepted::Connection(stream))
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(Accepted::Nobody),
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    // Without this the peer would stay in the queue and wake us for ever.
                    self.reserve = None;
                    drop(self.listener.accept());
                    self.reserve = File::open("/dev/null").ok();
                    Ok(Accepted::Exhausted)
                }
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The lock is still ours here, so this cannot be a successor's socket.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/kvd.sock");
        let first = Listener::bind(&path, 0o600).unwrap();
        assert!(matches!(Listener::bind(&path, 0o600), Err(ListenError::InUse(_))));
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _second = Listener::bind(&path, 0o600).unwrap();
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kvd.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, 0o600), Err(ListenError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
