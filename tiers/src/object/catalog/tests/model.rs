//! Goal: the catalog never tells anything but what a plain map would. Method: random packs over few blocks, so that
//! they overlap; packs that go; restarts and compactions at any time; after every step all is asked.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const BLOCKS: u64 = 48;
const PACKS: u32 = 12;

#[derive(Clone, Debug)]
enum Step {
    Add { pack: u32, blocks: Vec<u64> },
    Remove { pack: u32 },
    Reconcile { present: BTreeSet<u32> },
    Flush,
    Compact,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let blocks = prop::collection::vec(0..BLOCKS, 1..24);
    prop_oneof![
        8 => (0..PACKS, blocks).prop_map(|(pack, blocks)| Step::Add { pack, blocks }),
        5 => (0..PACKS).prop_map(|pack| Step::Remove { pack }),
        1 => prop::collection::btree_set(0..PACKS, 6..12).prop_map(|present| Step::Reconcile { present }),
        2 => Just(Step::Flush),
        1 => Just(Step::Compact),
        2 => Just(Step::Reopen),
    ]
}

/// What the catalog must say.
#[derive(Default)]
struct Plain {
    packs: BTreeMap<u32, PackIndex>,
    /// Which pack was the last to bring the block, and when it was learned.
    last: BTreeMap<u64, (u32, u64)>,
    learned: BTreeMap<u32, u64>,
    clock: u64,
    cursor: u64,
}

impl Plain {
    fn add(&mut self, index: &PackIndex, number: u32, blocks: &[u64]) {
        self.cursor = self.cursor.max(u64::from(number) + 1);
        if self.packs.contains_key(&number) {
            return;
        }
        self.clock += 1;
        self.packs.insert(number, index.clone());
        self.learned.insert(number, self.clock);
        self.last.extend(blocks.iter().map(|block| (*block, (number, self.clock))));
    }

    fn find(&self, block: u64) -> Option<&PackIndex> {
        let (number, when) = self.last.get(&block)?;
        (self.learned.get(number) == Some(when)).then(|| self.packs.get(number))?
    }

    fn remove(&mut self, number: u32) -> bool {
        self.learned.remove(&number);
        self.packs.remove(&number).is_some()
    }
}

fn name(number: u32) -> IndexName {
    IndexName { node: node(1), seq: u64::from(number) + 1, pack: pack(number) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn it_equals_a_map(steps in prop::collection::vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let (mut catalog, _) = open(folder.path());
        let mut plain = Plain::default();
        for step in steps {
            match &step {
                Step::Add { pack, blocks } => {
                    // A block that is there twice is found where it was last.
                    let index = index(*pack, blocks.iter().copied());
                    catalog.add(name(*pack), &index).unwrap();
                    plain.add(&index, *pack, blocks);
                }
                Step::Remove { pack: number } => {
                    prop_assert_eq!(catalog.remove(pack(*number)).unwrap(), plain.remove(*number));
                }
                Step::Reconcile { present } => {
                    let names = present.iter().copied().map(name).collect();
                    let told = catalog.reconcile(&names, catalog.mark()).unwrap();
                    let unknown: Vec<_> =
                        present.iter().filter(|number| !plain.packs.contains_key(number)).copied().map(name).collect();
                    prop_assert_eq!(told.unknown, unknown);
                    let gone: Vec<_> = plain.packs.keys().filter(|number| !present.contains(number)).copied().collect();
                    prop_assert_eq!(told.removed, gone.iter().copied().map(pack).collect::<Vec<_>>());
                    gone.into_iter().for_each(|number| assert!(plain.remove(number)));
                }
                Step::Flush => catalog.db.flush().unwrap(),
                Step::Compact => compact(&catalog),
                Step::Reopen => {
                    drop(catalog);
                    let (again, opened) = open(folder.path());
                    prop_assert_eq!(opened, Opened { fresh: None, packs: plain.packs.len() as u64 });
                    catalog = again;
                }
            }
            catalog.live().self_check();
            prop_assert_eq!(catalog.cursor(node(1)), plain.cursor);
            for block in 0..BLOCKS {
                match (find(&catalog, block), plain.find(block)) {
                    (None, None) => (),
                    (Some(found), Some(index)) => {
                        prop_assert!(agrees(&found, index, block), "{step:?}: {block} {found:?}");
                    }
                    (found, index) => prop_assert!(false, "{step:?}: {block} {found:?} {index:?}"),
                }
            }
            let told: Vec<_> = catalog.packs().map(|row| row.name).collect();
            let mut learned: Vec<_> = plain.learned.iter().map(|(number, when)| (when, pack(*number))).collect();
            learned.sort_unstable();
            prop_assert_eq!(&told, &learned.into_iter().map(|(_, pack)| pack).collect::<Vec<_>>());
            let by_seq: Vec<_> = catalog.packs_of(node(1)).map(|row| row.name).collect();
            prop_assert_eq!(by_seq, plain.packs.keys().copied().map(pack).collect::<Vec<_>>());
            for number in 0..PACKS {
                let row = catalog.pack(pack(number)).map(|row| (row.index_name(), row.records as usize));
                let index = plain.packs.get(&number).map(|index| (name(number), index.entries.len()));
                prop_assert_eq!(row, index);
            }
        }
        prop_assert_eq!((catalog.stats().failed_reads, catalog.stats().bad_rows), (0, 0));
    }
}
