//! Records on their way to the store: gathered into packs, closed by size or age, waiting for their upload.
//!
//! No I/O and no clock: time comes in. Everything that is kept here is bounded by `bytes_max`.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvd_nixl::sys::MemoryExtent;
use kvd_proto::{BlockKey, SHARD_BYTES, Shard};
use kvd_tiers::SlotEntry;
use kvd_tiers::object::pack::{PackBuilder, PushError, Pushed, SealedPack};
use kvd_tiers::object::{IndexName, NodeName, PackIndex, PackName, Realm};
use kvd_tiers::record::{Expect, Mismatch, verify_bytes};

use super::memory::Memory;
use super::purging::Scope;

/// Packs that are filled at a time: one per tenant and namespace that stores.
const OPEN_MAX: usize = 16;
/// How long memory is kept while there is nothing to be packed.
const MEMORY_KEPT: Duration = Duration::from_secs(10);

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packed {
    /// It is in a pack.
    Taken,
    /// It was in one already.
    Known,
    /// There is no room until something was uploaded.
    NoRoom,
    /// It is not what was said, and why.
    Corrupt(String),
}

/// Where a record comes from, and what its metadata says of it.
pub(super) struct Incoming<'a> {
    pub(super) entry: &'a SlotEntry,
    pub(super) memory: &'a MemoryExtent,
    pub(super) realm: Realm,
    /// Bytes of metadata and padded payload.
    pub(super) record_bytes: u32,
}

struct Open {
    realm: Realm,
    since: Instant,
    builder: PackBuilder<Bytes>,
}

/// A pack that is closed.
pub(super) struct Closed {
    realm: Realm,
    /// What was gathered in it: its records, and their bytes.
    names: Vec<RecordName>,
    gathered_bytes: u64,
    /// What of it is to be uploaded; `None` for nothing.
    pub(super) pack: Option<SealedPack<Bytes>>,
    /// Records that another node uploaded meanwhile were looked for. What is uploaded does not change any more.
    pub(super) settled: bool,
    /// The number of its index object, once it was to be published: a second attempt meets what the first put there.
    pub(super) number: Option<u64>,
    /// It may be in the store, published or not.
    pub(super) sent: bool,
    /// Uploads of it that failed.
    pub(super) failures: u32,
}

impl Closed {
    fn new(pack: SealedPack<Bytes>) -> Self {
        let index = &pack.index;
        Self {
            realm: index.realm,
            names: index.entries.iter().map(|entry| name_of(entry.key, &entry.shard)).collect(),
            gathered_bytes: index.records_bytes,
            pack: Some(pack),
            settled: false,
            number: None,
            sent: false,
            failures: 0,
        }
    }

    /// Whose records it holds.
    pub(super) fn realm(&self) -> &Realm {
        &self.realm
    }

    /// What of it may lie in the store though it is given up: the name of its index object, and its index.
    pub(super) fn left(&self) -> Option<(IndexName, &PackIndex)> {
        let pack = self.pack.as_ref().filter(|_| self.sent)?;
        let PackIndex { node, pack: name, .. } = pack.index;
        // Without a number there was none.
        Some((IndexName { node, seq: self.number.unwrap_or(0), pack: name }, &pack.index))
    }

    /// Records that were gathered in it.
    pub(super) fn records(&self) -> u64 {
        self.names.len() as u64
    }
}

/// One record among all.
type RecordName = (BlockKey, [u8; SHARD_BYTES]);

/// All packs that are not in the store yet.
pub(super) struct Packing {
    node: NodeName,
    pack_bytes: u64,
    pack_age: Duration,
    bytes_max: u64,
    open: Vec<Open>,
    closed: VecDeque<Closed>,
    /// Every record in packs, open, closed or being uploaded.
    records: HashSet<RecordName>,
    /// Bytes of all of them.
    bytes: u64,
    memory: Memory,
    /// Since when there has been nothing here.
    idle_since: Option<Instant>,
}

fn name_of(key: BlockKey, shard: &Shard) -> RecordName {
    (key, shard.to_bytes())
}

impl Packing {
    pub(super) fn new(node: NodeName, pack_bytes: u64, pack_age: Duration, bytes_max: u64) -> Self {
        Self {
            node,
            pack_bytes,
            pack_age,
            bytes_max,
            open: Vec::new(),
            closed: VecDeque::new(),
            records: HashSet::new(),
            bytes: 0,
            memory: Memory::new(bytes_max),
            idle_since: None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the record is in a pack that is not published yet.
    pub(super) fn has(&self, entry: &SlotEntry) -> bool {
        self.records.contains(&name_of(entry.key, &entry.shard))
    }

    /// Copies a record out of its slot and checks the copy, which nobody else can change.
    pub(super) fn take(
        &mut self,
        record: &Incoming<'_>,
        new_name: impl FnOnce() -> PackName,
        now: Instant,
        now_ms: u64,
    ) -> Packed {
        let entry = record.entry;
        let name = name_of(entry.key, &entry.shard);
        if self.has(entry) {
            return Packed::Known;
        }
        let bytes = u64::from(record.record_bytes);
        if self.bytes > 0 && self.bytes + bytes > self.bytes_max {
            return Packed::NoRoom;
        }
        let at = match self.open.iter().position(|open| open.realm == record.realm) {
            Some(at) if self.open[at].builder.room_for(record.record_bytes) => at,
            found => {
                let full = found.or_else(|| (self.open.len() >= OPEN_MAX).then(|| self.oldest()));
                full.into_iter().for_each(|at| self.close(at, now_ms));
                let builder = PackBuilder::new(new_name(), self.node, record.realm, self.pack_bytes);
                self.open.push(Open { realm: record.realm, since: now, builder });
                self.open.len() - 1
            }
        };
        let pushed = Pushed {
            key: entry.key,
            shard: entry.shard.clone(),
            parent_key: entry.parent_key,
            group: entry.group,
            position: entry.position,
            generation: entry.generation,
            record_bytes: record.record_bytes,
            payload_bytes: entry.payload_bytes,
            meta_checksum: entry.meta_checksum,
        };
        let copied = match self.copy(record) {
            Ok(copied) => copied,
            Err(mismatch) => return Packed::Corrupt(mismatch.to_string()),
        };
        match self.open[at].builder.push(pushed, copied) {
            Ok(()) => {
                self.records.insert(name);
                self.bytes += bytes;
                Packed::Taken
            }
            Err(PushError::Present) => Packed::Known,
            Err(PushError::Full) => Packed::NoRoom,
            Err(PushError::Sizes { .. }) => Packed::Corrupt("its sizes are none of a record".into()),
        }
    }

    fn copy(&self, record: &Incoming<'_>) -> Result<Bytes, Mismatch> {
        let wanted = record.record_bytes as usize;
        let got = record.memory.len();
        let mut copied = self.memory.take(wanted);
        record.memory.read(0, copied.as_mut()).map_err(|_| Mismatch::Bounds { wanted, got })?;
        verify_bytes(copied.as_ref(), &Expect::from(record.entry))?;
        Ok(copied.freeze())
    }

    fn oldest(&self) -> usize {
        let oldest = self.open.iter().enumerate().min_by_key(|(_, open)| open.since);
        oldest.map_or(0, |(at, _)| at)
    }

    fn close(&mut self, at: usize, now_ms: u64) {
        let open = self.open.swap_remove(at);
        if let Some(pack) = open.builder.finish(now_ms) {
            self.closed.push_back(Closed::new(pack));
        }
    }

    /// Closes packs that are full or old enough; all of them with `all`.
    pub(super) fn close_due(&mut self, now: Instant, now_ms: u64, all: bool) {
        while let Some(at) = self.open.iter().position(|open| {
            all || open.builder.bytes() >= self.pack_bytes || now.saturating_duration_since(open.since) >= self.pack_age
        }) {
            self.close(at, now_ms);
        }
    }

    /// Whether a record that found no room waits for uploads, or for a pack to be closed.
    pub(super) fn close_for_room(&mut self, now_ms: u64) {
        if self.closed.is_empty() && !self.open.is_empty() {
            self.close(self.oldest(), now_ms);
        }
    }

    /// The next pack to be uploaded.
    pub(super) fn next_closed(&mut self) -> Option<Closed> {
        self.closed.pop_front()
    }

    /// An upload failed and is to be tried again, before younger ones.
    pub(super) fn again(&mut self, closed: Closed) {
        self.closed.push_front(closed);
    }

    /// Gives up the oldest pack that is not being uploaded.
    pub(super) fn drop_oldest(&mut self) -> Option<Closed> {
        let dropped = self.closed.pop_front()?;
        self.gone(&dropped);
        Some(dropped)
    }

    /// Drops what was gathered of a kind.
    pub(super) fn purge(&mut self, scope: Scope, now_ms: u64) -> Vec<Closed> {
        while let Some(at) = self.open.iter().position(|open| scope.takes(&open.realm)) {
            self.close(at, now_ms);
        }
        let (gone, kept): (Vec<_>, Vec<_>) = self.closed.drain(..).partition(|closed| scope.takes(closed.realm()));
        self.closed = kept.into();
        gone.iter().for_each(|closed| self.gone(closed));
        gone
    }

    /// A pack is in the store, or given up.
    pub(super) fn gone(&mut self, pack: &Closed) {
        for name in &pack.names {
            self.records.remove(name);
        }
        self.bytes -= pack.gathered_bytes;
    }

    /// Memory that was used lately is kept for the next records, but not for ever.
    pub(super) fn rest(&mut self, now: Instant) {
        let idle = self.records.is_empty();
        match self.idle_since.filter(|_| idle) {
            Some(since) if now.saturating_duration_since(since) >= MEMORY_KEPT => self.memory.clear(),
            Some(_) => {}
            None => self.idle_since = idle.then_some(now),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.is_empty()
    }

    /// When to look again for packs that are old enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.since + self.pack_age).min()
    }
}
