//! One process of an engine.

use std::path::PathBuf;
use std::time::Duration;

use kvd_client::{EngineOptions, InstanceId, Role, ViewSpec};
use pyo3::prelude::*;

use crate::errors::{ConnectError, refused, released};
use crate::layout::Layout;
use crate::spec::{Namespace, Shard, unknown};
use crate::view::View;

/// One process of an engine. It joins the daemon when that is there, and again after each of its restarts; until then all misses.
#[pyclass(frozen)]
pub(crate) struct Engine(kvd_client::Engine);

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (socket, *, instance, role="engine", name=String::new(), match_deadline=None, load_deadline=None, store_deadline=None))]
    #[expect(clippy::too_many_arguments, reason = "each has a name in Python")]
    fn new(
        py: Python<'_>,
        socket: PathBuf,
        instance: [u8; 16],
        role: &str,
        name: String,
        match_deadline: Option<f64>,
        load_deadline: Option<f64>,
        store_deadline: Option<f64>,
    ) -> PyResult<Self> {
        let mut options = EngineOptions::new(socket, InstanceId::new(instance));
        options.role = match role {
            "scheduler" => Role::Scheduler,
            "worker" => Role::Worker,
            "engine" => Role::Engine,
            other => return Err(unknown("role", other, "scheduler, worker or engine")),
        };
        options.client_name = name;
        options.match_deadline = match_deadline.map(seconds).transpose()?;
        options.load_deadline = load_deadline.map(seconds).transpose()?;
        if let Some(deadline) = store_deadline {
            options.store_deadline = seconds(deadline)?;
        }
        let engine = released(py, || kvd_client::Engine::start(options))?;
        engine.map(Self).map_err(|error| ConnectError::new_err(error.to_string()))
    }

    /// The daemon's epoch: another number after each of its starts; `None` while this process is not joined.
    #[getter]
    fn epoch(&self) -> Option<u64> {
        self.0.epoch().map(kvd_client::Epoch::get)
    }

    /// How often this process has joined.
    #[getter]
    fn times_joined(&self) -> u64 {
        self.0.times_joined()
    }

    /// Bytes that the engine's instance may hold under leases; `None` while this process is not joined.
    #[getter]
    fn lease_bytes_max(&self) -> Option<u64> {
        self.0.lease_bytes_max()
    }

    /// Pins kvd's memory for the layout's device, in the background, so that the first loads and stores need not. Call it once; does
    /// nothing where the engine computes on CPUs.
    fn pin_ahead(&self, py: Python<'_>, layout: &Layout) -> PyResult<()> {
        let Some(device) = layout.device() else { return Ok(()) };
        Ok(released(py, || self.0.pin_ahead(device))??)
    }

    /// Describes what this process reads and writes: a group of a namespace, and the part of its blocks that is here.
    #[pyo3(signature = (namespace, *, shard, group=0, hash_bytes=32, prefill_tokens_per_second=0.0, token_ids=false))]
    #[expect(clippy::too_many_arguments, reason = "each has a name in Python")]
    fn open_view(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        shard: &Shard,
        group: u16,
        hash_bytes: usize,
        prefill_tokens_per_second: f64,
        token_ids: bool,
    ) -> PyResult<View> {
        let (namespace, shard) = (&namespace.0, shard.0.clone());
        let spec = ViewSpec { namespace, group, shard, hash_bytes, prefill_tokens_per_second, token_ids };
        released(py, || self.0.open_view(&spec))?.map(View::new).map_err(refused)
    }
}

/// A time given in seconds.
pub(crate) fn seconds(given: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(given).map_err(refused)
}
