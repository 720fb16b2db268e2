//! What the object tier counts, and its families in the registry.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::counters::Count;
use super::registry::{Families, one};
use crate::object::store::{Op, StoreCounters};

/// Numbers of the object tier since the start; a gauge says so. Zeros where there is no such tier.
#[derive(Debug, Default)]
pub struct ObjectCounters {
    /// What the client of the store counts; set when the tier starts.
    pub store: OnceLock<Arc<StoreCounters>>,
    /// Gauge: 1 while requests are worth making.
    pub up: Count,
    /// Packs uploaded and published.
    pub packs_put: Count,
    /// Packs that were given up.
    pub packs_dropped: Count,
    /// Records in packs that were given up.
    pub records_dropped: Count,
    /// Records that the catalog or a pack had already.
    pub records_known: Count,
    /// Requests for ranges of packs.
    pub runs: Count,
    /// Records that came and were what they should be.
    pub records_got: Count,
    /// Records whose pack was gone.
    pub records_missing: Count,
    /// Packs of other nodes that were learned of.
    pub packs_learned: Count,
    /// Index objects that were read and held no index.
    pub packs_unreadable: Count,
    /// Packs that were found to be gone.
    pub packs_gone: Count,
    /// Own packs deleted to stay within the share.
    pub packs_evicted: Count,
    /// Records in them.
    pub records_evicted: Count,
    /// Purges of the store that were asked for, came to an end, and failed.
    pub purges_asked: Count,
    /// See `purges_asked`.
    pub purges_done: Count,
    /// See `purges_asked`.
    pub purges_failed: Count,
    /// Scrubs of the store that were asked for, came to an end, and failed.
    pub scrubs_asked: Count,
    /// See `scrubs_asked`.
    pub scrubs_done: Count,
    /// See `scrubs_asked`.
    pub scrubs_failed: Count,
    /// Records that a scrub read, whatever it found.
    pub scrub_records: Count,
    /// Of those, records that are not what their index says.
    pub scrub_corrupt: Count,
    /// Bytes of the packs that a scrub read.
    pub scrub_bytes: Count,
    /// Packs in which a scrub found damage.
    pub scrub_damaged: Count,
    /// Gauge: records that the scrub under way has before it.
    pub scrub_left: Count,
    /// Packs of any node deleted because of their age.
    pub packs_expired: Count,
    /// Own packs deleted because nobody read them.
    pub packs_idle: Count,
    /// Packs without an index object that were deleted.
    pub orphans_collected: Count,
    /// Gauge: bytes of own packs in the store.
    pub own_bytes: Count,
    /// Gauge: own packs in the store.
    pub own_packs: Count,
    /// Gauge: records in them.
    pub own_records: Count,
    /// Gauge: 1 once the catalog was found to be damaged.
    pub catalog_damaged: Count,
    /// Gauge: packs that the catalog knows.
    pub packs: Count,
    /// Gauge: records in them, about.
    pub records: Count,
    /// Gauge: nodes that write to the store.
    pub nodes: Count,
    /// Gauge: records that wait for their turn to be packed.
    pub waiting_records: Count,
    /// Records that fell before they could be packed, or found no room in packs.
    pub records_fallen: Count,
    /// Gauge: bytes in packs that are not uploaded yet.
    pub buffered_bytes: Count,
}

/// Writes the families of the tier.
pub(super) fn encode(c: &ObjectCounters, out: &mut Families<'_>) -> fmt::Result {
    let outcome = |outcome: &str| [("outcome", outcome.to_owned())];
    out.gauge("kvd_object_up", "1 while the store of the object tier answers", one(c.up.get()))?;
    let packs = [("uploaded", &c.packs_put), ("given_up", &c.packs_dropped), ("evicted", &c.packs_evicted)];
    out.counter(
        "kvd_object_packs",
        "Packs of this node, by what became of them",
        packs.map(|(o, n)| (outcome(o), n.get())),
    )?;
    let reason = |reason: &str| [("reason", reason.to_owned())];
    let deleted = [("age", &c.packs_expired), ("idle", &c.packs_idle), ("orphan", &c.orphans_collected)];
    out.counter(
        "kvd_object_packs_collected",
        "Packs of any node that this one deleted from the store, beside those that its share had no room for",
        deleted.map(|(r, n)| (reason(r), n.get())),
    )?;
    let others = [("learned", &c.packs_learned), ("gone", &c.packs_gone), ("unreadable", &c.packs_unreadable)];
    out.counter(
        "kvd_object_packs_seen",
        "Packs that others made, that were found to be gone, or whose index object held no index when it was read",
        others.map(|(o, n)| (outcome(o), n.get())),
    )?;
    let put = [("known", &c.records_known), ("given_up", &c.records_dropped), ("fallen", &c.records_fallen)];
    out.counter(
        "kvd_object_records_not_uploaded",
        "Records that the store has already, that were given up with their pack, or that were never packed: they fell before, or found no room",
        put.map(|(o, n)| (outcome(o), n.get())),
    )?;
    let got = [("ok", &c.records_got), ("missing", &c.records_missing)];
    out.counter(
        "kvd_object_records_read",
        "Records that were read, or whose pack was gone",
        got.map(|(o, n)| (outcome(o), n.get())),
    )?;
    out.counter("kvd_object_runs", "Requests for ranges of packs", one(c.runs.get()))?;
    let purges = [("asked", &c.purges_asked), ("done", &c.purges_done), ("failed", &c.purges_failed)];
    out.counter(
        "kvd_object_purges",
        "Purges of the store; those that failed are done as well",
        purges.map(|(o, n)| (outcome(o), n.get())),
    )?;
    let scrubs = [("asked", &c.scrubs_asked), ("done", &c.scrubs_done), ("failed", &c.scrubs_failed)];
    out.counter(
        "kvd_object_scrubs",
        "Scrubs of the store; those that failed are done as well",
        scrubs.map(|(o, n)| (outcome(o), n.get())),
    )?;
    let corrupt = c.scrub_corrupt.get();
    let scrubbed = [("ok", c.scrub_records.get().saturating_sub(corrupt)), ("corrupt", corrupt)];
    out.counter(
        "kvd_object_scrubbed_records",
        "Records that scrubs of the store read, by what they found",
        scrubbed.map(|(o, n)| (outcome(o), n)),
    )?;
    out.counter(
        "kvd_object_damaged_packs",
        "Packs in which scrubs found damage: nothing is read from them any more, and those of this node are deleted",
        one(c.scrub_damaged.get()),
    )?;
    out.gauge_bytes("kvd_object_own", "Bytes of this node's packs in the store", one(c.own_bytes.get()))?;
    out.gauge("kvd_object_own_packs", "Packs of this node in the store", one(c.own_packs.get()))?;
    out.gauge("kvd_object_own_records", "Records in this node's packs", one(c.own_records.get()))?;
    out.gauge("kvd_object_nodes", "Nodes that write to the store, as this one sees them", one(c.nodes.get()))?;
    let waiting = one(c.waiting_records.get());
    out.gauge("kvd_object_waiting_records", "Records that wait for their turn to be packed", waiting)?;
    let damaged = one(c.catalog_damaged.get());
    out.gauge(
        "kvd_object_catalog_damaged",
        "1 once the catalog was found to be damaged; it is made anew at the next start",
        damaged,
    )?;
    out.gauge("kvd_object_known_packs", "Packs that this node knows of", one(c.packs.get()))?;
    out.gauge("kvd_object_known_records", "Records in the packs that this node knows of, about", one(c.records.get()))?;
    out.gauge_bytes("kvd_object_buffered", "Bytes in packs that are not uploaded yet", one(c.buffered_bytes.get()))?;
    let none = StoreCounters::default();
    let store = c.store.get().map_or(&none, |store| store);
    let requests = store
        .outcomes()
        .map(|(op, outcome, count)| ([("op", op.label().to_owned()), ("outcome", outcome.to_owned())], count));
    out.counter("kvd_object_requests", "Requests to the store, by operation and outcome", requests)?;
    let sent = Op::ALL.map(|op| ([("op", op.label().to_owned())], store.sent(op)));
    out.counter("kvd_object_requests_sent", "Requests that went out to the store, as its bill counts them", sent)?;
    out.counter("kvd_object_retries", "Requests that were made again", one(store.retries.get()))?;
    out.counter("kvd_object_hedges", "Reads asked for twice because the answer was late", one(store.hedges.get()))?;
    let way = |way: &str| [("way", way.to_owned())];
    out.counter_bytes(
        "kvd_object_transferred",
        "Bytes of bodies to and from the store",
        [(way("up"), store.bytes_up.get()), (way("down"), store.bytes_down.get())],
    )
}
