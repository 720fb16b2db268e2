//! Copies over the bus: as one call where the driver has such, for between single ones the bus rests some microseconds.

use cudarc::driver::sys::{self, CUdeviceptr};

use super::driver::{Gpu, check};
use super::memory::CudaExtent;
use super::stream::{Priority, Stream};
use crate::device::{DeviceError, Way};
use crate::sys::MemoryExtent;

/// The first version of the driver that has copies in batches, as `cuDriverGetVersion` tells it.
const BATCHES_SINCE: i32 = 12_080;

impl Gpu {
    /// One copy for each pair, in a stream of its own, and waits for the last.
    pub(crate) fn copy_each(
        &self,
        way: Way,
        pairs: &[(CudaExtent, MemoryExtent)],
        batched: bool,
    ) -> Result<(), DeviceError> {
        if !pairs.iter().all(|(device, host)| device.len() == host.len() && device.gpu().is(self)) {
            return Err(DeviceError::Memory);
        }
        if batched && self.version() < BATCHES_SINCE {
            let name = "CUDA_ERROR_NOT_SUPPORTED".to_owned();
            return Err(DeviceError::Driver { call: "cuMemcpyBatchAsync", code: 801, name });
        }
        let stream = Stream::new(self, Priority::Usual)?;
        self.bound(|| {
            let pairs = pairs.iter().map(|(device, host)| (device.address(), host));
            let enqueued = if batched { batch(way, pairs, &stream) } else { one_by_one(way, pairs, &stream) };
            // Also after an error: what was enqueued before it uses the memory.
            stream.wait()?;
            enqueued
        })
    }
}

/// Enqueues a copy for each pair of a device address and as much host memory, all held by the caller until they have ended. With
/// the context current.
pub(super) fn enqueue<'a>(
    gpu: &Gpu,
    way: Way,
    pairs: impl Iterator<Item = (CUdeviceptr, &'a MemoryExtent)>,
    stream: &Stream,
) -> Result<(), DeviceError> {
    if gpu.version() >= BATCHES_SINCE { batch(way, pairs, stream) } else { one_by_one(way, pairs, stream) }
}

fn one_by_one<'a>(
    way: Way,
    mut pairs: impl Iterator<Item = (CUdeviceptr, &'a MemoryExtent)>,
    stream: &Stream,
) -> Result<(), DeviceError> {
    pairs.try_for_each(|(device, host)| match way {
        Way::ToHost => {
            // SAFETY: both ranges have this length, and whoever calls holds them until the copy has ended.
            let copied =
                unsafe { sys::cuMemcpyDtoHAsync_v2(host.as_ptr().cast(), device, host.len(), stream.handle()) };
            check("cuMemcpyDtoHAsync", copied)
        }
        Way::ToDevice => {
            // SAFETY: as above.
            let copied = unsafe {
                sys::cuMemcpyHtoDAsync_v2(device, host.as_ptr().cast_const().cast(), host.len(), stream.handle())
            };
            check("cuMemcpyHtoDAsync", copied)
        }
    })
}

fn batch<'a>(
    way: Way,
    pairs: impl Iterator<Item = (CUdeviceptr, &'a MemoryExtent)>,
    stream: &Stream,
) -> Result<(), DeviceError> {
    let (mut on_device, mut on_host, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for (device, host) in pairs {
        on_device.push(device);
        on_host.push(host.as_ptr().addr() as CUdeviceptr);
        sizes.push(host.len());
    }
    let (to, from) = match way {
        Way::ToHost => (&mut on_host, &mut on_device),
        Way::ToDevice => (&mut on_device, &mut on_host),
    };
    // SAFETY: a plain structure of numbers, of which zeros are valid.
    let mut attributes: sys::CUmemcpyAttributes = unsafe { std::mem::zeroed() };
    attributes.srcAccessOrder = sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    let (mut first, mut failed) = (0usize, 0usize);
    // SAFETY: three arrays of this length, one set of attributes for all from index 0 on; the ranges have these lengths, and whoever
    // calls holds them until the copies have ended.
    let enqueued = unsafe {
        sys::cuMemcpyBatchAsync(
            to.as_mut_ptr(),
            from.as_mut_ptr(),
            sizes.as_mut_ptr(),
            sizes.len(),
            &raw mut attributes,
            &raw mut first,
            1,
            &raw mut failed,
            stream.handle(),
        )
    };
    check("cuMemcpyBatchAsync", enqueued)
}
