//! A GPU's context and kernels.

use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUfunction, CUmodule, CUresult};

use crate::device::{DeviceError, Way};

/// The kernels, for the driver to compile. Ends with a zero byte, as the driver wants it.
const KERNELS: &str = concat!(include_str!("../../../kernels/records.ptx"), "\0");

/// A GPU whose primary context is held. Clones are the same GPU.
#[derive(Debug, Clone)]
pub(crate) struct Gpu(Arc<Context>);

#[derive(Debug)]
struct Context {
    device: CUdevice,
    context: CUcontext,
    /// Of the driver.
    version: c_int,
    /// Whether kernels find host memory that was registered where the host does.
    same_addresses: bool,
    kernels: Kernels,
}

/// The module and its two functions.
#[derive(Debug, Clone, Copy)]
struct Kernels {
    module: CUmodule,
    gather: CUfunction,
    scatter: CUfunction,
}

// SAFETY: a context and what lies in it may be used from any thread that makes it current, as `bound` does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver synchronizes its own calls.
unsafe impl Sync for Context {}

/// The result of a call of the driver.
pub(super) fn check(call: &'static str, result: CUresult) -> Result<(), DeviceError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: the driver is loaded, or there were no result; it stores the address of a static string, or null.
    let known = unsafe { sys::cuGetErrorName(result, &raw mut name) };
    let name = if known == CUresult::CUDA_SUCCESS && !name.is_null() {
        // SAFETY: a static, zero-terminated string of the driver.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        "an unknown error".to_owned()
    };
    Err(DeviceError::Driver { call, code: result as u32, name })
}

impl Gpu {
    /// Holds the primary context of GPU `ordinal` and loads the kernels in it.
    pub(crate) fn open(ordinal: u32) -> Result<Self, DeviceError> {
        // SAFETY: it loads a library of this name, if there is one, and lets it go again.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        // SAFETY: may be called any number of times.
        check("cuInit", unsafe { sys::cuInit(0) })?;
        let mut found: c_int = 0;
        // SAFETY: the driver stores a number.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut found) })?;
        let number = c_int::try_from(ordinal).ok().filter(|number| *number < found);
        let number =
            number.ok_or(DeviceError::NoDevice { ordinal, found: u32::try_from(found).unwrap_or_default() })?;
        let mut device: CUdevice = 0;
        // SAFETY: the driver stores a number.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;
        let mut version: c_int = 0;
        // SAFETY: the driver stores a number.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
        let mut same: c_int = 0;
        let asked = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM;
        // SAFETY: the driver stores a number.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut same, asked, device) })?;
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: the driver stores a handle; it is released in `drop`.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) })?;
        match bound(context, load) {
            Ok(kernels) => Ok(Self(Arc::new(Context { device, context, version, same_addresses: same != 0, kernels }))),
            Err(error) => {
                // SAFETY: retained above, and nothing uses it.
                let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(device) };
                Err(error)
            }
        }
    }

    /// Does `work` with the context current on this thread.
    pub(super) fn bound<T>(&self, work: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        bound(self.0.context, work)
    }

    /// The kernel that moves records this way.
    pub(super) fn kernel(&self, way: Way) -> CUfunction {
        if way == Way::ToHost { self.0.kernels.gather } else { self.0.kernels.scatter }
    }

    /// The driver's version: 12080 for one of CUDA 12.8.
    pub(super) fn version(&self) -> c_int {
        self.0.version
    }

    /// Whether its kernels find host memory that was registered where the host does. They find memory of the driver's own there
    /// anyway.
    pub(super) fn has_same_addresses(&self) -> bool {
        self.0.same_addresses
    }

    /// Whether both are the same GPU.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.device == other.0.device
    }

    /// The number of the device.
    pub(super) fn device(&self) -> CUdevice {
        self.0.device
    }
}

fn bound<T>(context: CUcontext, work: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    // SAFETY: the context is held by whoever calls.
    check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(context) })?;
    // While an engine captures a graph on another thread, the driver refuses much to all threads that have not said that what they do
    // is no part of it.
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the driver exchanges the mode of this thread with the one in the variable; here and below.
    let said =
        check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) });
    let done = said.and_then(|()| {
        let done = work();
        // SAFETY: as above. Of a call that has succeeded once nothing is to be learned.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
        done
    });
    let mut popped: CUcontext = std::ptr::null_mut();
    // SAFETY: takes away what was pushed above; the driver stores the handle.
    let popped = check("cuCtxPopCurrent", unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) });
    done.and_then(|done| popped.map(|()| done))
}

fn load() -> Result<Kernels, DeviceError> {
    let mut module: CUmodule = std::ptr::null_mut();
    let image: *const c_void = KERNELS.as_ptr().cast();
    // SAFETY: zero-terminated PTX; the driver stores a handle, which is unloaded in the drop of the context.
    check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut module, image) })?;
    let function = |name: &CStr| {
        let mut function: CUfunction = std::ptr::null_mut();
        // SAFETY: the module was loaded above, the name is zero-terminated, and the driver stores a handle.
        let found = unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) };
        check("cuModuleGetFunction", found).map(|()| function)
    };
    Ok(Kernels { module, gather: function(c"kvd_gather")?, scatter: function(c"kvd_scatter")? })
}

impl Drop for Context {
    fn drop(&mut self) {
        // At the end of a process the driver may be gone already; there is nobody to tell.
        let _ = bound(self.context, || {
            // SAFETY: nothing runs any more: all who launch hold the context.
            check("cuModuleUnload", unsafe { sys::cuModuleUnload(self.kernels.module) })
        });
        // SAFETY: retained once in `open`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
