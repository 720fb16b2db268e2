//! Matrix products in a stream of their own, as an engine makes them: to measure what moves cost it, and it them.

use std::ffi::{c_int, c_void};

use cudarc::cublas::sys::{
    self as cublas, cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasOperation_t, cublasStatus_t,
    cudaDataType,
};

use super::driver::Gpu;
use super::memory::CudaExtent;
use super::stream::{Priority, Stream};
use crate::device::DeviceError;

/// Products of square bf16 matrices.
#[derive(Debug)]
pub(crate) struct Products {
    handle: cublasHandle_t,
    stream: Stream,
    /// Two factors and their product.
    matrices: [CudaExtent; 3],
    size: c_int,
    // Behind all that was made in its context.
    gpu: Gpu,
}

// SAFETY: the handle is used by one thread at a time: `step` takes `&mut self`.
unsafe impl Send for Products {}

fn check(call: &'static str, result: cublasStatus_t) -> Result<(), DeviceError> {
    if result == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(DeviceError::Driver { call, code: result as u32, name: format!("{result:?}") })
}

impl Gpu {
    /// Products of matrices with so many rows and columns.
    pub(crate) fn products(&self, size: u16) -> Result<Products, DeviceError> {
        // SAFETY: it loads a library of this name, if there is one, and lets it go again.
        if !unsafe { cublas::is_culib_present() } {
            return Err(DeviceError::NoProducts);
        }
        let bytes = usize::from(size) * usize::from(size) * 2;
        let matrix = || {
            let matrix = self.allocate(bytes)?;
            // Small numbers: zeros would draw less power than a model does.
            matrix.write(0, &[0x3c; 2].repeat(bytes / 2))?;
            Ok(matrix)
        };
        let matrices = [matrix()?, matrix()?, matrix()?];
        // As engines make theirs: with the priority that a stream has unasked.
        let stream = Stream::new(self, Priority::Usual)?;
        let mut handle: cublasHandle_t = std::ptr::null_mut();
        self.bound(|| {
            // SAFETY: the library stores a handle, which is destroyed in drop.
            check("cublasCreate", unsafe { cublas::cublasCreate_v2(&raw mut handle) })
        })?;
        let products = Products { handle, stream, matrices, size: size.into(), gpu: self.clone() };
        self.bound(|| {
            let stream = products.stream.handle().cast();
            // SAFETY: both are alive as long as the products.
            check("cublasSetStream", unsafe { cublas::cublasSetStream_v2(products.handle, stream) })
        })?;
        Ok(products)
    }
}

impl Products {
    /// Makes so many products, and waits for the last.
    pub(crate) fn step(&mut self, count: u32) -> Result<(), DeviceError> {
        self.gpu.bound(|| {
            (0..count).try_for_each(|_| self.one())?;
            self.stream.wait()
        })
    }

    fn one(&self) -> Result<(), DeviceError> {
        let (alpha, beta, size) = (1.0f32, 0.0f32, self.size);
        let [a, b, c] = self.matrices.each_ref().map(|matrix| matrix.address() as *mut c_void);
        let (plain, kind) = (cublasOperation_t::CUBLAS_OP_N, cudaDataType::CUDA_R_16BF);
        // SAFETY: three matrices of size x size elements of two bytes, held until the stream was waited for; the factors are read
        // from the host during the call.
        let enqueued = unsafe {
            cublas::cublasGemmEx(
                self.handle,
                plain,
                plain,
                size,
                size,
                size,
                (&raw const alpha).cast(),
                a,
                kind,
                size,
                b,
                kind,
                size,
                (&raw const beta).cast(),
                c,
                kind,
                size,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
            )
        };
        check("cublasGemmEx", enqueued)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: created once; nothing of it runs, for every step was waited for.
        let _ = self.gpu.bound(|| check("cublasDestroy", unsafe { cublas::cublasDestroy_v2(self.handle) }));
    }
}
