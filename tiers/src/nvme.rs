//! The NVMe tier: one preallocated file or block device per path, with its own slot table.
//!
//! docs/formats/nvme.md is the byte map and says what each kind of damage costs. In short: superblock (two copies), journal (two
//! halves, group commit), zone headers, slot tables, zones of equal slots. A slot table is a directory, not a witness: whatever
//! it says, a record is handed on only when it has verified itself (see [`crate::record`]).
//!
//! [`Device`] is a state machine over [`kvd_nixl::io::Io`]: no thread, no clock, no lock. So the same code runs over io_uring,
//! over a thread pool and over a simulated disk that loses, tears and reorders writes.
//!
//! ```text
//! Write    source verified -> record to its slot -> entry to the journal -> answer
//! Read     slot to memory -> identity and every unit verified -> answer
//! Vacate   entry to the journal -> answer; only then may the slot be written again
//! ```

mod checkpoint;
mod command;
mod device;
mod entry;
#[cfg(test)]
mod figures;
mod file;
mod flight;
mod fsck;
mod geometry;
mod journal;
mod limit;
mod open;
mod page;
mod recover;
mod superblock;
mod sweep;
mod zone;
mod zones;

pub use command::{Command, Failure, Finished, Full, Moved};
pub use device::Device;
pub use entry::ENTRY_BYTES;
pub use file::{FileError, PreparedFile, prepare};
pub use fsck::{BadRecord, FsckProgress, FsckReport, fsck};
pub use geometry::{Geometry, GeometryError, JOURNAL_PAGES};
pub use open::{DeviceOptions, OpenOptions, Opened};
pub use recover::{OpenError, Restored, formatted_zones};
pub use superblock::{Uuid, VERSION as FORMAT_VERSION};
