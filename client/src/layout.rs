//! Where a block lies in the engine's memory, and the copy between there and a slot.

use std::ops::Range;

use kvd_nixl::device::{Device, DeviceError, DeviceMemory, Lane, LaneOptions, RecordLayout, RecordPiece, Stretch};
use kvd_nixl::sys::copy::{Axis, CopyError, StridedRun, Units, gather_checksum, scatter_checksum};
use kvd_nixl::sys::{MemoryExtent, seed_from_unit};
use kvd_proto::{GroupSpec, Plane, Shard, Sharding, UnitOrder};

use crate::error::LayoutError;
use crate::shards::Excerpt;

/// The memory in which an engine keeps one layer of one plane, for all its blocks: strides in bytes.
///
/// vLLM's CPU layout `[blocks, kv_heads, 128, 2 * head_dim]`: block `kv_heads * 128 * 2 * d`, head `128 * 2 * d`, token
/// `2 * d`, key or value `d`, where `d` is the bytes of a head's elements.
#[derive(Debug, Clone)]
pub struct PlaneMemory<M = MemoryExtent> {
    /// All blocks of the layer, in host memory or a device's ([`DeviceMemory`]).
    pub memory: M,
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
pub struct EngineLayout(Memories);

#[derive(Debug)]
enum Memories {
    Host(Vec<Piece>),
    Device(Lane),
}

#[derive(Debug)]
pub(crate) struct Piece<M = MemoryExtent> {
    memory: M,
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
        Ok(Self(Memories::Host(pieces(group, shard, block_tokens, memories)?.0)))
    }

    /// The same for the memory of a device, which must not be freed as long as the layout lives. What it takes there for staging
    /// is in the options.
    pub fn on_device(
        device: &Device,
        group: &GroupSpec,
        shard: &Shard,
        block_tokens: u32,
        memories: Vec<PlaneMemory<DeviceMemory>>,
        options: &LaneOptions,
    ) -> Result<Self, LayoutError> {
        let (pieces, unit_bytes) = pieces(group, shard, block_tokens, memories)?;
        let pieces =
            pieces.into_iter().map(|Piece { memory, block_stride, run, .. }| RecordPiece { memory, block_stride, run });
        let layout = RecordLayout::new(pieces.collect(), unit_bytes)?;
        Ok(Self(Memories::Device(device.lane(layout, options)?)))
    }

    /// Why nothing is moved any more between here and slots, once the device has failed: calls miss with
    /// [`kvd_proto::MissReason::Device`].
    pub fn device_failure(&self) -> Option<DeviceError> {
        match &self.0 {
            Memories::Host(_) => None,
            Memories::Device(lane) => lane.failure(),
        }
    }

    /// Block `index` of the memory.
    pub fn block(&self, index: usize) -> Result<BlockMemory<'_>, LayoutError> {
        let inside = |piece: &Piece| {
            let start = index.checked_mul(piece.block_stride);
            start.and_then(|start| start.checked_add(piece.span)).is_some_and(|end| end <= piece.memory.len())
        };
        let known = match &self.0 {
            Memories::Host(pieces) => pieces.iter().all(inside),
            Memories::Device(lane) => index < lane.layout().blocks(),
        };
        if known { Ok(self.place(index)) } else { Err(LayoutError::Block { block: index }) }
    }

    fn place(&self, index: usize) -> BlockMemory<'_> {
        BlockMemory(match &self.0 {
            Memories::Host(pieces) => Place::Host(HostPlace::Paged { pieces, index }),
            Memories::Device(lane) => Place::Device { lane, index },
        })
    }

    /// Describes memory in which each block is the record's bytes in their order, block after block.
    pub fn contiguous(memory: MemoryExtent, block_bytes: usize) -> Self {
        let run = StridedRun::contiguous(block_bytes);
        let piece = Piece { memory, block_stride: block_bytes, span: block_bytes, bytes: block_bytes, run };
        Self(Memories::Host(vec![piece]))
    }

    /// Blocks of the memory by their numbers, checked once.
    pub fn blocks(&self, indices: &[usize]) -> Result<LayoutBlocks, LayoutError> {
        indices.iter().try_for_each(|index| self.block(*index).map(drop))?;
        Ok(LayoutBlocks(indices.to_vec()))
    }

    /// Blocks that [`EngineLayout::blocks`] has checked, mostly of this layout; those of another one that do not fit are
    /// refused by the copy.
    pub(crate) fn known(&self, blocks: &LayoutBlocks) -> Vec<BlockMemory<'_>> {
        blocks.0.iter().map(|index| self.place(*index)).collect()
    }
}

/// The pieces of a record in its order, and the bytes of its units.
fn pieces<M>(
    group: &GroupSpec,
    shard: &Shard,
    block_tokens: u32,
    memories: Vec<PlaneMemory<M>>,
) -> Result<(Vec<Piece<M>>, usize), LayoutError> {
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
    if cut { Err(LayoutError::Opaque) } else { Ok((pieces, unit_bytes)) }
}

fn piece<M>(plane: &Plane, shard: &Shard, block_tokens: u32, at: PlaneMemory<M>) -> Result<Piece<M>, LayoutError> {
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
pub(crate) enum Place<'a> {
    Host(HostPlace<'a>),
    Device { lane: &'a Lane, index: usize },
}

/// Where the calling thread can copy.
#[derive(Debug, Clone)]
pub(crate) enum HostPlace<'a> {
    Contiguous(MemoryExtent),
    Runs { memory: MemoryExtent, runs: &'a [StridedRun] },
    Paged { pieces: &'a [Piece], index: usize },
}

impl<'a> BlockMemory<'a> {
    /// The record's bytes in their order, in one piece.
    pub fn contiguous(memory: MemoryExtent) -> Self {
        Self(Place::Host(HostPlace::Contiguous(memory)))
    }

    /// Fragments within one memory that make up the record in their order.
    pub fn runs(memory: MemoryExtent, runs: &'a [StridedRun]) -> Self {
        Self(Place::Host(HostPlace::Runs { memory, runs }))
    }

    pub(crate) fn place(&self) -> &Place<'a> {
        &self.0
    }

    /// The lane of a block on a device.
    pub(crate) fn lane(&self) -> Option<&'a Lane> {
        match &self.0 {
            Place::Host(_) => None,
            Place::Device { lane, .. } => Some(lane),
        }
    }

    /// Whether a record of so many bytes in such units fits exactly.
    pub(crate) fn fits(&self, payload_bytes: usize, unit_bytes: usize) -> bool {
        match &self.0 {
            Place::Host(host) => host.bytes() == Some(payload_bytes),
            Place::Device { lane, .. } => {
                (lane.layout().record_bytes(), lane.layout().unit_bytes()) == (payload_bytes, unit_bytes)
            }
        }
    }
}

impl HostPlace<'_> {
    fn bytes(&self) -> Option<usize> {
        match self {
            Self::Contiguous(memory) => Some(memory.len()),
            Self::Runs { runs, .. } => runs.iter().try_fold(0usize, |sum, run| sum.checked_add(run.bytes()?)),
            Self::Paged { pieces, .. } => Some(pieces.iter().map(|piece| piece.bytes).sum()),
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

    /// Copies what a record of another shard has of this block, and makes the checksum of each unit in the same pass. The bytes of the
    /// block are those of the excerpt's whole record. `cuts` serves again for other blocks and the same excerpt.
    pub(crate) fn scatter_excerpt(
        &self,
        payload: &MemoryExtent,
        excerpt: &Excerpt,
        cuts: &mut Cuts,
        units: &Units,
        checksums: &mut [u64],
    ) -> Result<(), CopyError> {
        let mut done = 0;
        let mut scatter = |memory: &MemoryExtent, runs: &[StridedRun], from: usize, bytes: usize| {
            let seed = seed_from_unit(units.seed, (from / units.unit_bytes) as u32);
            let here = Units { seed, ..*units };
            let end = done + here.count(bytes);
            let refused = CopyError::Checksums { units: end, checksums: checksums.len() };
            let sums = checksums.get_mut(done..end).ok_or(refused)?;
            done = end;
            scatter_checksum(&payload.part(from, bytes)?, memory, runs, &here, sums)
        };
        match self {
            Self::Contiguous(memory) => excerpt.stretches.iter().try_for_each(|Stretch { from, to, bytes }| {
                scatter(&memory.part(*to, *bytes)?, &[StridedRun::contiguous(*bytes)], *from, *bytes)
            }),
            Self::Runs { memory, runs } => excerpt
                .stretches
                .iter()
                .try_for_each(|stretch| scatter(memory, &parts_of_runs(runs, stretch)?, stretch.from, stretch.bytes)),
            Self::Paged { pieces, index } => cuts.of(pieces, excerpt)?.iter().try_for_each(|cut| {
                let piece = &pieces[cut.piece];
                let memory = piece.memory.part(index.saturating_mul(piece.block_stride), piece.span)?;
                scatter(&memory, std::slice::from_ref(&cut.run), cut.from, cut.bytes)
            }),
        }
    }

    fn each_piece(
        &self,
        payload: &MemoryExtent,
        units: &Units,
        checksums: &mut [u64],
        copy: Copy,
    ) -> Result<(), CopyError> {
        let (pieces, index) = match self {
            Self::Contiguous(memory) => {
                let whole = [StridedRun::contiguous(memory.len())];
                return copy(payload, memory, &whole, units, checksums);
            }
            Self::Runs { memory, runs } => return copy(payload, memory, runs, units, checksums),
            Self::Paged { pieces, index } => (pieces, *index),
        };
        let mut done = 0;
        for piece in *pieces {
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

/// Where in a layout's pieces the bytes of an excerpt go: found once for many blocks.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    /// Whose they are, by the address of the pieces, which outlive the load.
    of: usize,
    all: Vec<Cut>,
}

/// Bytes of an excerpt that lie in one piece.
#[derive(Debug)]
struct Cut {
    piece: usize,
    run: StridedRun,
    /// In the other shard's record.
    from: usize,
    bytes: usize,
}

impl Cuts {
    fn of(&mut self, pieces: &[Piece], excerpt: &Excerpt) -> Result<&[Cut], CopyError> {
        if self.of != pieces.as_ptr().addr() {
            self.all.clear();
            for stretch in &excerpt.stretches {
                let mut start = 0;
                for (number, piece) in pieces.iter().enumerate() {
                    if let Some((run, common)) = cut(&piece.run, start, piece.bytes, stretch)? {
                        let from = stretch.from + (common.start - stretch.to);
                        self.all.push(Cut { piece: number, run, from, bytes: common.len() });
                    }
                    start += piece.bytes;
                }
            }
            self.of = pieces.as_ptr().addr();
        }
        Ok(&self.all)
    }
}

/// Of a run that begins at byte `start` of the record, what belongs to the stretch.
fn cut(
    run: &StridedRun,
    start: usize,
    bytes: usize,
    stretch: &Stretch,
) -> Result<Option<(StridedRun, Range<usize>)>, CopyError> {
    let common = stretch.to.max(start)..(stretch.to + stretch.bytes).min(start + bytes);
    if common.is_empty() {
        return Ok(None);
    }
    let part = run.part(common.start - start..common.end - start);
    part.map(|run| Some((run, common))).ok_or(CopyError::Run { fragment_bytes: run.fragment_bytes })
}

/// The same of all runs of a block.
fn parts_of_runs(runs: &[StridedRun], stretch: &Stretch) -> Result<Vec<StridedRun>, CopyError> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for run in runs {
        let bytes = run.bytes().ok_or(CopyError::Run { fragment_bytes: run.fragment_bytes })?;
        parts.extend(cut(run, start, bytes, stretch)?.map(|(run, _)| run));
        start += bytes;
    }
    Ok(parts)
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
