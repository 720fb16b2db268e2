//! What one rank reads and writes.

use kvd_client::{BlockHash, StoreRequest};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::engine::seconds;
use crate::errors::{refused, released};
use crate::layout::Layout;
use crate::matched::{Loaded, Match, Stored};

/// A group of a namespace and the part of its blocks that is here. Any number of threads may use it.
#[pyclass(frozen)]
pub(crate) struct View(kvd_client::View);

impl View {
    pub(crate) fn new(view: kvd_client::View) -> Self {
        Self(view)
    }
}

#[pymethods]
impl View {
    /// Bytes of a block in this view.
    #[getter]
    fn payload_bytes(&self) -> u32 {
        self.0.payload_bytes()
    }

    /// The longest prefix of a chain that can be loaded, held until it is released; never later than `within` seconds (the engine's
    /// match deadline).
    #[pyo3(name = "match", signature = (hashes, *, within=None))]
    fn match_prefix(&self, py: Python<'_>, hashes: Vec<PyBackedBytes>, within: Option<f64>) -> PyResult<Match> {
        let (hashes, within) = (block_hashes(&hashes)?, within.map(seconds).transpose()?);
        let found = released(py, || match within {
            Some(within) => self.0.match_prefix_within(&hashes, within),
            None => self.0.match_prefix(&hashes),
        })?;
        Ok(Match::new(found))
    }

    /// Asks for a chain's blocks to be brought towards DRAM. Never waits.
    fn prefetch(&self, py: Python<'_>, hashes: Vec<PyBackedBytes>) -> PyResult<()> {
        let hashes = block_hashes(&hashes)?;
        released(py, || self.0.prefetch(&hashes))
    }

    /// Copies blocks `first..` of what was found to these places; never later than `within` seconds (the engine's load deadline).
    /// When it returns, nothing moves any more.
    #[pyo3(signature = (found, layout, indices, *, first=0, within=None))]
    fn load(
        &self,
        py: Python<'_>,
        found: &Match,
        layout: &Layout,
        indices: Vec<usize>,
        first: u32,
        within: Option<f64>,
    ) -> PyResult<Loaded> {
        let (targets, within) = (layout.blocks(&indices)?, within.map(seconds).transpose()?);
        let end = first.saturating_add(u32::try_from(targets.len()).unwrap_or(u32::MAX));
        let loaded = released(py, || {
            found.with(|found| match within {
                Some(within) => self.0.load_within(found, first..end, &targets, within),
                None => self.0.load(found, first..end, &targets),
            })
        });
        loaded.map(Loaded)
    }

    /// Gives a chain's next blocks to the daemon: those behind `parent`, `first_position` blocks from the chain's beginning. When it
    /// returns, their places may be written again.
    #[pyo3(signature = (hashes, layout, indices, *, parent=None, first_position=0, tokens=None))]
    #[expect(clippy::too_many_arguments, reason = "each has a name in Python")]
    fn store(
        &self,
        py: Python<'_>,
        hashes: Vec<PyBackedBytes>,
        layout: &Layout,
        indices: Vec<usize>,
        parent: Option<PyBackedBytes>,
        first_position: u32,
        tokens: Option<Vec<u32>>,
    ) -> PyResult<Stored> {
        let (hashes, sources) = (block_hashes(&hashes)?, layout.blocks(&indices)?);
        let parent = parent.map(|parent| BlockHash::new(&parent)).transpose().map_err(refused)?;
        let tokens = tokens.unwrap_or_default();
        let request = StoreRequest { parent, first_position, hashes: &hashes, sources: &sources, tokens: &tokens };
        released(py, || self.0.store(&request)).map(Stored)
    }

    /// Tells the daemon how fast this engine computes, so that it takes no hit that would lose.
    fn set_prefill_rate(&self, py: Python<'_>, tokens_per_second: f64) -> PyResult<()> {
        released(py, || self.0.set_prefill_rate(tokens_per_second))
    }
}

fn block_hashes(hashes: &[PyBackedBytes]) -> PyResult<Vec<BlockHash>> {
    hashes.iter().map(|hash| BlockHash::new(hash)).collect::<Result<_, _>>().map_err(refused)
}
