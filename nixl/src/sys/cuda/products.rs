//! Matrix products in a stream of their own, as an engine makes them: to measure what moves cost it, and it them.

use std::ffi::{c_int, c_void};

use cudarc::cublas::sys::{
    self as cublas, cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasOperation_t, cublasStatus_t,
    cudaDataType,
};

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode};

use super::driver::{self, Gpu};
use super::memory::CudaExtent;
use super::stream::{Priority, Stream, StreamEvent};
use crate::device::{DeviceError, Launch, Mark};

/// Steps of products of square bf16 matrices.
#[derive(Debug)]
pub(crate) struct Products {
    handle: cublasHandle_t,
    stream: Stream,
    /// Two factors and their product.
    matrices: [CudaExtent; 3],
    size: c_int,
    /// In a step.
    count: u32,
    /// A step, where it is launched as a whole.
    graph: Option<Graph>,
    // Behind all that was made in its context.
    gpu: Gpu,
}

// SAFETY: the handle is used by one thread at a time: `step` takes `&mut self`.
unsafe impl Send for Products {}

/// Work that was recorded, and is launched at once.
#[derive(Debug)]
struct Graph(CUgraphExec, Gpu);

// SAFETY: used by one thread at a time, as the products whose part it is.
unsafe impl Send for Graph {}

impl Graph {
    /// What `work` puts into the stream. With its context current.
    fn record(gpu: &Gpu, stream: &Stream, work: impl FnOnce() -> Result<(), DeviceError>) -> Result<Self, DeviceError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is of the current context and alive.
        driver::check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.handle(), mode) })?;
        let worked = work();
        let (mut graph, mut made): (CUgraph, CUgraphExec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the driver stores a handle, which is destroyed below.
        let ended = unsafe { sys::cuStreamEndCapture(stream.handle(), &raw mut graph) };
        worked.and(driver::check("cuStreamEndCapture", ended))?;
        // SAFETY: the graph was recorded above; the driver stores a handle, which is destroyed in drop.
        let instantiated = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut made, graph, 0) };
        let instantiated = driver::check("cuGraphInstantiate", instantiated).map(|()| Self(made, gpu.clone()));
        // SAFETY: created once, and of no use any more.
        driver::check("cuGraphDestroy", unsafe { sys::cuGraphDestroy(graph) })?;
        instantiated
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: created once; nothing of it runs, as the drop of its products has waited for it.
        let _ = self.1.bound(|| driver::check("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(self.0) }));
    }
}

fn check(call: &'static str, result: cublasStatus_t) -> Result<(), DeviceError> {
    if result == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(DeviceError::Driver { call, code: result as u32, name: format!("{result:?}") })
}

impl Gpu {
    /// Steps of so many products of matrices with so many rows and columns.
    pub(crate) fn products(&self, size: u16, count: u32, launch: Launch) -> Result<Products, DeviceError> {
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
        let (size, gpu) = (size.into(), self.clone());
        let mut products = Products { handle, stream, matrices, size, count, graph: None, gpu };
        self.bound(|| {
            let stream = products.stream.handle().cast();
            // SAFETY: both are alive as long as the products.
            check("cublasSetStream", unsafe { cublas::cublasSetStream_v2(products.handle, stream) })
        })?;
        // The first ones choose and load kernels.
        products.step()?;
        if launch == Launch::AsGraph {
            products.graph = Some(self.bound(|| Graph::record(self, &products.stream, || products.each()))?);
            products.step()?;
        }
        Ok(products)
    }
}

impl Products {
    /// Makes the products of a step, and waits for the last.
    pub(crate) fn step(&mut self) -> Result<(), DeviceError> {
        self.gpu.bound(|| {
            self.launch()?;
            self.stream.wait()
        })
    }

    /// Begins a step, as engines do: the points before and behind it.
    pub(crate) fn begin(&mut self) -> Result<[Mark; 2], DeviceError> {
        let before = StreamEvent::behind(&self.stream)?;
        self.gpu.bound(|| self.launch())?;
        let behind = StreamEvent::behind(&self.stream)?;
        Ok([before, behind].map(Mark::in_stream))
    }

    fn launch(&self) -> Result<(), DeviceError> {
        let Some(graph) = &self.graph else { return self.each() };
        // SAFETY: both are of the current context and alive, and so is what was recorded.
        let launched = unsafe { sys::cuGraphLaunch(graph.0, self.stream.handle()) };
        driver::check("cuGraphLaunch", launched)
    }

    fn each(&self) -> Result<(), DeviceError> {
        (0..self.count).try_for_each(|_| self.one())
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
        let _ = self.gpu.bound(|| self.stream.wait());
        // SAFETY: created once; nothing of it runs any more.
        let _ = self.gpu.bound(|| check("cublasDestroy", unsafe { cublas::cublasDestroy_v2(self.handle) }));
    }
}
