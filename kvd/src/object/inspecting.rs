//! A store looked at from outside a daemon: what packs there are, whether their bytes are right, and a collector's turn.

use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use kvd_tiers::object::pack::trailer;
use kvd_tiers::object::{IndexName, NodeName, PackEntry, PackIndex, pack_path};
use kvd_tiers::record::{Expect, verify_bytes};

use super::collecting::lease::{self, Claim};
use super::collecting::orphans::{self, Left};
use super::collecting::remove_unknown;
use super::limits::Limits;
use super::listing::Asking;
use super::store::{Fault, Store};
use super::worker::unix_ms;
use crate::core::ObjectOptions;

/// A pack may take two seconds for this much, beside the time of a request; nobody paces himself to less.
pub(crate) const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// A store, and one that looks at it.
pub(crate) struct Inspector<'a> {
    asking: Asking<'a>,
}

/// What a pack says of itself, or why it does not.
pub(crate) struct Found {
    pub(crate) name: IndexName,
    pub(crate) index: Result<PackIndex, String>,
}

/// What was found in a pack.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) records: u64,
    /// Of those, records that are not what the index says.
    pub(crate) corrupt: u64,
    pub(crate) bytes: u64,
    /// Each with what is wrong.
    pub(crate) damaged: Vec<String>,
}

/// What a turn of the collector deleted, or would.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// Packs that are too old, with their bytes.
    pub(crate) expired: Vec<(IndexName, u64)>,
    pub(crate) left: Left,
}

impl<'a> Inspector<'a> {
    pub(crate) fn new(store: &'a Store, options: &ObjectOptions) -> Self {
        Self::of(Asking { store, patience: 4 * options.request_timeout })
    }

    pub(super) fn of(asking: Asking<'a>) -> Self {
        Self { asking }
    }

    /// The names of all packs that can be found.
    pub(crate) async fn names(&self) -> Result<Vec<IndexName>, Fault> {
        let mut names = Vec::new();
        let mut indexes = self.asking.indexes();
        while let Some(page) = indexes.next().await? {
            names.extend(page);
        }
        Ok(names)
    }

    /// Reads an index object; `None` where it went meanwhile.
    pub(crate) async fn look(&self, name: IndexName) -> Result<Option<Found>, Fault> {
        match self.asking.index(name).await {
            Ok(index) => Ok(Some(Found { name, index })),
            Err(Fault::NotFound) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Reads a whole pack, as fast as `pace` lets it; `None` where it went meanwhile.
    pub(crate) async fn verify(&self, name: IndexName, pace: &mut Pace) -> Result<Option<Verified>, Fault> {
        let Some(found) = self.look(name).await? else { return Ok(None) };
        let damaged = |why: String| Ok(Some(Verified { damaged: vec![why], ..Verified::default() }));
        let index = match found.index {
            Ok(index) => index,
            Err(why) => return damaged(format!("its index object is none: {why}")),
        };
        match self.read(&index, pace).await {
            Ok(verified) => Ok(Some(verified)),
            // Deleted as this was read: the index object goes first.
            Err(Fault::NotFound) if self.look(name).await?.is_none() => Ok(None),
            Err(Fault::NotFound) => damaged("it is gone, and its index object is not".into()),
            Err(Fault::Short { got, cut: false, .. }) => damaged(format!("it ends after {got} bytes")),
            Err(fault) => Err(fault),
        }
    }

    async fn read(&self, index: &PackIndex, pace: &mut Pace) -> Result<Verified, Fault> {
        let (path, bytes) = (pack_path(index.pack), index.pack_bytes());
        let deadline: Instant = self.asking.deadline() + Duration::from_secs(2 * bytes / BYTES_PER_SECOND_MIN);
        let mut verified = Verified { bytes, ..Verified::default() };
        let size = self.asking.store.head(&path, deadline).await?.bytes;
        if size > bytes {
            verified.damaged.push(format!("it has {size} bytes, not {bytes}"));
        }
        let mut body = self.asking.store.get_range_slowly(&path, 0..bytes, deadline).await?;
        let mut entries = index.entries.iter();
        let mut next = entries.next();
        let mut part = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            pace.take(chunk.len()).await;
            let mut rest = &chunk[..];
            while let Some(entry) = next.filter(|_| !rest.is_empty()) {
                let missing = entry.record_bytes as usize - part.len();
                let (now, later) = rest.split_at(missing.min(rest.len()));
                part.extend_from_slice(now);
                rest = later;
                if part.len() == entry.record_bytes as usize {
                    verified.records += 1;
                    if let Err(why) = record(&part, entry) {
                        verified.corrupt += 1;
                        verified.damaged.push(why);
                    }
                    part.clear();
                    next = entries.next();
                }
            }
            // Behind the records.
            part.extend_from_slice(rest);
        }
        let encoded = index.encode();
        let end = trailer(u32::try_from(encoded.len()).expect("an index has at most INDEX_BYTES_MAX"));
        if part != [&encoded[..], &end].concat() {
            verified.damaged.push("the index in it is not that of its index object".into());
        }
        Ok(verified)
    }

    /// A turn of the collector, whoever else has one. Without `delete` nothing is written, and ages are told by this
    /// machine's clock instead of the store's.
    pub(crate) async fn collect(&self, limits: &Limits, delete: bool) -> Result<Collected, Fault> {
        let mut collected = Collected::default();
        let store_time = match delete {
            true => {
                // Nobody's name: a daemon on this machine waits like any other until the lease is over.
                let node = NodeName::new(rand::random());
                let lease = lease::hold(self.asking, node, unix_ms(), Claim::Now).await?;
                lease
                    .ok_or_else(|| Fault::Other("another collector began at this moment: try again".into()))?
                    .store_time
            }
            false => SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms()),
        };
        if limits.any_age() {
            let now_ms = unix_ms();
            for name in self.names().await? {
                let Some(Found { index: Ok(index), .. }) = self.look(name).await? else { continue };
                if limits.is_expired(&index.realm, index.created_ms, now_ms) {
                    if delete {
                        remove_unknown(self.asking, name).await?;
                    }
                    collected.expired.push((name, index.pack_bytes()));
                }
            }
        }
        collected.left = orphans::collect(self.asking, store_time, |_| false, delete).await?;
        Ok(collected)
    }
}

/// How fast bytes are read, over all that is read with it.
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When all that was taken may have been.
    due: Instant,
}

impl Pace {
    /// Every byte at once.
    pub(crate) fn unlimited() -> Self {
        Self { bytes_per_second: None, due: Instant::now() }
    }

    pub(super) fn of(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: Some(bytes_per_second.max(BYTES_PER_SECOND_MIN)), due: Instant::now() }
    }

    /// Takes bytes, and waits until they may have been taken. What was not taken in time is not made up for.
    async fn take(&mut self, bytes: usize) {
        let Some(bytes_per_second) = self.bytes_per_second else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        self.due = self.due.max(Instant::now()) + takes;
        tokio::time::sleep_until(self.due.into()).await;
    }
}

/// Whether the bytes are the record that the index says they are, in its place of the chain.
fn record(bytes: &[u8], entry: &PackEntry) -> Result<(), String> {
    let expect = Expect {
        key: entry.key,
        shard: entry.shard.clone(),
        generation: entry.generation,
        payload_bytes: entry.payload_bytes,
        meta_checksum: entry.meta_checksum,
    };
    let told = |why: String| format!("record {} at {}: {why}", entry.key, entry.offset);
    let sealed = verify_bytes(bytes, &expect).map_err(|mismatch| told(mismatch.to_string()))?;
    let found = &sealed.metadata;
    let same = (found.parent_key, found.position, found.group) == (entry.parent_key, entry.position, entry.group);
    if same { Ok(()) } else { Err(told("it stands elsewhere in its chain".into())) }
}
