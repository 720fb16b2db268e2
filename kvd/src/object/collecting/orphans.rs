//! What crashes left behind: packs without an index object, objects of checks that did not come to their end, and what nodes
//! said that are no more.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use kvd_tiers::object::{NODES_PREFIX, PACKS_PREFIX, PackName, PresenceName, pack_path, parse_pack_path};

use crate::object::listing::Asking;
use crate::object::store::{CANARY_PREFIX, Fault, is_canary};

/// Between a pack and its index object lie two requests; nobody takes an hour for them.
pub(crate) const AGE_MIN: Duration = Duration::from_secs(3600);
/// Packs that are looked at together: memory for their names, and one listing of the index objects each.
const TOGETHER_MAX: usize = 1 << 16;
/// Packs and leftovers deleted in one turn.
const DELETED_MAX: usize = 10_000;

/// What went, or would go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Packs that nobody can find, with their bytes.
    pub(crate) orphans: Vec<(PackName, u64)>,
    /// Names of other objects.
    pub(crate) others: Vec<String>,
}

/// Finds what is an hour older than `store_time`, and deletes it if it is to. Packs that are `known` have an index object.
///
/// Packs are listed before the index objects that speak of them: one that is published meanwhile is seen.
pub(crate) async fn collect(
    asking: Asking<'_>,
    store_time: SystemTime,
    known: impl Fn(PackName) -> bool,
    delete: bool,
) -> Result<Left, Fault> {
    let old = |modified| store_time.duration_since(modified).is_ok_and(|age| age > AGE_MIN);
    let mut left = Left::default();
    let mut suspects = BTreeMap::new();
    let mut packs = asking.pages(PACKS_PREFIX);
    loop {
        let page = packs.next().await?;
        let ended = page.is_none();
        for object in page.into_iter().flatten().filter(|object| old(object.modified)) {
            if let Some(pack) = parse_pack_path(&object.path).filter(|pack| !known(*pack)) {
                suspects.insert(pack, object.bytes);
            }
        }
        if !suspects.is_empty() && (ended || suspects.len() >= TOGETHER_MAX) {
            clear(asking, &mut suspects).await?;
            for (pack, bytes) in std::mem::take(&mut suspects) {
                if left.orphans.len() < DELETED_MAX {
                    if delete {
                        asking.store.delete(&pack_path(pack), asking.deadline()).await?;
                    }
                    left.orphans.push((pack, bytes));
                }
            }
        }
        if ended || left.orphans.len() >= DELETED_MAX {
            break;
        }
    }
    // Others may use the bucket as well, and these words.
    let ours = |path: &str| is_canary(path) || PresenceName::parse(path).is_some();
    for prefix in [CANARY_PREFIX, NODES_PREFIX] {
        let mut others = asking.pages(prefix);
        while let Some(page) = others.next().await? {
            for object in page.into_iter().filter(|object| old(object.modified) && ours(&object.path)) {
                if left.others.len() < DELETED_MAX {
                    if delete {
                        asking.store.delete(&object.path, asking.deadline()).await?;
                    }
                    left.others.push(object.path);
                }
            }
        }
    }
    Ok(left)
}

/// Takes those out that an index object speaks of.
async fn clear(asking: Asking<'_>, suspects: &mut BTreeMap<PackName, u64>) -> Result<(), Fault> {
    let mut indexes = asking.indexes();
    while let Some(page) = indexes.next().await? {
        for name in page {
            suspects.remove(&name.pack);
        }
    }
    Ok(())
}
