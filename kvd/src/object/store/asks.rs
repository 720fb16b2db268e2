//! One request each, without deadline or retry: what is asked of the library's client, in this crate's words.

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
use super::folder::Folder;
use super::{Fault, Op, Put};

/// What all stores give at most in one page of a list.
const PAGE_MAX: usize = 1000;

/// Where a body's bytes come from.
pub(super) enum Source {
    /// The network.
    Stream(BoxStream<'static, object_store::Result<Bytes>>),
    /// A file from a place to another.
    File { folder: Arc<Folder>, file: Arc<File>, at: u64, end: u64 },
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
            Source::File { folder, file, at, end } => {
                let read = folder.read_chunk(Arc::clone(file), *at..*end);
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
            Client::Folder(folder) => &folder.store,
        }
    }

    /// What is missing may be so because the whole folder is.
    async fn missing(&self, fault: Fault) -> Fault {
        match self {
            Client::Folder(folder) if fault == Fault::NotFound => folder.stands().await.err().unwrap_or(fault),
            _ => fault,
        }
    }

    pub(super) fn put<'s>(&'s self, path: &'s Path, payload: PutPayload) -> BoxFuture<'s, Result<Put, Fault>> {
        Box::pin(async move {
            let put = match self {
                Client::Bucket { store, .. } => {
                    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                    store.put_opts(path, payload, options).await
                }
                Client::Folder(folder) => {
                    folder.stands().await?;
                    folder.put(path, payload).await
                }
            };
            match put {
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
                Client::Folder(_) => None,
            };
            let options = GetOptions { range: asked, ..GetOptions::default() };
            let answer = self.store().get_opts(path, options).await;
            let wanted = range.as_ref().map_or(0, |range| range.end - range.start);
            let answer = match answer.map_err(|error| Fault::of(&error, Op::Get)) {
                Ok(answer) => answer,
                Err(Fault::Short { got, cut, .. }) => return Err(Fault::Short { wanted, got, cut }),
                Err(fault) => return Err(self.missing(fault).await),
            };
            let size = answer.meta.size;
            let range = range.unwrap_or(0..size);
            if range.end > size {
                let got = size.saturating_sub(range.start);
                return Err(Fault::Short { wanted, got, cut: false });
            }
            let source = match (self, answer.payload) {
                (_, GetResultPayload::Stream(stream)) => Source::Stream(stream),
                (Client::Folder(folder), GetResultPayload::File(file, _)) => {
                    let (folder, file) = (Arc::clone(folder), Arc::new(file));
                    Source::File { folder, file, at: range.start, end: range.end }
                }
                (Client::Bucket { .. }, GetResultPayload::File(..)) => {
                    return Err(Fault::Other("a bucket gave a file".into()));
                }
            };
            Ok(Opened { source, bytes: range.end - range.start })
        })
    }

    pub(super) fn head<'s>(&'s self, path: &'s Path) -> BoxFuture<'s, Result<ObjectMeta, Fault>> {
        Box::pin(async move {
            match self.store().head(path).await {
                Ok(meta) => Ok(meta),
                Err(error) => Err(self.missing(Fault::of(&error, Op::Head)).await),
            }
        })
    }

    pub(super) fn delete<'s>(&'s self, path: &'s Path) -> BoxFuture<'s, Result<(), Fault>> {
        Box::pin(async move {
            match self.store().delete(path).await.map_err(|error| Fault::of(&error, Op::Delete)) {
                Ok(()) => Ok(()),
                // Gone is what was asked for.
                Err(fault) => match self.missing(fault).await {
                    Fault::NotFound => Ok(()),
                    fault => Err(fault),
                },
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
                Client::Folder(folder) => {
                    let after = question.after.as_ref().map(ToString::to_string);
                    let objects = folder.list(question.prefix.as_ref(), after.as_deref(), question.max).await?;
                    Ok(Page { objects, token: None })
                }
            }
        })
    }
}
