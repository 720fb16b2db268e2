//! What the bus can do: contiguous copies between pinned memory and the device's.

use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::device::{Device, DeviceMemory, PinnedMemory, Way};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};

use super::{Limit, failed, together};
use crate::cli::exit::Failure;

/// Each way: large enough that beginning it does not count, small enough to have it for each way.
const COPY_BYTES: usize = 256 << 20;
const COPIES: usize = 4;

/// Memory for copies, one set each way.
pub(super) struct Bus {
    sets: [Set; 2],
}

struct Set {
    host: MemoryExtent,
    memory: DeviceMemory,
    _pinned: PinnedMemory,
}

impl Bus {
    pub(super) fn new(device: &Device) -> Result<Bus, Failure> {
        let set = || {
            let region: Arc<dyn Memory> = Arc::new(Region::new(COPY_BYTES)?);
            region.zero(0, COPY_BYTES).map_err(failed)?;
            let pinned = device.pin(&region).map_err(failed)?;
            let memory = device.allocate(COPY_BYTES).map_err(failed)?;
            Ok::<_, Failure>(Set { host: MemoryExtent::whole(region), memory, _pinned: pinned })
        };
        Ok(Bus { sets: [set()?, set()?] })
    }

    /// Bytes of one copy, in gigabytes.
    pub(super) fn gigabytes() -> f64 {
        (COPIES * COPY_BYTES) as f64 / 1e9
    }

    /// Copies them one way; seconds.
    pub(super) fn copy(&self, device: &Device, way: Way) -> Result<f64, Failure> {
        let set = &self.sets[usize::from(way == Way::ToDevice)];
        let pairs = vec![(set.memory.clone(), set.host.clone()); COPIES];
        let started = Instant::now();
        device.copy_each(way, &pairs, false).map_err(failed)?;
        Ok(started.elapsed().as_secs_f64())
    }

    pub(super) fn limit(&self, device: &Device) -> Result<Limit, Failure> {
        let (gigabytes, copy) = (Self::gigabytes(), |way| self.copy(device, way));
        Ok(Limit {
            to_host_gb_per_second: gigabytes / copy(Way::ToHost)?,
            to_device_gb_per_second: gigabytes / copy(Way::ToDevice)?,
            both_gb_per_second: 2.0 * gigabytes / together(|| copy(Way::ToHost), || copy(Way::ToDevice))?,
        })
    }
}
