//! One life of the daemon: the production ladder and devices, and the mapping of moves to commands and back.

use std::collections::BTreeMap;

use kvd_nixl::io::FaultPlan;
use kvd_proto::{BlockKey, Epoch, InstanceId, Time};
use kvd_tiers::ladder::{Ladder, LadderConfig, Move, Outcome, VerifyPlace};
use kvd_tiers::nvme::{Command, OpenError, Restored};
use kvd_tiers::policy::Policy;
use kvd_tiers::record::{Expect, SECTOR_BYTES, Scratch, verify_record};
use kvd_tiers::{
    ClientSlot, DeviceId, MoveId, NvmeSlot, ObjectPlace, RestoredPlace, RestoredRecord, SlotEntry, SlotId, TenantId,
};

use crate::config::ObjectHabits;
use crate::disks::{Disk, Drive};
use crate::questions::Link;
use crate::random::Random;
use crate::store::Store;
use crate::table::Table;
use crate::tier::Wanted;

/// What a move in flight is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flight {
    Spill { to: NvmeSlot, entry: SlotEntry },
    Fetch { key: BlockKey },
    Get { key: BlockKey, from: ObjectPlace, to: SlotId, displaced: bool },
    Put,
    Vacate,
    Other,
}

impl Flight {
    /// Whether it brings this record into the arena, for whoever wants it now.
    pub(crate) fn fetches(&self, wanted: BlockKey) -> bool {
        match self {
            Self::Fetch { key } | Self::Get { key, displaced: false, .. } => *key == wanted,
            Self::Get { .. } | Self::Spill { .. } | Self::Put | Self::Vacate | Self::Other => false,
        }
    }
}

/// A client process that lives while the daemon starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survivor {
    pub(crate) client: ClientSlot,
    pub(crate) instance: InstanceId,
    pub(crate) tenant: TenantId,
}

/// The daemon between a start and a kill.
pub(crate) struct Daemon {
    pub(crate) ladder: Ladder<Table, Box<dyn Policy>>,
    pub(crate) drives: Vec<Drive>,
    pub(crate) object: Option<Link>,
    pub(crate) flights: BTreeMap<MoveId, (DeviceId, Flight)>,
    /// Outcomes on their way to the core.
    pub(crate) outcomes: Vec<(MoveId, Outcome)>,
    /// Records in DRAM on their way through the thread that verifies them.
    verifies: Vec<(MoveId, SlotId, SlotEntry)>,
    scratch: Scratch,
}

/// How a start goes.
pub(crate) struct Start<'a> {
    pub(crate) config: LadderConfig,
    pub(crate) object: Option<ObjectHabits>,
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) table: Table,
    pub(crate) survivors: Vec<Survivor>,
    pub(crate) plans: Vec<FaultPlan>,
    pub(crate) epoch: Epoch,
    pub(crate) now: Time,
    pub(crate) random: &'a mut Random,
}

/// What a daemon found when it started.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) dram: Vec<RestoredRecord>,
    pub(crate) nvme: Vec<RestoredRecord>,
}

impl Daemon {
    /// Starts as `kvd::core::serve` does: survivors, segments, fences, records of the arena, zones and records of the devices.
    pub(crate) fn start(disks: &[Disk], start: Start<'_>) -> Result<(Self, Recovered), (DeviceId, OpenError)> {
        let Start { config, object, policy, table, survivors, plans, epoch, now, random } = start;
        let mut recovered = Recovered::default();
        let mut ladder = Ladder::new(config, table.clone(), policy);
        let mut alive = 0;
        for survivor in &survivors {
            alive |= survivor.client.bit();
            ladder
                .join(survivor.client, survivor.instance, survivor.tenant, now)
                .expect("fewer clients than instances");
        }
        let found = table.sweep(alive);
        for segment in found.segments {
            ladder.restore_segment(segment);
        }
        for slot in found.fenced {
            ladder.fence(slot);
        }
        for record in found.records {
            ladder.restore(&record);
            recovered.dram.push(record);
        }
        let mut drives = Vec::new();
        for (disk, plan) in disks.iter().zip(plans) {
            let mut shown = Vec::new();
            let drive = disk.open(random.bits(), plan, epoch, &mut shown).map_err(|error| (disk.id, error))?;
            for one in shown {
                match one {
                    Restored::Zone(zone) => ladder.restore_zone(zone),
                    Restored::Record(record) => {
                        ladder.restore(&record);
                        recovered.nvme.push(record);
                    }
                }
            }
            drives.push(drive);
        }
        ladder.restored(now);
        let scratch = Scratch::default();
        let (flights, outcomes, verifies) = (BTreeMap::new(), Vec::new(), Vec::new());
        let object = object.map(Link::new);
        Ok((Self { ladder, drives, object, flights, outcomes, verifies, scratch }, recovered))
    }

    /// Hands one move to whoever carries it out.
    pub(crate) fn hand_out(&mut self, next: Move, store: Option<&mut Store>, now: Time) {
        let id = next.id();
        let whole = |table: &Table, slot: SlotId, entry: &SlotEntry| {
            let payload = (entry.payload_bytes as usize).next_multiple_of(SECTOR_BYTES);
            table.extent(slot, SECTOR_BYTES + payload).expect("moves name slots of assigned segments")
        };
        let table = self.ladder.table().clone();
        let (device, flight, command) = match next {
            Move::Spill { id, from, to, entry } => {
                let memory = whole(&table, from, &entry);
                let flight = Flight::Spill { to, entry: entry.clone() };
                (to.device(), flight, Command::Write { id, slot: to, entry, memory })
            }
            Move::Fetch { id, from, to, expect } => {
                let memory = whole(&table, to, &expect);
                let flight = Flight::Fetch { key: expect.key };
                (from.device(), flight, Command::Read { id, slot: from, expect, memory })
            }
            Move::Put { .. } | Move::Get { .. } => {
                return self.hand_to_tier(next, store.expect("a ladder with a tier has a store"), now);
            }
            Move::Vacate { id, slot } => (slot.device(), Flight::Vacate, Command::Vacate { id, slot }),
            Move::FormatZone { id, device, zone, slot_bytes } => {
                (device, Flight::Other, Command::FormatZone { id, zone, slot_bytes })
            }
            Move::Verify { id, place: VerifyPlace::Nvme(slot), expect } => {
                (slot.device(), Flight::Other, Command::Verify { id, slot, expect })
            }
            Move::Verify { id, place: VerifyPlace::Dram(slot), expect } => {
                self.verifies.push((id, slot, expect));
                self.flights.insert(id, (DeviceId(u8::MAX), Flight::Other));
                return;
            }
            Move::Probe { id, device } => (device, Flight::Other, Command::Probe { id }),
        };
        assert!(self.flights.insert(id, (device, flight)).is_none(), "{id:?} was asked for twice");
        let drive = &mut self.drives[usize::from(device.0)];
        drive.device.handle(command, now).expect("the ladder asks no more than a device takes");
    }

    fn hand_to_tier(&mut self, next: Move, store: &mut Store, now: Time) {
        let id = next.id();
        let link = self.object.as_mut().expect("a ladder with a tier has somebody to speak to it");
        let flight = match next {
            Move::Put { id, from, entry } => {
                link.tier.put(id, from, entry, now, store);
                Flight::Put
            }
            Move::Get { id, from, to, expect } => {
                let key = expect.key;
                link.getting(from);
                link.tier.get(Wanted { id, from, to, expect });
                Flight::Get { key, from, to, displaced: false }
            }
            other => unreachable!("{other:?} is none of the tier's"),
        };
        assert!(self.flights.insert(id, (DeviceId(u8::MAX), flight)).is_none(), "{id:?} was asked for twice");
    }

    /// Lets the device threads work; what they answer is on its way to the core.
    pub(crate) fn pump(&mut self, now: Time) {
        for drive in &mut self.drives {
            drive.device.pump(now);
            let outcomes = &mut self.outcomes;
            drive.device.take_outcomes(|finished| outcomes.push((finished.id, finished.outcome())));
        }
        for (id, slot, expect) in std::mem::take(&mut self.verifies) {
            let payload = (expect.payload_bytes as usize).next_multiple_of(SECTOR_BYTES);
            let memory = self.ladder.table().extent(slot, SECTOR_BYTES + payload).expect("a pinned slot stays");
            let outcome = match verify_record(&memory, &Expect::from(&expect), &mut self.scratch) {
                Ok(()) => Outcome::Done { bytes: memory.len() as u64, took: std::time::Duration::from_micros(3) },
                Err(_) => Outcome::Corrupt,
            };
            self.outcomes.push((id, outcome));
        }
    }

    /// When a device, or the object tier, wants to be pumped without an event.
    pub(crate) fn devices_due(&self) -> Option<Time> {
        let drives = self.drives.iter().filter_map(|drive| drive.device.poll_timeout());
        drives.chain(self.object.as_ref().and_then(Link::due)).min()
    }
}

impl Recovered {
    /// The slots of devices, each with what was found in it.
    pub(crate) fn by_slot(&self) -> BTreeMap<NvmeSlot, &SlotEntry> {
        let place = |record: &RestoredRecord| match record.place {
            RestoredPlace::Nvme(slot) => Some(slot),
            RestoredPlace::Dram(_) => None,
        };
        self.nvme.iter().filter_map(|record| place(record).map(|slot| (slot, &record.entry))).collect()
    }
}
