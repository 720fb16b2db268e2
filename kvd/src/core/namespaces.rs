//! Namespaces that sessions opened, remembered across restarts: slot tables keep but the beginning of a digest, and an
//! operator who purges or asks after a block must be able to name a namespace that nobody has opened again yet.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use kvd_proto::NamespaceDigest;
use serde::{Deserialize, Serialize};

use crate::session::ViewRequest;

/// Namespaces remembered; beyond this many, new ones are served but not listed.
const KNOWN_MAX: usize = 1024;
/// Groups remembered of each.
const GROUPS_MAX: usize = 32;
/// A name of 256 bytes may take six times as many in JSON.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// What operators are told of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownNamespace {
    pub(super) model: String,
    pub(super) block_tokens: u32,
    /// Groups seen.
    pub(super) groups: Vec<u16>,
}

/// All that are known, and the file that keeps them.
#[derive(Debug)]
pub(super) struct Namespaces {
    known: BTreeMap<NamespaceDigest, KnownNamespace>,
    file: PathBuf,
    /// What is known is not what the file says, or what is being written there.
    stale: bool,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl Namespaces {
    /// What an earlier start wrote. A file that cannot be read costs names only, never the start.
    pub(super) fn load(data_dir: &Path) -> Self {
        let file = data_dir.join("namespaces.json");
        let known = match read(&file) {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "namespaces of earlier starts are not known by name");
                BTreeMap::new()
            }
        };
        Self { known, file, stale: false, writer: None }
    }

    pub(super) fn contains(&self, digest: &NamespaceDigest) -> bool {
        self.known.contains_key(digest)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&NamespaceDigest, &KnownNamespace)> {
        self.known.iter()
    }

    pub(super) fn is_full(&self) -> bool {
        self.known.len() >= KNOWN_MAX
    }

    /// Forgets the first that is not needed.
    pub(super) fn forget_one(&mut self, unneeded: impl Fn(&NamespaceDigest) -> bool) {
        if let Some(digest) = self.known.keys().find(|digest| unneeded(digest)).copied() {
            self.known.remove(&digest);
            self.stale = true;
        }
    }

    /// A session opened a view.
    pub(super) fn note(&mut self, view: &ViewRequest) {
        if self.is_full() && !self.contains(&view.namespace) {
            return;
        }
        let fresh = || KnownNamespace { model: String::new(), block_tokens: 0, groups: Vec::new() };
        let known = self.known.entry(view.namespace).or_insert_with(fresh);
        let before = known.clone();
        (known.model, known.block_tokens) = (view.model.clone(), view.block_tokens);
        if !known.groups.contains(&view.group) && known.groups.len() < GROUPS_MAX {
            known.groups.push(view.group);
        }
        self.stale |= *known != before;
        self.save();
    }

    /// Writes what changed, on a thread of its own: a disk that hangs must not hold up the core. One at a time.
    pub(super) fn save(&mut self) {
        if self.writer.as_ref().is_some_and(|writer| !writer.is_finished()) {
            return;
        }
        if let Some(Ok(Err(error))) = self.writer.take().map(JoinHandle::join) {
            tracing::warn!(file = %self.file.display(), %error, "namespaces are not written down yet");
            self.stale = true;
        }
        if !self.stale {
            return;
        }
        let by_name: BTreeMap<String, &KnownNamespace> =
            self.known.iter().map(|(digest, known)| (digest.to_string(), known)).collect();
        let text = serde_json::to_string_pretty(&by_name).expect("names and numbers can be told");
        let file = self.file.clone();
        let write = move || {
            // Whole under its name or not at all.
            let draft = file.with_extension("json.new");
            let mut written = File::create(&draft)?;
            written.write_all(text.as_bytes())?;
            written.sync_all()?;
            fs::rename(&draft, &file)
        };
        // No thread to be had: the next look at the gauges tries again.
        if let Ok(writer) = thread::Builder::new().name("kvd-names".into()).spawn(write) {
            self.stale = false;
            self.writer = Some(writer);
        }
    }
}

fn read(file: &Path) -> io::Result<BTreeMap<NamespaceDigest, KnownNamespace>> {
    let text = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
        Ok(found) if found.len() > FILE_BYTES_MAX => return Err(io::Error::other("it is too long to be ours")),
        Ok(_) => fs::read_to_string(file)?,
    };
    let by_name: BTreeMap<String, KnownNamespace> = serde_json::from_str(&text)?;
    let one = |(name, known): (String, KnownNamespace)| {
        let digest =
            NamespaceDigest::from_hex(&name).ok_or_else(|| io::Error::other(format!("`{name}` is no digest")))?;
        Ok((digest, known))
    };
    by_name.into_iter().take(KNOWN_MAX).map(one).collect()
}

#[cfg(test)]
mod tests {
    use kvd_proto::{Shard, UnitOrder};

    use super::*;

    fn view(namespace: u8, group: u16) -> ViewRequest {
        ViewRequest {
            namespace: NamespaceDigest::new([namespace; 32]),
            model: "llama".into(),
            group,
            shard: Shard::whole(1, 1).expect("a shard"),
            payload_bytes: 4096,
            unit_bytes: 4096,
            units: 1,
            replicated: false,
            unit_order: UnitOrder::Opaque,
            block_tokens: 16,
            token_ids: false,
            hash_bytes: 32,
            prefill_tokens_per_second: 0.0,
        }
    }

    fn written(namespaces: &mut Namespaces) {
        let writer = namespaces.writer.take().expect("something was to be written");
        writer.join().expect("no panic").expect("written");
    }

    #[test]
    fn what_was_opened_is_known_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut namespaces = Namespaces::load(folder.path());
        namespaces.note(&view(1, 0));
        written(&mut namespaces);
        namespaces.note(&view(1, 0));
        assert!(namespaces.writer.is_none(), "nothing changed, nothing is written");
        namespaces.note(&view(1, 3));
        written(&mut namespaces);
        let again = Namespaces::load(folder.path());
        assert_eq!(again.known, namespaces.known);
        let (digest, known) = again.iter().next().expect("it is known");
        assert_eq!((digest, known.groups.as_slice()), (&NamespaceDigest::new([1; 32]), [0, 3].as_slice()));
    }

    #[test]
    fn a_broken_file_costs_names_only() {
        let folder = tempfile::tempdir().expect("a folder");
        for text in ["", "{", "{\"00\": {\"model\": \"\", \"block_tokens\": 1, \"groups\": []}}"] {
            fs::write(folder.path().join("namespaces.json"), text).expect("written");
            assert_eq!(Namespaces::load(folder.path()).iter().count(), 0);
        }
    }

    #[test]
    fn they_are_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut namespaces = Namespaces::load(folder.path());
        for group in 0..100 {
            namespaces.note(&view(1, group));
        }
        assert_eq!(namespaces.iter().next().expect("known").1.groups.len(), GROUPS_MAX);
        for number in 0..KNOWN_MAX as u16 + 9 {
            let mut digest = [9; 32];
            digest[..2].copy_from_slice(&number.to_le_bytes());
            namespaces.note(&ViewRequest { namespace: NamespaceDigest::new(digest), ..view(1, 0) });
        }
        assert!(namespaces.is_full() && namespaces.iter().count() == KNOWN_MAX);
        namespaces.forget_one(|digest| *digest == NamespaceDigest::new([1; 32]));
        namespaces.note(&view(2, 0));
        assert!(
            namespaces.contains(&NamespaceDigest::new([2; 32])) && !namespaces.contains(&NamespaceDigest::new([1; 32]))
        );
    }
}
