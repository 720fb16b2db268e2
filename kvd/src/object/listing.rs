//! The store page by page: everything below a prefix, in bounded memory, each request within its own time.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use kvd_tiers::object::pack::{TRAILER_BYTES, parse_trailer};
use kvd_tiers::object::{INDEX_BYTES_MAX, INDEX_PREFIX, IndexName, PackIndex, PackName, pack_path};

use super::store::{Fault, Listed, Store};

/// Names asked for at a time.
const PAGE: usize = 10_000;

/// A store, and how long one request to it may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) store: &'a Store,
    pub(crate) patience: Duration,
}

impl<'a> Asking<'a> {
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// The names of all index objects below a folder; more of them than `max` are an error, not a part of them.
    pub(super) async fn index_names(self, folder: &str, max: usize) -> Result<BTreeSet<IndexName>, Fault> {
        let mut names = BTreeSet::new();
        let mut indexes = Indexes { pages: self.pages(folder) };
        while let Some(page) = indexes.next().await? {
            names.extend(page);
            if names.len() > max {
                return Err(Fault::Other(format!("there are more than {max} index objects below {folder}")));
            }
        }
        Ok(names)
    }

    /// All objects below a folder.
    pub(super) fn pages(self, folder: &str) -> Pages<'a> {
        Pages { asking: self, folder: folder.trim_end_matches('/').to_owned(), after: None, ended: false }
    }

    /// All index objects.
    pub(crate) fn indexes(self) -> Indexes<'a> {
        Indexes { pages: self.pages(INDEX_PREFIX) }
    }

    /// The index that stands in an index object, or why none does. One that is gone is [`Fault::NotFound`].
    pub(crate) async fn index(&self, name: IndexName) -> Result<Result<PackIndex, String>, Fault> {
        let bytes: Bytes = match self.store.get(&name.path(), INDEX_BYTES_MAX as u64, self.deadline()).await {
            Ok(bytes) => bytes,
            Err(Fault::Long { .. }) => return Ok(Err("it is longer than any index".into())),
            Err(fault) => return Err(fault),
        };
        Ok(match PackIndex::decode(&bytes) {
            Ok(index) if index.belongs_to(&name) => Ok(index),
            Ok(_) => Err("it is another pack's".into()),
            Err(error) => Err(error.to_string()),
        })
    }
}

impl Asking<'_> {
    /// The index that a pack of this length ends with; `None` where it has none, or is gone.
    pub(super) async fn index_in_pack(&self, pack: PackName, bytes: u64) -> Result<Option<PackIndex>, Fault> {
        let Some(end) = bytes.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
        let Some(trailer) = self.part(pack, end..bytes).await? else { return Ok(None) };
        let index_bytes = parse_trailer(&trailer).map(u64::from);
        let Some(start) = index_bytes.and_then(|index_bytes| end.checked_sub(index_bytes)) else { return Ok(None) };
        let Some(index) = self.part(pack, start..end).await? else { return Ok(None) };
        Ok(PackIndex::decode(&index).ok().filter(|index| index.pack == pack))
    }

    /// A small part of a pack; `None` where it is not there.
    async fn part(&self, pack: PackName, range: Range<u64>) -> Result<Option<Vec<u8>>, Fault> {
        let read = async {
            let mut body = self.store.get_range(&pack_path(pack), range, self.deadline()).await?;
            let mut bytes = Vec::new();
            while let Some(more) = body.next().await {
                bytes.extend_from_slice(&more?);
            }
            Ok(bytes)
        };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Fault::NotFound | Fault::Short { cut: false, .. }) => Ok(None),
            Err(fault) => Err(fault),
        }
    }
}

/// A listing that goes on behind the last name seen. What comes or goes meanwhile may be in it or not.
pub(super) struct Pages<'a> {
    asking: Asking<'a>,
    folder: String,
    after: Option<String>,
    ended: bool,
}

impl Pages<'_> {
    /// The next objects; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Listed>>, Fault> {
        if self.ended {
            return Ok(None);
        }
        let Asking { store, .. } = self.asking;
        let listed = store.list(&self.folder, self.after.as_deref(), PAGE, self.asking.deadline()).await?;
        self.ended = listed.len() < PAGE;
        self.after = listed.last().map(|last| last.path.clone());
        Ok(Some(listed))
    }
}

/// The names of index objects; others below the same folder are left out.
pub(crate) struct Indexes<'a> {
    pages: Pages<'a>,
}

impl Indexes<'_> {
    /// The next names; `None` behind the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<IndexName>>, Fault> {
        let page = self.pages.next().await?;
        Ok(page.map(|page| page.iter().filter_map(|object| IndexName::parse(&object.path)).collect()))
    }
}
