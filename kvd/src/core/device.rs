//! One thread per NVMe device: it owns the device, its queue and the verification of what it reads.
