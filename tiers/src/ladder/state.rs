//! The ladder's state, and how it is made.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvd_proto::Time;

use super::config::LadderConfig;
use super::dram_space::DramSpace;
use super::ghosts::Ghosts;
use super::guards::FillingSlot;
use super::index::Index;
use super::lanes::{Instances, Lanes, Views};
use super::leases::Leases;
use super::moves::Move;
use super::nodes::{NodeId, Nodes};
use super::nvme_space::NvmeSpace;
use super::pins::Pins;
use super::port::SlotTable;
use super::remote::Remotes;
use super::stats::Counters;
use super::waiting::Loads;
use super::work::Work;
use crate::ids::{DeviceId, MoveId, NvmeSlot, ObjectPlace, SlotId, ZoneId};
use crate::policy::{Policy, Rank};

/// What a move in flight holds.
#[derive(Debug)]
pub(super) enum Flight {
    Spill { node: NodeId, generation: u32, from: SlotId, to: NvmeSlot },
    Fetch { node: NodeId, from: NvmeSlot, to: FillingSlot },
    Get { node: NodeId, from: ObjectPlace, to: FillingSlot },
    Put { node: NodeId, from: SlotId },
    Vacate { slot: NvmeSlot },
    Format { device: DeviceId, zone: ZoneId },
    VerifyDram { node: NodeId, slot: SlotId },
    VerifyNvme { node: NodeId, slot: NvmeSlot },
    Probe { device: DeviceId },
}

/// Every decision about which block lies where. Owned by one thread; see the module's documentation.
pub struct Ladder<T: SlotTable, P: Policy> {
    pub(super) config: LadderConfig,
    pub(super) table: T,
    pub(super) policy: P,
    pub(super) nodes: Nodes,
    pub(super) index: Index,
    pub(super) lanes: Lanes,
    pub(super) views: Views,
    pub(super) instances: Instances,
    pub(super) leases: Leases,
    pub(super) loads: Loads,
    pub(super) dram: DramSpace,
    pub(super) nvme: NvmeSpace,
    pub(super) remotes: Remotes,
    pub(super) pins: Pins,
    pub(super) ghosts: Ghosts,
    pub(super) counters: Counters,
    pub(super) work: Work,
    /// Highest generation given to a slot; the next one gets the number behind.
    pub(super) generation: u32,
    pub(super) move_serial: u64,
    pub(super) flights: BTreeMap<MoveId, Flight>,
    /// Moves that nobody polled yet; each has its flight.
    pub(super) moves: VecDeque<Move>,
    /// Blocks that wait to be spilled.
    pub(super) spills: VecDeque<(NodeId, u32)>,
    /// Whole blocks that wait for an ancestor: until when, which, its generation.
    pub(super) orphans: VecDeque<(Time, NodeId, u32)>,
    /// Top of the stack of blocks whose descendants must go; linked through the nodes.
    pub(super) cuts: NodeId,
    /// The first of each queue of an order, and their ranks; used within one call only.
    pub(super) firsts: (Vec<NodeId>, Vec<Rank>),
    /// Nodes to attach; empty between calls.
    pub(super) attaching: Vec<NodeId>,
    /// Reads of the NVMe slots of these nodes wait for a slot of the arena or of the device.
    pub(super) hungry: BTreeSet<u64>,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// An empty ladder over an arena and its table. What an earlier epoch left comes next, see [`Ladder::restore`].
    pub fn new(config: LadderConfig, table: T, policy: P) -> Self {
        assert!(config.leases_max + config.loads_max <= 65_000, "holds are counted in 16 bits");
        assert!(config.dram_segments > 0, "an arena has at least one segment");
        let nodes_max = Self::nodes_max(&config);
        Self {
            nodes: Nodes::new(nodes_max),
            index: Index::new(),
            lanes: Lanes::new(config.lanes_max),
            views: Views::new(config.views_max),
            instances: Instances::new(config.instances_max),
            leases: Leases::new(config.leases_max),
            loads: Loads::new(config.loads_max),
            dram: DramSpace::new(config.dram_segments, config.classes_max),
            nvme: NvmeSpace::new(config.devices.iter().map(|device| device.zones), config.classes_max),
            remotes: Remotes::new(config.object.is_some()),
            pins: Pins::default(),
            ghosts: Ghosts::new(config.ghosts),
            counters: Counters::default(),
            work: Work::default(),
            generation: 0,
            move_serial: 0,
            flights: BTreeMap::new(),
            moves: VecDeque::new(),
            spills: VecDeque::new(),
            orphans: VecDeque::new(),
            cuts: NodeId::NONE,
            firsts: (Vec::new(), Vec::new()),
            attaching: Vec::new(),
            hungry: BTreeSet::new(),
            config,
            table,
            policy,
        }
    }

    /// Each slot has at most one node; beside those there are places that orphans, cut subtrees and leases hang on.
    fn nodes_max(config: &LadderConfig) -> u32 {
        let extents = u64::from(config.dram_segments) + config.devices.iter().map(|d| u64::from(d.zones)).sum::<u64>();
        let slots = extents << crate::SLOT_INDEX_BITS;
        let remotes = config.object.map_or(0, |object| u64::from(object.remotes_max));
        let more = remotes + u64::from(config.orphans_max) + u64::from(config.leases_max) + 4096;
        u32::try_from(slots + more).unwrap_or(u32::MAX)
    }

    /// The arena's table.
    pub fn table(&self) -> &T {
        &self.table
    }

    /// The arena's table, for what is not the ladder's business: client entries, the epoch.
    pub fn table_mut(&mut self) -> &mut T {
        &mut self.table
    }

    /// The bounds it runs under.
    pub fn config(&self) -> &LadderConfig {
        &self.config
    }

    /// Something that needs the device is due, or can be asked for.
    pub(super) fn start(&mut self, flight: Flight) -> MoveId {
        self.move_serial += 1;
        let id = MoveId(self.move_serial);
        self.flights.insert(id, flight);
        id
    }

    /// Generations are unique across the whole arena until they wrap, so a key and a generation name one sealing.
    pub(super) fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Something keeps `id` from going away.
    pub(super) fn hold(&mut self, id: NodeId) {
        self.nodes[id].holds += 1;
    }

    /// The hold ends; what waited for that goes on.
    pub(super) fn unhold(&mut self, id: NodeId) {
        self.nodes[id].holds -= 1;
        if self.nodes[id].holds == 0 {
            self.refresh(id);
            self.free_if_empty(id);
        }
    }
}
