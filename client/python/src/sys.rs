//! Memory that Python code hands in by its address. The only unsafe code of this crate.

use std::ptr::NonNull;
use std::sync::Arc;

use kvd_client::device::{Device, DeviceError, DeviceMemory, Mark};
use kvd_client::{ForeignMemory, Memory, MemoryExtent, adopt_device_memory, mark_stream};

/// `bytes` bytes of host memory at `address`; `None` for a null address.
///
/// That they stay mapped, readable and writable while a layout has them is what the documentation of `Layout` asks of its caller:
/// Python has no way to promise it, and no buffer of an engine can be asked for it.
pub(crate) fn host(address: usize, bytes: usize) -> Option<MemoryExtent> {
    let base = NonNull::new(std::ptr::with_exposed_provenance_mut(address))?;
    // SAFETY: the caller of `Layout` promises it, and keeps the owners of the bytes alive with it; no Rust reference to them exists.
    let memory: Arc<dyn Memory> = Arc::new(unsafe { ForeignMemory::new(base, bytes) });
    Some(MemoryExtent::whole(memory))
}

/// The same for a device's memory.
pub(crate) fn device(device: &Device, address: usize, bytes: usize) -> Result<DeviceMemory, DeviceError> {
    // SAFETY: as above; that the addresses are this device's memory is looked up in the driver.
    unsafe { adopt_device_memory(device, address as u64, bytes) }
}

/// A point behind all that is in a stream now.
///
/// That it is a stream of this device's primary context is what the documentation of `Layout.mark` asks of its caller.
pub(crate) fn mark(device: &Device, stream: u64) -> Result<Mark, DeviceError> {
    // SAFETY: the caller of `Layout.mark` promises it.
    unsafe { mark_stream(device, stream) }
}
