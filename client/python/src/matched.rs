//! What calls answer.

use std::sync::{PoisonError, RwLock};

use kvd_client::MissReason;
use pyo3::prelude::*;

use crate::errors::released;

/// A prefix that was found, held for this engine until it is released or collected.
#[pyclass(frozen)]
pub(crate) struct Match {
    /// `None` once it is released. Loads hold it for reading, so that its slots are not given back below them.
    found: RwLock<Option<kvd_client::Match>>,
    blocks: u32,
    own_blocks: u32,
    reason: Option<MissReason>,
    tier: Option<&'static str>,
    estimate: f64,
}

impl Match {
    pub(crate) fn new(found: kvd_client::Match) -> Self {
        Self {
            blocks: found.blocks(),
            own_blocks: found.own_blocks(),
            reason: found.reason(),
            tier: found.slowest().map(|tier| tier.as_str()),
            estimate: found.estimate().as_secs_f64(),
            found: RwLock::new(Some(found)),
        }
    }

    /// Uses what is held; a released match holds nothing.
    pub(crate) fn with<T>(&self, used: impl FnOnce(&kvd_client::Match) -> T) -> T {
        let found = self.found.read().unwrap_or_else(PoisonError::into_inner);
        match &*found {
            Some(found) => used(found),
            None => used(&kvd_client::Match::default()),
        }
    }
}

#[pymethods]
impl Match {
    /// Length of the prefix.
    #[getter]
    fn blocks(&self) -> u32 {
        self.blocks
    }

    /// How much of it lies in the view's own shard; the rest is put together from other shards.
    #[getter]
    fn own_blocks(&self) -> u32 {
        self.own_blocks
    }

    /// Why the first block behind it is none of it; `None` if all matched.
    #[getter]
    fn reason(&self) -> Option<&'static str> {
        self.reason.map(MissReason::as_str)
    }

    /// The slowest tier that holds a part of it.
    #[getter]
    fn tier(&self) -> Option<&'static str> {
        self.tier
    }

    /// Seconds that the daemon needs to bring it into DRAM, by what it has measured.
    #[getter]
    fn estimate(&self) -> f64 {
        self.estimate
    }

    /// Gives the hold back, after loads from it that are under way.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        released(py, || drop(self.found.write().unwrap_or_else(PoisonError::into_inner).take()))
    }

    fn __repr__(&self) -> String {
        let Self { blocks, reason, tier, .. } = self;
        format!("Match(blocks={blocks}, tier={tier:?}, reason={:?})", reason.map(MissReason::as_str))
    }
}

/// What a load did.
#[pyclass(frozen)]
pub(crate) struct Loaded(pub(crate) kvd_client::Loaded);

#[pymethods]
impl Loaded {
    /// Blocks that are in place and verified, from the first on.
    #[getter]
    fn blocks(&self) -> u32 {
        self.0.blocks
    }

    /// Of those, blocks that lay in DRAM.
    #[getter]
    fn dram(&self) -> u32 {
        self.0.from_dram
    }

    /// Of those, blocks that were read from NVMe.
    #[getter]
    fn nvme(&self) -> u32 {
        self.0.from_nvme
    }

    /// Of those, blocks that were fetched from the object tier.
    #[getter]
    fn object(&self) -> u32 {
        self.0.from_object
    }

    /// Why it ended before all were in place.
    #[getter]
    fn reason(&self) -> Option<&'static str> {
        self.0.reason.map(MissReason::as_str)
    }

    /// Copies that did not pass their checksums, and were not served.
    #[getter]
    fn corrupt(&self) -> u32 {
        self.0.corrupt
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// What a store did.
#[pyclass(frozen)]
pub(crate) struct Stored(pub(crate) kvd_client::Stored);

#[pymethods]
impl Stored {
    /// Blocks that were copied and published.
    #[getter]
    fn granted(&self) -> u32 {
        self.0.granted
    }

    /// Blocks that the daemon had, or that another process is just storing.
    #[getter]
    fn present(&self) -> u32 {
        self.0.present
    }

    /// Blocks that were not stored.
    #[getter]
    fn refused(&self) -> u32 {
        self.0.refused
    }

    /// Why the first of these was not.
    #[getter]
    fn reason(&self) -> Option<&'static str> {
        self.0.reason.map(MissReason::as_str)
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}
