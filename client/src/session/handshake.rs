//! Joining: connect, Hello, Welcome, map.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::sys::{Bell, Consumer, Mapping, MemoryExtent, Producer, is_sealed, ring_bytes};
use kvd_proto::wire::session::{
    Body, FEATURE_SEGMENTS, FEATURE_SHARDS, FEATURE_TOKEN_IDS, Hello, RingGeometry, Role, VERSION, VERSION_MIN, Welcome,
};
use kvd_proto::{Epoch, InstanceId};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket, socket_with};

use super::{Control, ControlError, Ended, Session, Terms};
use crate::error::ConnectError;
use crate::link::Link;
use crate::segments::Kept;

/// The most that a session's memory may take, and its slabs: bounds on what a wrong daemon can make us map.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
const SLABS_MAX: u32 = 128;

/// What this process says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) instance: InstanceId,
    pub(crate) role: Role,
    pub(crate) client_name: String,
    /// Epoch and client slot of the session that this one replaces.
    pub(crate) replaces: Option<(Epoch, u32)>,
}

/// Joins the daemon at `path`.
pub(crate) fn connect(
    path: &Path,
    greeting: &Greeting,
    ended: Ended,
    kept: &Arc<Kept>,
    deadline: Instant,
) -> Result<Session, ConnectError> {
    let unreachable = |source: io::Error| ConnectError::Unreachable { path: path.to_path_buf(), source };
    let control = Control::new(open_socket(path).map_err(unreachable)?);
    let (last_epoch, last_client_slot) = greeting.replaces.map_or((0, 0), |(epoch, slot)| (epoch.get(), slot));
    let hello = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION,
        features: vec![FEATURE_TOKEN_IDS.into(), FEATURE_SHARDS.into(), FEATURE_SEGMENTS.into()],
        instance: greeting.instance.as_bytes().to_vec(),
        role: greeting.role.into(),
        client_name: greeting.client_name.clone(),
        last_epoch,
        last_client_slot,
    };
    let answer = control.greet(Body::Hello(hello), deadline).map_err(|error| match error {
        ControlError::Timeout => ConnectError::Timeout,
        ControlError::Broken => unreachable(io::ErrorKind::ConnectionReset.into()),
    })?;
    match answer {
        (Body::Welcome(welcome), fds) => join(welcome, fds, control, ended, kept),
        (Body::Refused(refused), _) => {
            let code = refused.code();
            Err(ConnectError::Refused { code, message: refused.message, remedy: refused.remedy })
        }
        _ => Err(ConnectError::Protocol("the answer to Hello is neither Welcome nor Refused")),
    }
}

/// A non-blocking socket: `connect` then fails instead of waiting when the daemon's backlog is full (it is stopped).
fn open_socket(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_socket(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn join(
    welcome: Welcome,
    fds: Vec<OwnedFd>,
    control: Control,
    ended: Ended,
    kept: &Arc<Kept>,
) -> Result<Session, ConnectError> {
    let [memory, bell] =
        <[OwnedFd; 2]>::try_from(fds).map_err(|_| ConnectError::Protocol("descriptors are missing"))?;
    let Some(geometry) = welcome.geometry else { return Err(ConnectError::Protocol("no geometry")) };
    if welcome.version < VERSION_MIN || welcome.version > VERSION {
        return Err(ConnectError::Protocol("a version that was not offered"));
    }
    if geometry.memory_bytes > MEMORY_BYTES_MAX || geometry.slabs == 0 || geometry.slabs > SLABS_MAX {
        return Err(ConnectError::Protocol("geometry out of bounds"));
    }
    // Not ours to trust: a file that can shrink would raise SIGBUS in the engine.
    if !is_sealed(memory.as_fd()) {
        return Err(ConnectError::Protocol("the session's memory is not sealed"));
    }
    let memory = Arc::new(Mapping::new(memory.as_fd(), 0, size(geometry.memory_bytes)?)?);
    let rings = rings(&memory, &geometry)?;
    let slabs = (0..u64::from(geometry.slabs))
        .map(|slab| {
            let at = slab.checked_mul(geometry.slab_bytes.into()).and_then(|at| at.checked_add(geometry.slabs_offset));
            let at = at.ok_or(ConnectError::Protocol("geometry out of bounds"))?;
            Ok(MemoryExtent::new(memory.clone(), size(at)?, geometry.slab_bytes as usize)?)
        })
        .collect::<Result<Vec<_>, ConnectError>>()?;
    let terms = Terms {
        epoch: Epoch::new(welcome.epoch),
        client_slot: welcome.client_slot,
        lease_bytes_max: welcome.lease_bytes_max,
        match_deadline: Duration::from_micros(welcome.match_deadline_us.into()),
        load_deadline: Duration::from_micros(welcome.load_deadline_us.into()),
        lists_shards: welcome.features.iter().any(|feature| feature == FEATURE_SHARDS),
        lists_segments: welcome.features.iter().any(|feature| feature == FEATURE_SEGMENTS),
    };
    let link = Link::new(terms.epoch, slabs, rings, Bell::from_fd(bell), ended);
    Ok(Session::new(terms, link, control, kept))
}

fn rings(memory: &Arc<Mapping>, geometry: &RingGeometry) -> Result<(Producer, Consumer), ConnectError> {
    let entries = geometry.ring_entries;
    if entries > 1 << 16 {
        return Err(ConnectError::Protocol("geometry out of bounds"));
    }
    let ring = |at| Ok::<_, ConnectError>(MemoryExtent::new(memory.clone(), size(at)?, ring_bytes(entries))?);
    let requests = Producer::new(ring(geometry.request_ring_offset)?, entries)?;
    let completions = Consumer::new(ring(geometry.completion_ring_offset)?, entries)?;
    Ok((requests, completions))
}

fn size(bytes: u64) -> Result<usize, ConnectError> {
    usize::try_from(bytes).map_err(|_| ConnectError::Protocol("geometry out of bounds"))
}
