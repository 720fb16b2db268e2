//! What goes into a pack comes out once, in chain order; what is refused leaves no trace.

use std::collections::{HashMap, HashSet};

use kvd_proto::Interleave;
use proptest::prelude::*;

use super::*;
use crate::object::names::{NodeName, PackName, Realm};

const RECORD_BYTES: u32 = 8192;

fn builder(limit_bytes: u64) -> PackBuilder<Vec<u8>> {
    let realm = Realm { tenant: [3; 16], namespace: [4; 16] };
    PackBuilder::new(PackName::new([1; 16]), NodeName::new([2; 16]), realm, limit_bytes)
}

fn key(number: u32) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    BlockKey::new(bytes)
}

fn pushed(number: u32, parent: Option<u32>) -> Pushed {
    Pushed {
        key: key(number),
        shard: Shard::whole(4, 2).unwrap(),
        parent_key: parent.map(key),
        group: 0,
        position: 0,
        generation: number,
        record_bytes: RECORD_BYTES,
        payload_bytes: 100,
        meta_checksum: u64::from(number) << 7,
    }
}

/// A record that holds its number all over, so that it is known again wherever it lies.
fn bytes_of(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(RECORD_BYTES as usize / 4)
}

fn push(builder: &mut PackBuilder<Vec<u8>>, entry: Pushed) -> Result<(), PushError> {
    let number = entry.generation;
    builder.push(entry, bytes_of(number))
}

fn self_check(builder: &PackBuilder<Vec<u8>>) {
    let bytes: u64 = builder.pushed.iter().map(|entry| u64::from(entry.record_bytes)).sum();
    assert_eq!(builder.bytes(), bytes);
    assert_eq!(builder.records.len(), builder.len());
    assert_eq!(builder.present.len(), builder.len());
    for (entry, record) in builder.pushed.iter().zip(&builder.records) {
        assert!(builder.contains(&entry.key, &entry.shard));
        assert_eq!(record.len(), entry.record_bytes as usize);
    }
}

/// The numbers of the records in the order in which they lie, after everything about the pack was looked at.
fn order(builder: PackBuilder<Vec<u8>>) -> Vec<u32> {
    self_check(&builder);
    let expected: Vec<Pushed> = builder.pushed.clone();
    let numbers = numbers(&builder.finish(77).unwrap(), &expected);
    let distinct: HashSet<u32> = numbers.iter().copied().collect();
    assert_eq!((numbers.len(), distinct.len()), (expected.len(), expected.len()));
    numbers
}

/// The same of a pack that holds some of what was put in.
fn numbers(sealed: &SealedPack<Vec<u8>>, pushed: &[Pushed]) -> Vec<u32> {
    let object = [sealed.records.concat(), sealed.tail.clone()].concat();
    assert_eq!(object.len() as u64, sealed.bytes);
    assert_eq!(sealed.bytes, sealed.index.pack_bytes());
    let (rest, end) = object.split_last_chunk::<TRAILER_BYTES>().unwrap();
    let (records, index) = rest.split_at(rest.len() - parse_trailer(end).unwrap() as usize);
    assert_eq!(index, sealed.index_bytes);
    let index = PackIndex::decode(index).unwrap();
    assert_eq!((index.records_bytes, index.created_ms), (records.len() as u64, 77));
    assert_eq!(index, sealed.index);
    let by_number: HashMap<u32, &Pushed> = pushed.iter().map(|entry| (entry.generation, entry)).collect();
    for entry in &index.entries {
        assert_eq!(*entry, by_number[&entry.generation].clone().at(entry.offset));
        let record = &records[entry.offset as usize..][..entry.record_bytes as usize];
        assert_eq!(record, bytes_of(entry.generation));
    }
    index.entries.iter().map(|entry| entry.generation).collect()
}

fn order_of(entries: &[(u32, Option<u32>)]) -> Vec<u32> {
    let mut builder = builder(u64::MAX);
    entries.iter().for_each(|&(number, parent)| push(&mut builder, pushed(number, parent)).unwrap());
    order(builder)
}

#[test]
fn chains_lie_in_order_however_they_came() {
    let chain = [(4, Some(3)), (2, Some(1)), (1, None), (3, Some(2))];
    assert_eq!(order_of(&chain), [1, 2, 3, 4]);
    // The parent of 10 lies elsewhere; two chains came in turns.
    assert_eq!(order_of(&[(10, Some(9)), (20, None), (11, Some(10)), (21, Some(20))]), [10, 11, 20, 21]);
    // 2 and 5 both follow 1: the older with all behind it comes first.
    let fork = [(1, None), (2, Some(1)), (5, Some(1)), (6, Some(5)), (3, Some(2)), (7, Some(1))];
    assert_eq!(order_of(&fork), [1, 2, 3, 5, 6, 7]);
}

#[test]
fn groups_and_shards_do_not_mix() {
    let mut builder = builder(u64::MAX);
    let halves = [0, 1].map(|index| Shard::new(0..4, 0..2, Interleave::new(index, 2).unwrap()).unwrap());
    let entries = [(1, 1, 1, None), (2, 1, 0, None), (3, 0, 1, None), (4, 0, 0, None)];
    let children = [(5, 1, 1, Some(1)), (6, 1, 0, Some(2)), (7, 0, 1, Some(3)), (8, 0, 0, Some(4)), (9, 0, 0, Some(1))];
    for (number, group, half, parent) in entries.into_iter().chain(children) {
        let shard = halves[half].clone();
        push(&mut builder, Pushed { group, shard, ..pushed(number, parent) }).unwrap();
    }
    // The parent of 9 is there, but in another group.
    assert_eq!(order(builder), [4, 8, 9, 3, 7, 2, 6, 1, 5]);
}

#[test]
fn parents_in_a_circle_do_not_hang() {
    assert_eq!(order_of(&[(1, Some(1))]), [1]);
    assert_eq!(order_of(&[(1, Some(3)), (2, Some(1)), (3, Some(2)), (4, None)]), [4, 1, 2, 3]);
    assert_eq!(order_of(&[(9, Some(2)), (1, Some(2)), (2, Some(1)), (8, Some(9))]), [9, 8, 1, 2]);
}

/// Goal: no recursion, nothing quadratic. The longest chain that a pack can hold came from its end.
#[test]
fn the_longest_chain_is_put_in_order() {
    let count = ENTRIES_MAX as u32;
    let entries: Vec<Pushed> =
        (0..count).rev().map(|number| pushed(number, Some(number.checked_sub(1).unwrap_or(count)))).collect();
    let order: Vec<u32> = in_chains(&entries).into_iter().map(|index| entries[index].generation).collect();
    assert!(order.iter().copied().eq(0..count));
}

prop_compose! {
    fn any_pushed()(
        number in 0u32..16,
        parent in prop::option::weighted(0.8, 0u32..16),
        group in 0u16..2,
        half in 0u16..2,
    ) -> Pushed {
        let shard = Shard::new(0..4, 0..2, Interleave::new(half, 2).unwrap()).unwrap();
        Pushed { shard, group, ..pushed(number, parent) }
    }
}

proptest! {
    /// Against the promise itself, by looking: each once, classes whole, first children behind their parents.
    #[test]
    fn first_children_lie_behind_their_parents(entries in prop::collection::vec(any_pushed(), 1..60)) {
        let mut builder = builder(u64::MAX);
        let mut kept: Vec<Pushed> = Vec::new();
        for mut entry in entries {
            // A number of its own, by which a record is known again.
            entry.generation = kept.len() as u32;
            let known = builder.contains(&entry.key, &entry.shard);
            prop_assert_eq!(known, kept.iter().any(|other| (other.key, &other.shard) == (entry.key, &entry.shard)));
            let result = push(&mut builder, entry.clone());
            prop_assert_eq!(result, if known { Err(PushError::Present) } else { Ok(()) });
            if !known {
                kept.push(entry);
            }
            self_check(&builder);
        }
        let order: Vec<usize> = order(builder).into_iter().map(|number| number as usize).collect();
        let class = |index: usize| (kept[index].group, kept[index].shard.clone());
        let classes: HashSet<_> = (0..kept.len()).map(class).collect();
        let changes = order.windows(2).filter(|pair| class(pair[0]) != class(pair[1])).count();
        prop_assert_eq!(changes + 1, classes.len());

        let place = |index: usize| order.iter().position(|other| *other == index).unwrap();
        let parent = |index: usize| {
            let wanted = kept[index].parent_key?;
            (0..kept.len()).find(|&other| class(other) == class(index) && kept[other].key == wanted)
        };
        for child in 0..kept.len() {
            let Some(above) = parent(child) else { continue };
            let circle = std::iter::successors(Some(above), |&index| parent(index)).nth(kept.len()).is_some();
            let oldest = (0..child).all(|older| parent(older) != Some(above));
            if !circle && oldest {
                prop_assert_eq!(place(child), place(above) + 1);
            }
            if !circle {
                prop_assert!(place(child) > place(above));
            }
        }
    }

    #[test]
    fn trailers_are_read_exactly_or_refused(bytes in any::<[u8; TRAILER_BYTES]>(), index_bytes in any::<u32>()) {
        prop_assert_eq!(parse_trailer(&bytes), None, "by chance");
        let valid = (1..=ENTRIES_MAX as u32).any(|count| 128 + 80 * count == index_bytes);
        prop_assert_eq!(parse_trailer(&trailer(index_bytes)), valid.then_some(index_bytes));
        let near = 128 + 80 * (index_bytes % ENTRIES_MAX as u32 + 1);
        prop_assert_eq!(parse_trailer(&trailer(near)), Some(near));
    }
}

#[test]
fn other_trailers_are_refused() {
    let good = trailer(208);
    assert_eq!(good, *b"\xd0\0\0\0\0\0\0\0KVDPACK\n");
    for wrong in [0, 127, 128, 207, INDEX_BYTES_MAX as u32 + 80, u32::MAX] {
        assert_eq!(parse_trailer(&trailer(wrong)), None, "{wrong}");
    }
    for at in 4..TRAILER_BYTES {
        let mut bytes = good;
        bytes[at] ^= 1;
        assert_eq!(parse_trailer(&bytes), None, "byte {at}");
    }
    assert_eq!(parse_trailer(&good[1..]), None);
    assert_eq!(parse_trailer(&[&good[..], &[0]].concat()), None);
}

#[test]
fn a_full_pack_takes_no_more() {
    let mut builder = builder(3 * u64::from(RECORD_BYTES) + 100);
    for number in 0..3 {
        assert!(builder.room_for(RECORD_BYTES));
        push(&mut builder, pushed(number, None)).unwrap();
    }
    assert!(!builder.room_for(RECORD_BYTES));
    assert_eq!(push(&mut builder, pushed(3, None)), Err(PushError::Full));
    // Known is known, room or not.
    assert_eq!(push(&mut builder, pushed(2, None)), Err(PushError::Present));
    assert_eq!(order(builder), [0, 1, 2]);
}

#[test]
fn no_limit_is_too_small_for_one_record_and_none_is_above_the_format() {
    let mut small = builder(0);
    push(&mut small, pushed(1, None)).unwrap();
    assert_eq!(push(&mut small, pushed(2, None)), Err(PushError::Full));
    assert_eq!(order(small), [1]);
    let mut large = builder(u64::MAX);
    push(&mut large, pushed(1, None)).unwrap();
    assert!(large.room_for(PACK_BYTES_MAX as u32 - RECORD_BYTES));
    assert!(!large.room_for(PACK_BYTES_MAX as u32 - RECORD_BYTES + 4096));
}

#[test]
fn a_pack_has_room_for_so_many_records() {
    let mut builder = builder(u64::MAX);
    // Only the count matters here, and half a gibibyte of records would prove no more.
    builder.pushed = vec![pushed(1, None); ENTRIES_MAX - 1];
    assert!(builder.room_for(RECORD_BYTES));
    push(&mut builder, pushed(2, None)).unwrap();
    assert_eq!(push(&mut builder, pushed(3, None)), Err(PushError::Full));
}

#[test]
fn what_is_refused_leaves_no_trace() {
    let mut builder = builder(u64::MAX);
    let odd = [(0, 0), (4096, 1), (8192, 0), (8192, 4097), (8193, 100), (4096 + (132 << 10), 1)];
    for (record_bytes, payload_bytes) in odd {
        let entry = Pushed { record_bytes, payload_bytes, ..pushed(1, None) };
        let bytes = record_bytes as usize;
        let refused = Err(PushError::Sizes { bytes, record_bytes, payload_bytes });
        assert_eq!(builder.push(entry, vec![0; bytes]), refused);
    }
    let short = Err(PushError::Sizes { bytes: 4096, record_bytes: RECORD_BYTES, payload_bytes: 100 });
    assert_eq!(builder.push(pushed(1, None), vec![0; 4096]), short, "half of its bytes");
    assert!(builder.is_empty() && !builder.contains(&key(1), &pushed(1, None).shard));
    self_check(&builder);
    assert_eq!(builder.finish(0), None);
}

#[test]
fn what_is_left_out_leaves_the_others_side_by_side() {
    let made = || {
        let mut builder = builder(u64::MAX);
        (0..5).for_each(|number| push(&mut builder, pushed(number, number.checked_sub(1))).unwrap());
        let pushed = builder.pushed.clone();
        (builder.finish(77).unwrap(), pushed)
    };
    for (left_out, kept) in [(vec![0, 3], vec![1, 2, 4]), (vec![4], vec![0, 1, 2, 3]), (vec![], vec![0, 1, 2, 3, 4])] {
        let (sealed, pushed) = made();
        let less = sealed.without(&left_out.iter().copied().collect()).unwrap();
        assert_eq!(numbers(&less, &pushed), kept);
    }
    assert_eq!(made().0.without(&(0..5).collect()), None, "there is no empty pack");
}
