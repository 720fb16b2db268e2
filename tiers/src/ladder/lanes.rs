//! Who uses the ladder and what they named: lanes, views, instances and their client processes.
//!
//! A lane is one (tenant, namespace, group, shard). Records of different shards of a block are nodes of different lanes,
//! each with its own chain: a match asks for exactly the shard of its view. Records that cover a shard together, or hold
//! more than it, are not looked at: the block is a miss.

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
