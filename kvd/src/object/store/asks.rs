//! One request each, without deadline or retry: what is asked of the library's client, in this crate's words.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use super::client::Client;
use super::fault::{is_there_already, of_disk};
use super::{Fault, Op, Put, folder};
use crate::object::memory::Memory;

/// What all stores give at most in one page of a list.
const PAGE_MAX: usize = 1000;

/// Where a body's bytes come from.
pub(super) enum Source {
    /// The network.
    Stream(BoxStream<'static, object_store::Result<Bytes>>),
    /// A file from a place to another.
    File { file: Arc<File>, at: u64, end: u64, memory: Memory },
}

impl Source {
    /// The next bytes; `None` at the end.
    pub(super) async fn pull(&mut self, wanted: u64, got: u64) -> Result<Option<Bytes>, Fault> {
        match self {
            Source::Stream(stream) => match stream.next().await {
                None => Ok(None),
                Some(Ok(bytes)) => Ok(Some(bytes)),
                Some(Err(error)) => Err(Fault::of_body(&error, wanted, got)),
            },
            Source::File { file, at, end, memory } => {
                let read = folder::read_chunk(Arc::clone(file), memory.clone(), *at..*end);
                let bytes = read.await.map_err(|error| of_disk(&error))?;
                *at += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                Ok(bytes)
            }
        }
    }
}

/// An object whose bytes are about to come.
pub(super) struct Opened {
    pub(super) source: Source,
    /// Bytes that are about to come.
    pub(super) bytes: u64,
}

/// A part of a list.
pub(super) struct Page {
    pub(super) objects: Vec<ObjectMeta>,
    /// What to ask with for more; `None` at the end.
    pub(super) token: Option<String>,
}

/// What to list.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) prefix: Path,
    /// Only names after this one.
    pub(super) after: Option<Path>,
    pub(super) max: usize,
    pub(super) token: Option<String>,
}

impl Client {
    fn store(&self) -> &dyn ObjectStore {
        match self {
            Client::Bucket { store, .. } => store.as_ref(),
            Client::Folder { store, .. } => store.as_ref(),
        }
    }

    /// Where a folder's bytes are read into.
    fn memory(&self) -> Memory {
        match self {
            Client::Bucket { .. } => Memory::default(),
            Client::Folder { memory, .. } => memory.clone(),
        }
    }

    pub(super) fn put<'s>(&'s self, path: &'s Path, payload: PutPayload) -> BoxFuture<'s, Result<Put, Fault>> {
        Box::pin(async move {
            self.folder_stands().await?;
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store().put_opts(path, payload, options).await {
                Ok(_) => Ok(Put::Created),
                Err(error) if is_there_already(&error) => Ok(Put::AlreadyThere),
                Err(error) => Err(Fault::of(&error, Op::Put)),
            }
        })
    }

    /// Opens an object, or a range of it that must be there as a whole.
    pub(super) fn get<'s>(&'s self, path: &'s Path, range: Option<Range<u64>>) -> BoxFuture<'s, Result<Opened, Fault>> {
        Box::pin(async move {
            let asked = match self {
                Client::Bucket { .. } => range.clone().map(GetRange::Bounded),
                // A file is opened whole: the range is cut below.
                Client::Folder { .. } => None,
            };
            let options = GetOptions { range: asked, ..GetOptions::default() };
            let answer = self.store().get_opts(path, options).await;
            let wanted = range.as_ref().map_or(0, |range| range.end - range.start);
            let answer = answer.map_err(|error| match Fault::of(&error, Op::Get) {
                Fault::Short { got, cut, .. } => Fault::Short { wanted, got, cut },
                fault => fault,
            })?;
            let size = answer.meta.size;
            let range = range.unwrap_or(0..size);
            if range.end > size {
                let got = size.saturating_sub(range.start);
                return Err(Fault::Short { wanted, got, cut: false });
            }
            let source = match answer.payload {
                GetResultPayload::Stream(stream) => Source::Stream(stream),
                GetResultPayload::File(file, _) => {
                    let memory = self.memory();
                    Source::File { file: Arc::new(file), at: range.start, end: range.end, memory }
                }
            };
            Ok(Opened { source, bytes: range.end - range.start })
        })
    }

    pub(super) fn head<'s>(&'s self, path: &'s Path) -> BoxFuture<'s, Result<ObjectMeta, Fault>> {
        Box::pin(async move { self.store().head(path).await.map_err(|error| Fault::of(&error, Op::Head)) })
    }

    pub(super) fn delete<'s>(&'s self, path: &'s Path) -> BoxFuture<'s, Result<(), Fault>> {
        Box::pin(async move {
            match self.store().delete(path).await.map_err(|error| Fault::of(&error, Op::Delete)) {
                // Gone is what was asked for.
                Ok(()) | Err(Fault::NotFound) => Ok(()),
                Err(fault) => Err(fault),
            }
        })
    }

    pub(super) fn list(&self, question: Question) -> BoxFuture<'_, Result<Page, Fault>> {
        Box::pin(async move {
            match self {
                Client::Bucket { pages, .. } => {
                    let options = PaginatedListOptions {
                        offset: question.after.as_ref().map(|path| path.to_string()),
                        max_keys: Some(question.max.clamp(1, PAGE_MAX)),
                        page_token: question.token,
                        ..PaginatedListOptions::default()
                    };
                    let prefix = (!question.prefix.is_root()).then(|| format!("{}/", question.prefix));
                    let page = pages.0.list_paginated(prefix.as_deref(), options).await;
                    let page = page.map_err(|error| Fault::of(&error, Op::List))?;
                    Ok(Page { objects: page.result.objects, token: page.page_token })
                }
                Client::Folder { store, .. } => {
                    self.folder_stands().await?;
                    let listed = match &question.after {
                        Some(after) => store.list_with_offset(Some(&question.prefix), after),
                        None => store.list(Some(&question.prefix)),
                    };
                    Ok(Page { objects: smallest(listed, question.max).await?, token: None })
                }
            }
        })
    }

    /// A folder that is not mounted must not look like an empty store, nor be made anew beside its mount.
    async fn folder_stands(&self) -> Result<(), Fault> {
        let Client::Folder { root, .. } = self else { return Ok(()) };
        let root = root.clone();
        let found = tokio::task::spawn_blocking(move || std::fs::metadata(&root).map(|meta| (root, meta.is_dir())));
        match found.await.map_err(std::io::Error::other).flatten() {
            Ok((_, true)) => Ok(()),
            Ok((root, false)) => Err(Fault::NoBucket(format!("{} is not a folder", root.display()))),
            Err(error) => match of_disk(&error) {
                Fault::NotFound => Err(Fault::NoBucket(error.to_string())),
                fault => Err(fault),
            },
        }
    }
}

/// The first `max` in order of names, of a list that comes in none.
async fn smallest(
    mut listed: BoxStream<'static, object_store::Result<ObjectMeta>>,
    max: usize,
) -> Result<Vec<ObjectMeta>, Fault> {
    let mut kept: BTreeMap<String, ObjectMeta> = BTreeMap::new();
    while let Some(meta) = listed.next().await {
        let meta = meta.map_err(|error| Fault::of(&error, Op::List))?;
        kept.insert(meta.location.to_string(), meta);
        if kept.len() > max {
            kept.pop_last();
        }
    }
    Ok(kept.into_values().collect())
}
