//! Operations under way: what each one is for stands in its tag.

use kvd_nixl::io::{FileId, Io, IoDone, IoOp};
use kvd_nixl::sys::MemoryExtent;

/// What an operation belongs to; the number is a place in the table of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The record of a move: read or write.
    Record(usize),
    /// A journal page.
    Page(usize),
    /// A job of the checkpoint.
    Table(usize),
    /// The zone header of a move.
    Header(usize),
    /// The sector that a probe reads.
    Probe(usize),
    /// A sync.
    Sync,
}

impl Purpose {
    fn tag(self) -> u64 {
        let (kind, index) = match self {
            Self::Record(index) => (0, index),
            Self::Page(index) => (1, index),
            Self::Table(index) => (2, index),
            Self::Header(index) => (3, index),
            Self::Probe(index) => (4, index),
            Self::Sync => (5, 0),
        };
        (index as u64) << 8 | kind
    }

    pub(super) fn of(tag: u64) -> Self {
        let index = usize::try_from(tag >> 8).expect("made from a usize");
        match tag & 0xff {
            0 => Self::Record(index),
            1 => Self::Page(index),
            2 => Self::Table(index),
            3 => Self::Header(index),
            4 => Self::Probe(index),
            _ => Self::Sync,
        }
    }
}

/// The device's queue: one file of an [`Io`].
#[derive(Debug)]
pub(super) struct Flights<I> {
    pub(super) io: I,
    pub(super) file: FileId,
    /// Operations submitted since the last `collect`: they start with the next one.
    pub(super) unstarted: usize,
}

impl<I: Io> Flights<I> {
    pub(super) fn new(io: I, file: FileId) -> Self {
        Self { io, file, unstarted: 0 }
    }

    /// `false`: the queue is full, nothing happened.
    pub(super) fn read(&mut self, purpose: Purpose, offset: u64, memory: MemoryExtent) -> bool {
        self.submit(IoOp::read(purpose.tag(), self.file, offset, memory))
    }

    /// `false`: the queue is full, nothing happened.
    pub(super) fn write(&mut self, purpose: Purpose, offset: u64, memory: MemoryExtent) -> bool {
        self.submit(IoOp::write(purpose.tag(), self.file, offset, memory))
    }

    /// `false`: the queue is full, nothing happened.
    pub(super) fn sync(&mut self) -> bool {
        self.submit(IoOp::sync(Purpose::Sync.tag(), self.file))
    }

    fn submit(&mut self, op: IoOp) -> bool {
        let taken = self.io.submit(op).is_ok();
        self.unstarted += usize::from(taken);
        taken
    }

    /// Starts what was submitted and appends what ended.
    pub(super) fn collect(&mut self, done: &mut Vec<IoDone>) {
        self.unstarted = 0;
        self.io.poll(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_says_what_it_was_made_for() {
        let kinds = [Purpose::Record, Purpose::Page, Purpose::Table, Purpose::Header, Purpose::Probe];
        for index in [0, 1, 255, 256, 70_000] {
            for purpose in kinds.map(|kind| kind(index)) {
                assert_eq!(Purpose::of(purpose.tag()), purpose);
            }
        }
        assert_eq!(Purpose::of(Purpose::Sync.tag()), Purpose::Sync);
    }
}
