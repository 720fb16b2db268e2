//! A folder as a store: what a crash leaves in it, and ranges of its files.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::object::memory::Memory;

/// A file is written under another name, `name#1`, and then linked to its own. Nobody writes for an hour.
const DRAFT_AGE_MIN: Duration = Duration::from_secs(3600);
/// As deep as our names are: `packs/<2 hex>/<32 hex>`.
const DEPTH_MAX: usize = 3;
/// More than any share has objects; what is left lies there until the next start.
const ENTRIES_MAX: usize = 1 << 20;
/// Large enough that a disk is read at its speed, small enough that the first bytes come soon.
const CHUNK_BYTES: usize = 1 << 20;

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

fn is_draft(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, tail)| !tail.is_empty() && tail.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The first bytes of a range of a file; nothing where there are none.
pub(super) async fn read_chunk(file: Arc<File>, memory: Memory, range: Range<u64>) -> io::Result<Option<Bytes>> {
    let most = range.end.saturating_sub(range.start).min(CHUNK_BYTES as u64) as usize;
    if most == 0 {
        return Ok(None);
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut chunk = memory.take(CHUNK_BYTES);
        let bytes = &mut chunk.as_mut()[..most];
        let mut filled = 0;
        while filled < most {
            match file.read_at(&mut bytes[filled..], range.start + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(chunk.freeze().slice(..filled))
    });
    let bytes = read.await.map_err(io::Error::other)??;
    Ok((!bytes.is_empty()).then_some(bytes))
}

#[cfg(test)]
mod tests {
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
