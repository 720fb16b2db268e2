//! What writers leave in a folder that die.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file is written under another name, `name#1`, and then linked to its own. Nobody writes for an hour.
const DRAFT_AGE_MIN: Duration = Duration::from_secs(3600);
/// As deep as our names are: `packs/<2 hex>/<32 hex>`.
pub(super) const DEPTH_MAX: usize = 3;
/// More than any share has objects; what is left lies there until the next start.
const ENTRIES_MAX: usize = 1 << 20;

/// Removes what writers left behind that died: it is listed by nobody, and would count against nobody's share.
pub(super) fn remove_drafts(root: &Path) -> io::Result<()> {
    // The file system's own clock: on a network it is not ours.
    let now = tempfile::NamedTempFile::new_in(root)?.as_file().metadata()?.modified()?;
    let mut pending: Vec<(PathBuf, usize)> = vec![(root.to_owned(), 1)];
    let mut seen = 0;
    while let Some((folder, depth)) = pending.pop() {
        // A folder goes with its last file, which others may delete meanwhile.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            if seen > ENTRIES_MAX {
                return Ok(());
            }
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < DEPTH_MAX {
                pending.push((entry.path(), depth + 1));
            } else if kind.is_file() && entry.file_name().to_str().is_some_and(is_draft) {
                let written = entry.metadata().and_then(|meta| meta.modified());
                if written.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > DRAFT_AGE_MIN)) {
                    // Another daemon that shares the folder may have been faster.
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
    Ok(())
}

/// Whether a file is not whole yet.
pub(super) fn is_draft(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, tail)| !tail.is_empty() && tail.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn old_drafts_go_and_everything_else_stays() {
        let root = tempfile::tempdir().expect("a folder");
        let put = |name: &str, age: Duration| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            let file = File::create(&path).expect("made");
            let now = file.metadata().and_then(|meta| meta.modified()).expect("a time");
            file.set_modified(now - age).expect("aged");
        };
        let (old, young) = (DRAFT_AGE_MIN * 2, Duration::ZERO);
        for name in ["packs/ab/cd#1", "index/n/x#22", "top#3"] {
            put(name, old);
        }
        let stay = ["packs/ab/ef", "packs/ab/gh#", "packs/ab/ij#1x", "packs/ab/cd#2"];
        for name in &stay[..3] {
            put(name, old);
        }
        put(stay[3], young);
        remove_drafts(root.path()).expect("swept");
        let left = |name: &str| root.path().join(name).exists();
        assert!(stay.iter().all(|name| left(name)));
        assert!(!["packs/ab/cd#1", "index/n/x#22", "top#3"].iter().any(|name| left(name)));
    }
}
