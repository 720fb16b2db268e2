//! The simulated disk and the fault decorator do what they say: tests that stand on them need that.
//!
//! Goal: synced bytes survive power loss and unsynced ones may not; each fault does its own harm and no other. Method:
//! many crash seeds from one state against what may and must be found; one small scenario per fault.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kvd_nixl::io::{
    Fault, FaultIo, FaultPlan, FaultRule, FaultTrigger, FileId, Io, IoDone, IoError, IoKind, IoOp, SimDisk, SimIo,
    SimOptions,
};
use kvd_nixl::sys::{MemoryExtent, Region};

const BLOCK: usize = 16 << 10;
const FILE: FileId = FileId::new(0);

fn memory(len: usize, byte: u8) -> MemoryExtent {
    let extent = MemoryExtent::whole(Arc::new(Region::new(len).unwrap()));
    extent.write(0, &vec![byte; len]).unwrap();
    extent
}

fn bytes(extent: &MemoryExtent) -> Vec<u8> {
    let mut bytes = vec![0; extent.len()];
    extent.read(0, &mut bytes).unwrap();
    bytes
}

fn held(disk: &SimDisk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    disk.inspect(FILE, offset, &mut bytes);
    bytes
}

fn disk() -> SimDisk {
    let disk = SimDisk::new(9, SimOptions::default());
    disk.add_file(1 << 20);
    disk
}

fn finish(disk: &SimDisk, io: &mut impl Io) -> Vec<IoDone> {
    let mut done = Vec::new();
    while disk.step().is_some() {}
    io.poll(&mut done);
    done
}

fn write(disk: &SimDisk, io: &mut impl Io, offset: u64, byte: u8) {
    io.submit(IoOp::write(1, FILE, offset, memory(BLOCK, byte))).unwrap();
    finish(disk, io);
}

fn sync(disk: &SimDisk, io: &mut impl Io) {
    io.submit(IoOp::sync(2, FILE)).unwrap();
    finish(disk, io);
}

#[test]
fn power_loss_spares_what_was_synced_and_mixes_the_rest() {
    let disk = disk();
    let mut io = disk.io();
    write(&disk, &mut io, 0, 1);
    write(&disk, &mut io, BLOCK as u64, 1);
    sync(&disk, &mut io);
    // The second block is overwritten twice without a sync; one more write is still in flight.
    write(&disk, &mut io, BLOCK as u64, 2);
    write(&disk, &mut io, BLOCK as u64, 3);
    io.submit(IoOp::write(3, FILE, 2 * BLOCK as u64, memory(BLOCK, 4))).unwrap();
    let mut outcomes = BTreeSet::new();
    let (mut torn, mut sector_torn) = (false, false);
    for seed in 0..400 {
        let after = disk.crash(seed);
        assert_eq!(held(&after, 0, BLOCK), vec![1; BLOCK], "seed {seed}: synced bytes are lost");
        let second = held(&after, BLOCK as u64, BLOCK);
        let third = held(&after, 2 * BLOCK as u64, BLOCK);
        assert!(second.iter().all(|byte| (1..=3).contains(byte)), "seed {seed}: bytes from nowhere");
        assert!(third.iter().all(|byte| [0, 4].contains(byte)), "seed {seed}: bytes from nowhere");
        assert!(second.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "a sector is torn");
        torn |= second.iter().any(|byte| *byte != second[0]);
        sector_torn |= second.chunks(4096).any(|page| page.iter().any(|byte| *byte != page[0]));
        outcomes.insert((second[0], third[0]));
        assert_eq!(
            held(&after, BLOCK as u64, BLOCK),
            held(&disk.crash(seed), BLOCK as u64, BLOCK),
            "not from the seed"
        );
    }
    assert!(torn && sector_torn);
    // Old, middle and new content, each with and without the newer write: reordering among them.
    assert_eq!(outcomes.len(), 6, "{outcomes:?}");
    assert_eq!(held(&disk, BLOCK as u64, BLOCK), vec![3; BLOCK], "the living disk is not changed");
}

#[test]
fn a_sync_covers_only_what_its_owner_had_seen() {
    let disk = disk();
    let mut io = disk.io();
    io.submit(IoOp::write(1, FILE, 0, memory(BLOCK, 1))).unwrap();
    disk.step().unwrap();
    // Landed, but the completion was not taken: a sync now promises nothing for it.
    io.submit(IoOp::sync(2, FILE)).unwrap();
    finish(&disk, &mut io);
    assert!((0..50).any(|seed| held(&disk.crash(seed), 0, 1) == [0]));
    sync(&disk, &mut io);
    assert!((0..50).all(|seed| held(&disk.crash(seed), 0, 1) == [1]));
}

#[test]
fn a_killed_owner_leaves_landed_writes_and_some_of_those_in_flight() {
    let (mut landed, mut lost) = (0, 0);
    for seed in 0..40 {
        let disk = SimDisk::new(seed, SimOptions::default());
        disk.add_file(1 << 20);
        let mut io = disk.io();
        write(&disk, &mut io, 0, 1);
        io.submit(IoOp::write(3, FILE, BLOCK as u64, memory(BLOCK, 2))).unwrap();
        disk.kill();
        // The dead owner's queue takes and gives nothing.
        assert!(io.submit(IoOp::sync(4, FILE)).is_err());
        assert_eq!((io.in_flight(), finish(&disk, &mut io).len()), (0, 0));
        drop(io);
        assert_eq!(held(&disk, 0, BLOCK), vec![1; BLOCK]);
        match held(&disk, BLOCK as u64, 1)[0] {
            0 => lost += 1,
            _ => landed += 1,
        }
        let mut next = disk.io();
        write(&disk, &mut next, 0, 5);
        assert_eq!(held(&disk, 0, BLOCK), vec![5; BLOCK]);
    }
    assert!(landed > 5 && lost > 5);
}

#[test]
fn one_seed_is_one_history() {
    let run = |seed| {
        let disk = SimDisk::new(seed, SimOptions::default());
        disk.add_file(1 << 20);
        let mut io = disk.io();
        for tag in 0..20 {
            io.submit(IoOp::write(tag, FILE, tag * BLOCK as u64, memory(BLOCK, 1))).unwrap();
        }
        let tags: Vec<u64> = finish(&disk, &mut io).iter().map(|done| done.tag).collect();
        (tags, disk.now())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
    assert_ne!(run(1).0, (0..20).collect::<Vec<_>>(), "operations complete in another order than they came");
}

#[test]
fn time_is_virtual_and_a_slow_disk_is_slow() {
    let disk = disk();
    let mut io = disk.io();
    io.submit(IoOp::write(1, FILE, 0, memory(BLOCK, 1))).unwrap();
    let due = disk.next_due().unwrap();
    disk.advance(due - Duration::from_nanos(1));
    let mut done = Vec::new();
    io.poll(&mut done);
    assert!(done.is_empty());
    disk.advance(due);
    io.poll(&mut done);
    assert_eq!(done.len(), 1);
    disk.set_slowdown(100);
    io.submit(IoOp::write(1, FILE, 0, memory(BLOCK, 1))).unwrap();
    assert!(disk.step().unwrap() - due >= Duration::from_millis(4));
    disk.advance(Duration::from_secs(1));
    assert_eq!(disk.now(), Duration::from_secs(1));
}

#[test]
fn the_cache_is_bounded() {
    let options = SimOptions { cache_bytes_max: 4 * BLOCK, ..SimOptions::default() };
    let disk = SimDisk::new(1, options);
    disk.add_file(1 << 20);
    let mut io = disk.io();
    for block in 0..8 {
        write(&disk, &mut io, block * BLOCK as u64, 1);
    }
    // The oldest four had to become durable.
    assert!((0..50).all(|seed| held(&disk.crash(seed), 0, 4 * BLOCK) == vec![1; 4 * BLOCK]));
    assert!((0..50).any(|seed| held(&disk.crash(seed), 4 * BLOCK as u64, 1) == [0]));
}

#[test]
fn a_write_beyond_the_end_finds_no_space() {
    let disk = disk();
    let mut io = disk.io();
    io.submit(IoOp::write(1, FILE, (1 << 20) - 4096, memory(BLOCK, 1))).unwrap();
    assert_eq!(finish(&disk, &mut io)[0].result, Err(IoError::Os { errno: 28 }));
}

#[test]
#[should_panic(expected = "already has an owner")]
fn a_disk_has_one_owner() {
    let disk = disk();
    let _first = disk.io();
    let _second = disk.io();
}

/// A disk whose first block holds 1 and was 0 before, under one rule.
fn faulty(rule: FaultRule) -> (SimDisk, FaultIo<SimIo>) {
    let disk = disk();
    // Writes of the preparation go through the decorator too, so that it knows what was there before.
    let mut io = FaultIo::new(disk.io(), 4, FaultPlan::new([rule]));
    write(&disk, &mut io, 0, 1);
    (disk, io)
}

fn read(disk: &SimDisk, io: &mut impl Io) -> (Result<(), IoError>, Vec<u8>) {
    io.submit(IoOp::read(8, FILE, 0, memory(BLOCK, 0xee))).unwrap();
    let done = finish(disk, io).remove(0);
    (done.result, bytes(done.op.memory.as_ref().unwrap()))
}

fn first_read(fault: Fault) -> FaultRule {
    FaultRule::new(fault, FaultTrigger::Nth(1)).on(IoKind::Read)
}

fn second_write(fault: Fault) -> FaultRule {
    FaultRule::new(fault, FaultTrigger::Nth(2)).on(IoKind::Write).of(FILE)
}

#[test]
fn read_faults_do_their_harm_once() {
    let untouched = vec![0xee; BLOCK];
    for (fault, result, check) in [
        (Fault::EIO, Err(IoError::Os { errno: 5 }), Some(untouched.clone())),
        (Fault::EROFS, Err(IoError::Os { errno: 30 }), Some(untouched.clone())),
        (Fault::Lost, Ok(()), Some(untouched)),
        (Fault::Stale, Ok(()), Some(vec![0; BLOCK])),
        (Fault::Misdirected { span_bytes: 1 << 20 }, Ok(()), None),
        (Fault::Delay { polls: 3 }, Ok(()), Some(vec![1; BLOCK])),
    ] {
        let (disk, mut io) = faulty(first_read(fault));
        if let Fault::Delay { polls } = fault {
            io.submit(IoOp::read(8, FILE, 0, memory(BLOCK, 0xee))).unwrap();
            disk.step().unwrap();
            let mut done = Vec::new();
            for _ in 1..polls {
                io.poll(&mut done);
                assert!(done.is_empty());
                assert_eq!(io.in_flight(), 1);
            }
            io.poll(&mut done);
            assert_eq!(done.len(), 1);
        } else {
            let (told, found) = read(&disk, &mut io);
            assert_eq!(told, result, "{fault:?}");
            match check {
                Some(wanted) => assert!(found == wanted, "{fault:?}"),
                None => assert!(found != vec![1; BLOCK], "{fault:?}"),
            }
        }
        assert_eq!(io.control().happened(), 1);
        assert_eq!(read(&disk, &mut io), (Ok(()), vec![1; BLOCK]), "{fault:?} struck twice");
    }
}

#[test]
fn a_flipped_bit_is_one_bit() {
    let (disk, mut io) = faulty(first_read(Fault::BitFlip));
    let (told, found) = read(&disk, &mut io);
    assert_eq!(told, Ok(()));
    let differing: u32 = found.iter().map(|byte| (byte ^ 1).count_ones()).sum();
    assert_eq!(differing, 1);

    let (disk, mut io) = faulty(second_write(Fault::BitFlip));
    let source = memory(BLOCK, 2);
    io.submit(IoOp::write(1, FILE, 0, source.clone())).unwrap();
    assert_eq!(finish(&disk, &mut io)[0].result, Ok(()));
    let differing: u32 = held(&disk, 0, BLOCK).iter().map(|byte| (byte ^ 2).count_ones()).sum();
    assert_eq!(differing, 1);
    assert_eq!(bytes(&source), vec![2; BLOCK], "the writer's memory is its own");
}

#[test]
fn short_and_torn_move_the_first_sectors_and_differ_in_what_they_say() {
    for (fault, honest) in [(Fault::Short, true), (Fault::Torn, false)] {
        let (disk, mut io) = faulty(second_write(fault));
        io.submit(IoOp::write(1, FILE, 0, memory(BLOCK, 2))).unwrap();
        let told = finish(&disk, &mut io)[0].result;
        let found = held(&disk, 0, BLOCK);
        let moved = found.iter().filter(|byte| **byte == 2).count();
        assert!(moved < BLOCK && moved % 512 == 0);
        assert!(found[..moved].iter().all(|byte| *byte == 2) && found[moved..].iter().all(|byte| *byte == 1));
        let wanted = if honest { Err(IoError::Short { wanted: BLOCK as u64, got: moved as u64 }) } else { Ok(()) };
        assert_eq!(told, wanted);
    }
}

#[test]
fn lost_and_misdirected_writes_say_they_are_done() {
    let (disk, mut io) = faulty(second_write(Fault::Lost));
    io.submit(IoOp::write(1, FILE, 0, memory(BLOCK, 2))).unwrap();
    assert_eq!(finish(&disk, &mut io)[0].result, Ok(()));
    assert_eq!(held(&disk, 0, BLOCK), vec![1; BLOCK]);

    let (disk, mut io) = faulty(second_write(Fault::Misdirected { span_bytes: 1 << 19 }));
    io.submit(IoOp::write(1, FILE, 0, memory(4096, 2))).unwrap();
    let done = finish(&disk, &mut io).remove(0);
    assert_eq!((done.result, done.op.offset), (Ok(()), 0));
    let content = held(&disk, 0, 1 << 20);
    let at = content.iter().position(|byte| *byte == 2).unwrap();
    assert!(at != 0 && at % 4096 == 0 && at < 1 << 19);
}

#[test]
fn a_full_disk_stays_full_until_the_plan_changes() {
    let rule = FaultRule::new(Fault::ENOSPC, FaultTrigger::From(2)).on(IoKind::Write);
    let (disk, mut io) = faulty(rule);
    for _ in 0..3 {
        io.submit(IoOp::write(1, FILE, 0, memory(BLOCK, 2))).unwrap();
        assert_eq!(finish(&disk, &mut io)[0].result, Err(IoError::Os { errno: 28 }));
        assert_eq!(read(&disk, &mut io), (Ok(()), vec![1; BLOCK]), "reads go on");
    }
    io.control().set_plan(FaultPlan::default());
    write(&disk, &mut io, 0, 3);
    assert_eq!(held(&disk, 0, BLOCK), vec![3; BLOCK]);
}

#[test]
fn what_hangs_goes_on_when_released() {
    let (disk, mut io) = faulty(first_read(Fault::Hang));
    io.submit(IoOp::read(8, FILE, 0, memory(BLOCK, 0xee))).unwrap();
    assert_eq!((finish(&disk, &mut io).len(), io.in_flight()), (0, 1));
    io.control().release();
    io.wait(Some(Duration::from_secs(5)));
    let done = finish(&disk, &mut io).remove(0);
    assert_eq!((done.result, bytes(done.op.memory.as_ref().unwrap())), (Ok(()), vec![1; BLOCK]));
}

#[test]
fn chance_is_drawn_from_the_seed_and_a_refused_operation_draws_nothing() {
    let run = |depth: usize| {
        let disk = SimDisk::new(1, SimOptions { depth, ..SimOptions::default() });
        disk.add_file(1 << 20);
        let rule = FaultRule::new(Fault::EIO, FaultTrigger::PerMillion(300_000));
        let mut io = FaultIo::new(disk.io(), 77, FaultPlan::new([rule]));
        let mut failed = BTreeSet::new();
        let mut done = Vec::new();
        for tag in 0..200 {
            let mut op = IoOp::read(tag, FILE, 0, memory(4096, 0));
            while let Err(back) = io.submit(op) {
                op = back;
                disk.step();
                io.poll(&mut done);
            }
        }
        while io.in_flight() > 0 {
            disk.step();
            io.poll(&mut done);
        }
        failed.extend(done.iter().filter(|done| done.result.is_err()).map(|done| done.tag));
        failed
    };
    let failed = run(64);
    assert!((30..90).contains(&failed.len()));
    assert_eq!(failed, run(2));
}
