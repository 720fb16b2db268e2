//! Where an engine keeps its blocks.

use kvd_client::device::{Device, LaneOptions};
use kvd_client::{BlockMemory, EngineLayout};
use pyo3::prelude::*;

use crate::engine::seconds;
use crate::errors::{LayoutError, refused, released};
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
    device: Option<Device>,
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
        let made = released(py, || match device {
            None => {
                let here = |plane: &PlaneMemory| sys::host(plane.address, plane.bytes).map(|memory| plane.at(memory));
                let memories = memories.iter().map(here).collect::<Option<Vec<_>>>();
                let memories = memories.ok_or_else(|| "a memory has no address".to_owned())?;
                let layout = EngineLayout::new(&group.0, &shard.0, block_tokens, memories);
                layout.map(|layout| (layout, None)).map_err(|error| error.to_string())
            }
            Some(ordinal) => on_device(ordinal, group, shard, block_tokens, &memories),
        })?;
        let (inner, device) = made.map_err(LayoutError::new_err)?;
        Ok(Self { inner, device, _owner: owner })
    }

    /// A point behind all that the engine has begun in a stream (its handle, or 0 for the default one) of the layout's device, which
    /// must not be destroyed meanwhile. Where the engine computes on CPUs, what the calling thread has done is behind it.
    #[pyo3(signature = (stream=0))]
    fn mark(&self, py: Python<'_>, stream: u64) -> PyResult<Mark> {
        let Some(device) = &self.device else { return Ok(Mark(kvd_client::device::Mark::now())) };
        released(py, || sys::mark(device, stream))?.map(Mark).map_err(refused)
    }

    /// Why nothing is moved any more between here and the daemon: the device has failed.
    #[getter]
    fn device_failure(&self) -> Option<String> {
        self.inner.device_failure().map(|failure| failure.to_string())
    }
}

impl Layout {
    /// Where it lies, unless that is host memory.
    pub(crate) fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

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
) -> Result<(EngineLayout, Option<Device>), String> {
    let device = Device::cuda(ordinal).map_err(|error| error.to_string())?;
    let there = |plane: &PlaneMemory| sys::device(&device, plane.address, plane.bytes).map(|memory| plane.at(memory));
    let memories = memories.iter().map(there).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let layout = EngineLayout::on_device(&device, &group.0, &shard.0, block_tokens, memories, &LaneOptions::default());
    layout.map(|layout| (layout, Some(device))).map_err(|error| error.to_string())
}

/// A point in the engine's work: its blocks may be moved once it is reached.
#[pyclass(frozen)]
pub(crate) struct Mark(kvd_client::device::Mark);

#[pymethods]
impl Mark {
    /// Whether all before it has ended. Raises what has failed of it.
    #[getter]
    fn is_reached(&self, py: Python<'_>) -> PyResult<bool> {
        released(py, || self.0.is_reached())?.map_err(refused)
    }

    /// Waits until it is reached, `within` seconds at most; whether it is.
    fn wait(&self, py: Python<'_>, within: f64) -> PyResult<bool> {
        let within = seconds(within)?;
        released(py, || self.0.wait(within))?.map_err(refused)
    }

    /// Seconds of the engine's work from an earlier mark to this one; `None` where one of them is not reached.
    fn since(&self, earlier: &Self) -> Option<f64> {
        self.0.since(&earlier.0).map(|time| time.as_secs_f64())
    }
}
