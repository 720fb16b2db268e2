//! The promises.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::io::{FileId, Io, IoDone, IoError, IoKind, IoOp, Seeded};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};

/// Size of the file that every factory brings.
pub(crate) const FILE_BYTES: u64 = 8 << 20;
/// Longest time any step may take before the suite calls it a hang.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest time a wake-up may take.
pub(crate) const WAKE_PATIENCE: Duration = Duration::from_secs(3);
const BLOCK: usize = 64 << 10;

/// An `Io` with one file of [`FILE_BYTES`] zeros, and whatever must live as long.
pub(crate) struct Bench<I> {
    pub(crate) io: I,
    pub(crate) file: FileId,
    pub(crate) keep: Box<dyn std::any::Any>,
}

/// A named promise: `Err` tells how it was broken.
pub(crate) type Promise<I> = (&'static str, fn(Bench<I>) -> Result<(), String>);

/// All promises.
pub(crate) fn promises<I: Io>() -> Vec<Promise<I>> {
    vec![
        ("what was written is read back", written_is_read_back),
        ("every operation completes once, with its tag", every_operation_completes_once),
        ("polling alone is enough", polling_alone_is_enough),
        ("a read past the end is short", a_read_past_the_end_is_short),
        ("a full queue gives the operation back", a_full_queue_gives_back),
        ("malformed operations fail with their completion", malformed_operations_fail),
        ("a wake-up ends a wait, even one from before", a_wake_up_ends_a_wait),
        ("a wait ends at its timeout", a_wait_ends_at_its_timeout),
        ("memory is held until completion, and through drop", memory_is_held),
        ("registered memory moves the same bytes", registered_memory_moves_the_same_bytes),
        ("a random load ends as a plain array says", a_random_load_ends_as_an_array_says),
    ]
}

/// Runs all promises against fresh instances; the names of those broken, with how.
pub(crate) fn broken<I: Io>(make: impl Fn() -> Bench<I>) -> Vec<String> {
    let run = |(name, promise): &Promise<I>| promise(make()).err().map(|how| format!("{name}: {how}"));
    promises().iter().filter_map(run).collect()
}

pub(crate) fn memory(len: usize) -> MemoryExtent {
    MemoryExtent::whole(Arc::new(Region::new(len).expect("test memory")))
}

pub(crate) fn filled(len: usize, seed: u64) -> MemoryExtent {
    let extent = memory(len);
    extent.write(0, &noise(len, seed)).expect("fits");
    extent
}

pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Seeded::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).take(len).collect()
}

pub(crate) fn bytes(extent: &MemoryExtent) -> Vec<u8> {
    let mut bytes = vec![0; extent.len()];
    extent.read(0, &mut bytes).expect("fits");
    bytes
}

/// Waits until `count` completions are there.
pub(crate) fn complete(io: &mut impl Io, count: usize) -> Result<Vec<IoDone>, String> {
    let mut done = Vec::new();
    let start = Instant::now();
    while done.len() < count {
        if start.elapsed() > PATIENCE {
            return Err(format!("{} of {count} completions after {PATIENCE:?}", done.len()));
        }
        io.wait(Some(Duration::from_millis(100)));
        io.poll(&mut done);
    }
    Ok(done)
}

pub(crate) fn one(io: &mut impl Io, op: IoOp) -> Result<IoDone, String> {
    io.submit(op).map_err(|_| "an empty queue refused an operation")?;
    complete(io, 1)?.pop().ok_or_else(|| "no completion".to_owned())
}

fn expect(condition: bool, otherwise: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn must(done: &IoDone) -> Result<(), String> {
    done.result.map_err(|error| format!("operation {} failed: {error}", done.tag))
}

fn written_is_read_back<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    for (at, len) in [(0, 4096), (4096, BLOCK), (FILE_BYTES - (1 << 20), 1 << 20)] {
        let out = filled(len, at ^ 1);
        must(&one(&mut b.io, IoOp::write(1, b.file, at, out.clone()))?)?;
        must(&one(&mut b.io, IoOp::sync(2, b.file))?)?;
        let back = memory(len);
        must(&one(&mut b.io, IoOp::read(3, b.file, at, back.clone()))?)?;
        expect(bytes(&back) == bytes(&out), "other bytes came back")?;
    }
    Ok(())
}

fn every_operation_completes_once<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let count = 16;
    for tag in 0..count {
        let op = IoOp::write(tag, b.file, tag * BLOCK as u64, filled(BLOCK, tag));
        b.io.submit(op).map_err(|_| "a queue of 16 is the least")?;
    }
    expect(b.io.in_flight() == count as usize, "in_flight does not count what was submitted")?;
    let done = complete(&mut b.io, count as usize)?;
    expect(b.io.in_flight() == 0, "in_flight counts what was handed out")?;
    let mut tags: Vec<u64> = done.iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    expect(tags == (0..count).collect::<Vec<_>>(), "a tag is missing or came twice")?;
    for done in &done {
        must(done)?;
        expect(done.op.tag == done.tag, "the operation came back with another tag")?;
        expect(done.op.kind == IoKind::Write, "the operation came back changed")?;
        expect(done.op.offset == done.tag * BLOCK as u64, "the operation came back changed")?;
    }
    let mut more = Vec::new();
    b.io.wait(Some(Duration::from_millis(20)));
    b.io.poll(&mut more);
    expect(more.is_empty(), "a completion out of nothing")
}

fn polling_alone_is_enough<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let mut done = Vec::new();
    for round in 0..3 {
        for tag in 0..4 {
            let op = IoOp::write(tag, b.file, tag * BLOCK as u64, filled(BLOCK, round));
            b.io.submit(op).map_err(|_| "a queue of 16 is the least")?;
        }
        b.io.submit(IoOp::sync(4, b.file)).map_err(|_| "a queue of 16 is the least")?;
        let start = Instant::now();
        while done.len() < 5 {
            expect(start.elapsed() < PATIENCE, "completions come only to those who wait")?;
            b.io.poll(&mut done);
            std::thread::yield_now();
        }
        done.drain(..).try_for_each(|done| must(&done))?;
    }
    Ok(())
}

/// Also the second of NIXL's two defects (short reads reported as done), on a file that ends early.
pub(crate) fn a_read_past_the_end_is_short<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    for (before_end, got) in [(4096, 4096), (0, 0)] {
        let at = FILE_BYTES - before_end;
        let done = one(&mut b.io, IoOp::read(7, b.file, at, memory(8192)))?;
        let wanted = Err(IoError::Short { wanted: 8192, got });
        expect(done.result == wanted, &format!("{before_end} bytes before the end: {:?}", done.result))?;
    }
    Ok(())
}

fn a_full_queue_gives_back<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let mut taken = 0_u64;
    loop {
        let op = IoOp::read(taken, b.file, 0, memory(4096));
        match b.io.submit(op) {
            Ok(()) => taken += 1,
            Err(back) => {
                expect(back.tag == taken, "another operation came back")?;
                break;
            }
        }
        expect(taken <= 5000, "no bound found")?;
    }
    complete(&mut b.io, usize::try_from(taken).map_err(|e| e.to_string())?)?;
    must(&one(&mut b.io, IoOp::read(9, b.file, 0, memory(4096)))?)
}

fn malformed_operations_fail<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let unknown = FileId::new(63);
    let bad = [
        IoOp::read(1, unknown, 0, memory(4096)),
        IoOp { memory: None, ..IoOp::write(2, b.file, 0, memory(4096)) },
        IoOp { memory: Some(memory(4096)), ..IoOp::sync(3, b.file) },
    ];
    for op in bad {
        let done = one(&mut b.io, op)?;
        expect(done.result == Err(IoError::Malformed), "a malformed operation was not refused as such")?;
    }
    Ok(())
}

fn a_wake_up_ends_a_wait<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let start = Instant::now();
    b.io.waker().wake();
    b.io.wait(Some(WAKE_PATIENCE));
    let waker = b.io.waker();
    let other = std::thread::spawn(move || waker.wake());
    b.io.wait(Some(WAKE_PATIENCE));
    other.join().map_err(|_| "the waker panicked")?;
    // A wake-up must survive a poll that happens before the wait.
    b.io.waker().wake();
    b.io.poll(&mut Vec::new());
    b.io.wait(Some(WAKE_PATIENCE));
    expect(start.elapsed() < WAKE_PATIENCE, "a wake-up was lost")
}

fn a_wait_ends_at_its_timeout<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(30) {
        b.io.wait(Some(Duration::from_millis(10)));
        expect(start.elapsed() < PATIENCE, "a wait went on")?;
    }
    b.io.wait(Some(Duration::ZERO));
    expect(start.elapsed() < PATIENCE, "a wait went on")
}

fn memory_is_held<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let region: Arc<dyn Memory> = Arc::new(Region::new(1 << 20).expect("test memory"));
    let weak = Arc::downgrade(&region);
    let extent = MemoryExtent::whole(region);
    b.io.submit(IoOp::write(1, b.file, 0, extent)).map_err(|_| "an empty queue refused an operation")?;
    expect(weak.upgrade().is_some(), "memory went away with its operation in flight")?;
    drop(complete(&mut b.io, 1)?);
    expect(weak.upgrade().is_none(), "memory is held without a reason")?;

    // Dropped with operations in flight: they land first, or never started, and then memory goes.
    let region: Arc<dyn Memory> = Arc::new(Region::new(1 << 20).expect("test memory"));
    let weak = Arc::downgrade(&region);
    for tag in 0..8 {
        let part = MemoryExtent::new(Arc::clone(&region), (tag as usize) << 17, 1 << 17).expect("fits");
        b.io.submit(IoOp::read(tag, b.file, tag << 17, part)).map_err(|_| "a queue of 16 is the least")?;
    }
    drop(region);
    drop(b);
    expect(weak.upgrade().is_none(), "memory is held after the drop")
}

fn registered_memory_moves_the_same_bytes<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    let memories: Vec<Arc<dyn Memory>> =
        (0..3).map(|_| Arc::new(Region::new(1 << 20).expect("test memory")) as Arc<dyn Memory>).collect();
    for (index, memory) in memories.iter().enumerate() {
        let _ = b.io.register_memory(memory);
        let _ = b.io.register_memory(memory);
        memory.write(4096, &noise(BLOCK, index as u64)).expect("fits");
    }
    b.io.unregister_memory(&memories[0]);
    for (index, memory) in memories.iter().enumerate() {
        let at = (index * BLOCK) as u64;
        let out = MemoryExtent::new(Arc::clone(memory), 4096, BLOCK).expect("fits");
        let back = MemoryExtent::new(Arc::clone(memory), 512 << 10, BLOCK).expect("fits");
        must(&one(&mut b.io, IoOp::write(1, b.file, at, out))?)?;
        must(&one(&mut b.io, IoOp::read(2, b.file, at, back.clone()))?)?;
        expect(bytes(&back) == noise(BLOCK, index as u64), "other bytes came back")?;
    }
    let weak = Arc::downgrade(&memories[1]);
    for memory in &memories {
        b.io.unregister_memory(memory);
    }
    drop(memories);
    expect(weak.upgrade().is_none(), "an unregistered memory is still held")
}

fn a_random_load_ends_as_an_array_says<I: Io>(mut b: Bench<I>) -> Result<(), String> {
    const SLOTS: usize = 64;
    let seed = 11;
    let mut random = Seeded::new(seed);
    // Which seed each slot holds, and which slots are in use by an operation in flight.
    let mut holds: Vec<Option<u64>> = vec![None; SLOTS];
    let mut busy = [false; SLOTS];
    let (mut started, mut open) = (0_u64, 0_usize);
    let mut done = Vec::new();
    while started < 600 || open > 0 {
        let slot = random.below(SLOTS as u64) as usize;
        if started < 600 && open < 12 && !busy[slot] {
            let at = (slot * BLOCK) as u64;
            let tag = started << 8 | slot as u64;
            let op = if random.chance(500_000) {
                holds[slot] = Some(started);
                IoOp::write(tag, b.file, at, filled(BLOCK, started))
            } else {
                IoOp::read(tag, b.file, at, memory(BLOCK))
            };
            b.io.submit(op).map_err(|_| "a queue of 16 is the least")?;
            busy[slot] = true;
            started += 1;
            open += 1;
            continue;
        }
        b.io.wait(Some(PATIENCE));
        b.io.poll(&mut done);
        for done in done.drain(..) {
            must(&done)?;
            let slot = (done.tag & 0xff) as usize;
            expect(busy[slot], "a completion out of nothing")?;
            let memory = done.op.memory.as_ref().ok_or("the operation came back without its memory")?;
            let wanted = holds[slot].map_or_else(|| vec![0; BLOCK], |seed| noise(BLOCK, seed));
            expect(bytes(memory) == wanted, &format!("seed {seed}: slot {slot} differs"))?;
            busy[slot] = false;
            open -= 1;
        }
    }
    Ok(())
}
