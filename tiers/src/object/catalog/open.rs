//! Opens the catalog as it was left, or makes it anew.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kvd_nixl::sys::OfdLock;
use rocksdb::{Cache, DB, DBIterator, ErrorKind, IteratorMode, PrefixRange, ReadOptions, WriteBatch, WriteOptions};

use super::CatalogError;
use super::live::Live;
use super::rocks::{self, CatalogOptions};
use super::rows::{self, PackRow};
use super::shards::Shards;

const DATABASE: &str = "db";
const LOCK: &str = "lock";
const DAMAGED: &str = "damaged";

/// What opening found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Why the catalog was made anew and knows nothing, if it was.
    pub fresh: Option<&'static str>,
    /// Packs that it knows.
    pub packs: u64,
}

/// Where records lie in the store. Calls block for as long as a read or write of the folder's disk takes.
pub struct Catalog {
    pub(super) db: DB,
    pub(super) cache: Cache,
    /// Guards which packs are there. Held for a few lookups or one change in memory, and never over a call of the
    /// database but by the database's own threads, which take nothing while they hold it.
    pub(super) live: Arc<RwLock<Live>>,
    /// Guards which shards there are. Held for a few lookups or changes in memory, and ahead of `live`.
    pub(super) shards: RwLock<Shards>,
    /// One change at a time: what a change reads first must still hold when it writes. Held over calls of the database,
    /// and ahead of `shards` and `live`.
    pub(super) writing: Mutex<()>,
    pub(super) packs_max: u32,
    pub(super) failed_reads: AtomicU64,
    pub(super) bad_rows: AtomicU64,
    damaged: AtomicBool,
    folder: PathBuf,
    /// Declared last: given up when the database is closed.
    _lock: OfdLock,
}

/// Why an old database is not used.
enum Refusal {
    Anew(&'static str),
    Stop(CatalogError),
}

struct Database {
    db: DB,
    cache: Cache,
    live: Arc<RwLock<Live>>,
}

impl Catalog {
    /// Opens the catalog in `folder`, which is made if need be, as it was left; where that is not to be used, it is
    /// deleted and begun anew. Reads one row per pack.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Held`] if somebody else has it, and then nothing is touched; [`CatalogError::Folder`] or
    /// [`CatalogError::Database`] if no new one can be made either.
    pub fn open(folder: &Path, options: CatalogOptions) -> Result<(Self, Opened), CatalogError> {
        let lock = own(folder)?;
        let (database, fresh) = match existing(folder, &options) {
            Ok(database) => (database, None),
            Err(Refusal::Anew(why)) => (anew(folder, &options)?, Some(why)),
            Err(Refusal::Stop(error)) => return Err(error),
        };
        let live = database.live.read().unwrap_or_else(PoisonError::into_inner);
        let shards = Shards::known(&database.db, &live);
        drop(live);
        let catalog = Self {
            db: database.db,
            cache: database.cache,
            live: database.live,
            shards: RwLock::new(shards),
            writing: Mutex::new(()),
            packs_max: options.packs_max,
            failed_reads: AtomicU64::new(0),
            bad_rows: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
            folder: folder.to_owned(),
            _lock: lock,
        };
        let packs = catalog.live().len() as u64;
        Ok((catalog, Opened { fresh, packs }))
    }

    /// Whether damage was seen, by a read or a write. What it knows goes on being served, less what cannot be read;
    /// whoever drops it and opens the folder again gets a new one.
    pub fn damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed) // a flag of its own, beside which nothing is published
    }

    pub(super) fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn live_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn database_folder(&self) -> PathBuf {
        self.folder.join(DATABASE)
    }

    /// Makes an error of the database ours, and remembers damage.
    pub(super) fn failed(&self, doing: &'static str, source: rocksdb::Error) -> CatalogError {
        if shows_damage(&source) {
            self.mark_damaged();
        }
        CatalogError::Database { doing, source }
    }

    /// The next to open the folder begins anew.
    pub(super) fn mark_damaged(&self) {
        if !self.damaged.swap(true, Ordering::Relaxed) {
            // Where the mark cannot be made, the next to open finds the same damage as soon as it reads there.
            let _ = File::create(self.folder.join(DAMAGED));
        }
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        // A compaction can take minutes; what it has not finished is begun again at the next start.
        self.db.cancel_all_background_work(true);
    }
}

/// Whether the error is one of the folder's bytes, which will not pass, rather than of a full disk or of too many open
/// files.
pub(super) fn shows_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        ErrorKind::Corruption => true,
        ErrorKind::IOError => ["Input/output error", "No such file"].iter().any(|text| error.as_ref().contains(text)),
        _ => false,
    }
}

/// Makes the folder and takes its lock.
fn own(folder: &Path) -> Result<OfdLock, CatalogError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
    let path = folder.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = file.and_then(|file| OfdLock::try_lock(file.as_fd())).map_err(failed(&path))?;
    lock.ok_or_else(|| CatalogError::Held { path: folder.to_owned() })
}

fn existing(folder: &Path, options: &CatalogOptions) -> Result<Database, Refusal> {
    let path = folder.join(DATABASE);
    if !path.join("CURRENT").exists() {
        return Err(Refusal::Anew("there was none"));
    }
    if folder.join(DAMAGED).exists() {
        return Err(Refusal::Anew("damage was seen in it"));
    }
    let database = open_database(folder, options).map_err(|error| match error {
        CatalogError::Held { .. } => Refusal::Stop(error),
        _ => Refusal::Anew("it could not be opened"),
    })?;
    match database.db.get(rows::FORMAT_KEY) {
        Ok(Some(format)) if format == rows::FORMAT => (),
        Ok(_) => return Err(Refusal::Anew("another version of kvd made it")),
        Err(_) => return Err(Refusal::Anew("it could not be read")),
    }
    let live = known_packs(&database.db).ok_or(Refusal::Anew("it could not be read"))?;
    *database.live.write().unwrap_or_else(PoisonError::into_inner) = live;
    Ok(database)
}

/// The rows whose keys begin so, in order; what is read does not displace what lookups need.
pub(super) fn scan<'a>(db: &'a DB, prefix: impl Into<Vec<u8>>) -> DBIterator<'a> {
    let mut reading = ReadOptions::default();
    reading.set_iterate_range(PrefixRange(prefix));
    reading.fill_cache(false);
    db.iterator_opt(IteratorMode::Start, reading)
}

/// The packs that the database knows, if all of it that tells can be read and agrees.
fn known_packs(db: &DB) -> Option<Live> {
    let mut live = Live::new(rows::number(&db.get(rows::NEXT_KEY).ok()??)?);
    for row in scan(db, rows::PACKS) {
        let (key, value) = row.ok()?;
        let (number, pack) = (rows::number_of_pack_key(&key)?, PackRow::decode(&value)?);
        live.restore(number, pack.name).then_some(())?;
    }
    Some(live)
}

/// Deletes what there is and begins anew.
fn anew(folder: &Path, options: &CatalogOptions) -> Result<Database, CatalogError> {
    let path = folder.join(DATABASE);
    delete(&path).map_err(failed(&path))?;
    // After the database: a crash between the two finds no database, and not one that is taken for good.
    let mark = folder.join(DAMAGED);
    delete(&mark).map_err(failed(&mark))?;
    let database = open_database(folder, options)?;
    let mut batch = WriteBatch::default();
    batch.put(rows::FORMAT_KEY, rows::FORMAT);
    batch.put(rows::NEXT_KEY, database.live().next().to_le_bytes());
    let mut writing = WriteOptions::default();
    writing.set_sync(true);
    database.db.write_opt(batch, &writing).map_err(|source| CatalogError::Database { doing: "begin anew", source })?;
    Ok(database)
}

impl Database {
    fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_database(folder: &Path, options: &CatalogOptions) -> Result<Database, CatalogError> {
    // Empty until the rows are read: nothing in the database is dead until then.
    let live = Arc::new(RwLock::new(Live::new(0)));
    match rocks::open(&folder.join(DATABASE), options, &live) {
        Ok((db, cache)) => Ok(Database { db, cache, live }),
        // Our own lock keeps other kvd away; this one is of a tool that looks into the database.
        Err(error) if error.kind() == ErrorKind::IOError && error.as_ref().contains("/LOCK") => {
            Err(CatalogError::Held { path: folder.to_owned() })
        }
        Err(source) => Err(CatalogError::Database { doing: "be opened", source }),
    }
}

fn delete(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CatalogError {
    let path = path.to_owned();
    |source| CatalogError::Folder { path, source }
}
