//! Layouts: what a lane moves, byte for byte and checksum for checksum, against a reference that walks the axes one by one.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvd_nixl::ChecksumAlgorithm;
use kvd_nixl::device::{
    Between, Device, DeviceError, DeviceMemory, Flight, LaneOptions, RecordLayout, RecordMove, RecordPiece, Way,
};
use kvd_nixl::sys::copy::{Axis, StridedRun};
use kvd_nixl::sys::{Memory, MemoryExtent, Region};
use kvd_nixl::unit_seed;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use crate::devices;

/// One piece of a layout: bytes from one block to the next, and the fragments of block 0.
#[derive(Clone)]
pub(crate) struct Shape {
    block_stride: usize,
    pub(crate) run: StridedRun,
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) pieces: Vec<Shape>,
    pub(crate) unit_bytes: usize,
    pub(crate) blocks: usize,
}

fn contiguous(bytes: usize) -> Shape {
    Shape { block_stride: bytes, run: StridedRun::contiguous(bytes) }
}

fn axis(count: usize, stride: usize) -> Axis {
    Axis { count, stride }
}

pub(crate) fn cases() -> Vec<Case> {
    // 16 tokens of 128 elements of bf16: 256 bytes each for key and value.
    let (tokens, heads, dim) = (16, 4, 256);
    let nhd = Shape {
        // [kv][block][token][head][dim], and a record [head][kv][token][dim].
        block_stride: tokens * heads * dim,
        run: StridedRun {
            offset: 0,
            fragment_bytes: dim,
            axes: [axis(heads, dim), axis(2, 8 * tokens * heads * dim), axis(tokens, heads * dim)],
        },
    };
    let heads_apart = Shape {
        // [block][head][token][k|v] of which every other head is ours.
        block_stride: 2 * heads * tokens * 2 * dim,
        run: StridedRun {
            offset: tokens * 2 * dim,
            fragment_bytes: tokens * 2 * dim,
            axes: [Axis::ONE, Axis::ONE, axis(heads, 2 * tokens * 2 * dim)],
        },
    };
    let unit = tokens * 2 * dim;
    vec![
        Case { name: "block-first 2 MiB", pieces: vec![contiguous(2 << 20)], unit_bytes: 64 << 10, blocks: 6 },
        Case { name: "units of 8 KiB", pieces: vec![contiguous(256 << 10)], unit_bytes: 8 << 10, blocks: 9 },
        Case { name: "a layer each", pieces: vec![contiguous(heads * unit); 5], unit_bytes: unit, blocks: 8 },
        Case { name: "NHD, K and V apart", pieces: vec![nhd; 3], unit_bytes: unit, blocks: 8 },
        Case { name: "every other head", pieces: vec![heads_apart; 2], unit_bytes: unit, blocks: 8 },
        Case { name: "MLA", pieces: vec![contiguous(16 * 1152); 3], unit_bytes: 16 * 1152, blocks: 8 },
        Case { name: "a short last unit", pieces: vec![contiguous((64 << 10) + 192)], unit_bytes: 64 << 10, blocks: 5 },
        Case { name: "a whole block of XXH3", pieces: vec![contiguous(4096)], unit_bytes: 1024, blocks: 7 },
        Case { name: "units of 16 bytes", pieces: vec![contiguous(256); 2], unit_bytes: 16, blocks: 7 },
        Case { name: "units of 128 bytes", pieces: vec![contiguous(512); 2], unit_bytes: 128, blocks: 7 },
        Case { name: "units of 240 bytes", pieces: vec![contiguous(480); 2], unit_bytes: 240, blocks: 7 },
        Case { name: "units of 256 bytes", pieces: vec![contiguous(512)], unit_bytes: 256, blocks: 7 },
    ]
}

/// Memory of one case on one device, with copies of it here.
pub(crate) struct Field {
    pub(crate) layout: RecordLayout,
    memories: Vec<DeviceMemory>,
    bytes: Vec<Vec<u8>>,
}

impl Field {
    pub(crate) fn new(device: &Device, case: &Case, random: &mut SmallRng) -> Field {
        let sizes = case.pieces.iter().map(|piece| (case.blocks - 1) * piece.block_stride + piece.run.end().unwrap());
        let memories: Vec<_> = sizes.map(|bytes| device.allocate(bytes).unwrap()).collect();
        let bytes = memories.iter().map(|memory| {
            let mut bytes = vec![0; memory.len()];
            random.fill_bytes(&mut bytes);
            memory.write(0, &bytes).unwrap();
            bytes
        });
        let bytes = bytes.collect();
        let pieces = case.pieces.iter().zip(&memories);
        let pieces = pieces.map(|(piece, memory)| RecordPiece {
            memory: memory.clone(),
            block_stride: piece.block_stride,
            run: piece.run,
        });
        let layout = RecordLayout::new(pieces.collect(), case.unit_bytes).unwrap();
        assert!(layout.blocks() >= case.blocks);
        Field { layout, memories, bytes }
    }

    /// Where each byte range of a block's record lies, in the order of the record: piece, offset, length.
    fn places(case: &Case, block: usize) -> Vec<(usize, usize, usize)> {
        let mut places = Vec::new();
        for (at, Shape { block_stride, run }) in case.pieces.iter().enumerate() {
            let [slow, middle, fast] = run.axes;
            for s in 0..slow.count {
                for m in 0..middle.count {
                    for f in 0..fast.count {
                        let offset = run.offset + s * slow.stride + m * middle.stride + f * fast.stride;
                        places.push((at, block * block_stride + offset, run.fragment_bytes));
                    }
                }
            }
        }
        places
    }

    pub(crate) fn record(&self, case: &Case, block: usize) -> Vec<u8> {
        let places = Self::places(case, block);
        places.into_iter().flat_map(|(piece, at, len)| self.bytes[piece][at..at + len].to_vec()).collect()
    }

    /// Puts a record into the copies.
    pub(crate) fn put(&mut self, case: &Case, block: usize, record: &[u8]) {
        let mut done = 0;
        for (piece, at, len) in Self::places(case, block) {
            self.bytes[piece][at..at + len].copy_from_slice(&record[done..done + len]);
            done += len;
        }
    }

    pub(crate) fn assert_same(&self, what: &str) {
        for (memory, bytes) in self.memories.iter().zip(&self.bytes) {
            let mut found = vec![0; memory.len()];
            memory.read(0, &mut found).unwrap();
            assert!(found == *bytes, "{what}: the device's memory is another");
        }
    }
}

pub(crate) fn sums(record: &[u8], unit_bytes: usize, seed: u64) -> Vec<u64> {
    let units = record.chunks(unit_bytes).enumerate();
    units.map(|(unit, bytes)| ChecksumAlgorithm::Xxh3.checksum(unit_seed(seed, unit as u32), bytes)).collect()
}

pub(crate) fn host(bytes: usize) -> MemoryExtent {
    let region: Arc<dyn Memory> = Arc::new(Region::new(bytes).unwrap());
    MemoryExtent::whole(region)
}

pub(crate) fn content(extent: &MemoryExtent) -> Vec<u8> {
    let mut bytes = vec![0; extent.len()];
    extent.read(0, &mut bytes).unwrap();
    bytes
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Small chunks, so that a few blocks take several.
pub(crate) fn options(layout: &RecordLayout) -> LaneOptions {
    LaneOptions { chunk_bytes: 3 * layout.record_bytes() + 1024, chunks: 2, ..LaneOptions::default() }
}

pub(crate) fn finish(flights: Vec<Flight>) -> Vec<u64> {
    flights.into_iter().flat_map(|flight| flight.finish().unwrap()).collect()
}

#[test]
fn every_layout_goes_out_and_comes_back_to_other_blocks() {
    for (name, device) in devices("layouts") {
        for case in cases() {
            let what = format!("{} on the {name}", case.name);
            let mut random = SmallRng::seed_from_u64(11);
            let mut field = Field::new(&device, &case, &mut random);
            let lane = device.lane(field.layout.clone(), &options(&field.layout)).unwrap();
            let order: Vec<usize> = (0..case.blocks).rev().collect();
            let records: Vec<Vec<u8>> = order.iter().map(|block| field.record(&case, *block)).collect();
            let all = host(case.blocks * field.layout.record_bytes());
            let pinned = Arc::new(device.pin(all.memory()).unwrap());
            let slot = |at: usize| all.part(at * field.layout.record_bytes(), field.layout.record_bytes()).unwrap();
            let moves: Vec<RecordMove> = order
                .iter()
                .enumerate()
                .map(|(at, block)| RecordMove {
                    host: slot(at),
                    pinned: Some(pinned.clone()),
                    index: *block,
                    seed: random.random(),
                })
                .collect();
            let expected: Vec<u64> =
                records.iter().zip(&moves).flat_map(|(record, one)| sums(record, case.unit_bytes, one.seed)).collect();
            let mut found = Vec::new();
            for part in moves.chunks(lane.records_max()) {
                let flight = lane.begin(Way::ToHost, part.to_vec(), soon()).unwrap().expect("a free chunk");
                assert_eq!(flight.records(), part.len());
                found.extend(finish(vec![flight]));
            }
            assert!(found == expected, "{what}: other checksums to the host");
            for (at, record) in records.iter().enumerate() {
                assert!(content(&slot(at)) == *record, "{what}: record {at} is another in host memory");
            }
            field.assert_same(&what);

            // Back to other blocks, two chunks at a time; what lies between the fragments stays.
            let back: Vec<RecordMove> =
                moves.iter().map(|one| RecordMove { index: case.blocks - 1 - one.index, ..one.clone() }).collect();
            for (record, one) in records.iter().zip(&back) {
                field.put(&case, one.index, record);
            }
            let flights = back.chunks(lane.records_max()).map(|part| {
                lane.begin(Way::ToDevice, part.to_vec(), soon()).unwrap().expect("a chunk whose flight has ended")
            });
            // More flights than chunks, and nobody has asked for the first ones yet.
            let flights: Vec<Flight> = flights.collect();
            let found = finish(flights);
            assert!(found == expected, "{what}: other checksums to the device");
            field.assert_same(&what);
        }
    }
}

#[test]
fn a_bit_that_flips_in_staging_or_in_host_memory_is_another_checksum() {
    for (name, device) in devices("flips") {
        let case = Case { name: "flips", pieces: vec![contiguous(32 << 10); 2], unit_bytes: 8 << 10, blocks: 4 };
        let mut random = SmallRng::seed_from_u64(12);
        let field = Field::new(&device, &case, &mut random);
        let flip: Arc<Mutex<Option<usize>>> = Arc::default();
        let to_flip = flip.clone();
        let between = Between::new(move |_, staging| {
            if let Some(at) = to_flip.lock().unwrap().take() {
                let mut byte = [0];
                staging.read(at, &mut byte).unwrap();
                staging.write(at, &[byte[0] ^ 1]).unwrap();
            }
        });
        let options = LaneOptions { between: Some(between), ..options(&field.layout) };
        let lane = device.lane(field.layout.clone(), &options).unwrap();
        let slot = host(64 << 10);
        let one = RecordMove { host: slot.clone(), pinned: None, index: 2, seed: 5 };
        let go = |way| finish(vec![lane.begin(way, vec![one.clone()], soon()).unwrap().expect("a free chunk")]);
        let record = field.record(&case, 2);
        let expected = sums(&record, case.unit_bytes, 5);
        for _ in 0..20 {
            let at = random.random_range(0..64 << 10);
            let others = |found: Vec<u64>| (0..8).filter(|unit| found[*unit] != expected[*unit]).collect::<Vec<_>>();
            // On its way out: the checksums are the engine's bytes', so the record does not verify later.
            *flip.lock().unwrap() = Some(at);
            assert_eq!(go(Way::ToHost), expected, "{name}");
            assert_eq!(others(sums(&content(&slot), case.unit_bytes, 5)), [at / (8 << 10)], "{name}, out, byte {at}");
            // On its way back, in staging, and before, in the slot.
            slot.write(0, &record).unwrap();
            *flip.lock().unwrap() = Some(at);
            assert_eq!(others(go(Way::ToDevice)), [at / (8 << 10)], "{name}, in staging, byte {at}");
            slot.write(at, &[record[at] ^ 0x80]).unwrap();
            assert_eq!(others(go(Way::ToDevice)), [at / (8 << 10)], "{name}, in the slot, byte {at}");
            slot.write(0, &record).unwrap();
            assert_eq!(go(Way::ToDevice), expected, "{name}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_costs_nothing_and_flights_end_in_any_order() {
    for (name, device) in devices("refusals of a lane") {
        let case = Case { name: "full", pieces: vec![contiguous(64 << 10)], unit_bytes: 64 << 10, blocks: 4 };
        let field = Field::new(&device, &case, &mut SmallRng::seed_from_u64(13));
        let lane = device.lane(field.layout.clone(), &options(&field.layout)).unwrap();
        let begin = |moves| lane.begin(Way::ToHost, moves, soon());
        let wrong =
            |host: MemoryExtent, index| begin(vec![RecordMove { host, pinned: None, index, seed: 1 }]).unwrap_err();
        let one = |index, seed| RecordMove { host: host(64 << 10), pinned: None, index, seed };
        assert_eq!(wrong(host(64 << 10), 4), DeviceError::Memory, "{name}: no such block");
        assert_eq!(wrong(host(4096), 1), DeviceError::Memory, "{name}: another length");
        let many = (0..=lane.records_max()).map(|_| one(1, 1)).collect();
        assert_eq!(begin(many).unwrap_err(), DeviceError::Memory, "{name}: too many");

        let flights: Vec<Flight> =
            (0..20).map(|at| begin(vec![one(at % 4, at as u64)]).unwrap().expect("a chunk")).collect();
        for (at, flight) in flights.into_iter().enumerate().rev() {
            if at % 3 == 0 {
                drop(flight);
            } else {
                let expected = sums(&field.record(&case, at % 4), case.unit_bytes, at as u64);
                assert_eq!(flight.finish().unwrap(), expected, "{name}, flight {at}");
            }
        }
    }
}

#[test]
fn a_device_that_is_nearly_full_gets_a_smaller_lane() {
    let device = match Device::cuda(0) {
        Ok(device) if std::env::var("KVD_GPU_ALONE").is_ok_and(|value| value == "1") => device,
        Ok(_) => return kvd_tests::skip("a lane on a full GPU", "other tests use it: run make test-gpu"),
        Err(error) => return kvd_tests::skip("a lane on a full GPU", &error.to_string()),
    };
    let case = Case { name: "full", pieces: vec![contiguous(2 << 20)], unit_bytes: 8 << 10, blocks: 4 };
    let field = Field::new(&device, &case, &mut SmallRng::seed_from_u64(14));
    // All but some 64 MiB, of which the lane that is asked for would take three times as much.
    let room = device.allocate(64 << 20).unwrap();
    let mut taken = Vec::new();
    let mut bytes = 64 << 30;
    while bytes >= 16 << 20 {
        match device.allocate(bytes) {
            Ok(memory) => taken.push(memory),
            Err(_) => bytes /= 2,
        }
    }
    drop(room);
    let lane = device.lane(field.layout.clone(), &LaneOptions::default()).unwrap();
    assert!(lane.chunks() >= 2 && lane.records_max() >= 1);
    assert!(lane.chunks() * lane.records_max() < 48, "{} chunks of {}", lane.chunks(), lane.records_max());
    let slot = host(2 << 20);
    let one = RecordMove { host: slot.clone(), pinned: None, index: 1, seed: 7 };
    let found = finish(vec![lane.begin(Way::ToHost, vec![one], soon()).unwrap().expect("a chunk")]);
    assert_eq!(found, sums(&field.record(&case, 1), case.unit_bytes, 7));
    assert!(content(&slot) == field.record(&case, 1));
}

#[test]
fn layouts_that_a_device_cannot_move_are_refused() {
    use kvd_nixl::device::LayoutError;
    let device = Device::twin();
    let memory = device.allocate(1 << 20).unwrap();
    let layout = |run: StridedRun, block_stride, unit_bytes| {
        let piece = RecordPiece { memory: memory.clone(), block_stride, run };
        RecordLayout::new(vec![piece.clone(), piece], unit_bytes).map(|layout| layout.blocks())
    };
    let run = StridedRun::contiguous(4096);
    assert_eq!(layout(run, 4096, 1024), Ok(256));
    assert_eq!(layout(run, 8192, 1024), Ok(128));
    assert_eq!(layout(run, 4096, 1000), Err(LayoutError::Cut { bytes: 4096, unit_bytes: 1000 }));
    assert_eq!(layout(run, 4096, 8192), Err(LayoutError::Cut { bytes: 4096, unit_bytes: 8192 }));
    assert_eq!(
        layout(StridedRun::contiguous(4104), 8208, 4104),
        Err(LayoutError::Grain { what: "a fragment", bytes: 4104 })
    );
    assert_eq!(layout(run, 4100, 1024), Err(LayoutError::Grain { what: "the stride of blocks", bytes: 4100 }));
    let off = StridedRun { offset: 8, ..run };
    assert_eq!(layout(off, 4096, 1024), Err(LayoutError::Grain { what: "the first fragment's offset", bytes: 8 }));
    let strided = StridedRun { axes: [Axis::ONE, Axis::ONE, axis(2, 24)], fragment_bytes: 16, offset: 0 };
    assert_eq!(layout(strided, 64, 32), Err(LayoutError::Grain { what: "a stride", bytes: 24 }));
    assert_eq!(layout(StridedRun::contiguous(272), 272, 272), Err(LayoutError::Unit { bytes: 272 }));
    assert_eq!(layout(StridedRun::contiguous(2 << 20), 2 << 20, 64), Err(LayoutError::Memory));
    assert_eq!(RecordLayout::new(Vec::new(), 64).unwrap_err(), LayoutError::Empty);
}
