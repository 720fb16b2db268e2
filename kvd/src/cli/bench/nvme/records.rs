//! The path of records: the device of the NVMe tier, verification and journal included.

use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::io::{UringIo, UringOptions};
use kvd_nixl::sys::MemoryExtent;
use kvd_proto::{Epoch, Time};
use kvd_tiers::nvme::{Command, Device, DeviceOptions, OpenOptions, Uuid};
use kvd_tiers::{DeviceId, MoveId, NvmeSlot, SEGMENT_BYTES, SlotEntry, ZoneId};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::disk::Disk;
use super::load::cpu_time;
use super::made::{Made, made};
use super::{Run, Shape, failed};
use crate::cli::exit::Failure;

/// Commands given and not answered. The shape's depth holds for operations of the disk; a write is answered only with its
/// journal page, a read with its verification, and neither shall keep the disk waiting.
const QUEUE_MAX: usize = 256;

/// A device at work on records of one size.
pub(super) struct Records {
    device: Device<UringIo>,
    started: Instant,
    random: SmallRng,
    block_bytes: u32,
    made: Vec<Made>,
    slots: Vec<NvmeSlot>,
    /// Of `slots`, so many from the front hold records.
    written: usize,
    next_place: usize,
}

impl Records {
    /// Opens the device, which holds no record, and cuts it in slots of the shape.
    pub(super) fn open(disk: &Disk, shape: Shape) -> Result<Records, Failure> {
        let mut io = UringIo::new(UringOptions::default()).map_err(failed)?;
        let file = io.add_file(Arc::clone(&disk.prepared.file)).map_err(failed)?;
        let (bytes, geometry) = (disk.prepared.bytes, disk.prepared.geometry);
        let open = OpenOptions { bytes, geometry, uuid: Uuid::new([0xbe; 16]), epoch: Epoch::new(1) };
        let depth = shape.queue_depth as usize;
        let options = DeviceOptions { reads_max: depth, writes_max: depth, ..DeviceOptions::new(DeviceId(0)) };
        let (mut device, _) = Device::open(io, file, open, options, &mut |_| {}).map_err(failed)?;
        let made = made(shape.block_bytes)?;
        for one in &made {
            device.register_memory(one.memory.memory());
        }
        let zones = (0..geometry.zones()).map(ZoneId);
        let per_zone = geometry.slots_per_zone(shape.block_bytes);
        let of_zone = |zone| (0..per_zone).map(move |index| NvmeSlot::new(DeviceId(0), zone, index));
        let mut records = Records {
            device,
            started: Instant::now(),
            random: SmallRng::seed_from_u64(7),
            block_bytes: shape.block_bytes,
            made,
            slots: zones.clone().flat_map(of_zone).collect(),
            written: 0,
            next_place: 0,
        };
        let slot_bytes = shape.block_bytes;
        let mut formats = zones.map(|zone| Command::FormatZone { id: MoveId(0), zone, slot_bytes });
        records.drive(|_| formats.next())?;
        Ok(records)
    }

    /// One run. Writes go to slots that nothing holds, in random order, each once; what a run wrote is forgotten before the
    /// next. Reads need [`Records::fill`] before the first of them.
    pub(super) fn run(&mut self, shape: Shape) -> Result<Run, Failure> {
        if shape.write {
            self.vacate()?;
            let mut random = SmallRng::seed_from_u64(self.random.random());
            self.slots.shuffle(&mut random);
        }
        let (cpu_before, started) = (cpu_time()?, Instant::now());
        let answered = self.drive(|records| match started.elapsed() < shape.limit {
            true if shape.write => records.next_write(),
            true => Some(records.next_read()),
            false => None,
        })?;
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_time()?.saturating_sub(cpu_before));
        Ok(Run::of(answered as f64 * f64::from(self.block_bytes), seconds, cpu.as_secs_f64()))
    }

    /// Writes every slot.
    pub(super) fn fill(&mut self) -> Result<(), Failure> {
        self.vacate()?;
        self.drive(Records::next_write).map(drop)
    }

    /// Forgets every record.
    pub(super) fn vacate(&mut self) -> Result<(), Failure> {
        self.drive(|records| {
            records.written = records.written.checked_sub(1)?;
            Some(Command::Vacate { id: MoveId(0), slot: records.slots[records.written] })
        })
        .map(drop)
    }

    /// The record that belongs in a slot.
    fn of(&self, slot: NvmeSlot) -> &Made {
        let number = u64::from(slot.zone().0) * u64::from(SEGMENT_BYTES / self.block_bytes) + u64::from(slot.index());
        &self.made[number as usize % self.made.len()]
    }

    fn next_write(&mut self) -> Option<Command> {
        let slot = *self.slots.get(self.written)?;
        self.written += 1;
        let Made { entry, memory } = self.of(slot).clone();
        Some(Command::Write { id: MoveId(0), slot, entry, memory })
    }

    /// To where another record lies: a read that moves nothing does not verify.
    fn next_read(&mut self) -> Command {
        let slot = self.slots[self.random.random_range(0..self.written)];
        let expect: SlotEntry = self.of(slot).entry.clone();
        self.next_place = (self.next_place + 1) % self.made.len();
        let memory: MemoryExtent = self.made[self.next_place].memory.clone();
        Command::Read { id: MoveId(0), slot, expect, memory }
    }

    /// Keeps the queue full until there is no more and all is answered; how many were.
    fn drive(&mut self, mut next: impl FnMut(&mut Records) -> Option<Command>) -> Result<u64, Failure> {
        let (mut answered, mut failure, mut more) = (0, None, true);
        while more || self.device.unanswered() > 0 {
            while more && self.device.unanswered() < QUEUE_MAX {
                match next(self) {
                    Some(command) => self.device.handle(command, self.now()).map_err(failed)?,
                    None => more = false,
                }
            }
            self.device.pump(self.now());
            self.device.take_outcomes(|finished| {
                answered += 1;
                failure = failure.or(finished.result.err());
            });
            if let Some(failure) = failure {
                return Err(failed(failure));
            }
            let now = self.now();
            let idle = self.device.unanswered() == QUEUE_MAX || !more && self.device.unanswered() > 0;
            let timeout = self.device.poll_timeout();
            if idle && timeout.is_none_or(|at| at > now) {
                self.device.wait(timeout.map(|at| at.since(now)));
            }
        }
        Ok(answered)
    }

    fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }
}
