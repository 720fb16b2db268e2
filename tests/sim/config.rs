//! The make of one world, drawn from its seed.

use std::time::Duration;

use kvd_nixl::io::{Fault, FaultPlan, FaultRule, FaultTrigger, IoKind};
use kvd_tiers::ladder::{DeviceConfig, LadderConfig, ObjectConfig};

use crate::random::Random;

/// How disks behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disks {
    /// They work.
    Sound,
    /// They fail, and say so.
    Honest,
    /// They also lose, tear, misdirect and flip, and say nothing; memory rots as well.
    Lying,
}

/// The sizes and habits of an object store, and of the thread that speaks to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObjectHabits {
    pub(crate) manners: Disks,
    /// Records of a pack, and of all that are not uploaded.
    pub(crate) pack_records: usize,
    pub(crate) records_max: usize,
    pub(crate) pack_age: Duration,
}

/// The sizes and habits of a world.
#[derive(Clone, Debug)]
pub(crate) struct Make {
    pub(crate) disks: Disks,
    pub(crate) devices: usize,
    pub(crate) zones: u32,
    pub(crate) tenants: usize,
    /// Kinds of records per tenant: 1 or 2, of different slot sizes.
    pub(crate) kinds: usize,
    pub(crate) instances: usize,
    pub(crate) chains: usize,
    pub(crate) events: u32,
    /// Of a thousand events, how many end the daemon.
    pub(crate) kills: u64,
    pub(crate) power_losses: bool,
    pub(crate) operators: bool,
    pub(crate) adaptive: bool,
    pub(crate) ladder: LadderConfig,
    pub(crate) object: Option<ObjectHabits>,
}

pub(crate) const MIB: u32 = 1 << 20;

impl Make {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let disks = random.pick(&[Disks::Sound, Disks::Honest, Disks::Lying]);
        let devices = random.pick(&[1, 1, 1, 2, 2, 0]);
        let zones = random.range(1..4) as u32;
        let segments = random.pick(&[1, 1, 2, 3]);
        let mut ladder = LadderConfig::new(segments, vec![DeviceConfig { zones }; devices]);
        ladder.lease_bytes_max = random.range(4..40) * u64::from(4 * MIB);
        ladder.floor_bytes = random.pick(&[0, 0, u64::from(8 * MIB)]);
        ladder.lease_idle = random.pick(&[Duration::from_millis(20), Duration::from_secs(30)]);
        ladder.orphan_wait =
            random.pick(&[Duration::from_millis(5), Duration::from_millis(50), Duration::from_secs(10)]);
        ladder.orphans_max = random.pick(&[4, 4096]);
        ladder.ghosts = 256;
        ladder.spill_queue_max = random.pick(&[3, 64]);
        ladder.spills_max = random.range(1..5) as u32;
        ladder.fetches_max = random.range(1..5) as u32;
        ladder.vacates_max = random.range(1..5) as u32;
        ladder.loads_max = random.pick(&[2, 64, 64]);
        ladder.leases_max = random.pick(&[8, 256, 256]);
        ladder.breaker_errors = random.pick(&[2, 8]);
        ladder.breaker_pause = Duration::from_millis(2);
        ladder.prefetch_wait = Duration::from_millis(10);
        ladder.work_per_call = random.pick(&[4, 16, 128]);
        Self {
            disks,
            devices,
            zones,
            tenants: random.pick(&[1, 1, 2]),
            kinds: random.pick(&[1, 1, 2]),
            instances: random.range(1..4) as usize,
            chains: random.range(3..7) as usize,
            events: random.range(300..1200) as u32,
            kills: random.pick(&[0, 2, 8]),
            power_losses: random.percent(30),
            operators: random.percent(60),
            adaptive: random.percent(40),
            ladder,
            object: None,
        }
    }

    /// Gives half of the worlds an object tier. By a chance of its own, so that the others stay what they were.
    pub(crate) fn add_object(&mut self, chance: &mut Random) {
        if chance.percent(50) {
            return;
        }
        self.ladder.object = Some(ObjectConfig {
            writes: chance.percent(90),
            gets_max: chance.range(1..6) as u32,
            get_bytes_max: chance.pick(&[1, 5, 20, 128]) * u64::from(MIB),
            run_bytes_max: chance.pick(&[1, 9, 16]) * u64::from(MIB),
            puts_max: chance.range(1..5) as u32,
            queue_max: chance.pick(&[2, 64]),
            remotes_max: chance.pick(&[2, 8, 64]),
        });
        self.object = Some(ObjectHabits {
            manners: chance.pick(&[Disks::Sound, Disks::Honest, Disks::Lying]),
            pack_records: chance.pick(&[1, 3, 8]),
            records_max: chance.pick(&[2, 32]),
            pack_age: chance.pick(&[Duration::from_millis(1), Duration::from_millis(30)]),
        });
    }

    /// A plan of faults for the running of one device; `span_bytes` is its size.
    pub(crate) fn plan(&self, random: &mut Random, span_bytes: u64) -> FaultPlan {
        let honest = [Fault::EIO, Fault::ENOSPC, Fault::EROFS, Fault::Short, Fault::Delay { polls: 20 }];
        let lying = [Fault::Torn, Fault::Lost, Fault::Misdirected { span_bytes }, Fault::BitFlip, Fault::Stale];
        let kinds: &[Fault] = match self.disks {
            Disks::Sound => &[],
            Disks::Honest => &honest,
            Disks::Lying => &lying,
        };
        let mut rules = Vec::new();
        for fault in kinds {
            if random.percent(50) {
                let trigger = FaultTrigger::PerMillion(random.pick(&[2_000, 20_000, 100_000]));
                let rule = FaultRule::new(*fault, trigger);
                rules.push(if random.percent(40) { rule.on(IoKind::Read) } else { rule });
            }
        }
        FaultPlan::new(rules)
    }
}
