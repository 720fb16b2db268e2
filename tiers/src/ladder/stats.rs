//! Counts of what happened and of what lies where.

use std::time::Duration;

use kvd_proto::{MissReason, Shard, Time};

use super::lanes::Held;
use super::nodes::RECORD_BYTES_MAX;
use super::port::SlotTable;
use super::state::Ladder;
use crate::ids::{DeviceId, TenantId};
use crate::policy::Policy;

/// The most daemon memory that a resident record costs in the ladder, with copies in both tiers, in bytes. Leases, queues
/// and ghosts are bounded by the configuration and not by records.
pub const LADDER_BYTES_PER_RECORD_MAX: usize = RECORD_BYTES_MAX;

/// What happened since the start. All counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Calls of `match_prefix`.
    pub matches: u64,
    /// Blocks that matches asked for.
    pub blocks_asked: u64,
    /// Blocks that matches found.
    pub blocks_matched: u64,
    /// Calls of `load`.
    pub loads: u64,
    /// Blocks granted to loads that lay in the arena.
    pub dram_hits: u64,
    /// Blocks granted to loads that had to be fetched.
    pub nvme_hits: u64,
    /// Blocks granted to loads that had to be fetched from the object tier.
    pub object_hits: u64,
    /// First misses of matches and early ends of loads, by [`MissReason`] in the order of `MissReason::ALL`.
    pub missed: [u64; MissReason::ALL.len()],
    /// Calls of `offer`.
    pub offers: u64,
    /// Blocks of offers that got a slot.
    pub granted: u64,
    /// Blocks of offers that were there already.
    pub present: u64,
    /// Blocks of offers that another writer fills.
    pub in_flight: u64,
    /// Blocks of offers that were refused.
    pub refused: u64,
    /// Offers that the policy ended: not worth a victim.
    pub not_admitted: u64,
    /// Blocks that became resident.
    pub committed: u64,
    /// Copies that fell from the arena to make room.
    pub dram_evictions: u64,
    /// Copies that fell from devices to make room.
    pub nvme_evictions: u64,
    /// Spills that landed.
    pub spilled: u64,
    /// Fetches that landed.
    pub fetched: u64,
    /// Records that the object tier took.
    pub uploaded: u64,
    /// Records that the object tier had already.
    pub uploads_known: u64,
    /// Records that were not given to the object tier: too many waited, they fell before their turn, or it failed.
    pub uploads_dropped: u64,
    /// Records of the object tier that matches asked for.
    pub imported: u64,
    /// Records of the object tier that landed.
    pub got: u64,
    /// Blocks that prefetches asked for.
    pub prefetched: u64,
    /// Copies in the arena that were not what they should be.
    pub corrupt_dram: u64,
    /// Copies on devices that were not what they should be.
    pub corrupt_nvme: u64,
    /// Records of the object tier that were not what they should be.
    pub corrupt_object: u64,
    /// Moves that a device failed.
    pub device_failures: u64,
    /// Copies read by scrubs.
    pub verified: u64,
    /// Scrubs that came to their end.
    pub scrubs: u64,
    /// Purges that came to their end.
    pub purges: u64,
    /// Blocks that lost their last copy under their children.
    pub cuts: u64,
    /// Blocks whose ancestors never came.
    pub orphans_expired: u64,
    /// Match leases that nobody used.
    pub leases_expired: u64,
    /// Segments emptied for another slot size or tenant.
    pub segments_drained: u64,
    /// Segments that lost their bytes while they were in use.
    pub segments_lost: u64,
    /// Zones emptied for another slot size.
    pub zones_drained: u64,
    /// Records found at start.
    pub restored: u64,
    /// Records found at start that could not be used: too old, twice, without their ancestors.
    pub restore_dropped: u64,
}

impl Counters {
    pub(super) fn missed(&mut self, reason: MissReason) {
        let place = MissReason::ALL.iter().position(|known| *known == reason).expect("ALL holds every reason");
        self.missed[place] += 1;
    }
}

/// A device as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStats {
    /// Which.
    pub device: DeviceId,
    /// Fetches are planned.
    pub readable: bool,
    /// Spills are planned.
    pub writable: bool,
    /// When it is tried again, if it is out or full.
    pub retry_at: Option<Time>,
    /// How often it was taken out.
    pub trips: u64,
    /// Moves it failed.
    pub failed: u64,
    /// Copies on it that were not what they should be.
    pub corrupt: u64,
    /// Zones it has, and how many are cut for a slot size.
    pub zones: u32,
    /// See `zones`.
    pub zones_formatted: u32,
    /// Slots with a record.
    pub slots_used: u64,
    /// Bytes of those slots.
    pub bytes_used: u64,
    /// Bytes spilled to it and fetched from it.
    pub bytes_written: u64,
    /// See `bytes_written`.
    pub bytes_read: u64,
    /// Measured bandwidth of fetches, bytes per second; 0 before the first.
    pub read_bytes_per_second: u64,
    /// Measured bandwidth of spills.
    pub write_bytes_per_second: u64,
    /// Spills in flight.
    pub spilling: u32,
    /// Fetches in flight.
    pub fetching: u32,
    /// Slots that wait for their entry to go from the device's table.
    pub vacating: u32,
}

/// The object tier as the ladder sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectStats {
    /// Requests are worth making.
    pub up: bool,
    /// Nodes of records that lie only there.
    pub remotes: u32,
    /// Fetches in flight.
    pub getting: u32,
    /// Records being given to it.
    pub putting: u32,
    /// Records that wait to be given to it.
    pub upload_queue: u32,
    /// Measured bandwidth of fetches, bytes per second; 0 before the first.
    pub read_bytes_per_second: u64,
    /// Measured time of one fetch; zero before the first.
    pub read_latency: Duration,
    /// Bytes fetched.
    pub bytes_read: u64,
}

/// The ladder as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// What happened.
    pub counters: Counters,
    /// Nodes: records, and places that others hang on.
    pub nodes: u32,
    /// Records: what a match can find, or could if their ancestors were there.
    pub records: u64,
    /// Records with a copy on a device.
    pub durable: u64,
    /// Records without a copy in the arena.
    pub below: u64,
    /// Segments of the arena.
    pub segments: u32,
    /// Segments that no tenant has.
    pub segments_unassigned: u32,
    /// Slots of the arena in use: records, being filled, or held by someone.
    pub dram_slots_used: u64,
    /// Bytes of those slots.
    pub dram_bytes_used: u64,
    /// Devices, in order.
    pub devices: Vec<DeviceStats>,
    /// The object tier; `None` where there is none.
    pub object: Option<ObjectStats>,
    /// Engine instances with a living process.
    pub instances: u32,
    /// Open views.
    pub views: u32,
    /// Open leases.
    pub leases: u32,
    /// Bytes that leases hold, each counted in full.
    pub lease_bytes: u64,
    /// Slots that someone may touch.
    pub pins: u64,
    /// Loads and prefetches that wait.
    pub loads_waiting: u32,
    /// Blocks that wait to be spilled.
    pub spill_queue: u32,
    /// Blocks that wait for an ancestor, as far as it is known.
    pub orphans: u32,
    /// Purges that wait or run.
    pub purges: u32,
    /// A scrub is under way.
    pub scrubbing: bool,
    /// About how many copies it has still to read.
    pub scrub_left: u64,
    /// Offers are refused.
    pub draining: bool,
    /// Matches walk plainly until a cut chain is cleaned up.
    pub cascade_open: bool,
    /// See [`Ladder::memory_bytes`].
    pub memory_bytes: u64,
}

/// What is there of one shard of one group of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Whose.
    pub tenant: TenantId,
    /// First 8 bytes of the namespace's digest: all that the slot tables keep.
    pub namespace_prefix: u64,
    /// Group of the namespace.
    pub group: u16,
    /// Which part of its blocks.
    pub shard: Shard,
    /// Records of this shard.
    pub records: u32,
}

impl<T: SlotTable, P: Policy> Ladder<T, P> {
    /// What is there of each namespace. Walks lanes, not records.
    pub fn holdings(&self) -> impl Iterator<Item = Holding> {
        self.lanes.iter().map(|(_, lane)| Holding {
            tenant: lane.tenant,
            namespace_prefix: lane.namespace_prefix,
            group: lane.group,
            shard: lane.shard.clone(),
            records: lane.held.records,
        })
    }

    fn scrub_left(&self, held: &[Held]) -> u64 {
        let copies: u64 = held.iter().map(|held| u64::from(held.records - held.below) + u64::from(held.durable)).sum();
        let ahead = self.scrub_ahead();
        // Copies lie anywhere among the nodes: the share of nodes that is ahead says how many are.
        (copies as f64 * ahead).ceil() as u64
    }

    /// Memory that the ladder takes for its nodes, index, orders and maps of space, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.nodes.memory_bytes()
            + self.index.memory_bytes()
            + self.dram.memory_bytes()
            + self.nvme.memory_bytes()
            + self.remotes.memory_bytes()
            + self.ghosts.memory_bytes()
            + self.leases.memory_bytes()
            + self.instances.iter().map(|instance| instance.kept.memory_bytes()).sum::<usize>()
            + self.spills.capacity() * size_of::<(super::nodes::NodeId, u32)>()
            + self.orphans.capacity() * size_of::<(Time, super::nodes::NodeId, u32)>()
    }

    /// Counts so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What happened and what lies where. Walks segments and zones, not records.
    pub fn stats(&self) -> Stats {
        let held: Vec<_> = self.lanes.iter().map(|(_, lane)| lane.held).collect();
        let (dram_slots_used, dram_bytes_used) = self.dram.used();
        Stats {
            counters: self.counters,
            nodes: self.nodes.used(),
            records: held.iter().map(|held| u64::from(held.records)).sum(),
            durable: held.iter().map(|held| u64::from(held.durable)).sum(),
            below: held.iter().map(|held| u64::from(held.below)).sum(),
            segments: self.dram.segment_count(),
            segments_unassigned: self.dram.unassigned(),
            dram_slots_used,
            dram_bytes_used,
            devices: self.nvme.ids().map(|device| self.device_stats(device)).collect(),
            object: self.config.object.map(|_| self.object_stats()),
            instances: self.instances.iter().filter(|instance| instance.clients != 0).count() as u32,
            views: self.views.len() as u32,
            leases: self.leases.used(),
            lease_bytes: self.instances.iter().map(|instance| instance.lease_bytes).sum(),
            pins: self.pins.len() as u64,
            loads_waiting: self.loads.loads.len() as u32,
            spill_queue: self.spills.len() as u32,
            orphans: self.orphans.len() as u32,
            purges: self.work.purging() as u32,
            scrubbing: self.work.scrubbing(),
            scrub_left: self.scrub_left(&held),
            draining: self.work.draining(),
            cascade_open: self.cascade_open(),
            memory_bytes: self.memory_bytes() as u64,
        }
    }

    fn object_stats(&self) -> ObjectStats {
        ObjectStats {
            up: self.remotes.up,
            remotes: self.remotes.len() as u32,
            getting: self.remotes.getting,
            putting: self.remotes.putting,
            upload_queue: self.remotes.uploads.len() as u32,
            read_bytes_per_second: self.remotes.reads.bytes_per_second(),
            read_latency: self.remotes.reads.latency(),
            bytes_read: self.remotes.reads.moved_bytes,
        }
    }

    fn device_stats(&self, id: DeviceId) -> DeviceStats {
        let device = self.nvme.device(id);
        let vacating = device.vacating + device.queued_vacates() as u32;
        let used = |extent: &super::extents::Extent| u64::from(extent.slots() - extent.free_slots());
        let slots: u64 = device.zones().map(|(_, extent)| used(extent)).sum();
        let bytes: u64 = device.zones().map(|(_, extent)| used(extent) * u64::from(extent.slot_bytes())).sum();
        DeviceStats {
            device: id,
            readable: device.breaker.readable(),
            writable: device.breaker.writable(),
            retry_at: device.breaker.timeout(),
            trips: device.breaker.trips,
            failed: device.failed,
            corrupt: device.corrupt,
            zones: device.zones().count() as u32,
            zones_formatted: device.zones().filter(|(_, extent)| extent.slots() > 0).count() as u32,
            slots_used: slots - u64::from(vacating).min(slots),
            bytes_used: bytes,
            bytes_written: device.writes.moved_bytes,
            bytes_read: device.reads.moved_bytes,
            read_bytes_per_second: device.reads.bytes_per_second(),
            write_bytes_per_second: device.writes.bytes_per_second(),
            spilling: device.spilling,
            fetching: device.fetching,
            vacating,
        }
    }
}
