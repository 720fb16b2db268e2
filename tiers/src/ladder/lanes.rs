//! Who uses the ladder and what they named: lanes, views, instances and their client processes.
//!
//! A lane is one (tenant, namespace, group, shard). Records of different shards of a block are nodes of different lanes,
//! each with its own chain: a match asks for exactly the shard of its view. What other shards hold of a block is put together
//! by the client, out of a match for each of them (docs/decisions/0011).

use std::collections::BTreeMap;

use kvd_proto::{BlockHash, BlockKey, GroupKey, InstanceId, NamespaceDigest, SHARD_BYTES, Shard};

use super::floor::Kept;
use super::moves::JoinError;
use super::nodes::Node;
use crate::ids::{ClientSlot, SEGMENT_BYTES, SLOT_BYTES_MIN, SlotEntry, TenantId, ViewId};

/// What a session reads and writes.
#[derive(Debug, Clone)]
pub struct ViewSpec {
    /// Whose. From the socket, never from the caller.
    pub tenant: TenantId,
    /// Of the namespace.
    pub namespace: NamespaceDigest,
    /// Group of the namespace.
    pub group: u16,
    /// Derived from the tenant's secret, the namespace and the group.
    pub group_key: GroupKey,
    /// Which part of its blocks.
    pub shard: Shard,
    /// Bytes of a record's payload.
    pub payload_bytes: u32,
    /// Bytes of a record's metadata, in front of the payload: whole sectors.
    pub meta_bytes: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// How fast the engine recomputes; 0 when it does not know: then no load is held against it.
    pub prefill_tokens_per_second: u32,
}

/// Hashes of consecutive blocks of a chain. The list may lie in memory that the client can write: each `get` reads once.
pub trait HashSource {
    /// How many.
    fn len(&self) -> u32;
    /// The hash at `index`, below `len`.
    fn get(&self, index: u32) -> BlockHash;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl HashSource for [BlockHash] {
    fn len(&self) -> u32 {
        u32::try_from(<[BlockHash]>::len(self)).unwrap_or(u32::MAX)
    }

    fn get(&self, index: u32) -> BlockHash {
        self[index as usize]
    }
}

impl HashSource for Vec<BlockHash> {
    fn len(&self) -> u32 {
        HashSource::len(self.as_slice())
    }

    fn get(&self, index: u32) -> BlockHash {
        self[index as usize]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LaneKey {
    tenant: TenantId,
    namespace_prefix: u64,
    group: u16,
    shard: [u8; SHARD_BYTES],
    payload_bytes: u32,
    slot_bytes: u32,
}

pub(super) struct Lane {
    pub(super) tenant: TenantId,
    pub(super) namespace_prefix: u64,
    pub(super) group: u16,
    pub(super) shard: Shard,
    pub(super) payload_bytes: u32,
    pub(super) slot_bytes: u32,
    pub(super) dram_class: u16,
    pub(super) nvme_class: u16,
    pub(super) held: Held,
}

/// Records of a lane, by where their copies lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// All.
    pub(super) records: u32,
    /// With a copy on a device.
    pub(super) durable: u32,
    /// Whose only copy lies on a device.
    pub(super) below: u32,
}

impl Held {
    pub(super) fn add(&mut self, node: &Node) {
        self.records += u32::from(node.here());
        self.durable += u32::from(node.durable());
        self.below += u32::from(node.below());
    }

    pub(super) fn take(&mut self, node: &Node) {
        self.records -= u32::from(node.here());
        self.durable -= u32::from(node.durable());
        self.below -= u32::from(node.below());
    }
}

/// First 8 bytes of a namespace's digest, as slot tables keep it.
pub fn namespace_prefix(digest: &NamespaceDigest) -> u64 {
    u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

/// All lanes. They are few and stay: a lane is a few dozen bytes.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    numbers: BTreeMap<LaneKey, u16>,
    max: u16,
}

impl Lanes {
    pub(super) fn new(max: u16) -> Self {
        Self { lanes: Vec::new(), numbers: BTreeMap::new(), max }
    }

    pub(super) fn get(&self, lane: u16) -> &Lane {
        &self.lanes[lane as usize]
    }

    pub(super) fn get_mut(&mut self, lane: u16) -> &mut Lane {
        &mut self.lanes[lane as usize]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Lane)> {
        self.lanes.iter().enumerate().map(|(number, lane)| (number as u16, lane))
    }

    pub(super) fn find(&self, key: &LaneKey) -> Option<u16> {
        self.numbers.get(key).copied()
    }

    pub(super) fn full(&self) -> bool {
        self.lanes.len() >= usize::from(self.max)
    }

    pub(super) fn add(&mut self, key: LaneKey, lane: Lane) -> u16 {
        debug_assert!(!self.full());
        let number = self.lanes.len() as u16;
        self.lanes.push(lane);
        self.numbers.insert(key, number);
        number
    }
}

impl LaneKey {
    pub(super) fn of_view(spec: &ViewSpec) -> Result<Self, JoinError> {
        let payload = u64::from(spec.payload_bytes).next_multiple_of(4096);
        let slot_bytes = payload + u64::from(spec.meta_bytes);
        let fits = slot_bytes >= u64::from(SLOT_BYTES_MIN)
            && slot_bytes <= u64::from(SEGMENT_BYTES)
            && spec.meta_bytes.is_multiple_of(4096);
        let slot_bytes = u32::try_from(slot_bytes).ok().filter(|_| fits).ok_or(JoinError::SlotBytes(slot_bytes))?;
        Ok(Self {
            tenant: spec.tenant,
            namespace_prefix: namespace_prefix(&spec.namespace),
            group: spec.group,
            shard: spec.shard.to_bytes(),
            payload_bytes: spec.payload_bytes,
            slot_bytes,
        })
    }

    pub(super) fn of_entry(entry: &SlotEntry, slot_bytes: u32) -> Self {
        Self {
            tenant: entry.tenant,
            namespace_prefix: entry.namespace_prefix,
            group: entry.group,
            shard: entry.shard.to_bytes(),
            payload_bytes: entry.payload_bytes,
            slot_bytes,
        }
    }

    pub(super) fn tenant(&self) -> TenantId {
        self.tenant
    }

    pub(super) fn slot_bytes(&self) -> u32 {
        self.slot_bytes
    }

    pub(super) fn lane(&self, shard: Shard, dram_class: u16, nvme_class: u16) -> Lane {
        Lane {
            tenant: self.tenant,
            namespace_prefix: self.namespace_prefix,
            group: self.group,
            shard,
            payload_bytes: self.payload_bytes,
            slot_bytes: self.slot_bytes,
            dram_class,
            nvme_class,
            held: Held::default(),
        }
    }
}

pub(super) struct View {
    pub(super) lane: u16,
    pub(super) group_key: GroupKey,
    pub(super) speed: Speed,
}

/// What recomputing costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Speed {
    pub(super) block_tokens: u32,
    /// 0: unknown.
    pub(super) tokens_per_second: u32,
}

/// Open views, by number.
pub(super) struct Views {
    views: Vec<Option<View>>,
    max: u32,
}

impl Views {
    pub(super) fn new(max: u32) -> Self {
        Self { views: Vec::new(), max }
    }

    pub(super) fn add(&mut self, view: View) -> Result<ViewId, JoinError> {
        if let Some(free) = self.views.iter().position(Option::is_none) {
            self.views[free] = Some(view);
            return Ok(ViewId(free as u32));
        }
        if self.views.len() >= self.max as usize {
            return Err(JoinError::Views);
        }
        self.views.push(Some(view));
        Ok(ViewId(self.views.len() as u32 - 1))
    }

    pub(super) fn get(&self, view: ViewId) -> Option<&View> {
        self.views.get(view.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, view: ViewId) -> Option<&mut View> {
        self.views.get_mut(view.0 as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, view: ViewId) {
        if let Some(found) = self.views.get_mut(view.0 as usize) {
            *found = None;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.views.iter().flatten().count()
    }
}

pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) tenant: TenantId,
    /// Its client processes, one bit each; none: it is gone, but may own blocks still.
    pub(super) clients: u64,
    /// Bytes that its leases hold.
    pub(super) lease_bytes: u64,
    /// Bytes of the arena that it brought in.
    pub(super) dram_bytes: u64,
    /// Of those, what its floor keeps out of the order of eviction.
    pub(super) kept: Kept,
}

/// Engine instances and the client processes that joined as them.
pub(super) struct Instances {
    instances: Vec<Instance>,
    of_client: [Option<u8>; ClientSlot::COUNT],
    max: u8,
}

impl Instances {
    pub(super) fn new(max: u8) -> Self {
        Self { instances: Vec::new(), of_client: [None; ClientSlot::COUNT], max: max.min(254) }
    }

    /// Makes `client` a process of `id`. A full table gives way to an instance that is gone; its blocks become the new one's.
    pub(super) fn join(&mut self, client: ClientSlot, id: InstanceId, tenant: TenantId) -> Result<u8, JoinError> {
        let known = self.instances.iter().position(|found| found.id == id && found.tenant == tenant);
        let number = match known {
            Some(number) => number,
            None => {
                let fresh = Instance { id, tenant, clients: 0, lease_bytes: 0, dram_bytes: 0, kept: Kept::default() };
                if self.instances.len() < usize::from(self.max) {
                    self.instances.push(fresh);
                    self.instances.len() - 1
                } else {
                    let gone =
                        self.instances.iter().enumerate().filter(|(_, old)| old.clients == 0 && old.lease_bytes == 0);
                    let (number, dram_bytes) = gone
                        .map(|(number, old)| (number, old.dram_bytes))
                        .min_by_key(|(_, bytes)| *bytes)
                        .ok_or(JoinError::Instances)?;
                    let kept = std::mem::take(&mut self.instances[number].kept);
                    self.instances[number] = Instance { dram_bytes, kept, ..fresh };
                    number
                }
            }
        };
        self.instances[number].clients |= client.bit();
        self.of_client[usize::from(client.get())] = Some(number as u8);
        Ok(number as u8)
    }

    pub(super) fn leave(&mut self, client: ClientSlot) {
        if let Some(number) = self.of_client[usize::from(client.get())].take() {
            self.instances[usize::from(number)].clients &= !client.bit();
        }
    }

    pub(super) fn of(&self, client: ClientSlot) -> Option<u8> {
        self.of_client[usize::from(client.get())]
    }

    pub(super) fn get(&self, number: u8) -> &Instance {
        &self.instances[usize::from(number)]
    }

    pub(super) fn get_mut(&mut self, number: u8) -> &mut Instance {
        &mut self.instances[usize::from(number)]
    }

    pub(super) fn len(&self) -> usize {
        self.instances.len()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.instances.iter_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter()
    }
}

/// The key of a block of this view.
pub(super) fn key_of(group_key: &GroupKey, hashes: &(impl HashSource + ?Sized), index: u32) -> BlockKey {
    group_key.block(&hashes.get(index))
}

#[cfg(test)]
mod tests {
    use kvd_proto::{Interleave, TenantKey};

    use super::*;

    fn spec(payload_bytes: u32, meta_bytes: u32) -> ViewSpec {
        let namespace = NamespaceDigest::new([7; 32]);
        ViewSpec {
            tenant: TenantId(1),
            namespace,
            group: 3,
            group_key: GroupKey::derive(&TenantKey::new([1; 32]), &namespace, 3),
            shard: Shard::new(0..4, 0..8, Interleave::WHOLE).unwrap(),
            payload_bytes,
            meta_bytes,
            block_tokens: 16,
            prefill_tokens_per_second: 0,
        }
    }

    #[test]
    fn slots_are_whole_sectors_of_a_segment() {
        let slot_bytes = |payload, meta| LaneKey::of_view(&spec(payload, meta)).map(|key| key.slot_bytes());
        assert_eq!(slot_bytes(1, 4096), Ok(8192));
        assert_eq!(slot_bytes(4096, 4096), Ok(8192));
        assert_eq!(slot_bytes(4097, 8192), Ok(16384));
        assert_eq!(slot_bytes((64 << 20) - 4096, 4096), Ok(64 << 20));
        assert_eq!(slot_bytes((64 << 20) - 4095, 4096), Err(JoinError::SlotBytes((64 << 20) + 4096)));
        assert_eq!(slot_bytes(0, 4096), Err(JoinError::SlotBytes(4096)), "a sector too few");
        assert_eq!(slot_bytes(4096, 4000), Err(JoinError::SlotBytes(8096)), "half a sector");
        assert_eq!(slot_bytes(u32::MAX, 4096), Err(JoinError::SlotBytes((1 << 32) + 4096)));
    }

    #[test]
    fn a_lane_is_all_that_its_records_have_in_common() {
        let base = LaneKey::of_view(&spec(4096, 4096)).unwrap();
        assert_eq!(base, LaneKey::of_view(&spec(4096, 4096)).unwrap());
        let namespace = NamespaceDigest::new([8; 32]);
        let shard = Shard::new(0..4, 8..16, Interleave::WHOLE).unwrap();
        let others = [
            ViewSpec { tenant: TenantId(2), ..spec(4096, 4096) },
            ViewSpec { namespace, ..spec(4096, 4096) },
            ViewSpec { group: 4, ..spec(4096, 4096) },
            ViewSpec { shard, ..spec(4096, 4096) },
            spec(4095, 4096),
            spec(4096, 8192),
        ];
        let mut lanes = Lanes::new(7);
        for other in [spec(4096, 4096)].iter().chain(&others) {
            let key = LaneKey::of_view(other).unwrap();
            assert_eq!(lanes.find(&key), None);
            assert!(!lanes.full());
            let lane = key.lane(other.shard.clone(), 5, 6);
            assert_eq!((lane.tenant, lane.group, lane.dram_class, lane.nvme_class), (other.tenant, other.group, 5, 6));
            let number = lanes.add(key, lane);
            assert_eq!(lanes.find(&LaneKey::of_view(other).unwrap()), Some(number));
        }
        assert!(lanes.full());
        assert_eq!(lanes.iter().map(|(number, _)| number).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
    }

    #[test]
    fn a_closed_view_makes_room_for_another() {
        let view = |tokens_per_second| View {
            lane: 0,
            group_key: spec(4096, 4096).group_key,
            speed: Speed { block_tokens: 16, tokens_per_second },
        };
        let mut views = Views::new(3);
        let all = [1, 2, 3].map(|speed| views.add(view(speed)).unwrap());
        assert_eq!(all, [ViewId(0), ViewId(1), ViewId(2)]);
        assert_eq!(views.add(view(4)), Err(JoinError::Views));
        views.remove(all[1]);
        views.remove(ViewId(99));
        assert!(views.len() == 2 && views.get(all[1]).is_none() && views.get_mut(all[1]).is_none());
        assert_eq!(views.add(view(5)), Ok(all[1]));
        assert_eq!(views.get(all[1]).unwrap().speed.tokens_per_second, 5);
        assert_eq!(views.get_mut(all[2]).unwrap().speed.tokens_per_second, 3);
        assert!(views.get(ViewId(3)).is_none());
    }

    #[test]
    fn a_full_table_of_instances_gives_way_to_one_that_is_gone_and_holds_least() {
        let id = |number: u8| InstanceId::new([number; 16]);
        let client = |number| ClientSlot::new(number).unwrap();
        let mut instances = Instances::new(4);
        for number in 0..4 {
            assert_eq!(instances.join(client(number), id(number), TenantId(1)), Ok(number));
            instances.get_mut(number).dram_bytes = 100 - u64::from(number);
        }
        assert_eq!(instances.join(client(9), id(9), TenantId(1)), Err(JoinError::Instances));
        assert_eq!(
            instances.join(client(4), id(2), TenantId(1)),
            Ok(2),
            "one more process of an instance that is there"
        );
        (0..4).for_each(|number| instances.leave(client(number)));
        instances.get_mut(3).lease_bytes = 1;
        assert_eq!((instances.of(client(2)), instances.of(client(4))), (None, Some(2)));
        // 2 has a process still, 3 a lease; of 0 and 1 the second holds less.
        assert_eq!(instances.join(client(5), id(5), TenantId(1)), Ok(1));
        assert_eq!((instances.get(1).id, instances.get(1).dram_bytes), (id(5), 99), "its blocks are the new one's");
        assert_eq!(instances.get(1).clients, client(5).bit());
        assert_eq!(instances.join(client(6), id(5), TenantId(2)), Ok(0), "the same name of another tenant is another");
        assert_eq!(instances.iter().map(|instance| instance.id).collect::<Vec<_>>(), [id(5), id(5), id(2), id(3)]);
        assert_eq!(instances.join(client(7), id(7), TenantId(1)), Err(JoinError::Instances));
    }
}
