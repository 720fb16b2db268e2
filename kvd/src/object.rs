//! The object tier's process side: where the store is, and the client that speaks to it.
//!
//! What lies in the store, and who decides what, is docs/decisions/0009-object-tier.md. This module knows addresses,
//! requests, deadlines and faults; it knows nothing of records, packs or the ladder.
//!
//! | module | is |
//! |---|---|
//! | [`options`] | the address of a store, as an operator writes it |
//! | [`store`] | the client: requests with deadlines, retries within a budget, a breaker, what was counted |

pub mod options;
pub mod store;
pub(crate) mod tier;

pub(crate) mod collecting;
mod identity;
pub(crate) mod inspecting;
mod learning;
pub(crate) mod limits;
mod listing;
mod lookups;
mod memory;
mod packing;
mod presence;
pub(crate) mod purging;
mod reading;
pub(crate) mod scrubbing;
mod sharing;
mod spending;
mod uploading;
pub(crate) mod view;
mod worker;

pub(crate) use tier::RUN_BYTES_MAX;
pub(crate) use worker::{packs_in_memory, request_threads, unix_ms, uploads_at_once};
