//! Where a block lies in the engine's memory, and the copy between there and a slot.

use kvd_nixl::sys::copy::{Axis, CopyError, StridedRun, Units, gather_checksum, scatter_checksum};
use kvd_nixl::sys::{MemoryExtent, seed_from_unit};
use kvd_proto::{GroupSpec, Plane, Shard, Sharding, UnitOrder};

use crate::error::LayoutError;

/// The memory in which an engine keeps one layer of one plane, for all its blocks: strides in bytes.
///
/// vLLM's CPU layout `[blocks, kv_heads, 128, 2 * head_dim]`: block `kv_heads * 128 * 2 * d`, head `128 * 2 * d`, token
/// `2 * d`, key or value `d`, where `d` is the bytes of a head's elements.
#[derive(Debug, Clone)]
pub struct PlaneMemory {
    /// All blocks of the layer.
    pub memory: MemoryExtent,
    /// From one block to the next.
    pub block_stride: usize,
    /// From one head to the next.
    pub head_stride: usize,
    /// From one token to the next. Not used where the unit's order is opaque or it has scales: such a unit is one piece.
    pub token_stride: usize,
    /// From the key to the value of one token. Not used where `token_stride` is not.
    pub kv_stride: usize,
}

/// How an engine's paged memory holds the blocks of a view. Made once; a block of it costs no computation.
#[derive(Debug)]
pub struct EngineLayout {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    memory: MemoryExtent,
    block_stride: usize,
    /// From the first to one past the last byte of a block.
    span: usize,
    /// Bytes of the record.
    bytes: usize,
    run: StridedRun,
}

impl EngineLayout {
    /// Describes memory in the record's order: for each layer of the shard, for each plane that has it, one memory.
    pub fn new(
        group: &GroupSpec,
        shard: &Shard,
        block_tokens: u32,
        memories: Vec<PlaneMemory>,
    ) -> Result<Self, LayoutError> {
        if group.geometry.is_some() {
            return Err(LayoutError::Opaque);
        }
        let layers = shard.layers();
        let planes: Vec<&Plane> =
            layers.flat_map(|layer| group.planes.iter().filter(move |plane| layer < plane.layers)).collect();
        if planes.len() != memories.len() {
            return Err(LayoutError::Memories { wanted: planes.len(), got: memories.len() });
        }
        let pieces = planes.into_iter().zip(memories);
        let pieces = pieces.map(|(plane, memory)| piece(plane, shard, block_tokens, memory));
        let pieces = pieces.collect::<Result<Vec<_>, _>>()?;
        let unit_bytes = group.units(shard).map_err(|_| LayoutError::Opaque)?.unit_bytes as usize;
        // The pieces of a record are copied and checked one by one, so units must end where pieces do.
        let cut = pieces.len() > 1 && pieces.iter().any(|piece| !piece.bytes.is_multiple_of(unit_bytes));
        if cut { Err(LayoutError::Opaque) } else { Ok(Self { pieces }) }
    }

    /// Block `index` of the memory.
    pub fn block(&self, index: usize) -> Result<BlockMemory<'_>, LayoutError> {
        let inside = |piece: &Piece| {
            let start = index.checked_mul(piece.block_stride);
            start.and_then(|start| start.checked_add(piece.span)).is_some_and(|end| end <= piece.memory.len())
        };
        let place = BlockMemory(Place::Paged { layout: self, index });
        if self.pieces.iter().all(inside) { Ok(place) } else { Err(LayoutError::Block { block: index }) }
    }

    /// Describes memory in which each block is the record's bytes in their order, block after block.
    pub fn contiguous(memory: MemoryExtent, block_bytes: usize) -> Self {
        let run = StridedRun::contiguous(block_bytes);
        Self { pieces: vec![Piece { memory, block_stride: block_bytes, span: block_bytes, bytes: block_bytes, run }] }
    }

    /// Blocks of the memory by their numbers, checked once.
    pub fn blocks(&self, indices: &[usize]) -> Result<LayoutBlocks, LayoutError> {
        indices.iter().try_for_each(|index| self.block(*index).map(drop))?;
        Ok(LayoutBlocks(indices.to_vec()))
    }

    /// Blocks that [`EngineLayout::blocks`] has checked, mostly of this layout; those of another one that do not fit are
    /// refused by the copy.
    pub(crate) fn known(&self, blocks: &LayoutBlocks) -> Vec<BlockMemory<'_>> {
        blocks.0.iter().map(|index| BlockMemory(Place::Paged { layout: self, index: *index })).collect()
    }

    /// Bytes of a block.
    fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }
}

fn piece(plane: &Plane, shard: &Shard, block_tokens: u32, at: PlaneMemory) -> Result<Piece, LayoutError> {
    let of = shard.interleave().of();
    let (unit_bytes, tokens) = (plane.unit_bytes / u32::from(of), block_tokens / u32::from(of));
    let heads = match plane.sharding {
        Sharding::Sharded => shard.heads().end.min(plane.heads).saturating_sub(shard.heads().start),
        Sharding::Replicated => plane.heads,
    };
    let head = Axis { count: heads.into(), stride: at.head_stride };
    let unit = unit_bytes as usize;
    let one_piece = plane.unit_order == UnitOrder::Opaque || plane.scales_bytes > 0;
    let (fragment, axes) = if one_piece {
        (unit, [Axis::ONE, Axis::ONE, head])
    } else {
        // Ranks with unequal shares of the tokens would read and write each other's.
        let even = block_tokens.is_multiple_of(u32::from(of));
        if tokens == 0 || !even || !unit_bytes.is_multiple_of(tokens) {
            return Err(LayoutError::Unit { unit_bytes, tokens });
        }
        let token_bytes = unit / tokens as usize;
        let token = Axis { count: tokens as usize, stride: at.token_stride };
        let parts = if plane.k_dim == plane.v_dim { 2 } else { 1 };
        // Parts of different size count as one; side by side they are one.
        let uneven = parts == 1 && plane.v_dim > 0 && plane.k_dim > 0;
        if (uneven && plane.unit_order == UnitOrder::KvTokenDim) || !token_bytes.is_multiple_of(parts) {
            return Err(LayoutError::Uneven);
        }
        let kv = Axis { count: parts, stride: at.kv_stride };
        match plane.unit_order {
            UnitOrder::TokenKvDim => (token_bytes / parts, [head, token, kv]),
            UnitOrder::KvTokenDim | UnitOrder::Opaque => (token_bytes / parts, [head, kv, token]),
        }
    };
    let run = merged(fragment, axes);
    let bytes = fragment * axes.iter().map(|axis| axis.count).product::<usize>();
    let last = run.axes.iter().try_fold(run.fragment_bytes, |sum, axis| {
        (axis.count.max(1) - 1).checked_mul(axis.stride).and_then(|reach| sum.checked_add(reach))
    });
    let span = last.ok_or(LayoutError::Strides)?;
    Ok(Piece { memory: at.memory, block_stride: at.block_stride, span, bytes, run })
}

/// The same bytes in fewer, longer fragments: an axis whose members touch is part of the fragment.
fn merged(mut fragment_bytes: usize, axes: [Axis; 3]) -> StridedRun {
    let mut kept: Vec<Axis> = axes.into_iter().filter(|axis| axis.count != 1).collect();
    while let Some(fast) = kept.last().filter(|axis| axis.stride == fragment_bytes) {
        fragment_bytes *= fast.count;
        kept.pop();
    }
    let mut axes = [Axis::ONE; 3];
    let first = axes.len() - kept.len();
    axes[first..].copy_from_slice(&kept);
    StridedRun { offset: 0, fragment_bytes, axes }
}

/// Numbers of blocks of an [`EngineLayout`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutBlocks(Vec<usize>);

/// Where one block lies in the engine's memory: the destination of a load, the source of a store.
#[derive(Debug, Clone)]
pub struct BlockMemory<'a>(Place<'a>);

#[derive(Debug, Clone)]
enum Place<'a> {
    Contiguous(MemoryExtent),
    Runs { memory: MemoryExtent, runs: &'a [StridedRun] },
    Paged { layout: &'a EngineLayout, index: usize },
}

impl<'a> BlockMemory<'a> {
    /// The record's bytes in their order, in one piece.
    pub fn contiguous(memory: MemoryExtent) -> Self {
        Self(Place::Contiguous(memory))
    }

    /// Fragments within one memory that make up the record in their order.
    pub fn runs(memory: MemoryExtent, runs: &'a [StridedRun]) -> Self {
        Self(Place::Runs { memory, runs })
    }

    /// Whether a record of so many bytes fits exactly.
    pub(crate) fn fits(&self, payload_bytes: usize) -> bool {
        payload_bytes == self.bytes().unwrap_or(usize::MAX)
    }

    fn bytes(&self) -> Option<usize> {
        match &self.0 {
            Place::Contiguous(memory) => Some(memory.len()),
            Place::Runs { runs, .. } => runs.iter().try_fold(0usize, |sum, run| sum.checked_add(run.bytes()?)),
            Place::Paged { layout, .. } => Some(layout.bytes()),
        }
    }

    /// Copies a record's payload here, and makes the checksum of each unit in the same pass.
    pub(crate) fn scatter(
        &self,
        payload: &MemoryExtent,
        units: &Units,
        checksums: &mut [u64],
    ) -> Result<(), CopyError> {
        self.each_piece(payload, units, checksums, scatter)
    }

    /// Copies the block from here into a record's payload, and makes the checksum of each unit in the same pass.
    pub(crate) fn gather(&self, payload: &MemoryExtent, units: &Units, checksums: &mut [u64]) -> Result<(), CopyError> {
        self.each_piece(payload, units, checksums, gather)
    }

    fn each_piece(
        &self,
        payload: &MemoryExtent,
        units: &Units,
        checksums: &mut [u64],
        copy: Copy,
    ) -> Result<(), CopyError> {
        let (layout, index) = match &self.0 {
            Place::Contiguous(memory) => {
                let whole = [StridedRun::contiguous(memory.len())];
                return copy(payload, memory, &whole, units, checksums);
            }
            Place::Runs { memory, runs } => return copy(payload, memory, runs, units, checksums),
            Place::Paged { layout, index } => (layout, *index),
        };
        let mut done = 0;
        for piece in &layout.pieces {
            let first = done / units.unit_bytes;
            let here = Units { seed: seed_from_unit(units.seed, first as u32), ..*units };
            let count = here.count(piece.bytes);
            let record = payload.part(done, piece.bytes)?;
            let memory = piece.memory.part(index.saturating_mul(piece.block_stride), piece.span)?;
            let refused = CopyError::Checksums { units: first + count, checksums: checksums.len() };
            let sums = checksums.get_mut(first..first + count).ok_or(refused)?;
            copy(&record, &memory, std::slice::from_ref(&piece.run), &here, sums)?;
            done += piece.bytes;
        }
        Ok(())
    }
}

type Copy = fn(&MemoryExtent, &MemoryExtent, &[StridedRun], &Units, &mut [u64]) -> Result<(), CopyError>;

fn scatter(
    record: &MemoryExtent,
    memory: &MemoryExtent,
    runs: &[StridedRun],
    units: &Units,
    checksums: &mut [u64],
) -> Result<(), CopyError> {
    scatter_checksum(record, memory, runs, units, checksums)
}

fn gather(
    record: &MemoryExtent,
    memory: &MemoryExtent,
    runs: &[StridedRun],
    units: &Units,
    checksums: &mut [u64],
) -> Result<(), CopyError> {
    gather_checksum(memory, runs, record, units, checksums)
}

#[cfg(test)]
mod tests;
