//! The home of `unsafe`: memory that other processes may write, descriptors, rings, copies.
//!
//! Everything here offers a safe type upward. No signature that leaves this module carries a raw pointer or a bare descriptor number,
//! and none hands out a reference to bytes that another process can change: such bytes are copied in or out, or are atomics.
#![expect(unsafe_code, reason = "this module is the workspace's home of unsafe; see STYLE.md section 7")]

mod checksum;
pub mod copy;
pub(crate) mod cuda;
mod eventfd;
mod file;
mod lanes;
mod mapping;
mod memory;
mod process;
mod raw;
mod region;
mod ring;
pub mod sigbus;
mod socket;
mod uring;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod vector;

pub use checksum::{ChecksumAlgorithm, seed_from_unit, unit_seed};
pub use cuda::{adopt_device_memory, mark_stream};
pub use eventfd::{Bell, EventFd, Signal};
pub use file::{OfdLock, is_sealed, memfd_sealed};
pub use mapping::{Mapping, MappingError};
pub use memory::{Memory, MemoryError, MemoryExtent};
pub use process::{Pidfd, StartTime};
pub use region::{ForeignMemory, Region};
pub use ring::{Consumer, Producer, RING_ENTRY_BYTES, RingError, ring_bytes};
pub use socket::{FDS_PER_MESSAGE_MAX, PeerCredentials, Received, peer_credentials, recv_with_fds, send_with_fds};
pub(crate) use uring::{UringCommand, UringQueue, UringSizes, UringTarget};
