//! Devices that fail, hang, or are slow to begin.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::device::RecordPiece;
use crate::sys::copy::StridedRun;
use crate::sys::{Memory, Region};

const RECORD_BYTES: usize = 4096;

/// Moves nothing; a chunk's checksum is the seed of its record.
#[derive(Debug, Default)]
struct Feigned {
    refuses: AtomicBool,
    hangs: AtomicBool,
    dead: AtomicBool,
    /// Flights inside `begin`, by chunk; more than one at a time is a chunk that was given away.
    inside: [AtomicUsize; 2],
    seeds: Mutex<[u64; 2]>,
}

fn broken() -> DeviceError {
    DeviceError::Driver { call: "a call", code: 1, name: "a name".into() }
}

fn stuck() -> DeviceError {
    DeviceError::Stuck { seconds: STUCK.as_secs() }
}

impl Backend for Arc<Feigned> {
    fn table(&self, _layout: &RecordLayout) -> Result<Vec<u8>, DeviceError> {
        Ok(Vec::new())
    }

    fn begin(&self, chunk: usize, _course: &Course, _way: Way, moves: &[RecordMove]) -> Result<(), DeviceError> {
        assert_eq!(self.inside[chunk].fetch_add(1, Ordering::SeqCst), 0, "the chunk has an owner");
        self.seeds.lock().unwrap()[chunk] = moves[0].seed;
        std::thread::sleep(Duration::from_micros(200));
        assert_eq!(self.seeds.lock().unwrap()[chunk], moves[0].seed);
        self.inside[chunk].fetch_sub(1, Ordering::SeqCst);
        if self.refuses.load(Ordering::SeqCst) { Err(broken()) } else { Ok(()) }
    }

    fn settle(&self, _chunk: usize, _way: Way) -> Result<(), DeviceError> {
        if self.hangs.load(Ordering::SeqCst) { Err(stuck()) } else { Ok(()) }
    }

    fn is_done(&self, _chunk: usize) -> bool {
        !self.hangs.load(Ordering::SeqCst)
    }

    fn is_alive(&self) -> Result<(), DeviceError> {
        if self.dead.load(Ordering::SeqCst) { Err(broken()) } else { Ok(()) }
    }

    fn sums(&self, chunk: usize, _count: usize) -> Vec<u64> {
        vec![self.seeds.lock().unwrap()[chunk]]
    }
}

fn lane() -> (Arc<Feigned>, Lane) {
    let (device, feigned) = (Device::twin(), Arc::new(Feigned::default()));
    let memory = device.allocate(4 * RECORD_BYTES).unwrap();
    let piece = RecordPiece { memory, block_stride: RECORD_BYTES, run: StridedRun::contiguous(RECORD_BYTES) };
    let layout = RecordLayout::new(vec![piece], RECORD_BYTES).unwrap();
    let room = Room::of(&layout, RECORD_BYTES);
    (feigned.clone(), Lane::new(device, Box::new(feigned), layout, 2, room).unwrap())
}

/// A move whose host memory tells whether it is still held.
fn one(seed: u64) -> (Vec<RecordMove>, std::sync::Weak<dyn Memory>) {
    let region: Arc<dyn Memory> = Arc::new(Region::new(RECORD_BYTES).unwrap());
    let held = Arc::downgrade(&region);
    (vec![RecordMove { host: MemoryExtent::whole(region), pinned: None, index: 0, seed }], held)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn a_device_that_refuses_ends_the_lane_with_its_reason() {
    let (feigned, lane) = lane();
    feigned.refuses.store(true, Ordering::SeqCst);
    let (moves, held) = one(1);
    assert_eq!(lane.begin(Way::ToHost, moves, soon()).unwrap_err(), broken());
    assert!(held.upgrade().is_some(), "left to the device");
    feigned.refuses.store(false, Ordering::SeqCst);
    assert_eq!(lane.begin(Way::ToHost, one(2).0, soon()).unwrap_err(), broken());
    assert_eq!(lane.failure(), Some(broken()));
}

#[test]
fn what_breaks_off_half_way_and_goes_on_is_told_apart() {
    let (feigned, lane) = lane();
    feigned.refuses.store(true, Ordering::SeqCst);
    feigned.hangs.store(true, Ordering::SeqCst);
    assert_eq!(lane.begin(Way::ToHost, one(1).0, soon()).unwrap_err(), stuck());
    assert_eq!(lane.failure(), Some(broken()), "why it began");
}

#[test]
fn a_device_that_hangs_is_waited_for_once_and_keeps_its_memory() {
    let (feigned, lane) = lane();
    feigned.hangs.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let flights = [1, 2].map(|seed| {
        let (moves, held) = one(seed);
        (lane.begin(Way::ToDevice, moves, soon()).unwrap().unwrap(), held)
    });
    let none = lane.begin(Way::ToDevice, one(3).0, Instant::now() + Duration::from_millis(20)).unwrap();
    assert!(none.is_none(), "both chunks are taken");
    let [(first, first_held), (second, second_held)] = flights;
    assert_eq!(first.finish().unwrap_err(), stuck());
    drop(second);
    let waited = started.elapsed();
    assert!(waited >= STUCK && waited < 2 * STUCK, "{waited:?}");
    assert!(first_held.upgrade().is_some() && second_held.upgrade().is_some());
    assert_eq!(lane.begin(Way::ToDevice, one(4).0, soon()).unwrap_err(), stuck());
}

#[test]
fn a_device_that_dies_is_not_waited_for() {
    let (feigned, lane) = lane();
    feigned.hangs.store(true, Ordering::SeqCst);
    let flight = lane.begin(Way::ToDevice, one(1).0, soon()).unwrap().unwrap();
    feigned.dead.store(true, Ordering::SeqCst);
    let started = Instant::now();
    assert_eq!(flight.finish().unwrap_err(), broken());
    assert!(started.elapsed() < STUCK);
}

#[test]
fn threads_share_chunks_and_none_is_taken_from_a_flight_that_is_just_beginning() {
    let (_, lane) = lane();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let lane = &lane;
            scope.spawn(move || {
                for at in 0..100 {
                    let seed = thread << 32 | at;
                    let flight = lane.begin(Way::ToHost, one(seed).0, soon()).unwrap().unwrap();
                    if at % 3 == 0 {
                        drop(flight);
                    } else {
                        assert_eq!(flight.finish().unwrap(), [seed]);
                    }
                }
            });
        }
    });
}
