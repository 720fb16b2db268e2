//! What can be wrong with a configuration. A daemon that is not there is no error: calls miss.

use std::io;
use std::path::PathBuf;

use kvd_nixl::sys::{MappingError, MemoryError, RingError};
use kvd_proto::NamespaceError;
use kvd_proto::wire::session::{FrameError, RefusalCode};

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers at the socket.
    #[error("{}: {source}", path.display())]
    Unreachable {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon does not want this client.
    #[error("refused by kvd ({code:?}): {message}; {remedy}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        message: String,
        /// What to do about it.
        remedy: String,
    },
    /// The answer took too long.
    #[error("kvd did not answer in time")]
    Timeout,
    /// The peer does not speak the protocol.
    #[error("the peer does not speak kvd's protocol: {0}")]
    Protocol(&'static str),
    /// A frame that does not parse.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The session's memory cannot be mapped.
    #[error("mapping the session's memory: {0}")]
    Mapping(#[from] MappingError),
    /// The session's memory is not as described.
    #[error("the session's memory is not as described: {0}")]
    Memory(#[from] MemoryError),
    /// The session's rings are not as described.
    #[error("the session's rings are not as described: {0}")]
    Ring(#[from] RingError),
    /// The operating system refused.
    #[error(transparent)]
    Os(#[from] io::Error),
}

/// Why a view cannot be opened, now or ever.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The namespace breaks a bound.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The shard does not fit its group.
    #[error(transparent)]
    Shard(#[from] kvd_proto::LayoutError),
    /// The namespace has no such group.
    #[error("the namespace has no group {0}")]
    Group(u16),
    /// A block hash has 1 to 32 bytes.
    #[error("a block hash has 1 to 32 bytes, not {0}")]
    HashBytes(usize),
    /// The daemon does not accept it.
    #[error("refused by kvd ({code:?}): {message}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
}

/// Why engine memory does not fit a view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Another number of memories than the shard has layers of planes.
    #[error("the shard has {wanted} layers of planes, but {got} memories were given")]
    Memories {
        /// As the group and shard have it.
        wanted: usize,
        /// As given.
        got: usize,
    },
    /// The geometry is known to the engine only, or its units cannot be cut at the ends of memories.
    #[error("the layout cannot be described by strides: keep each block's bytes in one piece")]
    Opaque,
    /// The strides cannot be expressed: a unit whose key and value parts differ in size must keep them side by side.
    #[error("key and value parts of different size must lie side by side")]
    Uneven,
    /// A number of tokens or bytes that does not divide.
    #[error("a unit of {unit_bytes} bytes does not divide into {tokens} tokens")]
    Unit {
        /// Bytes of the unit that the shard holds.
        unit_bytes: u32,
        /// Tokens of a block that it holds.
        tokens: u32,
    },
    /// Strides beyond the address space.
    #[error("the strides reach beyond the address space")]
    Strides,
    /// A block reaches beyond its memory.
    #[error("block {block} lies outside its memory")]
    Block {
        /// Which.
        block: usize,
    },
    /// Contiguous memory of another size than the record.
    #[error("a record has {wanted} bytes, the memory {got}")]
    Size {
        /// Bytes of the record.
        wanted: usize,
        /// Bytes given.
        got: usize,
    },
    /// A device cannot move such records.
    #[error(transparent)]
    Records(#[from] kvd_nixl::device::LayoutError),
    /// The device refuses.
    #[error(transparent)]
    Device(#[from] kvd_nixl::device::DeviceError),
}
