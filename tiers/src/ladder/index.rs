//! From block key and lane to node: a hash table that grows by one bucket at a time.
//!
//! Linear hashing with chains through the nodes. Against open addressing it costs the same memory (a head and a link of
//! four bytes each) but its load never jumps: no rehash, no doubling, bounded work per insert.

use kvd_proto::BlockKey;

use super::nodes::{NodeId, Nodes};

const CHUNK: usize = 4096;

pub(super) struct Index {
    chunks: Vec<Box<[NodeId]>>,
    /// Buckets in use: `base` of this round and those already split.
    buckets: u32,
    base: u32,
}

fn spread(key: &BlockKey, lane: u16) -> u64 {
    let (head, _) = key.as_bytes().split_at(8);
    let head = u64::from_le_bytes(head.try_into().expect("8 of 16 bytes"));
    // Keys are uniform; the shards of one block share a key and differ in the lane.
    head.wrapping_add(u64::from(lane).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Index {
    pub(super) fn new() -> Self {
        Self { chunks: vec![vec![NodeId::NONE; CHUNK].into_boxed_slice()], buckets: CHUNK as u32, base: CHUNK as u32 }
    }

    fn bucket(&self, key: &BlockKey, lane: u16) -> u32 {
        let hash = spread(key, lane) as u32;
        let bucket = hash & (2 * self.base - 1);
        if bucket < self.buckets { bucket } else { hash & (self.base - 1) }
    }

    fn head(&mut self, bucket: u32) -> &mut NodeId {
        &mut self.chunks[bucket as usize / CHUNK][bucket as usize % CHUNK]
    }

    pub(super) fn find(&self, nodes: &Nodes, key: &BlockKey, lane: u16) -> Option<NodeId> {
        let bucket = self.bucket(key, lane) as usize;
        let mut at = self.chunks[bucket / CHUNK][bucket % CHUNK];
        while let Some(id) = at.get() {
            let node = &nodes[id];
            if node.key == *key && node.lane == lane {
                return Some(id);
            }
            at = node.next_in_bucket;
        }
        None
    }

    pub(super) fn insert(&mut self, nodes: &mut Nodes, id: NodeId) {
        debug_assert!(self.find(nodes, &nodes[id].key, nodes[id].lane).is_none());
        let bucket = self.bucket(&nodes[id].key, nodes[id].lane);
        let head = self.head(bucket);
        nodes[id].next_in_bucket = *head;
        *head = id;
        if nodes.used() > self.buckets {
            self.split(nodes);
        }
    }

    pub(super) fn remove(&mut self, nodes: &mut Nodes, id: NodeId) {
        let bucket = self.bucket(&nodes[id].key, nodes[id].lane);
        let next = nodes[id].next_in_bucket;
        let head = self.head(bucket);
        if *head == id {
            *head = next;
            return;
        }
        let mut at = *head;
        while nodes[at].next_in_bucket != id {
            at = nodes[at].next_in_bucket;
        }
        nodes[at].next_in_bucket = next;
    }

    /// Adds one bucket and moves to it what belongs there from the bucket it splits.
    fn split(&mut self, nodes: &mut Nodes) {
        let (old, new) = (self.buckets - self.base, self.buckets);
        if new as usize == self.chunks.len() * CHUNK {
            self.chunks.push(vec![NodeId::NONE; CHUNK].into_boxed_slice());
        }
        let mut at = std::mem::replace(self.head(old), NodeId::NONE);
        self.buckets += 1;
        while let Some(id) = at.get() {
            at = nodes[id].next_in_bucket;
            let bucket = self.bucket(&nodes[id].key, nodes[id].lane);
            debug_assert!(bucket == old || bucket == new);
            let head = self.head(bucket);
            nodes[id].next_in_bucket = *head;
            *head = id;
        }
        if self.buckets == 2 * self.base {
            self.base = self.buckets;
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<NodeId>() + self.chunks.capacity() * size_of::<Box<[NodeId]>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> BlockKey {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        BlockKey::new(bytes)
    }

    #[test]
    fn finds_what_was_inserted_through_growth_and_removal() {
        let mut nodes = Nodes::new(1 << 20);
        let mut index = Index::new();
        for number in 0..20_000 {
            let id = nodes.insert(key(number), (number % 3) as u16, 0).unwrap();
            index.insert(&mut nodes, id);
        }
        for number in (0..20_000).step_by(2) {
            let id = index.find(&nodes, &key(number), (number % 3) as u16).unwrap();
            index.remove(&mut nodes, id);
            nodes.remove(id);
        }
        for number in 0..20_000 {
            let found = index.find(&nodes, &key(number), (number % 3) as u16);
            assert_eq!(found.is_some(), number % 2 == 1, "{number}");
            assert!(index.find(&nodes, &key(number), 3).is_none());
        }
        assert_eq!(nodes.used(), 10_000);
    }
}
