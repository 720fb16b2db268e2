//! Copies over the bus: as one call where the driver has such, for between single ones the bus rests some microseconds.

use cudarc::driver::sys::{self, CUdeviceptr};

use super::driver::{Gpu, check};
use super::memory::CudaExtent;
use super::stream::{Priority, Stream};
use crate::device::{DeviceError, Rows, Way};
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
            let copies = pairs.iter().map(|(device, host)| (device.address(), host.as_ptr(), host.len()));
            let enqueued = if batched { batch(way, copies, &stream) } else { one_by_one(way, copies, &stream) };
            // Also after an error: what was enqueued before it uses the memory.
            stream.wait()?;
            enqueued
        })
    }
}

/// Stretches of a record and where they lie in staging memory.
#[derive(Clone, Copy)]
pub(super) struct Plane<'a> {
    /// Where what moves of the record begins.
    pub(super) staged: CUdeviceptr,
    pub(super) host: &'a MemoryExtent,
    pub(super) rows: Rows,
}

impl Plane<'_> {
    fn on_device(&self) -> CUdeviceptr {
        self.staged + self.rows.in_staging as CUdeviceptr
    }

    fn on_host(&self) -> *mut u8 {
        self.host.as_ptr().wrapping_add(self.rows.in_record)
    }
}

/// Enqueues what moves of records, all of it held by the caller until it has ended. With the context current.
pub(super) fn enqueue<'a>(
    gpu: &Gpu,
    way: Way,
    planes: impl Iterator<Item = Plane<'a>> + Clone,
    stream: &Stream,
) -> Result<(), DeviceError> {
    if planes.clone().any(|plane| plane.rows.count > 1) {
        return planes.into_iter().try_for_each(|plane| rows(way, &plane, stream));
    }
    let copies = planes.map(|plane| (plane.on_device(), plane.on_host(), plane.rows.bytes));
    if gpu.version() >= BATCHES_SINCE { batch(way, copies, stream) } else { one_by_one(way, copies, stream) }
}

/// One copy of rows that lie at equal distances in the record: the copy engine walks over them by itself.
fn rows(way: Way, plane: &Plane<'_>, stream: &Stream) -> Result<(), DeviceError> {
    let Rows { bytes, pitch, count, .. } = plane.rows;
    // SAFETY: a plain structure of numbers and pointers, of which zeros are valid.
    let mut copy: sys::CUDA_MEMCPY2D = unsafe { std::mem::zeroed() };
    (copy.WidthInBytes, copy.Height) = (bytes, count);
    match way {
        Way::ToHost => {
            copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
            (copy.srcDevice, copy.srcPitch) = (plane.on_device(), bytes);
            copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
            (copy.dstHost, copy.dstPitch) = (plane.on_host().cast(), pitch);
        }
        Way::ToDevice => {
            copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
            (copy.srcHost, copy.srcPitch) = (plane.on_host().cast_const().cast(), pitch);
            copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
            (copy.dstDevice, copy.dstPitch) = (plane.on_device(), bytes);
        }
    }
    // SAFETY: all rows lie inside the record and inside its place in the staging memory, as its layout was checked to, and whoever
    // calls holds both until the copy has ended.
    check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.handle()) })
}

fn one_by_one(
    way: Way,
    mut copies: impl Iterator<Item = (CUdeviceptr, *mut u8, usize)>,
    stream: &Stream,
) -> Result<(), DeviceError> {
    copies.try_for_each(|(device, host, bytes)| match way {
        Way::ToHost => {
            // SAFETY: both ranges have this length, and whoever calls holds them until the copy has ended.
            let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(host.cast(), device, bytes, stream.handle()) };
            check("cuMemcpyDtoHAsync", copied)
        }
        Way::ToDevice => {
            // SAFETY: as above.
            let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(device, host.cast_const().cast(), bytes, stream.handle()) };
            check("cuMemcpyHtoDAsync", copied)
        }
    })
}

fn batch(
    way: Way,
    copies: impl Iterator<Item = (CUdeviceptr, *mut u8, usize)>,
    stream: &Stream,
) -> Result<(), DeviceError> {
    let (mut on_device, mut on_host, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for (device, host, bytes) in copies {
        on_device.push(device);
        on_host.push(host.addr() as CUdeviceptr);
        sizes.push(bytes);
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
