//! Records between slots and a device's memory: on the twin that works on CPUs, always, and on a real GPU where there is one.
//!
//! The same tests on both: what they find on the twin holds for the GPU bit for bit, for both are compared with one reference
//! that is neither.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests: where one fails is what its test says")]

mod blocks;
mod deaths;
mod engine;
mod killed;
mod lanes;
mod layers;
mod marks;
mod parts;
mod pinning;
mod ranks;
mod shards;

use kvd_nixl::device::Device;
use kvd_tests::skip;

/// The devices to test on. A GPU that is missing is reported under the test's name.
fn devices(test: &str) -> Vec<(&'static str, Device)> {
    let mut devices = vec![("twin", Device::twin())];
    match Device::cuda(0) {
        Ok(gpu) => devices.push(("gpu", gpu)),
        Err(error) => skip(&format!("{test} on a GPU"), &error.to_string()),
    }
    devices
}
