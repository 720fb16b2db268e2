//! The records the ladder knows, as one array of fixed nodes linked by number.

use std::fmt;
use std::ops::{Index, IndexMut};

use kvd_proto::BlockKey;

use crate::policy::{Rank, Space};

/// A node's number; stable while the node lives, reused afterwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u32);

impl NodeId {
    pub(super) const NONE: Self = Self(u32::MAX);

    pub(super) fn get(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }

    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// No slot, or no place in a heap.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Bits of a node's state.
pub(super) mod flag {
    /// The node is in use.
    pub(in super::super) const LIVE: u16 = 1;
    /// Its copy in the arena is whole and published.
    pub(in super::super) const DRAM_READY: u16 = 1 << 1;
    /// Its copy on a device is whole and published.
    pub(in super::super) const NVME_READY: u16 = 1 << 2;
    /// It and all its ancestors are resident: a match can reach it. The closure.
    pub(in super::super) const ATTACHED: u16 = 1 << 3;
    /// An operator wants it kept.
    pub(in super::super) const PINNED: u16 = 1 << 4;
    /// A client is filling its slot in the arena.
    pub(in super::super) const FILLING: u16 = 1 << 5;
    /// A move is bringing it to the arena.
    pub(in super::super) const FETCHING: u16 = 1 << 6;
    /// A move is bringing it to a device.
    pub(in super::super) const SPILLING: u16 = 1 << 7;
    /// It waits for its turn to be spilled.
    pub(in super::super) const SPILL_QUEUED: u16 = 1 << 8;
    /// It lost its last copy while it had children: on the stack of cuts.
    pub(in super::super) const CUT: u16 = 1 << 9;
    /// It was cut loose from its ancestors, or purged while it was filled: it cannot be reached again.
    pub(in super::super) const LOOSE: u16 = 1 << 10;
    /// Its copy in the arena is out of the order of eviction: the floor of its owner keeps it.
    pub(in super::super) const KEPT: u16 = 1 << 11;
    /// Its only copy lies in the object tier, and somebody asked for it.
    pub(in super::super) const REMOTE: u16 = 1 << 12;
    /// It was given to the object tier, or came from there.
    pub(in super::super) const UPLOADED: u16 = 1 << 13;
}

/// One record of one block, or the place of one that others hang on.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) key: BlockKey,
    pub(super) rank: u64,
    pub(super) meta_checksum: u64,
    pub(super) parent: NodeId,
    pub(super) first_child: NodeId,
    pub(super) next_sibling: NodeId,
    pub(super) prev_sibling: NodeId,
    pub(super) next_in_bucket: NodeId,
    pub(super) next_cut: NodeId,
    pub(super) dram: u32,
    pub(super) nvme: u32,
    pub(super) generation: u32,
    pub(super) position: u32,
    /// Children whose copy in the arena is published.
    pub(super) dram_children: u32,
    /// Children whose copy on a device is published.
    pub(super) nvme_children: u32,
    /// Where it stands in the eviction heap of its arena class, or `NOWHERE`.
    dram_place: u32,
    /// Where it stands in the eviction heap of its device class, or `NOWHERE`.
    nvme_place: u32,
    /// Leases that end here, loads and calls under way that need it.
    pub(super) holds: u16,
    pub(super) lane: u16,
    /// The instance that brought its copy into the arena.
    pub(super) owner: u8,
    pub(super) flags: u16,
    pub(super) device: u8,
}

/// What a resident record costs at most: its node, a head in the index, its places in both heaps (whose arrays may be half
/// empty) and the way back from its slots in both tiers.
pub(super) const RECORD_BYTES_MAX: usize = size_of::<Node>() + 4 + 2 * 8 + 2 * 4;
const _: () = assert!(RECORD_BYTES_MAX <= 128);

impl Node {
    const EMPTY: Self = Self {
        key: BlockKey::new([0; 16]),
        rank: 0,
        meta_checksum: 0,
        parent: NodeId::NONE,
        first_child: NodeId::NONE,
        next_sibling: NodeId::NONE,
        prev_sibling: NodeId::NONE,
        next_in_bucket: NodeId::NONE,
        next_cut: NodeId::NONE,
        dram: NOWHERE,
        nvme: NOWHERE,
        generation: 0,
        position: 0,
        dram_children: 0,
        nvme_children: 0,
        dram_place: NOWHERE,
        nvme_place: NOWHERE,
        holds: 0,
        lane: 0,
        owner: NO_OWNER,
        flags: 0,
        device: 0,
    };

    pub(super) fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    pub(super) fn any(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }

    pub(super) fn set(&mut self, flags: u16) {
        self.flags |= flags;
    }

    pub(super) fn clear(&mut self, flags: u16) {
        self.flags &= !flags;
    }

    /// A published copy exists.
    pub(super) fn resident(&self) -> bool {
        self.any(flag::DRAM_READY | flag::NVME_READY | flag::REMOTE)
    }

    /// A published copy lies on this node.
    pub(super) fn here(&self) -> bool {
        self.any(flag::DRAM_READY | flag::NVME_READY)
    }

    /// The only copy lies in the object tier.
    pub(super) fn remote(&self) -> bool {
        self.has(flag::REMOTE)
    }

    /// The only published copy lies on a device.
    pub(super) fn below(&self) -> bool {
        self.flags & (flag::DRAM_READY | flag::NVME_READY) == flag::NVME_READY
    }

    /// It has a published copy on a device.
    pub(super) fn durable(&self) -> bool {
        self.has(flag::NVME_READY)
    }

    pub(super) fn leaf(&self) -> bool {
        self.first_child.is_none()
    }

    pub(super) fn place(&self, space: Space) -> u32 {
        match space {
            Space::Dram => self.dram_place,
            Space::Nvme => self.nvme_place,
        }
    }

    pub(super) fn set_place(&mut self, space: Space, place: u32) {
        match space {
            Space::Dram => self.dram_place = place,
            Space::Nvme => self.nvme_place = place,
        }
    }

    /// What falls first: the lowest rank, the older sealing among equals.
    pub(super) fn order(&self) -> (u64, u32) {
        (self.rank, self.generation)
    }

    pub(super) fn rank(&self) -> Rank {
        Rank(self.rank)
    }
}

/// No instance owns the copy.
pub(super) const NO_OWNER: u8 = u8::MAX;

const CHUNK_BITS: u32 = 12;
const CHUNK: usize = 1 << CHUNK_BITS;

/// All nodes. Grows by chunks, so that growth never copies and never doubles.
pub(super) struct Nodes {
    chunks: Vec<Box<[Node]>>,
    free: NodeId,
    used: u32,
    max: u32,
}

impl Nodes {
    pub(super) fn new(max: u32) -> Self {
        Self { chunks: Vec::new(), free: NodeId::NONE, used: 0, max: max.min(u32::MAX / 4) }
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// One behind the highest number ever used: where a sweep ends.
    pub(super) fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    /// The node with this number, if it is in use.
    pub(super) fn live(&self, number: u32) -> Option<NodeId> {
        let node = self.chunks.get((number >> CHUNK_BITS) as usize)?.get(number as usize % CHUNK)?;
        node.has(flag::LIVE).then_some(NodeId(number))
    }

    /// A fresh node, linked nowhere; `None` when all are taken.
    pub(super) fn insert(&mut self, key: BlockKey, lane: u16, position: u32) -> Option<NodeId> {
        if self.free.is_none() {
            self.grow()?;
        }
        let id = self.free;
        let node = &mut self[id];
        let next = node.next_in_bucket;
        *node = Node { key, lane, position, flags: flag::LIVE, ..Node::EMPTY };
        self.free = next;
        self.used += 1;
        Some(id)
    }

    fn grow(&mut self) -> Option<()> {
        let first = self.end();
        if first >= self.max {
            return None;
        }
        self.chunks.push(vec![Node::EMPTY; CHUNK].into_boxed_slice());
        // Lowest number first: the blocks of a chain that is stored at once lie side by side.
        for number in (first..first + CHUNK as u32).rev() {
            self[NodeId(number)].next_in_bucket = self.free;
            self.free = NodeId(number);
        }
        Some(())
    }

    pub(super) fn remove(&mut self, id: NodeId) {
        let free = self.free;
        let node = &mut self[id];
        debug_assert!(node.has(flag::LIVE));
        *node = Node { next_in_bucket: free, ..Node::EMPTY };
        self.free = id;
        self.used -= 1;
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Box<[Node]>>() + self.chunks.len() * CHUNK * size_of::<Node>()
    }
}

impl Index<NodeId> for Nodes {
    type Output = Node;

    fn index(&self, id: NodeId) -> &Node {
        &self.chunks[(id.0 >> CHUNK_BITS) as usize][id.0 as usize % CHUNK]
    }
}

impl IndexMut<NodeId> for Nodes {
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.chunks[(id.0 >> CHUNK_BITS) as usize][id.0 as usize % CHUNK]
    }
}
