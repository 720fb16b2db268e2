//! The engines' side: a Unix socket for handshakes and file descriptors, and the deaths of processes.
//!
//! Payload never passes here, nor any request of the fast path: those travel in the rings that a handshake sets up. One
//! thread serves all sockets. It waits for no peer (a slow one is cut) and for the core only as long as a turn of the core
//! takes.
//!
//! ```text
//!  connect -> Greeting --Hello--> Open --hang-up--> Detached --process ends--> gone
//!                |                  |                   '-- same process rejoins --> its slot moves to the new session
//!                '-- 2 s: cut       '-- Goodbye --> gone
//! ```

mod calls;
mod connection;
mod handshake;
mod listener;
mod memory;
mod reactor;

pub(crate) use calls::{
    CALLS_WAITING_MAX, Control, CoreLink, Joined, Joining, OpenedView, Refusal, SessionCall, SessionId, ViewRequest,
};
pub use listener::{ListenError, Listener};
pub(crate) use memory::SessionLink;
pub(crate) use reactor::{Orphan, Reactor, SessionOptions};
