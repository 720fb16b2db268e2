//! The part of a bucket that the bench uses: a prefix of its own, which goes with the value.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kvd_tiers::object::{PackEntry, PackIndex};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::runtime::Runtime;

use super::ObjectArgs;
use super::interrupt::Interrupt;
use crate::cli::ConfigSources;
use crate::cli::exit::{Exit, Failure};
use crate::core::ObjectOptions;
use crate::object::RUN_BYTES_MAX;
use crate::object::inspecting::Inspector;
use crate::object::options::StoreUrl;
use crate::object::store::{Fault, Store};

const PREFIX: &str = "kvd-bench-";
const LISTED: usize = 1000;
const DELETED_AT_ONCE: usize = 16;
/// For one request of no hurry.
const PATIENCE: Duration = Duration::from_secs(60);
/// What was being sent when its sender was killed may still come.
const SETTLED_AFTER: Duration = Duration::from_millis(300);
/// Listings at the end at most: one more than any run leaves objects for.
const LISTINGS_MAX: usize = 10_000;

/// A piece of a pack whose records follow each other in their chain: what one request can bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Which pack, counted from 0 in the order of their names.
    pub(super) pack: usize,
    pub(super) range: Range<u64>,
}

/// The prefix, and who speaks to it.
pub(super) struct Bucket {
    /// What the daemons are told of the store.
    pub(super) set: Vec<String>,
    pub(super) options: ObjectOptions,
    pub(super) runtime: Runtime,
    store: Store,
    interrupt: Interrupt,
}

pub(super) fn failed(error: impl ToString) -> Failure {
    Failure::new(Exit::Failure, error.to_string())
}

fn of_store(fault: Fault) -> Failure {
    failed(fault).remedy("`kvd doctor` with the same tiers.object.* keys tells what is wrong with the store")
}

impl Bucket {
    /// Asks nothing yet. `threads` of the plain client's runtime.
    pub(super) fn open(args: &ObjectArgs, threads: usize, interrupt: Interrupt) -> Result<Bucket, Failure> {
        let StoreUrl::Bucket(bucket) = &args.url else {
            return Err(Failure::new(Exit::Usage, format!("{}: a folder has no client to compare with", args.url))
                .remedy("give the address of a bucket, s3://bucket/prefix"));
        };
        let mut bucket = bucket.clone();
        let slash = if bucket.prefix.is_empty() { "" } else { "/" };
        bucket.prefix = format!("{}{slash}{PREFIX}{:016x}", bucket.prefix, rand::random::<u64>());
        let file = |path: &std::path::Path| path.display().to_string();
        let given = [
            ("url", Some(StoreUrl::Bucket(bucket).to_string())),
            ("endpoint", args.endpoint.clone()),
            ("credentials_file", args.credentials_file.as_deref().map(file)),
            ("ca_file", args.ca_file.as_deref().map(file)),
            ("enabled", Some("true".into())),
        ];
        let given = given.into_iter().filter_map(|(key, value)| Some(format!("tiers.object.{key}={}", value?)));
        let set: Vec<String> = given.collect();
        let sources = ConfigSources { config: None, assignments: set.clone() };
        let options = sources.load()?.config.object_options().ok_or_else(|| failed("there is no object tier"))?;
        let store = Store::open(&options).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        Ok(Bucket { set, options, runtime, store, interrupt })
    }

    /// The library's own client, as the daemons use it, and where its objects lie.
    pub(super) fn plain(&self) -> Result<(Arc<dyn ObjectStore>, Path), Failure> {
        let client = Store::library_client(&self.options).map_err(failed)?;
        let client = client.ok_or_else(|| failed("a folder has no client to compare with"))?;
        let prefix = self.options.url.bucket().map_or("", |bucket| bucket.prefix.as_str());
        let below = Path::parse(prefix).map_err(failed)?.join("plain");
        Ok((client, below))
    }

    /// Runs something that asks the store, until a signal comes.
    pub(super) fn run<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.runtime.block_on(self.interrupt.or(work))
    }

    /// The pieces of all packs that are there, by what their indexes say.
    pub(super) fn runs(&self) -> Result<Vec<Run>, Failure> {
        self.run(async {
            let inspector = Inspector::new(&self.store, &self.options);
            let mut runs = Vec::new();
            for (pack, name) in inspector.names().await.map_err(of_store)?.into_iter().enumerate() {
                let found = inspector.look(name).await.map_err(of_store)?;
                let index = found.ok_or_else(|| failed("a pack is gone"))?.index.map_err(failed)?;
                runs.extend(pieces(&index).into_iter().map(|range| Run { pack, range }));
            }
            Ok(runs)
        })
    }

    /// Deletes what lies below a folder of the prefix.
    pub(super) fn clear(&self, folder: &str) -> Result<(), Failure> {
        self.run(async { self.delete_all(folder).await.map(drop).map_err(of_store) })
    }

    /// Deletes until nothing is listed; how many objects there were.
    async fn delete_all(&self, folder: &str) -> Result<usize, Fault> {
        let mut deleted = 0;
        for _ in 0..LISTINGS_MAX {
            let listed = self.store.list(folder, None, LISTED, Instant::now() + PATIENCE).await?;
            if listed.is_empty() {
                break;
            }
            deleted += listed.len();
            let delete = stream::iter(listed)
                .map(|object| async move { self.store.delete(&object.path, Instant::now() + PATIENCE).await });
            delete.buffer_unordered(DELETED_AT_ONCE).try_collect::<Vec<()>>().await?;
        }
        Ok(deleted)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // The daemons are dead and the plain client is at rest: only what they had sent already may still come.
        let clean = async {
            while self.delete_all("").await? > 0 {
                tokio::time::sleep(SETTLED_AFTER).await;
            }
            Ok::<(), Fault>(())
        };
        if let Err(fault) = self.runtime.block_on(clean) {
            eprintln!("kvd: {} is left behind: {fault}", self.options.url);
        }
    }
}

/// Ranges of a pack whose records follow each other in their chain, none longer than a request.
fn pieces(index: &PackIndex) -> Vec<Range<u64>> {
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut before: Option<&PackEntry> = None;
    for entry in &index.entries {
        let (start, end) = (u64::from(entry.offset), u64::from(entry.offset) + u64::from(entry.record_bytes));
        let follows = before.is_some_and(|before| entry.parent_key == Some(before.key));
        match pieces.last_mut().filter(|piece| follows && end - piece.start <= RUN_BYTES_MAX) {
            Some(piece) => piece.end = end,
            None => pieces.push(start..end),
        }
        before = Some(entry);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use kvd_proto::{BlockKey, Shard};
    use kvd_tiers::object::{NodeName, PackName, Realm};

    use super::*;

    #[test]
    fn a_piece_ends_with_its_chain_or_with_what_a_request_may_bring() {
        let shard = Shard::whole(1, 1).expect("a shard");
        let record_bytes = 6 << 20;
        let entry = |at: u8, parent: Option<u8>| PackEntry {
            key: BlockKey::new([at; 16]),
            shard: shard.clone(),
            parent_key: parent.map(|parent| BlockKey::new([parent; 16])),
            group: 0,
            position: 0,
            generation: 1,
            offset: u32::from(at) * record_bytes,
            record_bytes,
            payload_bytes: 1,
            meta_checksum: 0,
        };
        let index = PackIndex {
            pack: PackName::new([1; 16]),
            node: NodeName::new([1; 16]),
            realm: Realm { tenant: [1; 16], namespace: [1; 16] },
            created_ms: 0,
            records_bytes: 5 * u64::from(record_bytes),
            entries: vec![entry(0, None), entry(1, Some(0)), entry(2, Some(1)), entry(3, None), entry(4, Some(3))],
        };
        let at = |record: u64| record * u64::from(record_bytes);
        assert_eq!(pieces(&index), [at(0)..at(2), at(2)..at(3), at(3)..at(5)]);
    }
}
