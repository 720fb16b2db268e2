//! What is raised.

use pyo3::create_exception;
use pyo3::exceptions::PyException;

create_exception!(_kvd, KvdError, PyException, "Something is described wrongly, or the daemon does not accept it.");
create_exception!(_kvd, ConnectError, KvdError, "The daemon is not there, or does not want this client.");
create_exception!(_kvd, LayoutError, KvdError, "An engine's memory does not fit what was described.");

/// As the error that Python code sees.
pub(crate) fn refused(error: impl std::error::Error) -> pyo3::PyErr {
    KvdError::new_err(error.to_string())
}
