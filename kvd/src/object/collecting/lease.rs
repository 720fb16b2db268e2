//! Who collects: the object with the highest term, until the time that it names.
//!
//! A term is written create-only, so of several that want the next one, one gets it. The time is that of the nodes'
//! clocks: where they differ, two collect at once, or nobody for a while, and neither does harm.

use std::time::SystemTime;

use bytes::Bytes;
use kvd_tiers::object::{COLLECTOR_PREFIX, NodeName};

use crate::object::listing::Asking;
use crate::object::store::{Fault, Put};

/// Longer than a collector pauses, so that the one who has it keeps it.
const LEASE_MS: u64 = 360_000;
/// A body is 32 digits, a space, at most 20 digits and a line feed.
const BODY_BYTES_MAX: u64 = 64;
/// Old terms that are deleted with one turn; there is one, unless collectors died.
const OLD_MAX: usize = 1000;

/// Whether somebody else's lease is respected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Only a lease that has expired, or is one's own, is taken over.
    IfFree,
    /// An operator wants it now.
    Now,
}

/// The right to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) term: u64,
    /// The store's own clock, a moment ago: ages of objects are measured against it.
    pub(crate) store_time: SystemTime,
}

/// Takes or keeps the lease; `None` where somebody else has it, or was faster.
pub(crate) async fn hold(
    asking: Asking<'_>,
    node: NodeName,
    now_ms: u64,
    claim: Claim,
) -> Result<Option<Lease>, Fault> {
    let mut terms: Vec<u64> = Vec::new();
    let mut highest = None;
    let mut pages = asking.pages(COLLECTOR_PREFIX);
    while let Some(page) = pages.next().await? {
        for term in page.iter().filter_map(|object| parse(&object.path)) {
            highest = highest.max(Some(term));
            if terms.len() < OLD_MAX {
                terms.push(term);
            }
        }
    }
    if let Some(term) = highest
        && claim == Claim::IfFree
        && !is_free(asking, term, node, now_ms).await?
    {
        return Ok(None);
    }
    let Some(term) = highest.map_or(Some(1), |term| term.checked_add(1)) else {
        return Err(Fault::Other("the terms of collectors are used up: delete what lies below collector/".into()));
    };
    let body = Bytes::from(format!("{node} {}\n", now_ms.saturating_add(LEASE_MS)));
    let path = path(term);
    if asking.store.put_new(&path, vec![body.clone()], asking.deadline()).await? == Put::AlreadyThere {
        // Perhaps by a request of this call whose answer was lost.
        let found = asking.store.get(&path, BODY_BYTES_MAX, asking.deadline()).await;
        match found {
            Ok(found) if found == body => {}
            Ok(_) | Err(Fault::NotFound | Fault::Long { .. }) => return Ok(None),
            Err(fault) => return Err(fault),
        }
    }
    let store_time = match asking.store.head(&path, asking.deadline()).await {
        Ok(found) => found.modified,
        // A later term took it away meanwhile.
        Err(Fault::NotFound) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    for old in terms {
        asking.store.delete(&self::path(old), asking.deadline()).await?;
    }
    Ok(Some(Lease { term, store_time }))
}

/// Whether a term may be followed by one of `node`. A time further away than any lease reaches was told by a wrong clock.
async fn is_free(asking: Asking<'_>, term: u64, node: NodeName, now_ms: u64) -> Result<bool, Fault> {
    let body = match asking.store.get(&path(term), BODY_BYTES_MAX, asking.deadline()).await {
        Ok(body) => body,
        Err(Fault::NotFound | Fault::Long { .. }) => return Ok(true),
        Err(fault) => return Err(fault),
    };
    let text = std::str::from_utf8(&body).ok().and_then(|text| text.strip_suffix('\n')?.split_once(' '));
    let said = text.and_then(|(holder, until)| Some((NodeName::parse(holder)?, until.parse::<u64>().ok()?)));
    Ok(said
        .is_none_or(|(holder, until)| holder == node || until <= now_ms || until > now_ms.saturating_add(2 * LEASE_MS)))
}

fn path(term: u64) -> String {
    format!("{COLLECTOR_PREFIX}{term:016x}")
}

/// The exact inverse of [`path`].
fn parse(text: &str) -> Option<u64> {
    let term = u64::from_str_radix(text.strip_prefix(COLLECTOR_PREFIX)?, 16).ok()?;
    (path(term) == text).then_some(term)
}
