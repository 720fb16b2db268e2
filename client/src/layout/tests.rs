//! Layouts against a plain walk over every byte.

use std::sync::Arc;

use kvd_nixl::sys::copy::checksum_units;
use kvd_nixl::sys::{ChecksumAlgorithm, Memory, Region};
use kvd_proto::{GroupKind, Interleave};

use super::*;

const HEADS: usize = 4;
const TOKENS: usize = 8;
/// Bytes of a head's elements, for key and for value each.
const DIM: usize = 64;
const UNIT: usize = TOKENS * 2 * DIM;
const BLOCKS: usize = 3;

fn plane(unit_order: UnitOrder) -> Plane {
    Plane {
        name: "kv".into(),
        layers: 2,
        heads: HEADS as u16,
        unit_bytes: UNIT as u32,
        unit_order,
        k_dim: 32,
        v_dim: 32,
        scales_bytes: 0,
        sharding: Sharding::Sharded,
    }
}

fn group(unit_order: UnitOrder) -> GroupSpec {
    GroupSpec { kind: GroupKind::FullAttention, planes: vec![plane(unit_order)], geometry: None }
}

fn region(bytes: usize) -> MemoryExtent {
    MemoryExtent::whole(Arc::new(Region::new(bytes).unwrap()))
}

fn fill(memory: &MemoryExtent, salt: usize) {
    let bytes: Vec<u8> = (0..memory.len()).map(|at| ((at + salt).wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
    memory.write(0, &bytes).unwrap();
}

fn bytes_of(memory: &MemoryExtent) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

fn pieces(layout: &EngineLayout) -> &[Piece] {
    let Memories::Host(pieces) = &layout.0 else { panic!("not in host memory") };
    pieces
}

fn host<'a, 'b>(block: &'b BlockMemory<'a>) -> &'b HostPlace<'a> {
    let Place::Host(place) = block.place() else { panic!("not in host memory") };
    place
}

/// Strides of head, token and kv, and the order of the record's units.
fn check(unit_order: UnitOrder, [head_stride, token_stride, kv_stride]: [usize; 3], fragments: usize) {
    let layers = [region(BLOCKS * HEADS * UNIT), region(BLOCKS * HEADS * UNIT)];
    layers.iter().enumerate().for_each(|(layer, memory)| fill(memory, layer * 77));
    let memories = layers.iter().map(|memory| PlaneMemory {
        memory: memory.clone(),
        block_stride: HEADS * UNIT,
        head_stride,
        token_stride,
        kv_stride,
    });
    let shard = Shard::whole(2, HEADS as u16).unwrap();
    let layout = EngineLayout::new(&group(unit_order), &shard, TOKENS as u32, memories.collect()).unwrap();
    let run = &pieces(&layout)[0].run;
    assert_eq!(run.axes.iter().map(|axis| axis.count).product::<usize>(), fragments);
    let block = layout.block(1).unwrap();

    let mut expected = Vec::new();
    for layer in &layers {
        let bytes = bytes_of(layer);
        for head in 0..HEADS {
            for outer in 0..2 * TOKENS {
                let (token, kv) = match unit_order {
                    UnitOrder::TokenKvDim => (outer / 2, outer % 2),
                    UnitOrder::KvTokenDim | UnitOrder::Opaque => (outer % TOKENS, outer / TOKENS),
                };
                let at = HEADS * UNIT + head * head_stride + token * token_stride + kv * kv_stride;
                expected.extend(&bytes[at..at + DIM]);
            }
        }
    }
    let units = Units { unit_bytes: UNIT, algorithm: ChecksumAlgorithm::Xxh3, seed: 5 };
    let record = region(2 * HEADS * UNIT);
    let mut sums = vec![0; 2 * HEADS];
    host(&block).gather(&record, &units, &mut sums).unwrap();
    assert_eq!(bytes_of(&record), expected);
    let mut whole = vec![0; 2 * HEADS];
    checksum_units(&record, &units, &mut whole).unwrap();
    assert_eq!(sums, whole, "pieces are checked under the record's seeds");

    let before: Vec<Vec<u8>> = layers.iter().map(bytes_of).collect();
    for layer in &layers {
        layer.zero(HEADS * UNIT, HEADS * UNIT).unwrap();
    }
    host(&block).scatter(&record, &units, &mut sums).unwrap();
    assert_eq!(sums, whole);
    assert_eq!(layers.iter().map(bytes_of).collect::<Vec<_>>(), before);
    assert!(layout.block(BLOCKS).is_err());
    assert!(block.fits(record.len(), UNIT) && !block.fits(record.len() - 1, UNIT));
}

#[test]
fn the_record_is_the_plain_walk_in_every_layout() {
    use UnitOrder::{KvTokenDim, TokenKvDim};
    // vLLM on a CPU: [blocks, heads, tokens, 2 * dim]. One fragment per layer.
    check(TokenKvDim, [UNIT, 2 * DIM, DIM], 1);
    // [blocks, 2, tokens, heads, dim], as FlashAttention has it.
    let flash = [DIM, HEADS * DIM, TOKENS * HEADS * DIM];
    check(TokenKvDim, flash, HEADS * TOKENS * 2);
    check(KvTokenDim, flash, HEADS * TOKENS * 2);
    // [blocks, heads, 2, tokens, dim].
    check(KvTokenDim, [UNIT, DIM, TOKENS * DIM], 1);
    check(TokenKvDim, [UNIT, DIM, TOKENS * DIM], HEADS * TOKENS * 2);
    // [blocks, tokens, heads, 2 * dim].
    check(TokenKvDim, [2 * DIM, HEADS * 2 * DIM, DIM], HEADS * TOKENS);
}

#[test]
fn layouts_that_cannot_be_described_are_refused() {
    let memory = |_| PlaneMemory {
        memory: region(HEADS * UNIT),
        block_stride: HEADS * UNIT,
        head_stride: UNIT,
        token_stride: 2 * DIM,
        kv_stride: DIM,
    };
    let shard = Shard::whole(2, HEADS as u16).unwrap();
    let of = |group: &GroupSpec, shard: &Shard, tokens, count: usize| {
        EngineLayout::new(group, shard, tokens, (0..count).map(memory).collect()).unwrap_err()
    };
    let plain = group(UnitOrder::TokenKvDim);
    assert_eq!(of(&plain, &shard, 8, 1), LayoutError::Memories { wanted: 2, got: 1 });
    assert_eq!(of(&plain, &shard, 7, 2), LayoutError::Unit { unit_bytes: UNIT as u32, tokens: 7 });
    let hidden = GroupSpec { geometry: Some(vec![1]), ..plain.clone() };
    assert_eq!(of(&hidden, &shard, 8, 2), LayoutError::Opaque);
    let mut uneven = group(UnitOrder::KvTokenDim);
    uneven.planes[0].v_dim = 16;
    assert_eq!(of(&uneven, &shard, 8, 2), LayoutError::Uneven);
    let half = Shard::new(0..1, 0..2, Interleave::new(1, 2).unwrap()).unwrap();
    let one = EngineLayout::new(&plain, &half, 8, vec![memory(0)]).unwrap();
    assert_eq!(pieces(&one).iter().map(|piece| piece.bytes).sum::<usize>(), 2 * UNIT / 2);
}

#[test]
fn opaque_units_move_whole_and_contiguous_blocks_need_no_description() {
    let shard = Shard::whole(2, HEADS as u16).unwrap();
    let opaque = group(UnitOrder::Opaque);
    // Units of 64 KiB do not end where the memories of the two layers do.
    let memory = || PlaneMemory {
        memory: region(HEADS * UNIT),
        block_stride: HEADS * UNIT,
        head_stride: UNIT,
        token_stride: 0,
        kv_stride: 0,
    };
    let refused = EngineLayout::new(&opaque, &shard, 8, vec![memory(), memory()]).unwrap_err();
    assert_eq!(refused, LayoutError::Opaque);
    let pool = region(3 * 1000);
    fill(&pool, 1);
    let layout = EngineLayout::contiguous(pool.clone(), 1000);
    let units = Units { unit_bytes: 300, algorithm: ChecksumAlgorithm::Xxh3, seed: 1 };
    let record = region(1000);
    host(&layout.block(2).unwrap()).gather(&record, &units, &mut [0; 4]).unwrap();
    assert_eq!(bytes_of(&record), bytes_of(&pool)[2000..]);
    assert!(layout.blocks(&[0, 3]).is_err());
    assert_eq!(layout.known(&layout.blocks(&[2, 0]).unwrap()).len(), 2);
    let _: &dyn Memory = &**pool.memory();
}
