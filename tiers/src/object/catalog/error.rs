//! What can go wrong with a catalog that making it anew does not mend.

use std::io;
use std::path::PathBuf;

use super::super::names::IndexName;

/// Why the catalog did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The folder, or what stands in it, cannot be made, opened or deleted.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else uses it; nothing was touched.
    #[error("the catalog in {} is in use by another process; give each kvd a folder of its own", path.display())]
    Held {
        /// The catalog's folder.
        path: PathBuf,
    },
    /// The database refused. After [`Catalog::damaged`](super::Catalog::damaged) the next to open the catalog makes it anew.
    #[error("the catalog could not {doing}: {source}")]
    Database {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: rocksdb::Error,
    },
    /// An index that does not say what its name says.
    #[error("{} holds the index of another pack", name.path())]
    Foreign {
        /// Name of the index object.
        name: IndexName,
    },
    /// As many packs are known as may be: nothing is learned until some are gone.
    #[error("the catalog holds {packs_max} packs, as many as it may")]
    Full {
        /// The bound.
        packs_max: u32,
    },
    /// Every pack number was used once. The next to open the catalog makes it anew.
    #[error("the catalog has no pack numbers left and will be made anew at the next start")]
    Spent,
}
