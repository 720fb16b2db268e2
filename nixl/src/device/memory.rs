//! Memory that only the device can touch.

use super::DeviceError;
use crate::sys::MemoryExtent;
use crate::sys::cuda::CudaExtent;

/// A range of a device's memory. Clones are the same bytes.
#[derive(Debug, Clone)]
pub struct DeviceMemory(Place);

/// Whose memory it is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Twin(MemoryExtent),
    Cuda(CudaExtent),
}

impl Place {
    /// What is left of the address beyond a multiple of `grain`.
    pub(crate) fn address_remainder(&self, grain: usize) -> usize {
        match self {
            // Memory of a twin has an address of its own, which no device sees.
            Self::Twin(extent) => extent.offset() % grain,
            Self::Cuda(extent) => extent.address_remainder(grain),
        }
    }
}

impl DeviceMemory {
    pub(super) fn twin(extent: MemoryExtent) -> Self {
        Self(Place::Twin(extent))
    }

    pub(crate) fn cuda(extent: CudaExtent) -> Self {
        Self(Place::Cuda(extent))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Twin(extent) => extent.len(),
            Place::Cuda(extent) => extent.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` bytes of it.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, DeviceError> {
        match &self.0 {
            Place::Twin(extent) => extent.part(offset, len).map(Place::Twin).map_err(|_| DeviceError::Memory),
            Place::Cuda(extent) => extent.part(offset, len).map(Place::Cuda),
        }
        .map(Self)
    }

    /// Copies bytes out, and waits for them. Not for payload: a [`super::Lane`] moves that.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        match &self.0 {
            Place::Twin(extent) => extent.read(offset, into).map_err(|_| DeviceError::Memory),
            Place::Cuda(extent) => extent.read(offset, into),
        }
    }

    /// Copies bytes in, and waits until they are there.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        match &self.0 {
            Place::Twin(extent) => extent.write(offset, from).map_err(|_| DeviceError::Memory),
            Place::Cuda(extent) => extent.write(offset, from),
        }
    }
}
