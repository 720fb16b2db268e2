//! Agents over simulated disks, and looking at futures without running them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kvd_nixl::agent::{Agent, DescriptorList, DescriptorRun, Extent, Section, SectionKind, Stored};
use kvd_nixl::io::{FaultControl, FaultIo, FaultPlan, Seeded, SimDisk, SimOptions};
use kvd_nixl::sys::{Memory, Region};

pub(crate) const BLOCK: u64 = 64 << 10;
pub(crate) const FILE_BYTES: u64 = 64 * BLOCK;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut random = Seeded::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).take(len as usize).collect()
}

/// An agent with one simulated disk of noise, operations limited to `depth`, under a fault plan.
pub(crate) struct Rig {
    pub(crate) agent: Agent,
    pub(crate) disk: SimDisk,
    pub(crate) file: Section,
    pub(crate) content: Vec<u8>,
    pub(crate) faults: FaultControl,
}

pub(crate) fn rig(depth: usize, plan: FaultPlan) -> Rig {
    let disk = SimDisk::new(7, SimOptions { depth, ..SimOptions::default() });
    let id = disk.add_file(FILE_BYTES);
    let content = noise(FILE_BYTES, 1);
    disk.alter(id, 0, &content);
    let mut agent = Agent::new().unwrap();
    let io = disk.io();
    let (tell, told) = crossbeam::channel::bounded(1);
    let make = move || {
        let io = FaultIo::new(io, 3, plan);
        tell.send(io.control()).unwrap();
        Ok((io, vec![Stored { file: id, bytes: FILE_BYTES, kind: SectionKind::File }]))
    };
    let (_, mut sections) = agent.add_io("disk", make).unwrap();
    Rig { agent, disk, file: sections.remove(0), content, faults: told.recv().unwrap() }
}

pub(crate) fn memory(bytes: u64) -> Arc<dyn Memory> {
    Arc::new(Region::new(bytes as usize).unwrap())
}

pub(crate) fn bytes(memory: &Arc<dyn Memory>, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    memory.read(offset as usize, &mut bytes).unwrap();
    bytes
}

/// `count` blocks at every `every`-th place of a section.
pub(crate) fn blocks(section: &Section, every: u64, count: u32) -> DescriptorList {
    let first = Extent { section: section.clone(), offset: 0, len: BLOCK };
    DescriptorList::prepare([DescriptorRun { first, stride: BLOCK * every, count }]).unwrap()
}

/// Looks at a future once.
pub(crate) fn look<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Waits for what a driver thread will do by itself.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn in_flight(agent: &Agent) -> u64 {
    agent.telemetry()[1].1.in_flight
}
