//! A shard put together from others: those that ranks of another tensor or pipeline parallel size wrote.
//!
//! A record is its units in the order of layer, plane and head, whatever shard it is of. So what one shard has in common with
//! another are runs of whole units, each with the checksum that its writer gave it.

use std::collections::BTreeMap;

use crate::{GroupSpec, Shard};

/// Shards that one is put together from, at most; those behind are not looked at.
pub const SOURCES_MAX: usize = 32;

/// Units of a source's record that are those of the shard that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnitRun {
    /// The first one in the source's record.
    pub from: u32,
    /// The first one in the record that is asked for.
    pub to: u32,
    /// How many.
    pub units: u32,
}

/// Which of some shards hold what of another one.
#[derive(Debug, Clone)]
pub struct Cover {
    ask: Units,
    sources: Vec<Units>,
    /// The sets of sources, a bit each, that some unit of the shard has; with the units that have it.
    classes: BTreeMap<u32, u32>,
}

/// Where the units of a shard stand in its records.
#[derive(Debug, Clone)]
struct Units {
    first_layer: u16,
    /// For each layer of the shard and each plane of the group: the first unit, and the heads from there on.
    places: Vec<Option<Place>>,
    planes: usize,
    count: u32,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    unit: u32,
    first_head: u16,
    heads: u16,
}

impl Units {
    fn new(group: &GroupSpec, shard: &Shard) -> Self {
        let (mut places, mut count) = (Vec::new(), 0);
        for layer in shard.layers() {
            for plane in &group.planes {
                let heads = plane.heads_of(shard);
                let there = layer < plane.layers && !heads.is_empty();
                places.push(there.then(|| Place { unit: count, first_head: heads.start, heads: heads.len() as u16 }));
                count += if there { heads.len() as u32 } else { 0 };
            }
        }
        Self { first_layer: shard.layers().start, places, planes: group.planes.len(), count }
    }

    fn find(&self, layer: u16, plane: usize, head: u16) -> Option<u32> {
        let row = usize::from(layer.checked_sub(self.first_layer)?);
        let place = (*self.places.get(row * self.planes + plane)?)?;
        let behind = head.checked_sub(place.first_head).filter(|behind| *behind < place.heads)?;
        Some(place.unit + u32::from(behind))
    }

    /// Layer, plane and head of every unit, in the order of the record.
    fn iter(&self) -> impl Iterator<Item = (u16, usize, u16)> {
        self.places.iter().enumerate().flat_map(move |(at, place)| {
            let layer = self.first_layer + (at / self.planes) as u16;
            let heads = place.map_or(0..0, |place| place.first_head..place.first_head + place.heads);
            heads.map(move |head| (layer, at % self.planes, head))
        })
    }
}

impl Cover {
    /// What `sources` hold of `ask`. `None` where nothing can be put together: the group has no units that heads and layers are
    /// made of. Sources whose tokens are interleaved otherwise hold nothing of it.
    pub fn new(group: &GroupSpec, ask: &Shard, sources: &[Shard]) -> Option<Self> {
        if !group.has_units(ask) || group.record_bytes(ask).is_err() {
            return None;
        }
        let nothing = Units { first_layer: 0, places: Vec::new(), planes: group.planes.len(), count: 0 };
        let usable = |source: &Shard| {
            source.interleave() == ask.interleave() && group.has_units(source) && group.record_bytes(source).is_ok()
        };
        let units = |source| if usable(source) { Units::new(group, source) } else { nothing.clone() };
        let mut cover = Self {
            ask: Units::new(group, ask),
            sources: sources.iter().take(SOURCES_MAX).map(units).collect(),
            classes: BTreeMap::new(),
        };
        for (layer, plane, head) in cover.ask.iter() {
            let holders = cover.sources.iter().enumerate();
            let holders = holders.filter(|(_, source)| source.find(layer, plane, head).is_some());
            *cover.classes.entry(holders.fold(0, |all, (at, _)| all | 1 << at)).or_default() += 1;
        }
        Some(cover)
    }

    /// Whether a source has anything of the shard.
    pub fn uses(&self, source: usize) -> bool {
        source < self.sources.len() && self.classes.keys().any(|holders| holders & 1 << source != 0)
    }

    /// The longest prefix of a chain that can be put together, where each source has one of `prefixes`.
    pub fn longest(&self, prefixes: &[u32]) -> u32 {
        let best = |holders: &u32| members(*holders).filter_map(|at| prefixes.get(at)).max().copied().unwrap_or(0);
        self.classes.keys().map(best).min().unwrap_or(0)
    }

    /// What to take of which source, for blocks that those have whose bit is set: as few sources as that takes without trying
    /// every choice. Every unit once; `None` where one is missing.
    pub fn split(&self, usable: u32) -> Option<Vec<(usize, Vec<UnitRun>)>> {
        let mut chosen = 0u32;
        let mut open: Vec<(u32, u32)> = self.classes.iter().map(|(holders, units)| (*holders, *units)).collect();
        while !open.is_empty() {
            let gain = |at: &usize| -> u32 {
                open.iter().filter(|(holders, _)| holders & 1 << at != 0).map(|(_, units)| *units).sum()
            };
            // The smaller record where both have as much: the daemon moves whole records.
            let better = |at: &usize| (gain(at), u32::MAX - self.sources[*at].count);
            let best = members(usable & !chosen).filter(|at| *at < self.sources.len()).max_by_key(better)?;
            if gain(&best) == 0 {
                return None;
            }
            chosen |= 1 << best;
            open.retain(|(holders, _)| holders & chosen == 0);
        }
        let mut parts: Vec<(usize, Vec<UnitRun>)> = members(chosen).map(|at| (at, Vec::new())).collect();
        for (to, (layer, plane, head)) in (0..).zip(self.ask.iter()) {
            let (runs, from) = parts
                .iter_mut()
                .find_map(|(at, runs)| self.sources[*at].find(layer, plane, head).map(|from| (runs, from)))?;
            match runs.last_mut() {
                Some(run) if run.from + run.units == from && run.to + run.units == to => run.units += 1,
                _ => runs.push(UnitRun { from, to, units: 1 }),
            }
        }
        // One that was chosen early may have nothing left that others do not have.
        parts.retain(|(_, runs)| !runs.is_empty());
        Some(parts)
    }
}

/// The numbers of the bits that are set.
fn members(set: u32) -> impl Iterator<Item = usize> {
    (0..SOURCES_MAX).filter(move |at| set & 1 << at != 0)
}

#[cfg(test)]
mod tests;
