//! A device on a simulated disk, a model of what it must hold, and everything a ladder would do to it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use kvd_nixl::io::{FileId, Io, Seeded, SimDisk, SimOptions};
use kvd_nixl::sys::MemoryExtent;
use kvd_proto::{Epoch, Time};
use kvd_tiers::nvme::{
    Command, Device, DeviceOptions, Failure, Finished, Geometry, OpenOptions, Opened, Restored, Uuid,
};
use kvd_tiers::{DeviceId, MoveId, NvmeSlot, RestoredPlace, SlotEntry, ZoneId};

use crate::records::{Made, Recipe, memory};

pub(crate) const DEVICE: DeviceId = DeviceId(0);

pub(crate) fn geometry() -> Geometry {
    // Eight pages: a half is full after four, so that checkpoints happen all the time.
    Geometry::new(256 << 10, 3, 8).unwrap()
}

pub(crate) fn disk(seed: u64) -> (SimDisk, FileId) {
    let disk = SimDisk::new(seed, SimOptions { cache_bytes_max: 256 << 10, ..SimOptions::default() });
    let file = disk.add_file(geometry().end());
    (disk, file)
}

pub(crate) fn options(sync_interval: Duration) -> DeviceOptions {
    DeviceOptions { moves_max: 48, reads_max: 8, writes_max: 8, sync_interval, ..DeviceOptions::new(DEVICE) }
}

pub(crate) fn open_options() -> OpenOptions {
    OpenOptions { bytes: geometry().end(), geometry: geometry(), uuid: Uuid::new([0xd5; 16]), epoch: Epoch::new(1) }
}

/// Opens a device while the disk runs by itself.
pub(crate) fn open<I: Io>(disk: &SimDisk, io: I, file: FileId, sync: Duration) -> (Device<I>, Opened, Vec<Restored>) {
    let mut found = Vec::new();
    disk.set_automatic(true);
    let opened = Device::open(io, file, open_options(), options(sync), &mut |restored| found.push(restored));
    disk.set_automatic(false);
    let (device, opened) = opened.expect("a device of ours opens, whatever was done to it");
    (device, opened, found)
}

/// What the model thinks of a slot.
#[derive(Clone, Debug)]
enum Place {
    Writing(Recipe),
    Resident(Recipe),
    /// A vacate is under way: present or absent after a crash.
    Vacating(Recipe),
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Write(NvmeSlot),
    Read(NvmeSlot, Recipe),
    Vacate(NvmeSlot),
    Format(ZoneId, u32),
    Flush,
}

/// The model, and the device under it.
pub(crate) struct World<I> {
    pub(crate) disk: SimDisk,
    pub(crate) device: Device<I>,
    pub(crate) random: Seeded,
    /// Every record ever written: what may be served under a key and a generation.
    history: HashMap<(u64, u32), Recipe>,
    slots: BTreeMap<NvmeSlot, Place>,
    /// Slots that nothing may be assumed of: their last vacate or write failed on the disk.
    unknown: HashSet<NvmeSlot>,
    zones: BTreeMap<ZoneId, u32>,
    asked: HashMap<MoveId, (Asked, Option<MemoryExtent>)>,
    ids: u64,
    generation: u32,
    /// Changes that were asked for before the flush under way.
    flushing: Option<Vec<MoveId>>,
    /// Records that a flush has covered.
    flushed: HashSet<(NvmeSlot, Recipe)>,
    pub(crate) reads_verified: u64,
    pub(crate) misses: u64,
    /// Whether the disk may fail: then failures and misses are allowed, wrong bytes still are not.
    pub(crate) faulty: bool,
}

impl<I: Io> World<I> {
    pub(crate) fn new(disk: SimDisk, device: Device<I>, seed: u64) -> Self {
        Self {
            disk,
            device,
            random: Seeded::new(seed),
            history: HashMap::new(),
            slots: BTreeMap::new(),
            unknown: HashSet::new(),
            zones: BTreeMap::new(),
            asked: HashMap::new(),
            ids: 0,
            generation: 0,
            flushing: None,
            flushed: HashSet::new(),
            reads_verified: 0,
            misses: 0,
            faulty: false,
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time::ZERO + self.disk.now()
    }

    fn id(&mut self) -> MoveId {
        self.ids += 1;
        MoveId(self.ids)
    }

    fn ask(&mut self, asked: Asked, memory: Option<MemoryExtent>, command: Command) {
        let id = command.id();
        if self.device.handle(command, self.now()).is_ok() {
            match asked {
                Asked::Write(_) | Asked::Read(..) => {}
                Asked::Vacate(slot) => {
                    let Some(Place::Resident(recipe)) = self.slots.get(&slot).cloned() else { unreachable!() };
                    self.slots.insert(slot, Place::Vacating(recipe));
                }
                Asked::Format(zone, _) => {
                    self.zones.remove(&zone);
                }
                Asked::Flush => {
                    let change = |asked: &Asked| !matches!(asked, Asked::Read(..));
                    self.flushing =
                        Some(self.asked.iter().filter(|(_, (asked, _))| change(asked)).map(|(id, _)| *id).collect());
                }
            }
            self.asked.insert(id, (asked, memory));
        } else if let Asked::Write(slot) = asked {
            self.slots.remove(&slot);
        }
    }

    pub(crate) fn resident(&self) -> Vec<(NvmeSlot, Recipe)> {
        let resident = self.slots.iter().filter_map(|(slot, place)| match place {
            Place::Resident(recipe) => Some((*slot, *recipe)),
            Place::Writing(_) | Place::Vacating(_) => None,
        });
        resident.collect()
    }

    fn pick<T>(&mut self, from: &[T]) -> Option<T>
    where
        T: Copy,
    {
        let index = self.random.below(from.len() as u64) as usize;
        from.get(index).copied()
    }

    /// One random act of a ladder.
    pub(crate) fn act(&mut self) {
        let resident = self.resident();
        match self.random.below(100) {
            0..45 => self.write(),
            45..75 => {
                if let Some((slot, recipe)) = self.pick(&resident) {
                    self.read(slot, recipe);
                }
            }
            75..93 => {
                if let Some((slot, _)) = self.pick(&resident) {
                    let id = self.id();
                    self.ask(Asked::Vacate(slot), None, Command::Vacate { id, slot });
                }
            }
            93..98 => self.format(),
            _ => {
                if self.flushing.is_none() {
                    let id = self.id();
                    self.ask(Asked::Flush, None, Command::Flush { id });
                }
            }
        }
    }

    fn write(&mut self) {
        let zones: Vec<(ZoneId, u32)> = self.zones.iter().map(|(zone, bytes)| (*zone, *bytes)).collect();
        let Some((zone, slot_bytes)) = self.pick(&zones) else { return self.format() };
        let index = self.random.below(u64::from(geometry().slots_per_zone(slot_bytes))) as u32;
        let slot = NvmeSlot::new(DEVICE, zone, index);
        if self.slots.contains_key(&slot) {
            return;
        }
        self.generation += 1;
        let room = slot_bytes - 4096;
        let payload = room - self.random.below(4096) as u32;
        let recipe = Recipe::new(self.random.below(40), self.generation, payload);
        let made = recipe.make();
        self.history.insert((recipe.number, recipe.generation), recipe);
        self.slots.insert(slot, Place::Writing(recipe));
        let (id, memory) = (self.id(), made.memory());
        self.ask(Asked::Write(slot), None, Command::Write { id, slot, entry: made.entry, memory });
    }

    fn read(&mut self, slot: NvmeSlot, recipe: Recipe) {
        let made = recipe.make();
        let (id, into) = (self.id(), memory(made.image.len()));
        let command = Command::Read { id, slot, expect: made.entry, memory: into.clone() };
        self.ask(Asked::Read(slot, recipe), Some(into), command);
    }

    fn format(&mut self) {
        let zone = ZoneId(self.random.below(u64::from(geometry().zones())) as u32);
        let slot_bytes = [8192, 12288, 20480, 65536][self.random.below(4) as usize];
        let used = self.slots.keys().chain(&self.unknown).any(|slot| slot.zone() == zone);
        let asked = self.asked.values().any(|(asked, _)| matches!(asked, Asked::Format(busy, _) if *busy == zone));
        if !used && !asked {
            let id = self.id();
            self.ask(Asked::Format(zone, slot_bytes), None, Command::FormatZone { id, zone, slot_bytes });
        }
    }

    /// Lets the disk and the device go on a little.
    pub(crate) fn step(&mut self) {
        if self.disk.step().is_none() {
            let next = self.device.poll_timeout().unwrap_or(self.now() + Duration::from_millis(1));
            self.disk.advance(Duration::from_nanos(next.as_nanos().max(self.now().as_nanos() + 1)));
        }
        self.pump();
    }

    pub(crate) fn pump(&mut self) {
        self.device.pump(self.now());
        let mut finished = Vec::new();
        self.device.take_outcomes(|outcome| finished.push(outcome));
        for outcome in finished {
            self.finished(outcome);
        }
    }

    /// Goes on until every command is answered.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.asked.is_empty() {
                return;
            }
            self.step();
        }
        panic!("never answered: {:?}", self.asked.values().map(|(asked, _)| asked).collect::<Vec<_>>());
    }

    fn finished(&mut self, outcome: Finished) {
        let (asked, memory) = self.asked.remove(&outcome.id).expect("answered once");
        match (asked, outcome.result) {
            (Asked::Write(slot), Ok(_)) => {
                let Some(Place::Writing(recipe)) = self.slots.get(&slot).cloned() else { unreachable!() };
                self.unknown.remove(&slot);
                self.slots.insert(slot, Place::Resident(recipe));
            }
            (Asked::Vacate(slot), Ok(_)) => {
                self.slots.remove(&slot);
            }
            (Asked::Format(zone, slot_bytes), Ok(_)) => {
                self.zones.insert(zone, slot_bytes);
            }
            (Asked::Flush, Ok(_)) => {
                let before = self.flushing.take().expect("a flush was asked for");
                assert!(
                    before.iter().all(|id| !self.asked.contains_key(id)),
                    "a flush waits for what was asked before"
                );
                self.flushed.extend(self.resident());
            }
            (Asked::Read(slot, recipe), Ok(_)) => {
                let made: Made = recipe.make();
                assert!(made.is_in(&memory.expect("a read has memory")), "wrong bytes from {slot:?}: {recipe:?}");
                self.reads_verified += 1;
            }
            (Asked::Read(slot, recipe), Err(Failure::Corrupt(_))) => {
                let same = matches!(self.slots.get(&slot), Some(Place::Resident(now)) if *now == recipe);
                assert!(!same || self.faulty, "lost without a fault: {slot:?} {recipe:?}");
                self.misses += 1;
            }
            (asked, Err(failure)) => self.failed(asked, failure),
        }
    }

    fn failed(&mut self, asked: Asked, failure: Failure) {
        assert!(self.faulty, "{asked:?} failed without a fault: {failure}");
        match asked {
            Asked::Write(slot) => {
                self.slots.remove(&slot);
                self.unknown.insert(slot);
            }
            Asked::Vacate(slot) => {
                let Some(Place::Vacating(recipe)) = self.slots.get(&slot).cloned() else { unreachable!() };
                self.slots.insert(slot, Place::Resident(recipe));
            }
            Asked::Flush => self.flushing = None,
            Asked::Format(..) | Asked::Read(..) => {}
        }
    }

    /// Compares what a new daemon found with what must be there, reads all of it, and goes on from it.
    ///
    /// `power`: whether power was lost, so that only flushed records must be back.
    pub(crate) fn adopt(&mut self, device: Device<I>, found: Vec<Restored>, power: bool) {
        self.device = device;
        self.asked.clear();
        let before = std::mem::take(&mut self.slots);
        self.zones.clear();
        let mut restored: BTreeMap<NvmeSlot, SlotEntry> = BTreeMap::new();
        for found in found {
            match found {
                Restored::Zone(zone) => drop(self.zones.insert(zone.zone, zone.slot_bytes)),
                Restored::Record(record) => {
                    let RestoredPlace::Nvme(slot) = record.place else { unreachable!() };
                    assert_eq!(self.zones.get(&slot.zone()), Some(&record.slot_bytes), "records of shown zones only");
                    assert!(restored.insert(slot, record.entry).is_none(), "a slot has one entry");
                }
            }
        }
        let read = self.read_all(&restored);
        for (slot, recipe) in &read {
            if !power && !self.faulty && !before.contains_key(slot) {
                panic!("{recipe:?} is back in {slot:?}, which was vacant");
            }
        }
        for (slot, place) in before {
            let Place::Resident(recipe) = place else { continue };
            let must = if power { self.flushed.contains(&(slot, recipe)) } else { true };
            let back = read.get(&slot) == Some(&recipe);
            assert!(back || !must || self.faulty, "{recipe:?} in {slot:?} was committed and is gone");
        }
        (self.flushed, self.flushing) = (HashSet::new(), None);
        self.unknown.clear();
        // What did not verify is quarantined, as the ladder would do, before its slot is used again.
        for slot in restored.keys() {
            match read.get(slot) {
                Some(recipe) => drop(self.slots.insert(*slot, Place::Resident(*recipe))),
                None => {
                    let recipe = Recipe::new(0, 0, 1);
                    self.slots.insert(*slot, Place::Resident(recipe));
                    let id = self.id();
                    self.ask(Asked::Vacate(*slot), None, Command::Vacate { id, slot: *slot });
                    self.settle();
                }
            }
        }
    }

    /// Reads every restored record; returns those that verified, which must be records that were once written there.
    fn read_all(&mut self, restored: &BTreeMap<NvmeSlot, SlotEntry>) -> BTreeMap<NvmeSlot, Recipe> {
        let mut good = BTreeMap::new();
        for (slot, entry) in restored {
            let into = memory(self.zones[&slot.zone()] as usize);
            let id = self.id();
            let command = Command::Read { id, slot: *slot, expect: entry.clone(), memory: into.clone() };
            self.device.handle(command, self.now()).expect("one command fits");
            let outcome = loop {
                let mut outcome = None;
                self.device.take_outcomes(|found| outcome = Some(found));
                match outcome {
                    Some(outcome) => break outcome,
                    None => {
                        if self.disk.step().is_none() {
                            self.disk.advance(self.disk.now() + Duration::from_micros(100));
                        }
                        self.device.pump(self.now());
                    }
                }
            };
            match outcome.result {
                Ok(_) => {
                    let number = u64::from_le_bytes(entry.key.as_bytes()[8..].try_into().unwrap());
                    let recipe = self.history.get(&(number, entry.generation)).expect("only what was written");
                    assert!(recipe.make().is_in(&into), "wrong bytes for {recipe:?}");
                    assert_eq!(recipe.make().entry, *entry, "the table says what was written");
                    self.reads_verified += 1;
                    good.insert(*slot, *recipe);
                }
                Err(_) => self.misses += 1,
            }
        }
        good
    }
}
