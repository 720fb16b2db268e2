//! Where an engine keeps its blocks.

use kvd_client::device::{Device, LaneOptions};
use kvd_client::{BlockMemory, EngineLayout};
use pyo3::prelude::*;

use crate::errors::{LayoutError, released};
use crate::spec::{Group, Shard};
use crate::sys;

/// The memory in which an engine keeps one layer of one plane, for all its blocks: address, length and strides in bytes.
#[pyclass(frozen, from_py_object)]
#[derive(Clone)]
pub(crate) struct PlaneMemory {
    address: usize,
    bytes: usize,
    block_stride: usize,
    head_stride: usize,
    token_stride: usize,
    kv_stride: usize,
}

#[pymethods]
impl PlaneMemory {
    #[new]
    #[pyo3(signature = (address, bytes, *, block_stride, head_stride=0, token_stride=0, kv_stride=0))]
    fn new(
        address: usize,
        bytes: usize,
        block_stride: usize,
        head_stride: usize,
        token_stride: usize,
        kv_stride: usize,
    ) -> Self {
        Self { address, bytes, block_stride, head_stride, token_stride, kv_stride }
    }
}

impl PlaneMemory {
    fn at<M>(&self, memory: M) -> kvd_client::PlaneMemory<M> {
        kvd_client::PlaneMemory {
            memory,
            block_stride: self.block_stride,
            head_stride: self.head_stride,
            token_stride: self.token_stride,
            kv_stride: self.kv_stride,
        }
    }
}

/// How an engine's paged memory holds the blocks of a view: for each layer of the shard, for each plane that has it, one memory.
///
/// `owner` is kept alive with it. That the addresses stay mapped, readable and writable as long as the layout lives is the caller's
/// promise: give the tensors as the owner.
#[pyclass(frozen)]
pub(crate) struct Layout {
    inner: EngineLayout,
    _owner: Option<Py<PyAny>>,
}

#[pymethods]
impl Layout {
    #[new]
    #[pyo3(signature = (group, shard, block_tokens, memories, *, device=None, owner=None))]
    fn new(
        py: Python<'_>,
        group: &Group,
        shard: &Shard,
        block_tokens: u32,
        memories: Vec<PlaneMemory>,
        device: Option<u32>,
        owner: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let layout = released(py, || match device {
            None => {
                let here = |plane: &PlaneMemory| sys::host(plane.address, plane.bytes).map(|memory| plane.at(memory));
                let memories = memories.iter().map(here).collect::<Option<Vec<_>>>();
                let memories = memories.ok_or_else(|| "a memory has no address".to_owned())?;
                EngineLayout::new(&group.0, &shard.0, block_tokens, memories).map_err(|error| error.to_string())
            }
            Some(ordinal) => on_device(ordinal, group, shard, block_tokens, &memories),
        })?;
        Ok(Self { inner: layout.map_err(LayoutError::new_err)?, _owner: owner })
    }

    /// Why nothing is moved any more between here and the daemon: the device has failed.
    #[getter]
    fn device_failure(&self) -> Option<String> {
        self.inner.device_failure().map(|failure| failure.to_string())
    }
}

impl Layout {
    /// Blocks of it by their numbers.
    pub(crate) fn blocks(&self, indices: &[usize]) -> PyResult<Vec<BlockMemory<'_>>> {
        let blocks = indices.iter().map(|index| self.inner.block(*index)).collect::<Result<_, _>>();
        blocks.map_err(|error| LayoutError::new_err(error.to_string()))
    }
}

fn on_device(
    ordinal: u32,
    group: &Group,
    shard: &Shard,
    block_tokens: u32,
    memories: &[PlaneMemory],
) -> Result<EngineLayout, String> {
    let device = Device::cuda(ordinal).map_err(|error| error.to_string())?;
    let there = |plane: &PlaneMemory| sys::device(&device, plane.address, plane.bytes).map(|memory| plane.at(memory));
    let memories = memories.iter().map(there).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    EngineLayout::on_device(&device, &group.0, &shard.0, block_tokens, memories, &LaneOptions::default())
        .map_err(|error| error.to_string())
}
