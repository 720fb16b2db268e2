//! Streams of work on a GPU, and points in them. But for making and dropping them, all is done with their context current.

use std::time::Duration;

use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult, CUstream, CUstream_flags};

use super::driver::{Gpu, check};
use crate::device::{Device, DeviceError, Mark};

/// Whose blocks a GPU begins first when a multiprocessor is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// What a stream has that was made without asking, and most of an engine's have: the lowest there is.
    Usual,
    /// The highest.
    Highest,
}

/// A stream of work.
#[derive(Debug)]
pub(super) struct Stream(CUstream, Gpu);

// SAFETY: a stream may be used from any thread with its context current; the driver synchronizes its calls.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(gpu: &Gpu, priority: Priority) -> Result<Self, DeviceError> {
        gpu.bound(|| {
            let (mut lowest, mut highest) = (0, 0);
            // SAFETY: the driver stores two numbers.
            let asked = unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut lowest, &raw mut highest) };
            check("cuCtxGetStreamPriorityRange", asked)?;
            let priority = if priority == Priority::Usual { lowest } else { highest };
            let mut stream: CUstream = std::ptr::null_mut();
            let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: the driver stores a handle, which is destroyed in drop.
            let made = unsafe { sys::cuStreamCreateWithPriority(&raw mut stream, flags, priority) };
            check("cuStreamCreateWithPriority", made)?;
            Ok(Self(stream, gpu.clone()))
        })
    }

    /// For calls of the driver, with its context current.
    pub(super) fn handle(&self) -> CUstream {
        self.0
    }

    /// Writes a word into host memory once all before it has ended, and is seen after all of that.
    pub(super) fn write(&self, address: u64, word: u32) -> Result<(), DeviceError> {
        // SAFETY: the stream is of the current context and alive, the word lies in memory that the caller holds until it was written.
        check("cuStreamWriteValue32", unsafe { sys::cuStreamWriteValue32_v2(self.0, address, word, 0) })
    }

    /// Whether all of it is done. An error of what was enqueued, if there was one.
    pub(super) fn is_idle(&self) -> Result<bool, DeviceError> {
        // SAFETY: of the current context and alive.
        match unsafe { sys::cuStreamQuery(self.0) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuStreamQuery", result).map(|()| true),
        }
    }

    /// Waits for all that is in it. With its context current.
    pub(super) fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: of the current context and alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once; what it still does ends by itself.
        let _ = self.1.bound(|| check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(self.0) }));
    }
}

/// A point in a stream.
#[derive(Debug)]
pub(super) struct Event(CUevent, Gpu);

// SAFETY: an event may be used from any thread with its context current; the driver synchronizes its calls.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(gpu: &Gpu) -> Result<Self, DeviceError> {
        Self::made(gpu, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn made(gpu: &Gpu, flags: CUevent_flags) -> Result<Self, DeviceError> {
        gpu.bound(|| {
            let mut event: CUevent = std::ptr::null_mut();
            // SAFETY: the driver stores a handle, which is destroyed in drop.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags as u32) })?;
            Ok(Self(event, gpu.clone()))
        })
    }

    fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both are of the current context and alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream.0) })
    }

    /// What comes in `second` waits for what is in `first`.
    pub(super) fn between(&self, first: &Stream, second: &Stream) -> Result<(), DeviceError> {
        self.record(first)?;
        // SAFETY: both are of the current context and alive.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(second.0, self.0, 0) })
    }

    pub(super) fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: of the current context and alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once; the driver keeps it until it was reached.
        let _ = self.1.bound(|| check("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(self.0) }));
    }
}

/// A point in a stream, with the time at which it was reached.
#[derive(Debug)]
pub(crate) struct StreamEvent(Event);

impl StreamEvent {
    /// Behind all that is in the stream now.
    pub(super) fn behind(stream: &Stream) -> Result<Self, DeviceError> {
        // SAFETY: the stream is of its GPU's primary context, and alive.
        unsafe { Self::behind_handle(&stream.1, stream.0) }
    }

    /// The same for a stream that is not ours.
    ///
    /// # Safety
    /// The stream is of the GPU's primary context and not destroyed during the call, or null.
    unsafe fn behind_handle(gpu: &Gpu, stream: CUstream) -> Result<Self, DeviceError> {
        let event = Event::made(gpu, CUevent_flags::CU_EVENT_DEFAULT)?;
        // SAFETY: the event is of this context and alive, and so is the stream, as the caller promises.
        gpu.bound(|| check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, stream) }))?;
        Ok(Self(event))
    }

    pub(crate) fn is_reached(&self) -> Result<bool, DeviceError> {
        let Event(event, gpu) = &self.0;
        // SAFETY: of the context that is current here, and alive.
        gpu.bound(|| match unsafe { sys::cuEventQuery(*event) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuEventQuery", result).map(|()| true),
        })
    }

    /// From an earlier point to this one; `None` where one is not reached, or of another GPU.
    pub(crate) fn since(&self, earlier: &Self) -> Option<Duration> {
        let (Event(from, gpu), Event(to, _)) = (&earlier.0, &self.0);
        let mut milliseconds = 0.0;
        let known = gpu.bound(|| {
            // SAFETY: both are alive and were made with timing; the driver stores a number, or refuses what cannot be compared.
            check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime(&raw mut milliseconds, *from, *to) })
        });
        known.ok().and_then(|()| Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).ok())
    }
}

/// A point behind all that is in a stream of an engine now.
///
/// # Safety
/// `stream` is a stream of the device's primary context that is not destroyed during the call, or 0 for the default stream.
pub unsafe fn mark_stream(device: &Device, stream: u64) -> Result<Mark, DeviceError> {
    let gpu = device.gpu().ok_or(DeviceError::NoStreams)?;
    let stream: CUstream = std::ptr::with_exposed_provenance_mut(usize::try_from(stream).unwrap_or_default());
    // SAFETY: the caller promises it.
    unsafe { StreamEvent::behind_handle(gpu, stream) }.map(Mark::in_stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_has_no_streams_to_mark() {
        // SAFETY: the twin has no streams, and the handle is that of a default one.
        let marked = unsafe { mark_stream(&Device::twin(), 0) };
        assert_eq!(marked.err(), Some(DeviceError::NoStreams));
    }
}
