//! Every backend keeps every promise.

use std::sync::Arc;

use kvd_nixl::io::{
    BlockingIo, BlockingOptions, FaultIo, FaultPlan, FileOptions, IoFile, SimDisk, SimIo, SimOptions, UringError,
    UringIo, UringOptions,
};

use crate::suite::{Bench, FILE_BYTES, broken};

fn file(direct: bool) -> (Arc<IoFile>, tempfile::TempDir) {
    // The target folder lies on a real filesystem; /tmp may be a tmpfs, which knows no direct access.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = IoFile::open(&folder.path().join("device"), FileOptions { create: true, direct }).unwrap();
    file.preallocate(FILE_BYTES).unwrap();
    assert_eq!(file.bytes().unwrap(), FILE_BYTES);
    (Arc::new(file), folder)
}

fn uring(direct: bool) -> Bench<UringIo> {
    let (file, folder) = file(direct);
    let mut io = UringIo::new(UringOptions { depth: 32, memories: 8 }).unwrap();
    let id = io.add_file(file).unwrap();
    Bench { io, file: id, keep: Box::new(folder) }
}

fn sim(seed: u64) -> Bench<SimIo> {
    let disk = SimDisk::new(seed, SimOptions::default());
    disk.set_automatic(true);
    let file = disk.add_file(FILE_BYTES);
    Bench { io: disk.io(), file, keep: Box::new(()) }
}

pub(crate) fn blocking() -> Bench<BlockingIo> {
    let (file, folder) = file(true);
    let mut io = BlockingIo::new(BlockingOptions { threads: 3, depth: 32 }).unwrap();
    let id = io.add_file(file).unwrap();
    Bench { io, file: id, keep: Box::new(folder) }
}

fn without_faults<I: kvd_nixl::io::Io>(bench: Bench<I>) -> Bench<FaultIo<I>> {
    Bench { io: FaultIo::new(bench.io, 1, FaultPlan::default()), file: bench.file, keep: bench.keep }
}

fn uring_is_missing() -> bool {
    match UringIo::new(UringOptions { depth: 1, memories: 1 }) {
        Err(UringError::Unavailable(why)) => {
            eprintln!("SKIPPED: io_uring is not available here ({why})");
            true
        }
        other => {
            other.unwrap();
            false
        }
    }
}

#[test]
fn uring_keeps_every_promise() {
    if !uring_is_missing() {
        assert_eq!(broken(|| uring(true)), Vec::<String>::new());
        assert_eq!(broken(|| uring(false)), Vec::<String>::new());
    }
}

#[test]
fn blocking_keeps_every_promise() {
    assert_eq!(broken(blocking), Vec::<String>::new());
}

#[test]
fn sim_keeps_every_promise() {
    for seed in 0..4 {
        assert_eq!(broken(|| sim(seed)), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_decorator_without_faults_keeps_every_promise() {
    assert_eq!(broken(|| without_faults(sim(3))), Vec::<String>::new());
    assert_eq!(broken(|| without_faults(blocking())), Vec::<String>::new());
    if !uring_is_missing() {
        assert_eq!(broken(|| without_faults(uring(true))), Vec::<String>::new());
    }
}
