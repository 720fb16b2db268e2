//! In which order records lie in a pack: so that a prefix of a chain is one range of bytes.

use std::collections::HashMap;

use kvd_proto::{Interleave, Shard};

use super::pack::Pushed;

/// The indexes of `pushed` in the order in which the records are to lie; each exactly once.
///
/// Records of one group and shard lie together. Among those a record lies right behind its parent if it is the parent's
/// oldest child here; other children follow behind all that descends from their older siblings. What has no parent here
/// comes by age. Parents that lead in a circle, which no engine makes, cost order and nothing else.
pub(super) fn in_chains(pushed: &[Pushed]) -> Vec<usize> {
    let links = Links::of(pushed);
    let mut starts: Vec<usize> = (0..pushed.len()).collect();
    // What has a parent here starts nothing, unless no start leads to it: then it is on or behind a circle.
    starts.sort_by_key(|&index| (class(&pushed[index]), links.has_parent[index]));
    let mut order = Vec::with_capacity(pushed.len());
    let mut placed = vec![false; pushed.len()];
    // Every record enters once as a start and once as a child.
    let mut pending = Vec::new();
    for start in starts {
        pending.push(start);
        while let Some(index) = pending.pop() {
            if std::mem::replace(&mut placed[index], true) {
                continue;
            }
            order.push(index);
            pending.extend(links.children(index));
        }
    }
    order
}

/// What lies together: group, layers, heads, tokens.
type Class = (u16, [u16; 4], Interleave);

fn class(pushed: &Pushed) -> Class {
    let shard: &Shard = &pushed.shard;
    let (layers, heads) = (shard.layers(), shard.heads());
    (pushed.group, [layers.start, layers.end, heads.start, heads.end], shard.interleave())
}

/// Who descends from whom, as lists through two tables: no list of its own per record.
struct Links {
    has_parent: Vec<bool>,
    youngest_child: Vec<Option<usize>>,
    older_sibling: Vec<Option<usize>>,
}

impl Links {
    fn of(pushed: &[Pushed]) -> Self {
        let places: HashMap<_, _> =
            pushed.iter().enumerate().map(|(index, entry)| ((class(entry), entry.key), index)).collect();
        let mut links = Self {
            has_parent: vec![false; pushed.len()],
            youngest_child: vec![None; pushed.len()],
            older_sibling: vec![None; pushed.len()],
        };
        for (index, entry) in pushed.iter().enumerate() {
            let parent = entry.parent_key.and_then(|key| places.get(&(class(entry), key)).copied());
            let Some(parent) = parent else { continue };
            links.has_parent[index] = true;
            links.older_sibling[index] = links.youngest_child[parent].replace(index);
        }
        links
    }

    /// Youngest first: the oldest ends on top of what is pending.
    fn children(&self, index: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.youngest_child[index], |&child| self.older_sibling[child])
    }
}
