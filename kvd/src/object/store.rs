//! The client of a store: every request has a deadline, a place among those in flight, and an end that is counted.
//!
//! | file | is |
//! |---|---|
//! | `client` | the library's client for an address |
//! | `wire` | looks at answers before the library does |
//! | `asks` | one request, in this crate's words |
//! | `body` | bytes as they come |
//! | `ticket` | the right to one request |
//! | `hedge` | a read that is slow is asked for twice |
//! | `breaker`, `retry` | whether, how often and how soon; without a clock |
//! | `fault` | what went wrong, by what it means |
//! | `counters` | what was counted and measured |
//! | `credentials` | credentials in a file |
//! | `folder` | a folder as a store |
//! | `probe` | whether a store is fit to be used |
//!
//! What follows from the deadline: a call that is dropped or late may have been carried out all the same. Requests to a
//! bucket are broken off; work on a folder goes on in its thread until the disk is done, so a runtime that served a
//! folder is shut down without waiting (`shutdown_background`).

use std::fmt;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, PutPayload};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::Semaphore;

use crate::core::ObjectOptions;
use crate::object::options::StoreUrl;
use asks::Question;
use body::Reader;
use breaker::Breaker;
use client::Client;
use counters::Estimator;
use retry::Budget;
use ticket::Ticket;

pub use body::Body;
pub use client::StoreError;
pub use counters::{Op, Speed, StoreCounters};
pub use credentials::CredentialsError;
pub use fault::Fault;
pub(crate) use probe::{CANARY_PREFIX, is_canary};
pub use probe::{Probe, ProbeError, Step};

mod asks;
mod body;
mod breaker;
mod client;
mod counters;
mod credentials;
mod fault;
mod folder;
mod hedge;
mod probe;
mod retry;
mod ticket;
mod wire;

/// What S3 takes in one request; nothing else can be created only where nothing is.
const PUT_BYTES_MAX: u64 = 5 << 30;
/// A body may take a second for this much, beside the time the store may be silent: an upload is answered at its end only.
const PUT_BYTES_PER_SECOND_MIN: u64 = 4 << 20;

/// What became of an object that was to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Created,
    /// One of this name was there. After a retry it may be our own: who must know compares.
    AlreadyThere,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name, from where the tier begins.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// How the store is, for people. The worst of what is known of its kinds of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// It answers.
    Up,
    /// It did not, and is being tried, or will be with the next request.
    Trying,
    /// It is left alone for a while.
    Down {
        /// Since when it has not answered.
        since: Instant,
        /// What went wrong last.
        last_error: String,
    },
}

/// A store. Clones are the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    url: StoreUrl,
    prefix: Path,
    writable: bool,
    silence: Duration,
    places: Arc<Semaphore>,
    /// Reads under way.
    reads: AtomicUsize,
    /// Guards what is decided before and after a request; held for a few instructions, and no other lock is taken under it.
    control: Mutex<Control>,
    counters: Arc<StoreCounters>,
    estimator: Estimator,
}

struct Control {
    breaker: Breaker,
    budget: Budget,
    random: SmallRng,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url.to_string()).finish_non_exhaustive()
    }
}

impl Inner {
    fn admits(&self, op: Op) -> bool {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).breaker.admits(op, Instant::now())
    }
}

impl Store {
    /// Builds the client, with the credentials of this process's environment. Asks nothing over the network; a folder is
    /// made (mode 0700) and cleared of what dead writers left.
    ///
    /// # Errors
    /// The folder, the certificates or the credentials are not to be had, or do not fit together.
    pub fn open(options: &ObjectOptions) -> Result<Store, StoreError> {
        Store::open_with(options, &environment())
    }

    /// [`Store::open`] with another environment.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(options: &ObjectOptions, environment: &[(String, String)]) -> Result<Store, StoreError> {
        let prefix = options.url.bucket().map_or("", |bucket| bucket.prefix.as_str());
        let prefix = Path::parse(prefix).map_err(|error| StoreError::Client(error.to_string()))?;
        // Seeded by the operating system, through the standard library.
        let seed = std::hash::RandomState::new().hash_one(0u8);
        Ok(Store {
            inner: Arc::new(Inner {
                client: Client::open(options, environment)?,
                url: options.url.clone(),
                prefix,
                writable: options.writable,
                silence: options.request_timeout,
                places: Arc::new(Semaphore::new(options.requests_max.clamp(1, Semaphore::MAX_PERMITS))),
                reads: AtomicUsize::new(0),
                control: Mutex::new(Control {
                    breaker: Breaker::default(),
                    budget: Budget::default(),
                    random: SmallRng::seed_from_u64(seed),
                }),
                counters: Arc::new(StoreCounters::default()),
                estimator: Estimator::default(),
            }),
        })
    }

    /// The library's client as a bucket is spoken to here, for who wants to compare: without deadlines, retries or counters.
    /// `None` for a folder.
    ///
    /// # Errors
    /// As of [`Store::open`].
    pub(crate) fn library_client(options: &ObjectOptions) -> Result<Option<Arc<dyn ObjectStore>>, StoreError> {
        Ok(match Client::open(options, &environment())? {
            Client::Bucket { store, .. } => Some(store),
            Client::Folder(_) => None,
        })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.inner.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the store is, for people.
    pub fn state(&self) -> StoreState {
        self.control().breaker.state(Instant::now())
    }

    /// Since when the store is not up, and what went wrong last; also while it is being tried.
    pub fn trouble(&self) -> Option<(Instant, String)> {
        self.control().breaker.trouble().map(|(since, why)| (since, why.to_owned()))
    }

    /// Whether a request of this kind would be made now, rather than fail with [`Fault::Open`].
    pub fn admits(&self, op: Op) -> bool {
        self.inner.admits(op)
    }

    /// What was counted.
    pub fn counters(&self) -> &Arc<StoreCounters> {
        &self.inner.counters
    }

    /// How fast it reads.
    pub fn speed(&self) -> Speed {
        self.inner.estimator.speed()
    }

    /// Writes an object where there is none, its parts one after the other. A caller that is gone before the end leaves
    /// no object, or a whole one.
    ///
    /// # Errors
    /// Any [`Fault`]; after one that is transient the object may be there.
    pub async fn put_new(&self, path: &str, parts: Vec<Bytes>, deadline: Instant) -> Result<Put, Fault> {
        let full = self.writable_path(path, Op::Put)?;
        let payload: PutPayload = parts.into_iter().collect();
        let bytes = payload.content_length() as u64;
        if bytes > PUT_BYTES_MAX {
            return Err(self.refuse(Op::Put, Fault::Other(format!("{bytes} bytes are too many for one object"))));
        }
        let limit = self.inner.silence + Duration::from_secs(bytes / PUT_BYTES_PER_SECOND_MIN);
        let (inner, full) = (&self.inner, &full);
        let (put, ticket) = self.attempts(Op::Put, deadline, limit, || inner.client.put(full, payload.clone())).await?;
        ticket.settle(None);
        inner.counters.bytes_up.add(bytes);
        Ok(put)
    }

    /// The bytes of a range, as they come. Only what precedes the first of them is tried again.
    ///
    /// # Errors
    /// Any [`Fault`]; an object that ends before the range does is [`Fault::Short`]. The stream ends with its first fault.
    pub async fn get_range(&self, path: &str, range: Range<u64>, deadline: Instant) -> Result<Body, Fault> {
        let (reader, ticket) = self.open_range(path, range, deadline).await?;
        Ok(reader.stream(ticket))
    }

    /// The same for somebody who takes the bytes slowly: nothing is learned from how long that takes.
    ///
    /// # Errors
    /// As there.
    pub async fn get_range_slowly(&self, path: &str, range: Range<u64>, deadline: Instant) -> Result<Body, Fault> {
        let (reader, ticket) = self.open_range(path, range, deadline).await?;
        Ok(reader.unhurried().stream(ticket))
    }

    async fn open_range(&self, path: &str, range: Range<u64>, deadline: Instant) -> Result<(Reader, Ticket), Fault> {
        if range.is_empty() {
            return Err(self.refuse(Op::Get, Fault::Other("an empty range".into())));
        }
        let full = self.path(path, Op::Get)?;
        let (inner, full) = (&self.inner, &full);
        let ask = || -> BoxFuture<'_, _> {
            let opening = inner.client.get(full, Some(range.clone()));
            Box::pin(async move { inner.timed(opening).await })
        };
        let (opened, ticket) = self.hedged(deadline, ask).await?;
        Ok((Reader::new(opened, inner.silence, deadline), ticket))
    }

    /// A whole object of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// Any [`Fault`]; a longer object is [`Fault::Long`].
    pub async fn get(&self, path: &str, bytes_max: u64, deadline: Instant) -> Result<Bytes, Fault> {
        let full = self.path(path, Op::Get)?;
        let (inner, full) = (&self.inner, &full);
        let ask = || -> BoxFuture<'_, _> {
            Box::pin(async move {
                let opening = tokio::time::timeout(inner.silence, inner.timed(inner.client.get(full, None)));
                let opened = opening.await.map_err(|_| Fault::Stalled(inner.silence))??;
                if opened.bytes > bytes_max {
                    return Err(Fault::Long { wanted: bytes_max });
                }
                let mut reader = Reader::new(opened, inner.silence, deadline);
                let mut bytes = BytesMut::new();
                while let Some(more) = reader.next().await? {
                    inner.counters.bytes_down.add(more.len() as u64);
                    bytes.extend_from_slice(&more);
                }
                let (got, took) = reader.progress();
                inner.estimator.body(got, took);
                Ok(bytes.freeze())
            })
        };
        let whole = deadline.saturating_duration_since(Instant::now());
        let (bytes, ticket) = self.attempts(Op::Get, deadline, whole, ask).await?;
        ticket.settle(None);
        Ok(bytes)
    }

    /// What stands at a name, without its bytes.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub async fn head(&self, path: &str, deadline: Instant) -> Result<Listed, Fault> {
        let full = self.path(path, Op::Head)?;
        let (inner, full) = (&self.inner, &full);
        let (meta, ticket) = self.attempts(Op::Head, deadline, inner.silence, || inner.client.head(full)).await?;
        ticket.settle(None);
        Ok(Listed { path: path.to_owned(), bytes: meta.size, modified: meta.last_modified.into() })
    }

    /// Deletes an object. One that is not there is deleted.
    ///
    /// # Errors
    /// Any [`Fault`] but [`Fault::NotFound`].
    pub async fn delete(&self, path: &str, deadline: Instant) -> Result<(), Fault> {
        let full = self.writable_path(path, Op::Delete)?;
        let (inner, full) = (&self.inner, &full);
        let ((), ticket) = self.attempts(Op::Delete, deadline, inner.silence, || inner.client.delete(full)).await?;
        ticket.settle(None);
        Ok(())
    }

    /// The first `max` objects below the folder `prefix` (`""` for all) in order of names, and of names after `after`
    /// only. Fewer than `max` are all there are.
    ///
    /// # Errors
    /// Any [`Fault`]; nothing is given of a list that breaks off.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
        deadline: Instant,
    ) -> Result<Vec<Listed>, Fault> {
        let full = after.map(|after| self.path(after, Op::List)).transpose()?;
        let mut found: Vec<Listed> = Vec::new();
        let mut take = |metas: Vec<ObjectMeta>| -> Result<usize, Fault> {
            for meta in metas {
                let Some(path) = self.relative(&meta.location).filter(|path| is_below(path, prefix)) else { continue };
                if after.is_some_and(|after| path.as_str() <= after) {
                    continue;
                }
                if found.last().is_some_and(|last| last.path >= path) {
                    return Err(Fault::Other("this store does not list in order of names, which kvd needs".into()));
                }
                if found.len() < max {
                    found.push(Listed { path, bytes: meta.size, modified: meta.last_modified.into() });
                }
            }
            Ok(found.len())
        };
        self.pages(prefix, full, max, deadline, &mut take).await?;
        Ok(found)
    }

    /// Page after page until `take` has seen `max`, or there are no more. Each page is tried again by itself.
    async fn pages(
        &self,
        prefix: &str,
        after: Option<Path>,
        max: usize,
        deadline: Instant,
        take: &mut (dyn FnMut(Vec<ObjectMeta>) -> Result<usize, Fault> + Send),
    ) -> Result<(), Fault> {
        let inner = &self.inner;
        let mut question = Question { prefix: self.path(prefix, Op::List)?, after, max, token: None };
        let limit = match inner.client {
            Client::Bucket { .. } => inner.silence,
            // A folder gives all at its end only.
            Client::Folder(_) => deadline.saturating_duration_since(Instant::now()),
        };
        if max == 0 {
            return Ok(());
        }
        loop {
            let ask = || inner.client.list(question.clone());
            let (page, ticket) = self.attempts(Op::List, deadline, limit, ask).await?;
            ticket.settle(None);
            let seen = take(page.objects)?;
            match page.token {
                Some(token) if seen < max => {
                    if question.token.as_ref() == Some(&token) {
                        return Err(Fault::Server("its list does not come to an end".into()));
                    }
                    question.max = max - seen;
                    question.token = Some(token);
                }
                _ => return Ok(()),
            }
        }
    }

    /// Asks until there is an answer, the deadline, or no reason to ask again. The ticket of the answer comes with it.
    async fn attempts<'s, T>(
        &'s self,
        op: Op,
        deadline: Instant,
        limit: Duration,
        ask: impl Fn() -> BoxFuture<'s, Result<T, Fault>>,
    ) -> Result<(T, Ticket), Fault> {
        let inner = &self.inner;
        self.control().budget.request();
        let mut last = None;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let ticket = match Ticket::take(inner, op, deadline).await {
                Ok(ticket) => ticket,
                // What went wrong says more than that it is not tried again.
                Err(refusal) => return Err(last.unwrap_or_else(|| self.refuse(op, refusal))),
            };
            let until = deadline.min(Instant::now() + limit);
            let fault = match tokio::time::timeout_at(until.into(), ask()).await {
                Ok(Ok(answer)) => return Ok((answer, ticket)),
                Ok(Err(fault)) => fault,
                Err(_) if until == deadline => Fault::Timeout,
                Err(_) => Fault::Stalled(limit),
            };
            ticket.settle(Some(&fault));
            if !fault.is_transient() || attempt >= retry::ATTEMPTS_MAX {
                return Err(fault);
            }
            let Some(delay) = self.retry_after(&fault, attempt, deadline) else { return Err(fault) };
            last = Some(fault);
            tokio::time::sleep(delay).await;
        }
    }

    /// How long to wait before the next attempt; `None` where there is no time or no budget for one.
    fn retry_after(&self, fault: &Fault, attempt: u32, deadline: Instant) -> Option<Duration> {
        let inner = &self.inner;
        let mut control = self.control();
        let jitter = control.random.random();
        let delay = retry::delay(fault, attempt, jitter);
        if Instant::now() + delay >= deadline {
            return None;
        }
        let granted = control.budget.retry();
        drop(control);
        if granted { &inner.counters.retries } else { &inner.counters.retries_saved }.add(1);
        granted.then_some(delay)
    }

    /// Counts a call that made no request.
    fn refuse(&self, op: Op, fault: Fault) -> Fault {
        self.inner.counters.count(op, Some(&fault));
        fault
    }

    fn path(&self, path: &str, op: Op) -> Result<Path, Fault> {
        let parsed = Path::parse(path).map_err(|error| self.refuse(op, Fault::Other(error.to_string())))?;
        Ok(self.inner.prefix.parts().chain(parsed.parts()).collect())
    }

    fn writable_path(&self, path: &str, op: Op) -> Result<Path, Fault> {
        if !self.inner.writable {
            return Err(self.refuse(op, Fault::ReadOnly));
        }
        self.path(path, op)
    }

    /// A name from where the tier begins.
    fn relative(&self, path: &Path) -> Option<String> {
        let rest = path.as_ref().strip_prefix(self.inner.prefix.as_ref())?;
        Some(rest.strip_prefix('/').unwrap_or(rest).to_owned())
    }
}

impl Inner {
    /// Learns how long the first byte took.
    async fn timed<T>(&self, opening: BoxFuture<'_, Result<T, Fault>>) -> Result<T, Fault> {
        let begun = Instant::now();
        let opened = opening.await?;
        self.estimator.first_byte(begun.elapsed());
        Ok(opened)
    }
}

fn environment() -> Vec<(String, String)> {
    let variables = std::env::vars_os();
    variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_matches('/');
    prefix.is_empty() || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests;
