//! Large sequential reads at start, several at a time, before the device runs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::io::{FileId, Io, IoDone, IoError, IoOp};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};

use crate::record::SECTOR_BYTES;

/// Longest stretch of one read.
pub(super) const STRETCH_BYTES: usize = 1 << 20;
/// Reads at a time.
const READS: usize = 8;
/// Only bounds how long a lost wake-up could delay a start.
const WAIT: Duration = Duration::from_millis(100);

/// A stretch of the device to look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) offset: u64,
    pub(super) len: usize,
    /// What the caller knows it by.
    pub(super) number: u32,
}

type Look<'a> = dyn FnMut(Stretch, Result<&[u8], IoError>) + 'a;

/// Reads stretches, in any order.
#[derive(Debug)]
pub(super) struct Sweeper<'a, I> {
    io: &'a mut I,
    file: FileId,
    buffers: MemoryExtent,
    bytes: Box<[u8]>,
}

impl<'a, I: Io> Sweeper<'a, I> {
    pub(super) fn new(io: &'a mut I, file: FileId) -> io::Result<Self> {
        let memory: Arc<dyn Memory> = Arc::new(Region::new(READS * STRETCH_BYTES)?);
        let bytes = vec![0; STRETCH_BYTES].into_boxed_slice();
        Ok(Self { io, file, buffers: MemoryExtent::whole(memory), bytes })
    }

    /// Reads all of `stretches` and shows each to `look`. What cannot be read in one go is read sector by sector; what then
    /// cannot be read is shown as the error, so that one bad sector costs one sector.
    pub(super) fn read(
        &mut self,
        stretches: impl IntoIterator<Item = Stretch>,
        mut look: impl FnMut(Stretch, Result<&[u8], IoError>),
    ) {
        let mut failed = Vec::new();
        self.pass(stretches, &mut |stretch, found| match found {
            Err(_) if stretch.len > SECTOR_BYTES => failed.push(stretch),
            found => look(stretch, found),
        });
        let sectors = |stretch: Stretch| {
            let offsets = (stretch.offset..).step_by(SECTOR_BYTES).take(stretch.len / SECTOR_BYTES);
            offsets.map(move |offset| Stretch { offset, len: SECTOR_BYTES, ..stretch })
        };
        self.pass(failed.into_iter().flat_map(sectors), &mut look);
    }

    fn pass(&mut self, stretches: impl IntoIterator<Item = Stretch>, look: &mut Look<'_>) {
        let mut stretches = stretches.into_iter().fuse().peekable();
        let mut reading: [Option<Stretch>; READS] = [None; READS];
        let mut done = Vec::with_capacity(READS);
        loop {
            for (index, place) in reading.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
                let Some(stretch) = stretches.peek() else { break };
                let memory = self.buffers.part(index * STRETCH_BYTES, stretch.len).expect("at most a stretch");
                if self.io.submit(IoOp::read(index as u64, self.file, stretch.offset, memory)).is_err() {
                    break;
                }
                *place = stretches.next();
            }
            if stretches.peek().is_none() && reading.iter().all(Option::is_none) {
                return;
            }
            self.wait(&mut done);
            for done in done.drain(..) {
                let index = usize::try_from(done.tag).expect("an index");
                let stretch = reading[index].take().expect("a read under way");
                let bytes = &mut self.bytes[..stretch.len];
                let memory = done.op.memory.expect("a read has memory");
                look(
                    stretch,
                    done.result.map(|()| {
                        memory.read(0, bytes).expect("as long as the stretch");
                        &*bytes
                    }),
                );
            }
        }
    }

    /// Writes one sector and makes it durable.
    pub(super) fn write_synced(&mut self, offset: u64, sector: &[u8]) -> Result<(), IoError> {
        let memory = self.buffers.part(0, sector.len()).expect("a sector is no more than a stretch");
        memory.write(0, sector).expect("as long as the sector");
        self.run(IoOp::write(0, self.file, offset, memory))?;
        self.run(IoOp::sync(0, self.file))
    }

    fn run(&mut self, mut op: IoOp) -> Result<(), IoError> {
        let mut done = Vec::with_capacity(1);
        while let Err(refused) = self.io.submit(op) {
            op = refused;
            self.io.wait(Some(WAIT));
        }
        self.wait(&mut done);
        done.pop().map_or(Ok(()), |done| done.result)
    }

    fn wait(&mut self, done: &mut Vec<IoDone>) {
        self.io.poll(done);
        while done.is_empty() {
            self.io.wait(Some(WAIT));
            self.io.poll(done);
        }
    }
}
