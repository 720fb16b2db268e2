//! A plain loop over the product's `Io`: no record, no checksum, no journal.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use kvd_nixl::io::{Io, IoDone, IoOp, Seeded, UringIo, UringOptions};
use kvd_nixl::sys::{Mapping, Memory, MemoryExtent, memfd_sealed};

use super::disk::Disk;
use super::load::cpu_time;
use super::{Run, Shape, failed};
use crate::cli::exit::Failure;

/// One run: random offsets, memory as the arena's, registered.
pub(super) fn run(disk: &Disk, shape: Shape) -> Result<Run, Failure> {
    let mut io = UringIo::new(UringOptions { depth: shape.queue_depth, memories: 4 }).map_err(failed)?;
    let file = io.add_file(Arc::clone(&disk.prepared.file)).map_err(failed)?;
    let bytes_in_flight = shape.block_bytes as usize * shape.queue_depth as usize;
    let memfd = memfd_sealed("kvd-bench-raw", bytes_in_flight as u64)?;
    let mapping = Mapping::new(memfd.as_fd(), 0, bytes_in_flight).map_err(failed)?;
    mapping.populate()?;
    // As the arena's segments are. Without huge pages it is measured without.
    let _ = mapping.collapse();
    let memory: Arc<dyn Memory> = Arc::new(mapping);
    memory.zero(0, bytes_in_flight).map_err(failed)?;
    io.register_memory(&memory);
    let mut random = Seeded::new(u64::from(shape.block_bytes));
    let blocks = disk.data_bytes() / u64::from(shape.block_bytes);
    let mut next = |slot: u64| -> Result<IoOp, Failure> {
        let at = disk.data_at() + random.below(blocks) * u64::from(shape.block_bytes);
        let from = slot as usize * shape.block_bytes as usize;
        let part = MemoryExtent::new(Arc::clone(&memory), from, shape.block_bytes as usize).map_err(failed)?;
        Ok(if shape.write { IoOp::write(slot, file, at, part) } else { IoOp::read(slot, file, at, part) })
    };
    let full = |_| failed("the queue takes less than its depth");
    let (cpu_before, started) = (cpu_time()?, Instant::now());
    for slot in 0..u64::from(shape.queue_depth) {
        io.submit(next(slot)?).map_err(full)?;
    }
    let mut done: Vec<IoDone> = Vec::with_capacity(shape.queue_depth as usize);
    let mut bytes = 0_u64;
    while io.in_flight() > 0 {
        io.wait(None);
        io.poll(&mut done);
        let going_on = started.elapsed() < shape.limit;
        for done in done.drain(..) {
            done.result.map_err(failed)?;
            bytes += u64::from(shape.block_bytes);
            if going_on {
                io.submit(next(done.tag)?).map_err(full)?;
            }
        }
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_time()?.saturating_sub(cpu_before));
    io.unregister_memory(&memory);
    Ok(Run::of(bytes as f64, seconds, cpu.as_secs_f64()))
}
