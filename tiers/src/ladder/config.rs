//! Bounds and paces of the ladder. Everything that could grow has its maximum here.

use std::time::Duration;

/// One NVMe device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Zones of 64 MiB.
    pub zones: u32,
}

/// The object tier's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectConfig {
    /// Records are given to it.
    pub writes: bool,
    /// Records fetched from it at a time.
    pub gets_max: u32,
    /// Bytes of them; a single one may have more.
    pub get_bytes_max: u64,
    /// Bytes that lie side by side in a pack and are fetched as one run; a single record may have more.
    pub run_bytes_max: u64,
    /// Records given to it at a time.
    pub puts_max: u32,
    /// Records that wait to be given to it, in each turn.
    pub queue_max: u32,
    /// Nodes of records that lie only there.
    pub remotes_max: u32,
}

impl Default for ObjectConfig {
    fn default() -> Self {
        Self {
            writes: true,
            gets_max: 64,
            get_bytes_max: 128 << 20,
            run_bytes_max: 16 << 20,
            puts_max: 32,
            queue_max: 1 << 16,
            remotes_max: 65_536,
        }
    }
}

/// Bounds and paces. [`LadderConfig::new`] gives the defaults for a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LadderConfig {
    /// Segments of the arena.
    pub dram_segments: u32,
    /// Devices, by [`crate::DeviceId`]; at most 255.
    pub devices: Vec<DeviceConfig>,
    /// The object tier, where there is one.
    pub object: Option<ObjectConfig>,
    /// Engine instances that are live or still own blocks; at most 255.
    pub instances_max: u8,
    /// Open views.
    pub views_max: u32,
    /// Distinct (tenant, namespace, group, shard).
    pub lanes_max: u16,
    /// Distinct (tenant, slot size) in the arena, and slot sizes on devices.
    pub classes_max: u16,
    /// Leases, of both kinds; with `loads_max` at most 65 000.
    pub leases_max: u32,
    /// Bytes that the leases of one instance may hold, each lease counted in full.
    pub lease_bytes_max: u64,
    /// A match lease that nobody used for so long is given up.
    pub lease_idle: Duration,
    /// Bytes of the arena that other instances cannot take from an instance; less where there are so many instances that this
    /// would be more than half of the arena.
    pub floor_bytes: u64,
    /// Blocks that are whole but wait for an ancestor.
    pub orphans_max: u32,
    /// How long they wait.
    pub orphan_wait: Duration,
    /// Remembered reasons of blocks that are gone; rounded up to a power of two.
    pub ghosts: u32,
    /// Blocks that wait to be spilled.
    pub spill_queue_max: u32,
    /// Spills in flight per device: enough to fill the pages of its journal, each of which gathers for a millisecond.
    pub spills_max: u32,
    /// Fetches in flight per device.
    pub fetches_max: u32,
    /// Vacates in flight per device.
    pub vacates_max: u32,
    /// Loads and prefetches that wait.
    pub loads_max: u32,
    /// How long a prefetch goes on planning fetches.
    pub prefetch_wait: Duration,
    /// Load only what is faster than recomputing it.
    pub gate: bool,
    /// Failed moves within `breaker_window` that take a device out.
    pub breaker_errors: u32,
    /// See `breaker_errors`.
    pub breaker_window: Duration,
    /// First pause before a device that is out, or full, is tried again; doubles up to 16 times that.
    pub breaker_pause: Duration,
    /// Pause between two records of a scrub.
    pub scrub_pause: Duration,
    /// Steps of background work per call.
    pub work_per_call: u32,
}

impl LadderConfig {
    /// Defaults for an arena of so many segments and these devices.
    pub fn new(dram_segments: u32, devices: Vec<DeviceConfig>) -> Self {
        Self {
            dram_segments,
            devices,
            object: None,
            instances_max: 128,
            views_max: 16 * 1024,
            lanes_max: 4096,
            classes_max: 256,
            leases_max: 16_384,
            lease_bytes_max: u64::from(dram_segments) * u64::from(crate::SEGMENT_BYTES) / 2,
            lease_idle: Duration::from_secs(30),
            floor_bytes: 0,
            orphans_max: 4096,
            orphan_wait: Duration::from_secs(10),
            ghosts: 1 << 16,
            spill_queue_max: 1 << 16,
            spills_max: 32,
            fetches_max: 16,
            vacates_max: 64,
            loads_max: 1024,
            prefetch_wait: Duration::from_secs(5),
            gate: true,
            breaker_errors: 8,
            breaker_window: Duration::from_secs(10),
            breaker_pause: Duration::from_millis(250),
            scrub_pause: Duration::from_millis(2),
            work_per_call: 128,
        }
    }
}
