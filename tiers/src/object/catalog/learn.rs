//! Learns of packs that came and packs that went.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use rocksdb::WriteBatch;

use super::super::index::PackIndex;
use super::super::names::{IndexName, NodeName, PackName};
use super::CatalogError;
use super::open::Catalog;
use super::rows::{self, EntryRow, PackRow};
use super::shards::shards_of;

/// Packs that are forgotten with one write when a listing shows that they are gone.
const FORGET_AT_ONCE: usize = 1024;

/// What came of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The pack is known from now on.
    New,
    /// It was known before; only the cursor moved.
    Known,
}

/// A point in the order in which packs were learned: [`Catalog::mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

/// Where catalog and store were found to differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Packs without an index object: no longer known.
    pub removed: Vec<PackName>,
    /// Index objects that the catalog does not know: to be fetched and added, whatever the cursor of their node says.
    pub unknown: Vec<IndexName>,
}

impl Catalog {
    /// Learns of a pack: its records are found from now on, and the cursor of its node does not lie before it.
    ///
    /// Where a record is in several packs, the one learned last is found. That takes no read per record, and keeps
    /// records longer than the opposite would: packs go by age and idleness, and of two the one found first gets older
    /// while nobody reads it. When the found one goes first after all, the record is a miss though another pack has it;
    /// it is stored again if it is wanted.
    ///
    /// # Errors
    ///
    /// After an error nothing of the pack is known, and it can be added again.
    pub fn add(&self, name: IndexName, index: &PackIndex) -> Result<Added, CatalogError> {
        if !index.belongs_to(&name) {
            return Err(CatalogError::Foreign { name });
        }
        let _writing = self.writing();
        let mut batch = WriteBatch::default();
        self.advance(&mut batch, &name)?;
        if let Some(number) = self.number_of(name.pack)? {
            if self.live().name(number).is_some() {
                self.write("move a cursor", batch)?;
                return Ok(Added::Known);
            }
            // Somebody failed to forget it; its old rows must not outlive the new ones.
            forget(&mut batch, number, name.pack, self.object(number)?);
        }
        let number = self.enter(name.pack)?;
        for entry in &index.entries {
            batch.put(rows::entry_key(&entry.key, &entry.shard), EntryRow::new(number, entry).encode());
        }
        let shards = shards_of(index);
        for shard in &shards {
            batch.put(rows::shard_key(shard), number.to_le_bytes());
        }
        batch.put(rows::pack_key(number), PackRow::new(&name, index).encode());
        batch.put(rows::name_key(name.pack), number.to_le_bytes());
        batch.put(rows::object_key(&name), number.to_le_bytes());
        batch.put(rows::NEXT_KEY, self.live().next().to_le_bytes());
        if let Err(error) = self.write("learn of a pack", batch) {
            self.live_mut().take(number);
            return Err(error);
        }
        self.note_shards(shards, number);
        Ok(Added::New)
    }

    /// Moves the cursor of a node past an index object that holds no index, so that it is not fetched again and again.
    pub fn skip(&self, name: IndexName) -> Result<(), CatalogError> {
        let _writing = self.writing();
        let mut batch = WriteBatch::default();
        self.advance(&mut batch, &name)?;
        self.write("move a cursor", batch)
    }

    /// The pack is gone: all that was found in it is a miss from now on, also where writing that down fails; it can be
    /// removed again then. Whether it was known until now.
    pub fn remove(&self, pack: PackName) -> Result<bool, CatalogError> {
        let _writing = self.writing();
        let Some(number) = self.number_of(pack)? else { return Ok(false) };
        let was = self.live_mut().take(number);
        let mut batch = WriteBatch::default();
        forget(&mut batch, number, pack, self.object(number)?);
        self.write("forget a pack", batch)?;
        Ok(was)
    }

    /// What was learned up to now; to be asked for before a listing begins that [`Catalog::reconcile`] shall use.
    pub fn mark(&self) -> Mark {
        Mark(self.live().next())
    }

    /// Compares with a full listing of the index objects that began at `since` or later, and forgets the packs that are
    /// not in it. Packs that were learned after `since` stay: the listing may have passed their place before they were
    /// there.
    pub fn reconcile(&self, present: &BTreeSet<IndexName>, since: Mark) -> Result<Reconciled, CatalogError> {
        let _writing = self.writing();
        let mut gone: Vec<(IndexName, u32)> = Vec::new();
        let mut unknown = Vec::new();
        let mut listed = present.iter().copied().peekable();
        // Both are sorted alike, so each is passed once.
        for known in self.objects(rows::OBJECTS) {
            let (name, number) = known?;
            while let Some(other) = listed.next_if(|other| *other < name) {
                unknown.push(other);
            }
            let is_listed = listed.next_if_eq(&name).is_some();
            if is_listed && self.live().name(number).is_none() {
                // Somebody failed to forget it, and it is there again, or still.
                unknown.push(name);
            } else if !is_listed && number < since.0 {
                gone.push((name, number));
            }
        }
        unknown.extend(listed);
        for some in gone.chunks(FORGET_AT_ONCE) {
            let mut batch = WriteBatch::default();
            for (name, number) in some {
                self.live_mut().take(*number);
                forget(&mut batch, *number, name.pack, Some(*name));
            }
            self.write("forget packs", batch)?;
        }
        Ok(Reconciled { removed: gone.into_iter().map(|(name, _)| name.pack).collect(), unknown })
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the pack among the live ones, under a number of its own: ahead of its entries (see `sweep`).
    fn enter(&self, pack: PackName) -> Result<u32, CatalogError> {
        let mut live = self.live_mut();
        if live.len() >= self.packs_max as usize {
            return Err(CatalogError::Full { packs_max: self.packs_max });
        }
        let number = live.add(pack);
        drop(live);
        number.ok_or_else(|| {
            self.mark_damaged();
            CatalogError::Spent
        })
    }

    fn advance(&self, batch: &mut WriteBatch, name: &IndexName) -> Result<(), CatalogError> {
        if name.seq > self.read_cursor(name.node)?.unwrap_or(0) {
            batch.put(rows::cursor_key(name.node), name.seq.to_le_bytes());
        }
        Ok(())
    }

    /// The node's cursor, if it can be read and stands there.
    pub(super) fn read_cursor(&self, node: NodeName) -> Result<Option<u64>, CatalogError> {
        let value = self.readable("read a cursor", self.db.get_pinned(rows::cursor_key(node)))?.flatten();
        Ok(value.and_then(|value| rows::seq(&value)))
    }

    /// The pack's number. Unlike an entry that cannot be read, one of these is an error: what is unknown would be
    /// learned twice.
    fn number_of(&self, pack: PackName) -> Result<Option<u32>, CatalogError> {
        let value = self.db.get_pinned(rows::name_key(pack)).map_err(|error| self.failed("look for a pack", error))?;
        Ok(value.and_then(|value| rows::number(&value)))
    }

    /// The name of the index object of the pack with this number, if its row can be read.
    fn object(&self, number: u32) -> Result<Option<IndexName>, CatalogError> {
        Ok(self.row(number)?.map(|row| row.index_name()))
    }

    fn write(&self, doing: &'static str, batch: WriteBatch) -> Result<(), CatalogError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.db.write(batch).map_err(|error| self.failed(doing, error))
    }
}

/// Deletes the rows of a pack, but not its entries. Without the name of the index object its row stays, until a listing
/// shows it to be left over.
fn forget(batch: &mut WriteBatch, number: u32, pack: PackName, object: Option<IndexName>) {
    if let Some(object) = object {
        batch.delete(rows::object_key(&object));
    }
    batch.delete(rows::pack_key(number));
    batch.delete(rows::name_key(pack));
}
