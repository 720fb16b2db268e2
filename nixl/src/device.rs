//! Records between the memory of a device and host memory: gathered, checked and moved on the device's own engines.
//!
//! A [`Device`] is a GPU, or a twin of one on CPUs that does the same with the same bytes and checksums, so that everything above
//! can be tried without a GPU. A [`Lane`] moves records of one [`RecordLayout`]: chunks of them, several under way at a time, each
//! through a stretch of staging memory on the device. What it hands back are the checksums of the bytes that it read.

mod lane;
mod layout;
mod mark;
mod memory;
mod twin;

use std::sync::Arc;

use crate::sys::copy::copy;
use crate::sys::cuda::{self, Gpu, Pinned};
use crate::sys::{Memory, MemoryExtent, Region};
pub(crate) use lane::{Backend, Course, Room, STUCK};
pub use lane::{Between, Flight, Lane, LaneOptions, PartError, RecordMove, Way};
pub use layout::{LayoutError, RecordLayout, RecordPiece, Stretch};
pub(crate) use layout::{Placed, Rows};
pub use mark::Mark;
pub use memory::DeviceMemory;
pub(crate) use memory::Place;

/// Why a device did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no driver to ask.
    #[error(
        "the driver library libcuda.so.1 is not there: install the NVIDIA driver, or run in a container that is given it"
    )]
    NoDriver,
    /// There is no such GPU.
    #[error("there is no GPU {ordinal}: the driver shows {found}")]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many GPUs there are.
        found: u32,
    },
    /// The driver refused.
    #[error("{call} failed with {name} ({code})")]
    Driver {
        /// The function of the driver.
        call: &'static str,
        /// Its result.
        code: u32,
        /// The result's name.
        name: String,
    },
    /// Addresses that are not this device's memory.
    #[error("{bytes} bytes at {address:#x} are not memory of this device")]
    NotDeviceMemory {
        /// The first address.
        address: u64,
        /// Length in bytes.
        bytes: usize,
    },
    /// A mark in a stream was asked for where there are none: a twin works while its caller waits.
    #[error("a twin of a GPU has no streams")]
    NoStreams,
    /// Matrix products were asked for where there is no library for them.
    #[error("libcublas.so is not there: name its folder in LD_LIBRARY_PATH")]
    NoProducts,
    /// A range lies outside its memory, or memory of another device was given.
    #[error("the memory is too small, or of another device")]
    Memory,
    /// The device did not end what it had begun. Its memory and the host's are kept for it, and the lane is not used any more.
    #[error("the device did not end a transfer within {seconds} s")]
    Stuck {
        /// How long it was waited for.
        seconds: u64,
    },
}

impl DeviceError {
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    const NO_ROOM: u32 = 2;

    /// The device's memory is full.
    fn is_no_room(&self) -> bool {
        matches!(self, Self::Driver { code: Self::NO_ROOM, .. })
    }
}

/// A GPU, or its twin.
#[derive(Debug, Clone)]
pub struct Device(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Twin,
    Cuda(Gpu),
}

impl Device {
    /// One that works on CPUs, at once.
    pub fn twin() -> Self {
        Self(Kind::Twin)
    }

    /// GPU `ordinal` as the driver counts them in this process.
    pub fn cuda(ordinal: u32) -> Result<Self, DeviceError> {
        Gpu::open(ordinal).map(|gpu| Self(Kind::Cuda(gpu)))
    }

    /// Memory of its own, with undefined content on a GPU.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        match &self.0 {
            Kind::Twin => {
                let region: Arc<dyn Memory> = Arc::new(Region::new(bytes).map_err(|_| DeviceError::Memory)?);
                Ok(DeviceMemory::twin(MemoryExtent::whole(region)))
            }
            Kind::Cuda(gpu) => gpu.allocate(bytes).map(DeviceMemory::cuda),
        }
    }

    /// The GPU that it is.
    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        match &self.0 {
            Kind::Twin => None,
            Kind::Cuda(gpu) => Some(gpu),
        }
    }

    /// Copies pairs of equal length with one copy each, and waits for the last: what the device's own copies can do, for comparison.
    /// `batched`: as one call, where the driver has such.
    pub fn copy_each(
        &self,
        way: Way,
        pairs: &[(DeviceMemory, MemoryExtent)],
        batched: bool,
    ) -> Result<(), DeviceError> {
        let known = |(memory, host): &(DeviceMemory, MemoryExtent)| match memory.place() {
            Place::Cuda(extent) => Ok((extent.clone(), host.clone())),
            Place::Twin(_) => Err(DeviceError::Memory),
        };
        match &self.0 {
            Kind::Twin => pairs.iter().try_for_each(|(memory, host)| match (memory.place(), way) {
                (Place::Twin(extent), Way::ToHost) => copy(extent, host).map_err(|_| DeviceError::Memory),
                (Place::Twin(extent), Way::ToDevice) => copy(host, extent).map_err(|_| DeviceError::Memory),
                (Place::Cuda(_), _) => Err(DeviceError::Memory),
            }),
            Kind::Cuda(gpu) => gpu.copy_each(way, &pairs.iter().map(known).collect::<Result<Vec<_>, _>>()?, batched),
        }
    }

    /// An engine's load on the device, for measurements: steps of `count` products of square matrices with so many rows.
    pub fn products(&self, size: u16, count: u32, launch: Launch) -> Result<Products, DeviceError> {
        match &self.0 {
            Kind::Twin => Err(DeviceError::NoProducts),
            Kind::Cuda(gpu) => gpu.products(size, count, launch).map(Products),
        }
    }

    /// Lets the device read and write host memory by itself, which is several times faster, until the result is dropped.
    pub fn pin(&self, memory: &Arc<dyn Memory>) -> Result<PinnedMemory, DeviceError> {
        match &self.0 {
            Kind::Twin => Ok(PinnedMemory(None)),
            Kind::Cuda(gpu) => gpu.pin(memory).map(|pinned| PinnedMemory(Some(pinned))),
        }
    }

    /// A lane for records of one layout. Where the device has no room for the staging memory that the options ask for, it gets
    /// less: smaller chunks, of one record at least, then fewer, two at least.
    pub fn lane(&self, layout: RecordLayout, options: &LaneOptions) -> Result<Lane, DeviceError> {
        let (mut chunks, mut chunk_bytes) = (options.chunks.max(2), options.chunk_bytes);
        loop {
            match self.lane_of(layout.clone(), chunks, chunk_bytes, options) {
                Err(error) if error.is_no_room() && chunk_bytes > layout.record_bytes() => chunk_bytes /= 2,
                Err(error) if error.is_no_room() && chunks > 2 => chunks = (chunks / 2).max(2),
                made => return made,
            }
        }
    }

    fn lane_of(
        &self,
        layout: RecordLayout,
        chunks: usize,
        chunk_bytes: usize,
        options: &LaneOptions,
    ) -> Result<Lane, DeviceError> {
        let room = Room::of(&layout, chunk_bytes);
        let backend: Box<dyn Backend> = match &self.0 {
            Kind::Twin => Box::new(twin::Twin::new(chunks, &room, options)?),
            Kind::Cuda(gpu) => Box::new(gpu.lane(chunks, &room, options)?),
        };
        Lane::new(self.clone(), backend, layout, chunks, room)
    }
}

/// See [`Device::products`].
#[derive(Debug)]
pub struct Products(cuda::Products);

impl Products {
    /// Makes those of a step, and waits for the last.
    pub fn step(&mut self) -> Result<(), DeviceError> {
        self.0.step()
    }

    /// Begins those of a step, and does not wait: marks before and behind them.
    pub fn begin(&mut self) -> Result<[Mark; 2], DeviceError> {
        self.0.begin()
    }
}

/// How an engine puts the kernels of a step on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// Each by a call.
    OneByOne,
    /// All of them by one call, recorded before: engines decode like this.
    AsGraph,
}

/// Host memory that a device may use by itself.
#[derive(Debug)]
pub struct PinnedMemory(Option<Pinned>);

impl PinnedMemory {
    /// Whether GPUs of this process reach these bytes by it.
    pub(crate) fn covers(&self, extent: &MemoryExtent) -> bool {
        self.0.as_ref().is_some_and(|pinned| pinned.covers(extent))
    }
}
