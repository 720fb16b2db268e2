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

/// Stretches of a record at equal distances, and where they lie in staging memory.
#[derive(Clone, Copy)]
pub(super) struct Stretches<'a> {
    /// Where what moves of the record begins.
    pub(super) staged: CUdeviceptr,
    pub(super) host: &'a MemoryExtent,
    pub(super) rows: Rows,
}

impl Stretches<'_> {
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
    all: impl Iterator<Item = Stretches<'a>> + Clone,
    stream: &Stream,
) -> Result<(), DeviceError> {
    if all.clone().any(|stretches| stretches.rows.count > 1) {
        return all.into_iter().try_for_each(|stretches| rows(way, &stretches, stream));
    }
    let copies = all.map(|one| (one.on_device(), one.on_host(), one.rows.bytes));
    if gpu.version() >= BATCHES_SINCE { batch(way, copies, stream) } else { one_by_one(way, copies, stream) }
}

/// One copy of rows that lie at equal distances in the record: the copy engine walks over them by itself.
fn rows(way: Way, stretches: &Stretches<'_>, stream: &Stream) -> Result<(), DeviceError> {
    let copy = describe(way, stretches);
    // SAFETY: all rows lie inside the record and inside its place in the staging memory, as its layout was checked to, and whoever
    // calls holds both until the copy has ended.
    check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.handle()) })
}

/// As the driver wants it: rows of the record and, one after the other, of staging memory.
fn describe(way: Way, stretches: &Stretches<'_>) -> sys::CUDA_MEMCPY2D {
    let Rows { bytes, pitch, count, .. } = stretches.rows;
    let (host, device) = (stretches.on_host().cast(), stretches.on_device());
    let nothing = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: std::ptr::null(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: std::ptr::null_mut(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        dstPitch: 0,
        WidthInBytes: bytes,
        Height: count,
    };
    let on_device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
    match way {
        Way::ToHost => sys::CUDA_MEMCPY2D {
            srcMemoryType: on_device,
            srcDevice: device,
            srcPitch: bytes,
            dstHost: host,
            dstPitch: pitch,
            ..nothing
        },
        Way::ToDevice => sys::CUDA_MEMCPY2D {
            srcHost: host.cast_const(),
            srcPitch: pitch,
            dstMemoryType: on_device,
            dstDevice: device,
            dstPitch: bytes,
            ..nothing
        },
    }
}

/// Enqueues one copy of memory that the driver has allocated, held by the caller until it has ended. With the context current.
pub(super) fn upload(to: CUdeviceptr, from: *mut u8, bytes: usize, stream: &Stream) -> Result<(), DeviceError> {
    one_by_one(Way::ToDevice, std::iter::once((to, from, bytes)), stream)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sys::{Memory, Region};

    #[test]
    fn rows_lie_apart_in_the_record_and_together_on_the_device() {
        let region: Arc<dyn Memory> = Arc::new(Region::new(4096).unwrap());
        let record = MemoryExtent::whole(region);
        let rows = Rows { in_record: 256, in_staging: 128, bytes: 64, pitch: 512, count: 3 };
        let stretches = Stretches { staged: 0x10000, host: &record, rows };
        let at = record.as_ptr().wrapping_add(256).cast();
        let (host, device) = (sys::CUmemorytype::CU_MEMORYTYPE_HOST, sys::CUmemorytype::CU_MEMORYTYPE_DEVICE);
        let out = describe(Way::ToHost, &stretches);
        assert_eq!((out.WidthInBytes, out.Height), (64, 3));
        assert_eq!((out.srcMemoryType, out.srcDevice, out.srcPitch), (device, 0x10080, 64));
        assert_eq!((out.dstMemoryType, out.dstHost, out.dstPitch), (host, at, 512));
        let back = describe(Way::ToDevice, &stretches);
        assert_eq!((back.WidthInBytes, back.Height), (64, 3));
        assert_eq!((back.srcMemoryType, back.srcHost, back.srcPitch), (host, at.cast_const(), 512));
        assert_eq!((back.dstMemoryType, back.dstDevice, back.dstPitch), (device, 0x10080, 64));
        for copy in [out, back] {
            assert_eq!((copy.srcXInBytes, copy.srcY, copy.dstXInBytes, copy.dstY), (0, 0, 0, 0));
        }
    }
}
