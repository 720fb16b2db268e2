//! Kernels are checked in compiled, so that no build of kvd needs CUDA: what is compiled must be what stands beside it.

use kvd_nixl::ChecksumAlgorithm;
use std::fs;

use crate::sources::root;

#[test]
fn kernels_are_compiled_from_their_source() {
    let folder = root().join("nixl/kernels");
    let source = fs::read(folder.join("records.cu")).expect("the kernels' source is there");
    let compiled = fs::read_to_string(folder.join("records.ptx")).expect("the kernels are checked in compiled");
    let sum = format!("// XXH3-64 of records.cu: {:016x}", ChecksumAlgorithm::Xxh3.checksum(0, &source));
    assert!(
        compiled.lines().take_while(|line| line.starts_with("//")).any(|line| line == sum),
        "nixl/kernels/records.cu has changed since records.ptx was made: run nixl/kernels/build.sh"
    );
}
