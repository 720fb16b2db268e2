//! The name of this node in a shared store: random, and the same after every restart.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kvd_tiers::object::NodeName;
use thiserror::Error;

/// Why the node has no name.
#[derive(Debug, Error)]
#[error("the node's name in {}: {source}", path.display())]
pub struct IdentityError {
    path: PathBuf,
    source: io::Error,
}

/// Reads the name in `data_dir`, or makes one.
pub(super) fn node_name(data_dir: &Path) -> Result<NodeName, IdentityError> {
    let path = data_dir.join("node");
    read_or_make(&path).map_err(|source| IdentityError { path, source })
}

fn read_or_make(path: &Path) -> io::Result<NodeName> {
    match fs::read_to_string(path) {
        Ok(text) => {
            if let Some(name) = NodeName::parse(text.trim_end()) {
                return Ok(name);
            }
            // Its packs are still found under the old name, and go by age: better than no tier.
            tracing::warn!(file = %path.display(), "the node's name is damaged: it gets a new one");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let name = NodeName::new(bytes);
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    writeln!(file, "{name}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_and_a_damaged_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let first = node_name(folder.path()).unwrap();
        assert_eq!(node_name(folder.path()).unwrap(), first);
        fs::write(folder.path().join("node"), "not a name").unwrap();
        let second = node_name(folder.path()).unwrap();
        assert_ne!(second, first);
        assert_eq!(node_name(folder.path()).unwrap(), second);
    }
}
