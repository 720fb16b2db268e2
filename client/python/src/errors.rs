//! What is raised.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(_kvd, KvdError, PyException, "Something is described wrongly, or the daemon does not accept it.");
create_exception!(_kvd, ConnectError, KvdError, "The daemon is not there, or does not want this client.");
create_exception!(_kvd, LayoutError, KvdError, "An engine's memory does not fit what was described.");

/// Calls the client while other Python threads run. A panic in it is a bug of ours, and must not end an engine: it becomes an error.
pub(crate) fn released<T: Send>(py: Python<'_>, call: impl FnOnce() -> T + Send) -> PyResult<T> {
    let called = py.detach(|| catch_unwind(AssertUnwindSafe(call)));
    called.map_err(|_| KvdError::new_err("a bug in kvd's client: see standard error, and please report it"))
}

/// As the error that Python code sees.
pub(crate) fn refused(error: impl std::error::Error) -> pyo3::PyErr {
    KvdError::new_err(error.to_string())
}
