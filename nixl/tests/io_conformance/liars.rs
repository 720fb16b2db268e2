//! Deliberately wrong backends: each must be caught by the promise it breaks.

use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::io::{FileId, Io, IoDone, IoOp, IoWaker, SimDisk, SimIo, SimOptions};
use kvd_nixl::sys::{MemoryExtent, Region};

use crate::suite::{Bench, FILE_BYTES, WAKE_PATIENCE, broken};

/// What the liar does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Reports short reads as done, as NIXL's storage plugins did.
    ShortIsDone,
    /// Reports a write as done that never happens.
    WriteIsLost,
    /// Hands a completion out twice.
    Twice,
    /// Grows instead of refusing.
    NeverFull,
    /// Loses a wake-up that came before the wait.
    Deaf,
    /// Keeps the memory of finished operations.
    Hoards,
    /// Gives operations back with another tag.
    WrongTag,
    /// Runs an operation whose memory it does not hold.
    LetsGo,
}

struct Liar {
    inner: SimIo,
    lie: Lie,
    extra: Vec<IoOp>,
    hoard: Vec<MemoryExtent>,
}

impl Io for Liar {
    fn submit(&mut self, mut op: IoOp) -> Result<(), IoOp> {
        match self.lie {
            Lie::LetsGo => {
                if let Some(memory) = &op.memory {
                    op.memory = Some(MemoryExtent::whole(Arc::new(Region::new(memory.len()).unwrap())));
                }
                self.inner.submit(op)
            }
            Lie::NeverFull => {
                if let Err(op) = self.inner.submit(op) {
                    self.extra.push(op);
                }
                Ok(())
            }
            Lie::WriteIsLost if op.kind == kvd_nixl::io::IoKind::Write && op.offset != 0 => {
                self.inner.submit(IoOp { offset: 0, ..op })
            }
            _ => self.inner.submit(op),
        }
    }

    fn poll(&mut self, done: &mut Vec<IoDone>) {
        let before = done.len();
        self.inner.poll(done);
        while let Some(op) = self.extra.pop() {
            if let Err(op) = self.inner.submit(op) {
                self.extra.push(op);
                break;
            }
        }
        if done.len() == before {
            return;
        }
        match self.lie {
            Lie::ShortIsDone => done[before..].iter_mut().for_each(|done| done.result = Ok(())),
            Lie::Twice => {
                let IoDone { tag, result, ref op } = done[before];
                let again = IoDone { tag, result, op: op.clone() };
                done.push(again);
            }
            Lie::Hoards => self.hoard.extend(done[before..].iter().filter_map(|done| done.op.memory.clone())),
            Lie::WrongTag => done[before..].iter_mut().for_each(|done| done.tag ^= 1),
            Lie::WriteIsLost | Lie::NeverFull | Lie::Deaf | Lie::LetsGo => {}
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if self.lie == Lie::Deaf {
            // Swallows what came before.
            self.inner.wait(Some(Duration::ZERO));
            if self.inner.in_flight() == 0 {
                std::thread::sleep(timeout.unwrap_or(WAKE_PATIENCE));
                return;
            }
        }
        self.inner.wait(timeout);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn waker(&self) -> IoWaker {
        self.inner.waker()
    }
}

fn liar(lie: Lie) -> Bench<Liar> {
    let disk = SimDisk::new(5, SimOptions::default());
    disk.set_automatic(true);
    let file: FileId = disk.add_file(FILE_BYTES);
    Bench { io: Liar { inner: disk.io(), lie, extra: Vec::new(), hoard: Vec::new() }, file, keep: Box::new(()) }
}

#[test]
fn every_lie_is_found() {
    for (lie, promise) in [
        (Lie::ShortIsDone, "a read past the end is short"),
        (Lie::WriteIsLost, "what was written is read back"),
        (Lie::Twice, "every operation completes once, with its tag"),
        (Lie::NeverFull, "a full queue gives the operation back"),
        (Lie::Hoards, "memory is held until completion, and through drop"),
        (Lie::WrongTag, "every operation completes once, with its tag"),
        (Lie::LetsGo, "memory is held until completion, and through drop"),
        (Lie::Deaf, "a wake-up ends a wait, even one from before"),
    ] {
        let found = broken(|| liar(lie));
        assert!(found.iter().any(|how| how.starts_with(promise)), "{lie:?} was not found by `{promise}`: {found:?}");
    }
}
