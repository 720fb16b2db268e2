//! S3 servers of the tests' own, of two makes: Python packages in an environment below the cache folder, made once.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;

mod certificates;
mod moto;
mod packages;
mod seaweed;

const READY_MAX: Duration = Duration::from_secs(60);
/// No PUT of the tests is under way for longer.
const SETTLE: Duration = Duration::from_secs(1);
const KEY: &str = "kvdtest";
const SECRET: &str = "kvdtestsecret";
/// Who may list and read only.
const READER: &str = "kvdreader";

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    SeaweedFs,
    /// `moto`, which takes any credentials.
    Moto,
    /// The same behind TLS, with a certificate of an authority of its own.
    MotoTls,
}

/// A server, killed with the value.
pub(crate) struct Server {
    child: Child,
    folder: TempDir,
    port: u16,
    make: Make,
    /// Where its operator speaks to it.
    admin: Admin,
}

/// How buckets are made and deleted.
enum Admin {
    /// The program, and the port of its master.
    Weed { program: PathBuf, master: u16 },
    /// A Python with a client.
    Boto { python: PathBuf },
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
        let server = Arc::new(Self::start(Make::SeaweedFs)?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// Starts one with an empty bucket, or says why it cannot be had here.
    pub(crate) fn start(make: Make) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("kvd-s3-").tempdir().map_err(told)?;
        write_credentials(&folder.path().join("credentials"), KEY, SECRET)?;
        write_credentials(&folder.path().join("reader"), READER, SECRET)?;
        write_credentials(&folder.path().join("wrong"), KEY, "not the secret")?;
        let mut server = match make {
            Make::SeaweedFs => seaweed::start(folder)?,
            Make::Moto | Make::MotoTls => moto::start(folder, make == Make::MotoTls)?,
        };
        server.wait_until_ready()?;
        server.make_bucket()?;
        Ok(server)
    }

    pub(crate) fn endpoint(&self) -> String {
        match self.make {
            Make::SeaweedFs | Make::Moto => format!("http://127.0.0.1:{}", self.port),
            Make::MotoTls => format!("https://localhost:{}", self.port),
        }
    }

    /// Where it speaks S3, on this machine.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The file with its credentials; `reader` and `wrong` lie beside it.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.folder.path().join("credentials")
    }

    /// The authority that its certificate is of.
    pub(crate) fn authority(&self) -> PathBuf {
        certificates::authority(self.folder.path())
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
        while !self.is_ready() {
            if Instant::now() > until || self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                let said = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(format!("{:?} does not start: {}", self.make, said.lines().last().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        match self.make {
            Make::SeaweedFs => get(self.port, "/healthz").is_some(),
            Make::Moto => get(self.port, "/moto-api/").is_some(),
            Make::MotoTls => TcpStream::connect(("127.0.0.1", self.port)).is_ok(),
        }
    }

    /// Makes the bucket, empty.
    pub(crate) fn make_bucket(&self) -> Result<(), String> {
        self.administer(true)
    }

    /// Deletes the bucket with all that is in it, until it stays away: a PUT that is under way at SeaweedFS while its
    /// bucket is deleted makes it anew.
    pub(crate) fn delete_bucket(&self) -> Result<(), String> {
        let until = Instant::now() + READY_MAX;
        loop {
            self.administer(false)?;
            std::thread::sleep(SETTLE);
            if get(self.port, &format!("/{}?list-type=2", Self::BUCKET)).is_none() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err("the bucket comes back".to_owned());
            }
        }
    }

    /// Sees to it that the bucket is there, or is not.
    fn administer(&self, there: bool) -> Result<(), String> {
        let until = Instant::now() + READY_MAX;
        loop {
            let said = match &self.admin {
                Admin::Weed { program, master } => seaweed::administer(program, *master, there)?,
                Admin::Boto { python } => moto::administer(python, self, there)?,
            };
            match said {
                Ok(()) => return Ok(()),
                Err(why) if Instant::now() > until => return Err(why),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts the credentials of another file in the place of these, as secrets are replaced: at once.
pub(crate) fn replace_credentials(file: &Path, by: &Path) {
    let draft = file.with_extension("draft");
    fs::copy(by, &draft).and_then(|_| fs::rename(&draft, file)).expect("written");
}

fn write_credentials(file: &Path, key: &str, secret: &str) -> Result<(), String> {
    let text = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    fs::write(file, text).map_err(told)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).map_err(told)
}

/// Starts a program that writes what it says into the folder's log.
fn launch(command: &mut Command, folder: &Path) -> Result<Child, String> {
    let log = File::create(folder.join("log")).map_err(told)?;
    let double = log.try_clone().map_err(told)?;
    command.stdin(Stdio::null()).stdout(double).stderr(log).spawn().map_err(told)
}

fn told(error: std::io::Error) -> String {
    error.to_string()
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
