//! Memory of a GPU, and host memory that it may use by itself.

use std::ffi::{c_uint, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr, CUmemorytype, CUpointer_attribute};

use super::driver::{Gpu, check};
use crate::device::{Device, DeviceError, DeviceMemory};
use crate::sys::MemoryExtent;
use crate::sys::memory::{Memory, locate, sealed};

/// Memory on a GPU, ours or an engine's.
#[derive(Debug)]
struct Allocation {
    gpu: Gpu,
    address: CUdeviceptr,
    owned: bool,
}

/// A range of it.
#[derive(Debug, Clone)]
pub(crate) struct CudaExtent {
    allocation: Arc<Allocation>,
    offset: usize,
    len: usize,
}

impl Gpu {
    /// Memory of our own, with undefined content.
    pub(crate) fn allocate(&self, len: usize) -> Result<CudaExtent, DeviceError> {
        let mut address: CUdeviceptr = 0;
        // SAFETY: the driver stores an address, which is freed in the drop of the allocation.
        self.bound(|| check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&raw mut address, len.max(1)) }))?;
        let allocation = Arc::new(Allocation { gpu: self.clone(), address, owned: true });
        Ok(CudaExtent { allocation, offset: 0, len })
    }

    /// Memory of an engine: at both ends of it must be memory of this device.
    fn adopt(&self, address: u64, len: usize) -> Result<CudaExtent, DeviceError> {
        let refused = DeviceError::NotDeviceMemory { address, bytes: len };
        let last = u64::try_from(len).ok().and_then(|len| address.checked_add(len)).and_then(|end| end.checked_sub(1));
        let last = last.filter(|last| *last >= address).ok_or_else(|| refused.clone())?;
        let ours = self.bound(|| Ok(self.has(address) && self.has(last)))?;
        if !ours {
            return Err(refused);
        }
        let allocation = Arc::new(Allocation { gpu: self.clone(), address, owned: false });
        Ok(CudaExtent { allocation, offset: 0, len })
    }

    /// Whether an address is memory on this device. With the context current.
    fn has(&self, address: CUdeviceptr) -> bool {
        let ask = |what: CUpointer_attribute| {
            let mut answer: c_uint = 0;
            // SAFETY: both attributes are numbers of four bytes, and any address may be asked about.
            let asked = unsafe { sys::cuPointerGetAttribute((&raw mut answer).cast::<c_void>(), what, address) };
            check("cuPointerGetAttribute", asked).ok().map(|()| answer)
        };
        let device = ask(CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
        ask(CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE) == Some(CUmemorytype::CU_MEMORYTYPE_DEVICE as c_uint)
            && device.and_then(|device| i32::try_from(device).ok()) == Some(self.device())
    }

    /// Pins host memory for all GPUs of the process.
    pub(crate) fn pin(&self, memory: &Arc<dyn Memory>) -> Result<Pinned, DeviceError> {
        let base: *mut c_void = memory.base().as_ptr().cast();
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        self.bound(|| {
            // SAFETY: the memory stays mapped until it is unregistered, which happens before `memory` is dropped.
            check("cuMemHostRegister", unsafe { sys::cuMemHostRegister_v2(base, memory.len(), flags) })
        })?;
        Ok(Pinned { gpu: self.clone(), memory: memory.clone() })
    }

    /// Pinned host memory of our own that kernels of this device may read and write, zeroed.
    pub(super) fn host(&self, len: usize) -> Result<HostMemory, DeviceError> {
        let mut base: *mut c_void = std::ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the driver stores an address, which is freed in the drop of the memory.
        self.bound(|| check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut base, len, flags) }))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(DeviceError::Memory)?;
        let memory = HostMemory { gpu: self.clone(), base, len };
        memory.zero(0, len).map_err(|_| DeviceError::Memory)?;
        Ok(memory)
    }
}

/// Memory that an engine has on a GPU, mostly its KV cache. What cannot be right is refused.
///
/// # Safety
/// Until the result and all its clones are dropped, every byte of the range is memory on this GPU, allocated (not managed) in this
/// process and not freed, and no lane is used for it after the engine has given it to anything else.
pub unsafe fn adopt_device_memory(device: &Device, address: u64, bytes: usize) -> Result<DeviceMemory, DeviceError> {
    let gpu = device.gpu().ok_or(DeviceError::NotDeviceMemory { address, bytes })?;
    gpu.adopt(address, bytes).map(DeviceMemory::cuda)
}

impl CudaExtent {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The device address of the first byte.
    pub(super) fn address(&self) -> CUdeviceptr {
        self.allocation.address + self.offset as u64
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.allocation.gpu
    }

    pub(crate) fn address_remainder(&self, grain: usize) -> usize {
        usize::try_from(self.address() % grain as u64).unwrap_or_default()
    }

    pub(crate) fn part(&self, offset: usize, len: usize) -> Result<Self, DeviceError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        let part = || Self { allocation: self.allocation.clone(), offset: self.offset + offset, len };
        inside.then(part).ok_or(DeviceError::Memory)
    }

    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        let from = self.part(offset, into.len())?.address();
        let to: *mut c_void = into.as_mut_ptr().cast();
        // SAFETY: the range lies in the allocation, and `into` is ours for as long as the call lasts.
        self.gpu().bound(|| check("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2(to, from, into.len()) }))
    }

    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        let to = self.part(offset, from.len())?.address();
        let bytes: *const c_void = from.as_ptr().cast();
        self.gpu().bound(|| {
            // SAFETY: the range lies in the allocation, and `from` is ours for as long as the call lasts.
            check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(to, bytes, from.len()) })?;
            // Small copies come back before the bytes are there; they are in order with the default stream, which we wait for.
            // SAFETY: the default stream of the current context.
            check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) })
        })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: allocated once, and whoever used it held it. It waits for what the device still does with it.
            let _ = self.gpu.bound(|| check("cuMemFree", unsafe { sys::cuMemFree_v2(self.address) }));
        }
    }
}

/// Host memory that is pinned until this is dropped.
#[derive(Debug)]
pub(crate) struct Pinned {
    gpu: Gpu,
    memory: Arc<dyn Memory>,
}

impl Pinned {
    /// Whether these bytes are of it.
    pub(crate) fn covers(&self, extent: &MemoryExtent) -> bool {
        Arc::ptr_eq(&self.memory, extent.memory())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let base: *mut c_void = self.memory.base().as_ptr().cast();
        // SAFETY: registered once, and still mapped.
        let _ = self.gpu.bound(|| check("cuMemHostUnregister", unsafe { sys::cuMemHostUnregister(base) }));
    }
}

/// Pinned host memory that the device writes.
#[derive(Debug)]
pub(super) struct HostMemory {
    gpu: Gpu,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned, and all access goes through raw copies and atomics.
unsafe impl Send for HostMemory {}
// SAFETY: as above; no reference to the bytes exists.
unsafe impl Sync for HostMemory {}

// SAFETY: the driver's allocation covers `len` bytes from `base` until drop, and no reference to them is ever formed.
unsafe impl sealed::Raw for HostMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Memory for HostMemory {
    fn len(&self) -> usize {
        self.len
    }
}

impl HostMemory {
    /// The first of so many bytes.
    pub(super) fn pointer(&self, offset: usize, len: usize) -> Result<*mut u8, DeviceError> {
        locate(self, offset, len).map(NonNull::as_ptr).map_err(|_| DeviceError::Memory)
    }

    /// Where kernels find it: with unified addresses, which every GPU of 64-bit Linux has, where we find it.
    pub(super) fn address(&self, offset: usize) -> Result<u64, DeviceError> {
        self.pointer(offset, 0).map(|at| at.addr() as u64)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let base: *mut c_void = self.base.as_ptr().cast();
        // SAFETY: allocated once; whoever launched work that uses it holds it until that has ended.
        let _ = self.gpu.bound(|| check("cuMemFreeHost", unsafe { sys::cuMemFreeHost(base) }));
    }
}
