//! The files of a folder, as a bucket lists its objects.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;

use super::MARK;
use super::drafts::{DEPTH_MAX, is_draft};

/// The first `max` files below `prefix` in order of names, of those behind `after`: fewer are all there are. What goes meanwhile
/// may be in it or not; any other trouble is an error: what is left out of a list counts as gone.
pub(super) fn walk(root: &Path, prefix: &str, after: Option<&str>, max: usize) -> io::Result<Vec<ObjectMeta>> {
    let mut found = Vec::new();
    let mut after = after.map(str::to_owned);
    loop {
        let (names, cut) = names(root, prefix, after.as_deref(), max - found.len())?;
        after = names.last().cloned();
        for path in names {
            let Some(meta) = there(fs::metadata(root.join(&path)))? else { continue };
            let Ok(location) = ObjectPath::parse(&path) else { continue };
            let last_modified = meta.modified()?.into();
            found.push(ObjectMeta { location, last_modified, size: meta.len(), e_tag: None, version: None });
        }
        // Some may have gone since their names were read: more have to take their places.
        if !cut || found.len() >= max {
            return Ok(found);
        }
    }
}

/// The first names, and whether there are more.
fn names(root: &Path, prefix: &str, after: Option<&str>, max: usize) -> io::Result<(BTreeSet<String>, bool)> {
    let (mut kept, mut cut) = (BTreeSet::new(), false);
    let mut pending = vec![prefix.to_owned()];
    while let Some(folder) = pending.pop() {
        let Some(entries) = there(fs::read_dir(root.join(&folder)))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(kind) = there(entry.file_type())? else { continue };
            // A name that is no text is none of ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            let deep = path.split('/').count() >= DEPTH_MAX;
            let wanted = path != MARK && !is_draft(&name) && after.is_none_or(|after| path.as_str() > after);
            if kind.is_dir() && !deep {
                pending.push(path);
            } else if kind.is_file() && wanted {
                kept.insert(path);
                if kept.len() > max {
                    kept.pop_last();
                    cut = true;
                }
            }
        }
    }
    Ok((kept, cut))
}

/// What is there; `None` where it is gone.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_in_order_of_names_behind_a_name_and_up_to_a_number() {
        let root = tempfile::tempdir().expect("a folder");
        for name in ["index/a/2", "index/a/1", "index/b/1", "packs/x", "index/a/1#7", MARK] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(path, "x")).expect("written");
        }
        let names = |prefix: &str, after: Option<&str>, max| -> Vec<String> {
            let found = walk(root.path(), prefix, after, max).expect("listed");
            found.into_iter().map(|meta| meta.location.to_string()).collect()
        };
        assert_eq!(names("", None, 9), ["index/a/1", "index/a/2", "index/b/1", "packs/x"]);
        assert_eq!(names("index", Some("index/a/1"), 1), ["index/a/2"]);
        assert_eq!(names("canary", None, 9), [""; 0]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_an_empty_list() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("x".repeat(300));
        assert!(walk(&path, "", None, 9).is_err());
    }
}
