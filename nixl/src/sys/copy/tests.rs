//! Copies against plain Rust over private vectors.

use super::*;
use crate::sys::{Memory, Region};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use std::sync::Arc;

const ALGORITHMS: [ChecksumAlgorithm; 2] = [ChecksumAlgorithm::Crc64Nvme, ChecksumAlgorithm::Xxh3];

fn filled(len: usize, random: &mut SmallRng) -> (MemoryExtent, Vec<u8>) {
    let mut bytes = vec![0; len];
    random.fill_bytes(&mut bytes);
    let region: Arc<dyn Memory> = Arc::new(Region::new(len).unwrap());
    region.write(0, &bytes).unwrap();
    (MemoryExtent::whole(region), bytes)
}

fn content(extent: &MemoryExtent) -> Vec<u8> {
    let mut bytes = vec![0; extent.len()];
    extent.read(0, &mut bytes).unwrap();
    bytes
}

fn expected(bytes: &[u8], units: &Units) -> Vec<u64> {
    let seeded = |(index, unit)| units.algorithm.checksum(unit_seed(units.seed, u32::try_from(index).unwrap()), unit);
    bytes.chunks(units.unit_bytes).enumerate().map(seeded).collect()
}

#[test]
fn plain_copies_of_any_length_and_alignment() {
    let mut random = SmallRng::seed_from_u64(1);
    let (source, bytes) = filled(20_000, &mut random);
    for len in [0, 1, 63, 64, 4095, 4096, 4097, 12_345] {
        for (from, to) in [(0, 0), (1, 0), (0, 1), (33, 95), (64, 32)] {
            let target = MemoryExtent::whole(Arc::new(Region::new(len + 200).unwrap()));
            copy(&source.part(from, len).unwrap(), &target.part(to, len).unwrap()).unwrap();
            let stored = content(&target);
            assert_eq!(stored[to..to + len], bytes[from..from + len]);
            assert!(stored[..to].iter().chain(&stored[to + len..]).all(|byte| *byte == 0));
        }
    }
}

#[test]
fn fused_copies_store_the_bytes_and_give_the_checksums_of_plain_hashing() {
    let mut random = SmallRng::seed_from_u64(2);
    let lens: &[usize] = if cfg!(miri) { &[700, 1024] } else { &[1, 240, 256, 4096, 4160, 9999, 65_536, 200_000] };
    for &len in lens {
        let (source, bytes) = filled(len + 100, &mut random);
        for unit_bytes in [1, 64, 240, 256, 1000, 4096, 65_536].into_iter().filter(|unit| len / unit < 300) {
            for algorithm in ALGORITHMS {
                if cfg!(miri) && algorithm == ChecksumAlgorithm::Crc64Nvme {
                    continue; // The library uses instructions that Miri does not know.
                }
                let units = Units { unit_bytes, algorithm, seed: random.random() };
                for (from, to) in [(0, 0), (7, 0), (0, 36), (32, 32)] {
                    let target = MemoryExtent::whole(Arc::new(Region::new(len + 64).unwrap()));
                    let part = source.part(from, len).unwrap();
                    let mut sums = vec![0; units.count(len)];
                    copy_checksum(&part, &target.part(to, len).unwrap(), &units, &mut sums).unwrap();
                    assert_eq!(content(&target)[to..to + len], bytes[from..from + len]);
                    assert_eq!(sums, expected(&bytes[from..from + len], &units), "{len} {units:?}");
                    sums.fill(0);
                    checksum_units(&part, &units, &mut sums).unwrap();
                    assert_eq!(sums, expected(&bytes[from..from + len], &units));
                    let first = len.min(unit_bytes);
                    let one = algorithm.checksum_memory(unit_seed(units.seed, 0), &source, from, first).unwrap();
                    assert_eq!(one, sums[0]);
                }
            }
        }
    }
}

/// Goal: fragments go where the axes say, and checksums follow the record's order. Method: random geometry against a plain walk;
/// gather, then scatter to another place, must give the fragments back.
#[test]
#[cfg(not(miri))]
fn strided_copies_follow_the_order_of_the_record() {
    let mut random = SmallRng::seed_from_u64(3);
    for _ in 0..300 {
        let fragment_bytes = [64, 128, 256, 100, 4096][random.random_range(0..5)];
        let counts = [0; 3].map(|_| random.random_range(1..6));
        // Axes laid out in memory in a random order, so that the record is a permutation; gaps between rows.
        let mut order = [0, 1, 2];
        order.swap(0, random.random_range(0..3));
        order.swap(1, random.random_range(1..3));
        let gap = random.random_range(0..2) * 64;
        let mut axes = [Axis::ONE; 3];
        let mut stride = fragment_bytes;
        for axis in order {
            axes[axis] = Axis { count: counts[axis], stride };
            stride = stride * counts[axis] + gap;
        }
        let offset = random.random_range(0..3) * 64;
        let run = StridedRun { offset, fragment_bytes, axes };
        let runs = [run, StridedRun { offset: offset + stride, ..run }];
        let len = run.bytes().unwrap() * 2;
        let (engine, bytes) = filled(offset + 2 * stride, &mut random);

        let mut record_bytes = Vec::new();
        for run in &runs {
            run.for_each(|at, _| record_bytes.extend_from_slice(&bytes[at..at + fragment_bytes]));
        }
        let unit_bytes = [fragment_bytes, 8192, 512, 1000][random.random_range(0..4)];
        let units = Units { unit_bytes, algorithm: ALGORITHMS[random.random_range(0..2)], seed: random.random() };
        let record = MemoryExtent::whole(Arc::new(Region::new(len).unwrap()));
        let mut sums = vec![0; units.count(len)];
        gather_checksum(&engine, &runs, &record, &units, &mut sums).unwrap();
        assert_eq!(content(&record), record_bytes);
        assert_eq!(sums, expected(&record_bytes, &units), "{run:?} {units:?}");

        let other = MemoryExtent::whole(Arc::new(Region::new(engine.len()).unwrap()));
        let mut again = vec![0; sums.len()];
        scatter_checksum(&record, &other, &runs, &units, &mut again).unwrap();
        assert_eq!(again, sums);
        let scattered = content(&other);
        for run in &runs {
            run.for_each(|at, _| assert_eq!(scattered[at..at + fragment_bytes], bytes[at..at + fragment_bytes]));
        }
        let touched = scattered.iter().filter(|byte| **byte != 0).count();
        assert!(touched <= len, "bytes outside the fragments were written");
    }
}

#[test]
#[cfg(not(miri))]
fn every_single_bit_flip_is_found() {
    let mut random = SmallRng::seed_from_u64(4);
    let (record, mut bytes) = filled(4096, &mut random);
    for algorithm in ALGORITHMS {
        let units = Units { unit_bytes: 4096, algorithm, seed: random.random() };
        let mut sums = [0];
        checksum_units(&record, &units, &mut sums).unwrap();
        for bit in 0..4096 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            record.write(bit / 8, &bytes[bit / 8..=bit / 8]).unwrap();
            let mut now = [0];
            checksum_units(&record, &units, &mut now).unwrap();
            assert_ne!(now, sums, "{algorithm:?} bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
            record.write(bit / 8, &bytes[bit / 8..=bit / 8]).unwrap();
        }
    }
}

#[test]
fn swapped_units_and_foreign_seeds_are_found() {
    let mut random = SmallRng::seed_from_u64(5);
    let (record, bytes) = filled(4096, &mut random);
    let algorithm = ChecksumAlgorithm::Xxh3;
    let sums = |seed| {
        let mut sums = [0; 4];
        checksum_units(&record, &Units { unit_bytes: 1024, algorithm, seed }, &mut sums).unwrap();
        sums
    };
    let right = sums(9);
    let foreign = sums(10);
    assert!(right.iter().zip(&foreign).all(|(one, other)| one != other));
    record.write(0, &bytes[1024..2048]).unwrap();
    record.write(1024, &bytes[..1024]).unwrap();
    let swapped = sums(9);
    assert!(swapped[0] != right[0] && swapped[1] != right[1]);
    assert!(swapped[0] != right[1] && swapped[1] != right[0]);
    assert_eq!(swapped[2..], right[2..]);
    // Equal units, zeros too, have different checksums in different places.
    record.zero(0, 4096).unwrap();
    let mut zeros = sums(9).to_vec();
    zeros.sort_unstable();
    zeros.dedup();
    assert_eq!(zeros.len(), 4);
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory: Arc<dyn Memory> = Arc::new(Region::new(8192).unwrap());
    let part = |offset, len| MemoryExtent::new(Arc::clone(&memory), offset, len).unwrap();
    let units = Units { unit_bytes: 1024, algorithm: ChecksumAlgorithm::Xxh3, seed: 0 };
    assert_eq!(copy(&part(0, 100), &part(200, 99)), Err(CopyError::Length { record_bytes: 100, other_bytes: 99 }));
    assert_eq!(copy(&part(0, 100), &part(99, 100)), Err(CopyError::Overlap));
    assert_eq!(copy(&part(0, 100), &part(100, 100)), Ok(()));
    let wrong = copy_checksum(&part(0, 4096), &part(4096, 4096), &units, &mut [0; 3]);
    assert_eq!(wrong, Err(CopyError::Checksums { units: 4, checksums: 3 }));
    let none = Units { unit_bytes: 0, ..units };
    assert_eq!(checksum_units(&part(0, 4096), &none, &mut []), Err(CopyError::UnitBytes));
    copy_checksum(&part(0, 0), &part(9, 0), &units, &mut []).unwrap();
    let three = Axis { count: 3, stride: 2048 };
    let beyond = StridedRun { offset: 0, fragment_bytes: 1024, axes: [Axis::ONE, Axis::ONE, three] };
    let result = gather_checksum(&part(0, 4096), &[beyond], &part(4096, 3072), &units, &mut [0; 3]);
    assert!(matches!(result, Err(CopyError::Memory(_))));
    for run in [
        StridedRun { fragment_bytes: 0, axes: [Axis { count: usize::MAX, stride: 0 }; 3], ..beyond },
        StridedRun { axes: [Axis { count: 0, stride: 1 }; 3], ..beyond },
        StridedRun { axes: [Axis { count: usize::MAX, stride: 8 }; 3], ..beyond },
        StridedRun { axes: [Axis { count: 2, stride: usize::MAX }; 3], ..beyond },
        StridedRun { offset: usize::MAX, ..beyond },
    ] {
        assert!(gather_checksum(&part(0, 4096), &[run], &part(4096, 3072), &units, &mut [0; 3]).is_err(), "{run:?}");
    }
    assert!(ChecksumAlgorithm::Xxh3.checksum_memory(0, &part(0, 4096), 4000, 97).is_err());
}

/// Goal: what is stored and the checksums do not depend on how a record was cut. Method: records of many lengths in random pieces,
/// to places of any alignment; bytes beside the record stay as they were, and nothing is told before the last byte.
#[test]
fn streams_store_the_bytes_and_give_the_checksums_however_they_are_cut() {
    let mut random = SmallRng::seed_from_u64(5);
    let lens: &[usize] =
        if cfg!(miri) { &[1, 700] } else { &[0, 1, 63, 64, 65, 240, 4096, 4160, 9999, 65_536, 70_001] };
    for &len in lens {
        for unit_bytes in [64, 256, 1000, 4096, 65_536] {
            for algorithm in ALGORITHMS {
                if cfg!(miri) && algorithm == ChecksumAlgorithm::Crc64Nvme {
                    continue; // The library uses instructions that Miri does not know.
                }
                let units = Units { unit_bytes, algorithm, seed: random.random() };
                let mut bytes = vec![0; len];
                random.fill_bytes(&mut bytes);
                let to = [0, 1, 32, 64][random.random_range(0..4)];
                let target = MemoryExtent::whole(Arc::new(Region::new(len + 200).unwrap()));
                let mut stream = StreamCopy::new(target.part(to, len).unwrap(), &units).unwrap();
                let most = [1, 40, 64, 100, 5000][random.random_range(0..5)].max(len / 200);
                let mut done = 0;
                while done < len {
                    assert_eq!((stream.checksums(), stream.left()), (None, len - done));
                    let piece = random.random_range(0..=most.min(len - done));
                    stream.take(&bytes[done..done + piece]).unwrap();
                    done += piece;
                }
                assert_eq!(stream.checksums(), Some(&expected(&bytes, &units)[..]), "{len} bytes, {units:?}");
                let stored = content(&target);
                assert_eq!(stored[to..to + len], bytes);
                assert!(stored[..to].iter().chain(&stored[to + len..]).all(|byte| *byte == 0));
                let refused = CopyError::Length { record_bytes: len, other_bytes: len + 1 };
                assert_eq!(stream.take(&[7]), Err(refused));
                assert_eq!(content(&target), stored);
            }
        }
    }
    let target = MemoryExtent::whole(Arc::new(Region::new(64).unwrap()));
    let no_units = Units { unit_bytes: 0, algorithm: ChecksumAlgorithm::Xxh3, seed: 0 };
    assert_eq!(StreamCopy::new(target, &no_units).err(), Some(CopyError::UnitBytes));
}

/// The offset of every byte of a run, in the order of the record.
fn bytes_of(run: &StridedRun) -> Vec<usize> {
    let mut found = Vec::new();
    run.for_each(|offset, _| found.extend(offset..offset + run.fragment_bytes));
    found
}

#[test]
fn a_part_of_a_run_is_those_bytes_and_no_others() {
    let mut random = SmallRng::seed_from_u64(9);
    let mut parts = 0;
    for _ in 0..2000 {
        let mut axis = || Axis { count: random.random_range(1..4), stride: random.random_range(0..300) };
        let axes = [axis(), axis(), axis()];
        let run = StridedRun { offset: 7, fragment_bytes: random.random_range(1..5), axes };
        let whole = bytes_of(&run);
        let start = random.random_range(0..whole.len());
        let range = start..random.random_range(start..whole.len()) + 1;
        if let Some(part) = run.part(range.clone()) {
            assert_eq!(bytes_of(&part), whole[range], "of {run:?}");
            parts += 1;
        }
        // Whole members of the slowest axis are always a run.
        let member = whole.len() / axes[0].count;
        let first = random.random_range(0..axes[0].count);
        let members = first * member..random.random_range(first..axes[0].count) * member + member;
        assert_eq!(run.part(members.clone()).map(|part| bytes_of(&part)), Some(whole[members].to_vec()));
        assert_eq!(run.part(0..whole.len() + 1), None);
        assert_eq!(run.part(start..start), None);
    }
    assert!(parts > 500, "{parts}");
}
