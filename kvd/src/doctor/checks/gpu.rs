//! Whether engines of this machine can move blocks of a GPU's memory. The daemon itself needs no GPU.

use std::path::Path;

use kvd_nixl::device::DeviceError;

use super::super::Notes;
use crate::config::Config;
use crate::machine::Machine;

/// There where the kernel's part of the driver is loaded.
const CONTROL_DEVICE: &str = "/dev/nvidiactl";

pub(super) fn lanes(_: &Config, machine: &dyn Machine, notes: &mut Notes) {
    let error = match machine.gpu() {
        Ok(()) => return notes.ok("GPU 0 takes the kernels that move blocks"),
        Err(error) => error,
    };
    let has_gpu = matches!(machine.entry(Path::new(CONTROL_DEVICE)), Ok(Some(_)));
    let remedy = match &error {
        DeviceError::NoDriver if !has_gpu => return notes.ok("no GPU: blocks in host memory only"),
        DeviceError::NoDriver => {
            "the machine has a GPU: run kvd's engines where the NVIDIA runtime gives them its driver"
        }
        DeviceError::NoDevice { .. } => {
            "give the container a GPU (a device plugin or NVIDIA_VISIBLE_DEVICES); look with nvidia-smi"
        }
        _ => "look with nvidia-smi and for Xid in the kernel's log; the driver must be one of CUDA 12 or newer",
    };
    notes.warn(format!("engines here cannot move a GPU's blocks: {error}"), remedy);
}
