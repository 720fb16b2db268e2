//! Memory to memory: selection, permutation and checksums in one pass; and the lists themselves.

use std::sync::Arc;

use kvd_nixl::agent::{
    Agent, DescriptorError, DescriptorList, DescriptorRun, Extent, ListError, MemoryCopy, Operation, PostOptions,
    Section, SectionKind, wait_blocking,
};
use kvd_nixl::io::IoError;
use kvd_nixl::sys::copy::{Axis, StridedRun, Units};
use kvd_nixl::sys::{ChecksumAlgorithm, unit_seed};

use crate::support::{BLOCK, blocks, bytes, memory, noise};

#[test]
fn copies_go_both_ways_between_chosen_blocks() {
    let agent = Agent::new().unwrap();
    let (here, there) = (memory(8 * BLOCK), memory(8 * BLOCK));
    here.write(0, &noise(8 * BLOCK, 1)).unwrap();
    let local = blocks(&Section::memory(Arc::clone(&here)), 1, 8).select(&[1, 5, 6]).unwrap();
    let remote = blocks(&Section::memory(Arc::clone(&there)), 1, 8).select(&[7, 0, 1]).unwrap();
    let mut out = agent.prepare(Operation::Write, &local, &remote, MemoryCopy::default()).unwrap();
    assert_eq!(out.operations(), 2);
    assert!(wait_blocking(out.post(PostOptions::default()).unwrap()).is_ok());
    for (from, to) in [(1, 7), (5, 0), (6, 1)] {
        assert_eq!(bytes(&there, to * BLOCK, BLOCK), bytes(&here, from * BLOCK, BLOCK));
    }
    let wanted = bytes(&here, 0, 8 * BLOCK);
    here.zero((5 * BLOCK) as usize, (2 * BLOCK) as usize).unwrap();
    let mut back = agent.prepare(Operation::Read, &local, &remote, MemoryCopy::default()).unwrap();
    assert!(wait_blocking(back.post(PostOptions::default()).unwrap()).is_ok());
    assert_eq!(bytes(&here, 0, 8 * BLOCK), wanted);
    assert_eq!(agent.telemetry()[0].1.bytes, 6 * BLOCK);
}

#[test]
fn a_copy_onto_itself_is_an_error_of_its_descriptor() {
    let agent = Agent::new().unwrap();
    let section = Section::memory(memory(4 * BLOCK));
    let list = blocks(&section, 1, 4);
    let (local, remote) = (list.select(&[0, 2]).unwrap(), list.select(&[1, 2]).unwrap());
    let mut transfer = agent.prepare(Operation::Read, &local, &remote, MemoryCopy::default()).unwrap();
    let report = wait_blocking(transfer.post(PostOptions::default()).unwrap());
    assert_eq!(report.statuses, [Ok(()), Err(DescriptorError::Io(IoError::Malformed))]);
}

/// An engine's layer `[k|v][token][head][dim]` becomes records `[head][token][k|v][dim]`, and goes back.
#[test]
fn layouts_are_permuted_and_checked_in_one_pass() {
    const HEADS: usize = 4;
    const TOKENS: usize = 16;
    const DIM: usize = 256;
    const LAYER: usize = 2 * TOKENS * HEADS * DIM;
    let run = StridedRun {
        offset: 0,
        fragment_bytes: DIM,
        axes: [
            Axis { count: HEADS, stride: DIM },
            Axis { count: TOKENS, stride: HEADS * DIM },
            Axis { count: 2, stride: TOKENS * HEADS * DIM },
        ],
    };
    let units = Units { unit_bytes: LAYER / HEADS, algorithm: ChecksumAlgorithm::Xxh3, seed: 99 };
    let how = MemoryCopy { layout: Some(Arc::new([run])), units: Some(units) };
    let agent = Agent::new().unwrap();
    let layers = 3;
    let (records, engine) = (memory((LAYER * layers) as u64), memory((LAYER * layers) as u64));
    engine.write(0, &noise((LAYER * layers) as u64, 2)).unwrap();
    let whole = |memory| {
        let first = Extent { section: Section::memory(memory), offset: 0, len: LAYER as u64 };
        DescriptorList::prepare([DescriptorRun { first, stride: LAYER as u64, count: layers as u32 }]).unwrap().all()
    };
    let (local, remote) = (whole(Arc::clone(&records)), whole(Arc::clone(&engine)));
    let mut gather = agent.prepare(Operation::Read, &local, &remote, how.clone()).unwrap();
    let report = wait_blocking(gather.post(PostOptions::default()).unwrap());
    assert!(report.is_ok());
    for layer in 0..layers {
        let at = (layer * LAYER) as u64;
        let (record, source) = (bytes(&records, at, LAYER as u64), bytes(&engine, at, LAYER as u64));
        let mut wanted = Vec::new();
        for head in 0..HEADS {
            for token in 0..TOKENS {
                for kv in 0..2 {
                    let from = ((kv * TOKENS + token) * HEADS + head) * DIM;
                    wanted.extend_from_slice(&source[from..from + DIM]);
                }
            }
        }
        assert!(record == wanted, "layer {layer}");
        let unit = |(index, unit): (usize, &[u8])| units.algorithm.checksum(unit_seed(99, index as u32), unit);
        let checksums: Vec<u64> = record.chunks(units.unit_bytes).enumerate().map(unit).collect();
        assert_eq!(report.checksums[layer], checksums);
    }
    let before = bytes(&engine, 0, (LAYER * layers) as u64);
    engine.zero(0, engine.len()).unwrap();
    let only_layout = MemoryCopy { units: None, ..how };
    let mut scatter = agent.prepare(Operation::Write, &local, &remote, only_layout).unwrap();
    let report = wait_blocking(scatter.post(PostOptions::default()).unwrap());
    assert!(report.is_ok() && report.checksums.is_empty());
    assert!(bytes(&engine, 0, (LAYER * layers) as u64) == before);
}

#[test]
fn lists_are_checked_once_and_selected_by_index() {
    let section = Section::memory(memory(10 * BLOCK));
    let extent = |offset, len| Extent { section: section.clone(), offset, len };
    let none: [Extent; 0] = [];
    assert_eq!(DescriptorList::prepare(none).unwrap_err(), ListError::Empty);
    for (offset, len) in [(0, 0), (10 * BLOCK, 1), (1, 10 * BLOCK), (u64::MAX, 2)] {
        let error = DescriptorList::prepare([extent(0, 1), extent(offset, len)]).unwrap_err();
        assert_eq!(error, ListError::OutOfBounds { run: 1, section_bytes: 10 * BLOCK });
    }
    for (stride, count) in [(BLOCK, 11), (u64::MAX, 2), (0, 0)] {
        let run = DescriptorRun { first: extent(0, BLOCK), stride, count };
        assert!(matches!(DescriptorList::prepare([run]).unwrap_err(), ListError::OutOfBounds { run: 0, .. }));
    }
    let foreign = Extent { section: Section::foreign(SectionKind::Object, 10), offset: 0, len: 10 };
    let mixed = DescriptorList::prepare([extent(0, 1), foreign]).unwrap_err();
    let (expected, found) = (SectionKind::Memory, SectionKind::Object);
    assert_eq!(mixed, ListError::MixedKinds { run: 1, expected, found });
    let many = DescriptorRun { first: extent(0, 1), stride: 0, count: (1 << 22) + 1 };
    assert_eq!(DescriptorList::prepare([many]).unwrap_err(), ListError::TooMany);

    let list = DescriptorList::prepare([
        DescriptorRun { first: extent(0, 8), stride: 16, count: 3 },
        DescriptorRun::from(extent(100, 4)),
    ])
    .unwrap();
    assert_eq!((list.len(), list.is_empty(), list.kind()), (4, false, SectionKind::Memory));
    assert_eq!(list.select(&[4]).unwrap_err(), ListError::NoSuchIndex { index: 4, len: 4 });
    assert_eq!(list.select(&[]).unwrap_err(), ListError::Empty);
    assert!(list.select(&[3, 0, 3]).is_ok());
}
