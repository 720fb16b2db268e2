//! The engine's side of kvd for Python: the module `kvd._kvd`, which the package `kvd` shows.
//!
//! It adds nothing to `kvd-client` but Python's types: an engine, its views, the layout of its memory. Every call that waits lets
//! other Python threads run meanwhile, and none of them raises because of the daemon: what is not there is a miss with a reason.
//! Errors are raised where something is described wrongly, before a byte moves.
//!
//! Tensors come in by address, length and strides, so neither torch nor a CUDA library is linked or imported here.

mod digest;
mod engine;
mod errors;
mod layout;
mod matched;
mod spec;
mod sys;
mod view;

use pyo3::prelude::*;

#[pymodule]
mod _kvd {
    #[pymodule_export]
    use super::digest::file_digest;
    #[pymodule_export]
    use super::engine::Engine;
    #[pymodule_export]
    use super::errors::{ConnectError, KvdError, LayoutError};
    #[pymodule_export]
    use super::layout::{Layout, Mark, PlaneMemory};
    #[pymodule_export]
    use super::matched::{Loaded, Match, Stored};
    #[pymodule_export]
    use super::spec::{Group, Namespace, Plane, Shard};
    #[pymodule_export]
    use super::view::View;

    #[pymodule_init]
    fn init(module: &super::Bound<'_, super::PyModule>) -> super::PyResult<()> {
        super::PyModuleMethods::add(module, "__version__", env!("CARGO_PKG_VERSION"))
    }
}
