//! A daemon of the bench's own: a child process on scratch folders, gone with its value.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::Connection;
use crate::cli::admin::Admin;
use crate::cli::exit::{Exit, Failure};
use crate::service::proto;

/// How long a daemon may take until it accepts sessions.
const READY_MAX: Duration = Duration::from_secs(120);
const ARENAS: &str = "/dev/shm";
const PREFIX: &str = "kvd-bench-";
/// Pieces in which both tiers are carved.
pub(super) const PIECE_BYTES: u64 = 64 << 20;

/// What a bench wants of its daemon.
#[derive(Clone, Debug)]
pub(super) struct NodeOptions {
    /// Tells it from the other daemons of the bench.
    pub(super) label: &'static str,
    pub(super) dram_bytes: u64,
    /// `None`: no NVMe tier.
    pub(super) nvme_bytes: Option<u64>,
    /// Where the data folder is made; its disk is the NVMe tier's.
    pub(super) base: PathBuf,
    /// Further `KEY=VALUE`.
    pub(super) set: Vec<String>,
}

/// A running daemon.
#[derive(Debug)]
pub(super) struct Node {
    folder: PathBuf,
    arena: PathBuf,
    child: Child,
}

impl Node {
    pub(super) fn start(options: &NodeOptions) -> Result<Node, Failure> {
        remove_leftovers(Path::new(ARENAS));
        remove_leftovers(&options.base);
        let name = format!("{PREFIX}{}-{}", std::process::id(), options.label);
        let (folder, arena) = (options.base.join(&name), Path::new(ARENAS).join(&name));
        room(Path::new(ARENAS), options.dram_bytes, "shared memory")?;
        memory(options.dram_bytes)?;
        if let Some(bytes) = options.nvme_bytes {
            room(&options.base, bytes, "the disk")?;
        }
        fs::create_dir_all(&folder)?;
        let child = spawn(options, &folder, &arena);
        let child = child.inspect_err(|_| {
            let _ = fs::remove_dir_all(&folder);
        })?;
        let mut node = Node { folder, arena, child };
        node.wait_ready()?;
        Ok(node)
    }

    /// SIGKILL; what it held stays in its folders.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts the successor of a killed daemon; returns as soon as it accepts sessions.
    pub(super) fn start_again(&mut self, options: &NodeOptions) -> Result<(), Failure> {
        self.child = spawn(options, &self.folder, &self.arena)?;
        self.wait_for(&self.socket(), Instant::now())
    }

    fn wait_ready(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        self.wait_for(&self.socket(), started)?;
        self.wait_for(&self.connection().admin_socket(), started)
    }

    fn wait_for(&mut self, socket: &Path, started: Instant) -> Result<(), Failure> {
        while UnixStream::connect(socket).is_err() {
            if self.child.try_wait()?.is_some() || started.elapsed() > READY_MAX {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let said = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(Failure::new(Exit::Failure, format!("the daemon of the bench does not start:\n{said}")));
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("kvd.sock")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("kvd.log")
    }

    pub(super) fn connection(&self) -> Connection {
        connection(&self.socket())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory of the daemon itself, the arena's mapping apart.
    pub(super) fn memory_bytes(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes << 10).ok_or_else(|| Failure::new(Exit::Failure, "no RssAnon in /proc"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be gone already; what counts is that it is.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.arena);
    }
}

pub(super) fn connection(socket: &Path) -> Connection {
    Connection { socket: Some(socket.to_owned()), admin_socket: None, timeout: None }
}

fn spawn(options: &NodeOptions, folder: &Path, arena: &Path) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("kvd.log"))?;
    let mut set = vec![
        format!("data_dir={}", folder.display()),
        format!("socket={}", folder.join("kvd.sock").display()),
        format!("tiers.dram.path={}", arena.display()),
        format!("tiers.dram.capacity={}", options.dram_bytes),
        "tiers.dram.prefault=true".to_owned(),
        // What is measured is this node's own memory and disk, unless the bench says otherwise: the later one counts.
        "tiers.object.enabled=false".to_owned(),
    ];
    match options.nvme_bytes {
        Some(bytes) => set.push(format!("tiers.nvme.capacity={bytes}")),
        None => set.push("tiers.nvme.enabled=false".to_owned()),
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve");
    for pair in set.iter().chain(&options.set) {
        command.arg("--set").arg(pair);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
}

/// Scratch of benches that were killed.
fn remove_leftovers(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn room(path: &Path, wanted: u64, what: &str) -> Result<(), Failure> {
    let found = rustix::fs::statvfs(path).map_err(io::Error::from)?;
    let free = found.f_bavail * found.f_frsize;
    if free >= wanted + PIECE_BYTES {
        return Ok(());
    }
    let (wanted, free) = (crate::config::rough(wanted), crate::config::rough(free));
    let message = format!("this bench needs {wanted} of {what} at {}; {free} are free", path.display());
    Err(Failure::new(Exit::Failure, message).remedy("free some, or ask for less (see --help)"))
}

/// Shared memory is memory: a file there that finds none ends somebody's life.
fn memory(wanted: u64) -> Result<(), Failure> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) << 10;
    if available >= wanted + (1 << 30) {
        return Ok(());
    }
    let (wanted, available) = (crate::config::rough(wanted), crate::config::rough(available));
    let message = format!("this bench needs {wanted} of memory and 1 GiB to spare; {available} are available");
    Err(Failure::new(Exit::Failure, message).remedy("end something else, or ask for less (see --help)"))
}

/// Forgets everything that the daemon holds, and waits until that is done: the daemon answers when it has begun, and takes
/// slots away that are filled meanwhile.
pub(super) fn purge(connection: &Connection) -> Result<(), Failure> {
    let target = proto::purge_request::Target::Everything(true);
    connection.run_long(async |mut admin: Admin| {
        let mut steps = admin.purge(proto::PurgeRequest { target: Some(target) }).await?.into_inner();
        while steps.message().await?.is_some() {}
        Ok(())
    })?;
    let started = Instant::now();
    while status(connection)?.records > 0 {
        if started.elapsed() > READY_MAX {
            return Err(Failure::new(Exit::Failure, "the daemon does not forget what it was told to"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How the daemon is.
pub(super) fn status(connection: &Connection) -> Result<proto::StatusResponse, Failure> {
    connection.run(async |mut admin: Admin| Ok(admin.status(proto::StatusRequest {}).await?.into_inner()))
}
