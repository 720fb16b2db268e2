//! GPUs through NVIDIA's driver, which is loaded when it is asked for first: where it is missing everything here is an error.
//!
//! All work is done in the device's primary context, which an engine of the same process uses as well, so its memory can be read
//! and written here without being exported. The context is made current for the length of a call and the one before put back.

mod copies;
mod driver;
mod job;
mod lane;
mod memory;
mod products;
mod stream;

pub(crate) use driver::Gpu;
pub use memory::adopt_device_memory;
pub(crate) use memory::{CudaExtent, Pinned};
pub(crate) use products::Products;
pub(crate) use stream::StreamEvent;
pub use stream::mark_stream;
