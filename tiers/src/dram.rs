//! The DRAM tier: a folder of segment files on tmpfs and a private table that says what lies in them.
//!
//! docs/formats/arena.md is the byte map. The arena outlives the daemon: whoever opens the folder next adopts it at once,
//! after SIGTERM and SIGKILL alike. It decides nothing: the ladder writes entries and pins through
//! [`SlotTable`](crate::ladder::SlotTable), one store at a time, in an order such that a kill at any instant leaves each
//! entry old, new, or recognisably torn, which reads as vacant.
//!
//! Cost per slot beside its own bytes: [`TABLE_BYTES_PER_SLOT`] of table, pins and checksum included.

mod arena;
mod entry;
mod files;
mod layout;
mod open;
mod words;

#[cfg(test)]
mod tests;

pub use arena::{Arena, ArenaError, ClientProcess};
pub use files::{Segment, SegmentError, SegmentFiles};
pub use layout::TABLE_BYTES_PER_SLOT;
pub use open::{Adoption, ArenaOptions, Opened, RestoredRecords, Survivor};
