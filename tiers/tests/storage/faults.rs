//! Goal: a disk that fails, lies or hangs costs misses and honest refusals, never wrong bytes, an answer that does not come, or a
//! device that stays bad when the disk is good again.
//!
//! Method: the random ladder of the crash test under seeded fault plans; and one named case per fault that an operator knows.

use std::time::Duration;

use kvd_nixl::io::{Fault, FaultControl, FaultIo, FaultPlan, FaultRule, FaultTrigger, FileId, IoKind, SimDisk, SimIo};
use kvd_proto::Time;
use kvd_tiers::ladder::{DeviceFault, Outcome};
use kvd_tiers::nvme::{Command, Device, DeviceOptions, Failure, Finished, Moved, Restored};
use kvd_tiers::{MoveId, NvmeSlot, RestoredPlace, ZoneId};

use crate::records::{Recipe, memory};
use crate::world::{DEVICE, World, disk, geometry, open, open_options, options};

const SYNC: Duration = Duration::from_millis(20);

fn faulty(disk: &SimDisk, seed: u64) -> (FaultIo<SimIo>, FaultControl) {
    let io = FaultIo::new(disk.io(), seed, FaultPlan::default());
    let control = io.control();
    (io, control)
}

fn everything(per_million: u32) -> FaultPlan {
    let span_bytes = geometry().end();
    let faults = [
        Fault::EIO,
        Fault::ENOSPC,
        Fault::Short,
        Fault::Torn,
        Fault::Lost,
        Fault::Misdirected { span_bytes },
        Fault::Stale,
        Fault::BitFlip,
        Fault::Delay { polls: 20 },
    ];
    FaultPlan::new(faults.map(|fault| FaultRule::new(fault, FaultTrigger::PerMillion(per_million))))
}

fn run(seed: u64) -> (u64, u64) {
    let (disk, file) = disk(seed);
    let (io, mut control) = faulty(&disk, seed);
    let (device, ..) = open(&disk, io, file, SYNC);
    let mut world = World::new(disk, device, seed);
    world.faulty = true;
    for round in 0..3 {
        // A good disk, a bad one, a good one again.
        for plan in [FaultPlan::default(), everything(3000 << (2 * round)), FaultPlan::default()] {
            control.set_plan(plan);
            for _ in 0..100 {
                world.act();
                world.step();
                world.step();
            }
            world.settle();
        }
        world.disk.kill();
        let (io, again) = faulty(&world.disk, seed + round);
        control = again;
        let (device, _, found) = open(&world.disk, io, file, SYNC);
        world.adopt(device, found, false);
    }
    (world.reads_verified, world.misses)
}

#[test]
fn no_fault_makes_wrong_bytes_or_an_answer_that_does_not_come() {
    let (mut verified, mut misses) = (0, 0);
    for seed in 0..60 {
        let (reads, missed) = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|why| {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(why)
        });
        (verified, misses) = (verified + reads, misses + missed);
    }
    println!("{verified} reads verified, {misses} misses, 0 wrong");
    assert!(verified > 0 && misses > 0);
}

/// A device on a disk that steps by itself, and a clock of a millisecond per pump.
struct Bench {
    disk: SimDisk,
    file: FileId,
    device: Device<FaultIo<SimIo>>,
    control: FaultControl,
    now: Time,
    ids: u64,
}

impl Bench {
    fn new(options: DeviceOptions) -> Self {
        let (disk, file) = disk(1);
        disk.set_automatic(true);
        let (io, control) = faulty(&disk, 1);
        let (device, _) = Device::open(io, file, open_options(), options, &mut |_| {}).unwrap();
        let mut bench = Self { disk, file, device, control, now: Time::ZERO, ids: 0 };
        let zone = ZoneId(0);
        assert!(bench.answer(|id| Command::FormatZone { id, zone, slot_bytes: 8192 }).is_ok());
        bench
    }

    fn ask(&mut self, command: impl FnOnce(MoveId) -> Command) -> MoveId {
        self.ids += 1;
        let id = MoveId(self.ids);
        self.device.handle(command(id), self.now).unwrap();
        id
    }

    fn pump(&mut self) -> Vec<Finished> {
        self.now = self.now + Duration::from_millis(1);
        self.device.pump(self.now);
        let mut finished = Vec::new();
        self.device.take_outcomes(|outcome| finished.push(outcome));
        finished
    }

    fn answer(&mut self, command: impl FnOnce(MoveId) -> Command) -> Result<Moved, Failure> {
        let id = self.ask(command);
        for _ in 0..10_000 {
            if let Some(outcome) = self.pump().into_iter().find(|outcome| outcome.id == id) {
                return outcome.result;
            }
        }
        panic!("no answer in ten seconds");
    }

    fn write(&mut self, index: u32, number: u64) -> Result<Moved, Failure> {
        let made = Recipe::new(number, 1, 4000).make();
        self.answer(|id| Command::Write { id, slot: slot(index), memory: made.memory(), entry: made.entry })
    }

    fn read(&mut self, index: u32, number: u64) -> Result<Moved, Failure> {
        let made = Recipe::new(number, 1, 4000).make();
        let into = memory(8192);
        let expect = made.entry.clone();
        let read = self.answer(|id| Command::Read { id, slot: slot(index), expect, memory: into.clone() });
        assert!(read.is_err() || made.is_in(&into));
        read
    }

    fn vacate(&mut self, index: u32) -> Result<Moved, Failure> {
        self.answer(|id| Command::Vacate { id, slot: slot(index) })
    }
}

fn slot(index: u32) -> NvmeSlot {
    NvmeSlot::new(DEVICE, ZoneId(0), index)
}

fn always(fault: Fault, kind: IoKind) -> FaultPlan {
    FaultPlan::new([FaultRule::new(fault, FaultTrigger::From(1)).on(kind)])
}

fn outcome(result: Result<Moved, Failure>) -> Outcome {
    Finished { id: MoveId(0), result }.outcome()
}

#[test]
fn errors_of_the_disk_carry_their_kind_and_end_with_it() {
    let mut bench = Bench::new(options(SYNC));
    bench.write(0, 1).unwrap();
    let gone = Fault::Errno(rustix::io::Errno::NODEV.raw_os_error());
    for (fault, expect) in [
        (Fault::EIO, DeviceFault::Io),
        (Fault::ENOSPC, DeviceFault::NoSpace),
        (Fault::EROFS, DeviceFault::ReadOnly),
        (gone, DeviceFault::Gone),
        (Fault::Short, DeviceFault::Io),
    ] {
        bench.control.set_plan(always(fault, IoKind::Write));
        assert_eq!(outcome(bench.write(1, 2)), Outcome::Failed(expect));
        assert_eq!(outcome(bench.vacate(0)), Outcome::Failed(expect));
        assert!(bench.read(0, 1).is_ok(), "what can be read is read");
        bench.control.set_plan(always(fault, IoKind::Read));
        assert_eq!(outcome(bench.read(0, 1)), Outcome::Failed(expect));
        assert_eq!(outcome(bench.answer(|id| Command::Probe { id })), Outcome::Failed(expect));
        bench.control.set_plan(FaultPlan::default());
    }
    assert!(bench.answer(|id| Command::Probe { id }).is_ok());
    // What failed in the background is tried again after a quarter of a second.
    for _ in 0..300 {
        bench.pump();
    }
    bench.write(1, 2).unwrap();
    bench.read(1, 2).unwrap();
    bench.vacate(0).unwrap();
    bench.write(0, 3).unwrap();
}

#[test]
fn a_vacate_that_failed_changes_nothing() {
    let mut bench = Bench::new(options(SYNC));
    bench.write(0, 1).unwrap();
    bench.control.set_plan(always(Fault::EIO, IoKind::Write));
    assert!(bench.vacate(0).is_err());
    bench.control.set_plan(FaultPlan::default());
    // Enough pages for the half with the failed one to go to the table and be written over.
    for number in 1..12 {
        bench.write(number, u64::from(number)).unwrap();
        bench.pump();
    }
    drop(bench.device);
    let (_, _, found) = open(&bench.disk, bench.disk.io(), bench.file, SYNC);
    let place = RestoredPlace::Nvme(slot(0));
    assert!(found.iter().any(|found| matches!(found, Restored::Record(record) if record.place == place)));
}

#[test]
fn lies_of_the_disk_are_corrupt() {
    for fault in [Fault::Torn, Fault::Lost, Fault::BitFlip, Fault::Misdirected { span_bytes: geometry().end() }] {
        let mut bench = Bench::new(options(SYNC));
        bench.write(0, 1).unwrap();
        bench.control.set_plan(always(fault, IoKind::Read));
        assert_eq!(outcome(bench.read(0, 1)), Outcome::Corrupt, "{fault:?}");
        bench.control.set_plan(FaultPlan::default());
        bench.read(0, 1).unwrap();
    }
}

#[test]
fn a_record_that_rotted_in_memory_does_not_leave_it() {
    let mut bench = Bench::new(options(SYNC));
    let made = Recipe::new(1, 1, 4000).make();
    let rotten = made.memory();
    rotten.write(5000, &[made.image[5000] ^ 1]).unwrap();
    let entry = made.entry.clone();
    let wrote = bench.answer(|id| Command::Write { id, slot: slot(0), memory: rotten, entry });
    assert_eq!(outcome(wrote), Outcome::Corrupt);
    bench.write(0, 2).unwrap();
}

#[test]
fn a_checkpoint_that_fails_holds_up_nobody_and_is_made_good() {
    let mut bench = Bench::new(options(SYNC));
    // Every read fails: the table cannot be changed, and soon both halves of the journal are full.
    bench.control.set_plan(always(Fault::EIO, IoKind::Read));
    let mut refused = 0;
    for number in 0..20 {
        match bench.write(number, u64::from(number)) {
            Ok(_) => {}
            Err(failure) => {
                assert_eq!(outcome(Err(failure)), Outcome::Failed(DeviceFault::Io));
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && bench.device.trouble().is_some());
    bench.control.set_plan(FaultPlan::default());
    for _ in 0..3000 {
        bench.pump();
    }
    assert_eq!(bench.device.trouble(), None);
    for number in 0..40 {
        bench.vacate(0).ok();
        bench.write(0, number).unwrap();
    }
}

#[test]
fn a_sector_of_the_table_that_cannot_be_read_is_written_anew() {
    let mut bench = Bench::new(options(SYNC));
    bench.control.set_plan(always(Fault::EIO, IoKind::Read));
    for number in 0..4 {
        bench.write(number, u64::from(number)).unwrap();
    }
    for _ in 0..6000 {
        bench.pump();
    }
    assert_eq!(bench.device.trouble(), None, "three failed reads, then the sector is given up");
    bench.control.set_plan(FaultPlan::default());
    for number in 0..4 {
        bench.read(number, u64::from(number)).unwrap();
    }
}

#[test]
fn a_hung_operation_holds_up_no_other() {
    let mut bench = Bench::new(options(SYNC));
    bench.write(0, 1).unwrap();
    bench.write(1, 2).unwrap();
    bench.control.set_plan(FaultPlan::new([FaultRule::new(Fault::Hang, FaultTrigger::Nth(1)).on(IoKind::Read)]));
    let expect = Recipe::new(1, 1, 4000).make().entry;
    let hung = bench.ask(|id| Command::Read { id, slot: slot(0), expect, memory: memory(8192) });
    bench.read(1, 2).unwrap();
    assert_eq!(bench.device.unanswered(), 1);
    bench.control.release();
    let mut outcomes = Vec::new();
    for _ in 0..10 {
        outcomes.extend(bench.pump());
    }
    assert_eq!(outcomes.iter().map(|outcome| outcome.id).collect::<Vec<_>>(), [hung]);
    assert!(outcomes[0].result.is_ok());
}

#[test]
fn commands_beyond_the_bound_come_back() {
    let mut bench = Bench::new(DeviceOptions { moves_max: 3, ..options(SYNC) });
    bench.control.set_plan(always(Fault::Hang, IoKind::Read));
    for _ in 0..3 {
        bench.ask(|id| Command::Probe { id });
    }
    let refused = bench.device.handle(Command::Flush { id: MoveId(99) }, bench.now).unwrap_err();
    assert_eq!(refused.0.id(), MoveId(99));
    bench.control.set_plan(FaultPlan::default());
    bench.control.release();
    while bench.device.unanswered() > 0 {
        bench.pump();
    }
    assert!(bench.answer(|id| Command::Flush { id }).is_ok());
}

#[test]
fn commands_that_make_no_sense_are_refused_at_once() {
    let mut bench = Bench::new(options(SYNC));
    bench.write(0, 1).unwrap();
    let refused = |result: Result<Moved, Failure>| assert!(matches!(result, Err(Failure::Refused(_))), "{result:?}");
    refused(bench.write(0, 2));
    refused(bench.write(32, 2));
    refused(bench.answer(|id| Command::FormatZone { id, zone: ZoneId(0), slot_bytes: 12288 }));
    refused(bench.answer(|id| Command::FormatZone { id, zone: ZoneId(3), slot_bytes: 8192 }));
    refused(bench.answer(|id| Command::FormatZone { id, zone: ZoneId(1), slot_bytes: 5000 }));
    refused(bench.answer(|id| Command::Vacate { id, slot: NvmeSlot::new(DEVICE, ZoneId(1), 0) }));
    let expect = Recipe::new(1, 1, 4000).make().entry;
    let (large, small) = (memory(12288), memory(8000));
    refused(bench.answer(|id| Command::Read { id, slot: slot(0), expect: expect.clone(), memory: large }));
    refused(bench.answer(|id| Command::Read { id, slot: slot(0), expect: expect.clone(), memory: small }));
    let verified = bench.answer(|id| Command::Verify { id, slot: slot(0), expect });
    assert!(verified.is_ok());
    let expect = Recipe::new(2, 1, 4000).make().entry;
    let verified = bench.answer(|id| Command::Verify { id, slot: slot(0), expect });
    assert_eq!(outcome(verified), Outcome::Corrupt);
    bench.read(0, 1).unwrap();
}

#[test]
fn reads_and_writes_keep_to_their_bandwidth() {
    let limits =
        DeviceOptions { read_bandwidth_max: Some(1 << 20), write_bandwidth_max: Some(512 << 10), ..options(SYNC) };
    let mut bench = Bench::new(limits);
    let started = bench.now;
    for index in 0..24 {
        bench.write(index, u64::from(index)).unwrap();
    }
    // 24 x 8 KiB at 512 KiB/s are 375 ms.
    let wrote = bench.now.since(started);
    assert!((300..500).contains(&wrote.as_millis()), "{wrote:?}");
    let started = bench.now;
    for index in 0..24 {
        bench.read(index, u64::from(index)).unwrap();
    }
    let read = bench.now.since(started);
    assert!((150..300).contains(&read.as_millis()), "{read:?}");
}

#[test]
fn two_owners_are_told_apart_by_epoch() {
    let (disk, file): (SimDisk, FileId) = disk(1);
    let (device, first, _) = open(&disk, disk.io(), file, SYNC);
    drop(device);
    let (_, second, _) = open(&disk, disk.io(), file, SYNC);
    assert!(second.epoch > first.epoch);
    assert_eq!(second.uuid, first.uuid);
}
