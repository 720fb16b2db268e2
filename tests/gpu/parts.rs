//! Parts of records that others wrote: what a lane takes of them, byte for byte, and the checksums that it is judged by.

use std::sync::Arc;

use kvd_nixl::device::{LayoutError, PartError, RecordMove, Stretch, Way};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use crate::devices;
use crate::lanes::{Case, Field, cases, content, finish, host, options, soon, sums};

/// Which units of ours are which of the other record: (theirs, ours, how many).
type Common = Vec<(usize, usize, usize)>;

/// The other record's units, and what it has in common with ours: half of each piece as where heads are split, a run through
/// all pieces as where layers are, and anything.
fn commons(case: &Case, random: &mut SmallRng) -> Vec<(usize, Common)> {
    let of_piece: Vec<usize> = case.pieces.iter().map(|piece| piece.run.bytes().unwrap() / case.unit_bytes).collect();
    let units: usize = of_piece.iter().sum();
    let mut firsts = 0;
    let heads = of_piece.iter().map(|count| {
        firsts += count;
        (2 * (firsts - count) + 1, firsts - count, count.div_ceil(2))
    });
    let mut anything = Vec::new();
    let (mut theirs, mut ours) = (0, 0);
    while ours < units {
        let run = random.random_range(1..=units - ours);
        theirs += random.random_range(0..3);
        anything.push((theirs, ours, run));
        theirs += run;
        ours += run + random.random_range(0..2);
    }
    anything.reverse();
    vec![(2 * units + 2, heads.collect()), (units + 7, vec![(5, 0, units)]), (theirs, anything)]
}

/// Each in memory that is pinned, and in memory that is not.
fn both_ways<T: Clone>(all: Vec<T>) -> impl Iterator<Item = (T, bool)> {
    all.into_iter().flat_map(|one| [(one.clone(), true), (one, false)])
}

fn stretches(case: &Case, common: &Common) -> Vec<Stretch> {
    let bytes = |units: usize| units * case.unit_bytes;
    common
        .iter()
        .map(|(from, to, units)| Stretch { from: bytes(*from), to: bytes(*to), bytes: bytes(*units) })
        .collect()
}

#[test]
fn parts_come_in_to_their_places_with_the_checksums_of_their_record() {
    for (name, device) in devices("parts of records") {
        for case in cases().into_iter().filter(|case| case.name != "a short last unit") {
            let mut random = SmallRng::seed_from_u64(21);
            let mut field = Field::new(&device, &case, &mut random);
            let lane = device.lane(field.layout.clone(), &options(&field.layout)).unwrap();
            // Kernels reach pinned memory by themselves; other memory is copied.
            for ((their_units, common), pin) in both_ways(commons(&case, &mut random)) {
                let what = format!("{} on the {name}, pinned: {pin}, {common:?}", case.name);
                let record_bytes = their_units * case.unit_bytes;
                let part = lane.part(record_bytes, &stretches(&case, &common)).unwrap();
                let all = host(case.blocks * record_bytes);
                let pinned = pin.then(|| Arc::new(device.pin(all.memory()).unwrap()));
                let mut moves = Vec::new();
                let mut expected: Vec<u64> = Vec::new();
                for block in 0..case.blocks {
                    let mut theirs = vec![0; record_bytes];
                    random.fill_bytes(&mut theirs);
                    let slot = all.part(block * record_bytes, record_bytes).unwrap();
                    slot.write(0, &theirs).unwrap();
                    let (index, seed) = (case.blocks - 1 - block, random.random());
                    moves.push(RecordMove { host: slot, pinned: pinned.clone(), index, seed });
                    let mut ours = field.record(&case, index);
                    let of_theirs = sums(&theirs, case.unit_bytes, seed);
                    for Stretch { from, to, bytes } in stretches(&case, &common) {
                        ours[to..to + bytes].copy_from_slice(&theirs[from..from + bytes]);
                        expected.extend(&of_theirs[from / case.unit_bytes..(from + bytes) / case.unit_bytes]);
                    }
                    field.put(&case, index, &ours);
                }
                let flights = moves.chunks(part.records_max().min(3));
                let flights =
                    flights.map(|few| part.begin(Way::ToDevice, few.to_vec(), soon()).unwrap().expect("a chunk"));
                assert!(finish(flights.collect()) == expected, "{what}: other checksums");
                field.assert_same(&what);
            }
        }
    }
}

#[test]
fn a_part_that_goes_out_leaves_the_rest_of_the_record_alone() {
    for (name, device) in devices("parts that go out") {
        for case in cases().into_iter().filter(|case| case.name != "a short last unit") {
            let mut random = SmallRng::seed_from_u64(22);
            let field = Field::new(&device, &case, &mut random);
            let lane = device.lane(field.layout.clone(), &options(&field.layout)).unwrap();
            for ((their_units, common), pin) in both_ways(commons(&case, &mut random)) {
                let what = format!("{} on the {name}, pinned: {pin}, {common:?}", case.name);
                let slot = host(their_units * case.unit_bytes);
                let mut expected = content(&slot);
                let ours = field.record(&case, 1);
                for Stretch { from, to, bytes } in stretches(&case, &common) {
                    expected[from..from + bytes].copy_from_slice(&ours[to..to + bytes]);
                }
                let part = lane.part(slot.len(), &stretches(&case, &common)).unwrap();
                let pinned = pin.then(|| Arc::new(device.pin(slot.memory()).unwrap()));
                let one = RecordMove { host: slot.clone(), pinned, index: 1, seed: 9 };
                finish(vec![part.begin(Way::ToHost, vec![one], soon()).unwrap().expect("a chunk")]);
                assert!(content(&slot) == expected, "{what}: another record");
            }
        }
    }
}

#[test]
fn what_is_no_part_is_refused() {
    for (name, device) in devices("refusals of parts") {
        let case = cases().into_iter().find(|case| case.name == "a layer each").unwrap();
        let field = Field::new(&device, &case, &mut SmallRng::seed_from_u64(23));
        let lane = device.lane(field.layout.clone(), &options(&field.layout)).unwrap();
        let (unit, record) = (case.unit_bytes, field.layout.record_bytes());
        let refused = |from, to, bytes| lane.part(2 * record, &[Stretch { from, to, bytes }]).unwrap_err();
        for (from, to, bytes) in [
            (16, 0, unit),
            (0, 16, unit),
            (0, 0, unit - 16),
            (0, 0, 0),
            (2 * record, 0, unit),
            (0, record, unit),
            (0, 0, 2 * record),
            (usize::MAX / unit * unit, 0, unit),
        ] {
            assert_eq!(
                refused(from, to, bytes),
                PartError::Layout(LayoutError::Stretch { bytes }),
                "{name} {from} {to}"
            );
        }
        assert_eq!(lane.part(record, &[]).unwrap_err(), PartError::Layout(LayoutError::Empty), "{name}");
        let too_much = [Stretch { from: 0, to: 0, bytes: record }; 5];
        assert!(matches!(lane.part(record, &too_much), Err(PartError::Device(_))), "{name}: more than a chunk holds");
    }
}
