//! Every backend keeps every promise.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::io::{
    BlockingIo, BlockingOptions, FaultIo, FaultPlan, FileOptions, Io, IoFile, IoOp, SimDisk, SimIo, SimOptions,
    UringError, UringIo, UringOptions,
};

use kvd_nixl::sys::{Memory, MemoryExtent, OfdLock, Region};

use crate::suite::{Bench, FILE_BYTES, broken, one};

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

fn without_faults<I: Io>(bench: Bench<I>) -> Bench<FaultIo<I>> {
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

/// What cannot be pinned is moved all the same, and told.
#[test]
fn uring_tells_what_was_granted_and_works_without() {
    if uring_is_missing() {
        return;
    }
    let (file, _folder) = file(true);
    let mut io = UringIo::new(UringOptions { depth: 4, memories: 1 }).unwrap();
    let id = io.add_file(file).unwrap();
    let memories: Vec<Arc<dyn Memory>> =
        (0..2).map(|_| Arc::new(Region::new(1 << 20).unwrap()) as Arc<dyn Memory>).collect();
    let registered: Vec<bool> = memories.iter().map(|memory| io.register_memory(memory)).collect();
    let state = io.state();
    assert!(!registered[1], "a table of one takes one");
    assert_eq!(state.memories_registered, u32::from(registered[0]));
    assert_eq!(state.memories_refused, 2 - u32::from(registered[0]));
    for (tag, memory) in memories.iter().enumerate() {
        let op = IoOp::write(tag as u64, id, 0, MemoryExtent::whole(Arc::clone(memory)));
        assert_eq!(one(&mut io, op).unwrap().result, Ok(()));
    }
    io.unregister_memory(&memories[1]);
    assert_eq!(io.state().memories_registered, u32::from(registered[0]));
    io.unregister_memory(&memories[0]);
    assert_eq!(io.state().memories_registered, 0);
    assert_eq!(io.register_memory(&memories[1]), registered[0], "the place is free again");
}

/// The lock that a device's owner holds on the description that does the I/O is free for a successor soon after the
/// owner let go of everything: the kernel takes the ring apart in the background.
#[test]
fn the_lock_of_a_dropped_owner_is_free_soon() {
    if uring_is_missing() {
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = FileOptions { create: true, direct: true };
    let open = || IoFile::open(&folder.path().join("device"), options).unwrap();
    for _ in 0..5 {
        let file = Arc::new(open());
        file.preallocate(FILE_BYTES).unwrap();
        let lock = OfdLock::try_lock(file.as_fd()).unwrap().unwrap();
        let mut io = UringIo::new(UringOptions { depth: 8, memories: 1 }).unwrap();
        let id = io.add_file(Arc::clone(&file)).unwrap();
        for tag in 0..8 {
            let memory = MemoryExtent::whole(Arc::new(Region::new(1 << 20).unwrap()));
            assert!(io.submit(IoOp::write(tag, id, tag << 20, memory)).is_ok());
        }
        drop((lock, file));
        let successor = open();
        assert!(OfdLock::try_lock(successor.as_fd()).unwrap().is_none(), "the ring still has the description");
        drop(io);
        let start = Instant::now();
        while OfdLock::try_lock(successor.as_fd()).unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(5), "the lock is never free");
            std::thread::yield_now();
        }
        eprintln!("free after {:?}", start.elapsed());
    }
}

/// Files that know no direct access are opened all the same; what is neither file nor block device is not.
#[test]
fn files_open_directly_where_the_filesystem_allows() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("device");
    let options = FileOptions { create: true, direct: true };
    let file = IoFile::open(&path, options).unwrap();
    file.preallocate(FILE_BYTES).unwrap();
    // Newer kernels have direct access on tmpfs; either way operations work.
    let mut io = BlockingIo::new(BlockingOptions { threads: 1, depth: 1 }).unwrap();
    let direct = file.is_direct();
    let id = io.add_file(Arc::new(file)).unwrap();
    let out = MemoryExtent::whole(Arc::new(Region::new(4096).unwrap()));
    assert_eq!(one(&mut io, IoOp::write(1, id, 0, out)).unwrap().result, Ok(()), "direct: {direct}");
    assert!(!IoFile::open(&path, FileOptions { create: false, direct: false }).unwrap().is_direct());
    assert!(IoFile::open(folder.path(), options).is_err());
    assert!(IoFile::open(&folder.path().join("none"), FileOptions { create: false, direct: true }).is_err());
}

#[test]
fn preallocation_keeps_content_and_reserves_space() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("device");
    std::fs::write(&path, b"content").unwrap();
    let file = IoFile::open(&path, FileOptions { create: false, direct: true }).unwrap();
    file.preallocate(1 << 20).unwrap();
    file.preallocate(4096).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((file.bytes().unwrap(), metadata.len()), (1 << 20, 1 << 20));
    assert!(metadata.blocks() * 512 >= 1 << 20, "space is reserved, not only the length set");
    assert!(std::fs::read(&path).unwrap().starts_with(b"content\0"));
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
