//! Nodes that share a store.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_tests::{Checked, Daemon, DaemonOptions, Scratch, TestEngine, ask_serving};
use kvd_tiers::object::pack::{TRAILER_BYTES, parse_trailer};
use kvd_tiers::object::{INDEX_PREFIX, IndexName, PACKS_PREFIX, PackIndex, pack_path};

use crate::server::{Make, Server};

pub(crate) const BLOCK_BYTES: usize = 64 << 10;
/// Blocks of a chain.
pub(crate) const BLOCKS: u32 = 32;
/// How long the tier may take for what it does in the background, on a machine that does many things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where packs lie.
pub(crate) enum Store {
    Folder(tempfile::TempDir),
    /// A folder in a server's bucket.
    Server {
        server: Arc<Server>,
        folder: String,
    },
}

impl Store {
    pub(crate) fn folder() -> Self {
        Self::Folder(tempfile::Builder::new().prefix("kvd-store-").tempdir().expect("a folder"))
    }

    /// A folder in the bucket of the server that tests share, or why there is none.
    pub(crate) fn server(folder: &str) -> Result<Self, String> {
        Ok(Self::Server { server: Server::shared()?, folder: folder.to_owned() })
    }

    /// A server of its own, to which something is done.
    pub(crate) fn own_server(make: Make) -> Result<Self, String> {
        Ok(Self::Server { server: Arc::new(Server::start(make)?), folder: "own".to_owned() })
    }

    /// The server, where it is one.
    pub(crate) fn of_server(&self) -> &Server {
        match self {
            Self::Folder(_) => panic!("a folder has no server"),
            Self::Server { server, .. } => server,
        }
    }

    /// Names and lengths of all packs and index objects.
    pub(crate) fn objects(&self) -> Vec<(String, u64)> {
        let all = match self {
            Self::Folder(_) => {
                let root = self.path();
                let named = |path: PathBuf| {
                    let bytes = fs::metadata(&path).ok()?.len();
                    Some((path.strip_prefix(&root).ok()?.to_str()?.to_owned(), bytes))
                };
                files(&root).into_iter().filter_map(named).collect()
            }
            Self::Server { server, folder } => server.objects(folder),
        };
        let of_packs = |name: &str| name.starts_with(PACKS_PREFIX) || name.starts_with(INDEX_PREFIX);
        all.into_iter().filter(|(name, _)| of_packs(name)).collect()
    }

    /// The folder, where it is one: its files are the objects.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.path().join("objects"),
            Self::Server { .. } => panic!("a server's objects are its own"),
        }
    }

    fn set(&self, options: DaemonOptions) -> DaemonOptions {
        match self {
            Self::Folder(_) => options.with("tiers.object.url", &format!("file://{}", self.path().display())),
            Self::Server { server, folder } => options
                .with("tiers.object.url", &format!("s3://{}/{folder}", Server::BUCKET))
                .with("tiers.object.endpoint", &server.endpoint())
                .with("tiers.object.credentials_file", &server.credentials().display().to_string()),
        }
    }
}

/// A node: its folders, and its daemon while that lives.
pub(crate) struct Node {
    pub(crate) scratch: Scratch,
    options: DaemonOptions,
    pub(crate) daemon: Option<Daemon>,
}

impl Node {
    pub(crate) fn start(name: &str, store: &Store, more: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new(name);
        let secret = scratch.data().join("shared.secret");
        fs::write(&secret, "the secret that both nodes know 0123456789").expect("written");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("ours");
        let options = store
            .set(DaemonOptions::sized("128MiB", "256MiB"))
            .with("tiers.object.enabled", "true")
            .with("tiers.object.pack_bytes", "1MiB")
            .with("tiers.object.pack_age", "100ms")
            .with("tiers.object.sync_every", "100ms")
            .with("tiers.object.request_timeout", "2s")
            .with("tenant.secret_file", &secret.display().to_string());
        let options = more.iter().fold(options, |options, (key, value)| options.with(key, value));
        let mut node = Self { scratch, options, daemon: None };
        node.restart();
        node
    }

    pub(crate) fn restart(&mut self) {
        self.daemon = Some(Daemon::start(&self.scratch, &self.options));
    }

    pub(crate) fn expect_alive(&mut self) {
        let daemon = self.daemon.as_mut().expect("it was started");
        assert!(daemon.alive(), "the daemon ended:\n{}", daemon.log());
    }

    pub(crate) fn kill(&mut self) {
        self.daemon.take().expect("it runs").kill();
    }

    /// What a node loses with its memory and its disk; its daemon is dead.
    pub(crate) fn lose(&self) {
        self.scratch.delete_dram();
        fs::remove_file(self.scratch.data().join("nvme.kvd")).expect("gone");
    }

    /// What the daemon was told, for commands that read its configuration.
    pub(crate) fn settings(&self) -> Vec<String> {
        let place = [("data_dir".to_owned(), self.scratch.data().display().to_string())];
        let given = self.options.set.iter().cloned();
        place.into_iter().chain(given).flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]).collect()
    }

    pub(crate) fn engine(&self, number: u8) -> TestEngine {
        TestEngine::connect(&self.scratch.socket(), number, BLOCK_BYTES, BLOCKS as usize)
    }

    /// Everything the daemon counts.
    pub(crate) fn metrics(&self) -> String {
        let answer = ask_serving(&self.scratch, &["status", "--metrics"]);
        answer["text"].as_str().unwrap_or_default().to_owned()
    }

    /// A counter or gauge of the daemon; 0 while it has no such series.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        value(&self.metrics(), series)
    }

    /// Waits until so many packs of this node are in the store and nothing is left to be uploaded.
    pub(crate) fn uploaded(&self, packs: u64) {
        within("packs are uploaded", || {
            let put = self.metric("kvd_object_packs_total{outcome=\"uploaded\"}");
            // What has not had its turn yet is in no pack.
            let left = self.metric("kvd_object_waiting_records") + self.metric("kvd_object_buffered_bytes");
            put >= packs && left == 0
        });
    }
}

/// A counter or gauge in what a daemon counts; 0 while it has no such series.
pub(crate) fn value(metrics: &str, series: &str) -> u64 {
    let found = metrics.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).next();
    found.and_then(|value| value.parse::<f64>().ok()).map_or(0, |value| value as u64)
}

/// Waits until something is so.
pub(crate) fn within(what: &str, mut come: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !come() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks until the whole chain is there; never a wrong byte on the way. Nothing is loaded before all of it is known, so that
/// what is returned says where all of it came from.
pub(crate) fn served(engine: &TestEngine, chain: u64) -> Checked {
    let mut last = Checked::default();
    within("the other node serves the chain", || {
        let found = engine.find(chain, BLOCKS);
        if found.blocks() < BLOCKS {
            return false;
        }
        last = engine.load(chain, &found);
        assert_eq!(last.wrong, 0, "a wrong byte: {last:?}");
        last.right == BLOCKS
    });
    last
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

/// The published packs of a store that is a folder, each one whole: its index object is the index in the pack.
pub(crate) fn published(store: &Path) -> Vec<PackIndex> {
    let visible = files(&store.join(INDEX_PREFIX)).into_iter().filter_map(|path| {
        let name = path.strip_prefix(store).ok()?.to_str()?.to_owned();
        // Drafts of writers under way have other names.
        let name = IndexName::parse(&name)?;
        let bytes = fs::read(&path).ok()?;
        let index = PackIndex::decode(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(index.belongs_to(&name));
        let pack = fs::read(store.join(pack_path(name.pack))).expect("what is visible is there");
        let trailer = pack.last_chunk::<TRAILER_BYTES>().expect("a whole pack");
        let start = index.records_bytes as usize;
        assert_eq!(parse_trailer(trailer).map(|bytes| bytes as usize), Some(bytes.len()));
        assert!(pack.len() == start + bytes.len() + TRAILER_BYTES && pack[start..start + bytes.len()] == bytes);
        Some(index)
    });
    visible.collect()
}
