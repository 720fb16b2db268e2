//! A client without manners: a socket, and a session's memory and bell, all in the open.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd_nixl::sys::{Bell, Consumer, Mapping, MemoryExtent, Producer, RingError, recv_with_fds, ring_bytes};
use kvd_proto::Shard;
use kvd_proto::wire::ring::{Completion, Status};
use kvd_proto::wire::session::{
    Body, Goodbye, Hello, OpenView, RefusalCode, Refused, RingGeometry, Welcome, decode_frame, encode_frame,
};
use kvd_tests::plain_namespace;

/// Longer than any answer takes, also on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug)]
pub(crate) enum Heard {
    Answer(Body, Vec<OwnedFd>),
    Closed,
}

/// A connection.
pub(crate) struct Peer {
    pub(crate) socket: UnixStream,
    inbox: Vec<u8>,
}

impl Peer {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).expect("the daemon listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self { socket, inbox: Vec::new() }
    }

    /// Sends; `false` if the daemon has closed its end.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    pub(crate) fn say(&mut self, body: Body) -> bool {
        self.send(&encode_frame(body).expect("a frame"))
    }

    /// The next answer. Panics when the daemon neither answers nor closes.
    pub(crate) fn hear(&mut self) -> Heard {
        let mut fds = Vec::new();
        loop {
            if let Some((body, used)) = decode_frame(&self.inbox).expect("the daemon's frames are valid") {
                self.inbox.drain(..used);
                return Heard::Answer(body, fds);
            }
            let mut buffer = [0; 16384];
            match recv_with_fds(self.socket.as_fd(), &mut buffer) {
                Ok(received) if received.bytes == 0 => return Heard::Closed,
                Ok(received) => {
                    self.inbox.extend(&buffer[..received.bytes]);
                    fds.extend(received.fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("the daemon neither answers nor closes");
                }
                Err(_) => return Heard::Closed,
            }
        }
    }

    pub(crate) fn ask(&mut self, body: Body) -> Heard {
        if self.say(body) { self.hear() } else { Heard::Closed }
    }

    /// Opens a session; `Err` is the refusal.
    pub(crate) fn greet(&mut self, hello: Hello) -> Result<(Welcome, Vec<OwnedFd>), Option<Refused>> {
        match self.ask(Body::Hello(hello)) {
            Heard::Answer(Body::Welcome(welcome), fds) => Ok((welcome, fds)),
            Heard::Answer(Body::Refused(refused), _) => Err(Some(refused)),
            Heard::Answer(other, _) => panic!("a Hello is answered by {other:?}"),
            Heard::Closed => Err(None),
        }
    }
}

pub(crate) fn hello(number: u8) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        instance: vec![number; 16],
        client_name: "hostile".into(),
        ..Hello::default()
    }
}

/// A view of blocks as the honest engine has them, in the namespace of this model: "test" is the honest engine's own.
pub(crate) fn open_view(model: &str) -> OpenView {
    OpenView {
        namespace: plain_namespace(model, crate::node::BLOCK as u32).encode().expect("a namespace"),
        shard: Some((&Shard::whole(1, 1).expect("a shard")).into()),
        hash_bytes: 32,
        ..OpenView::default()
    }
}

/// A session with its fast path.
pub(crate) struct Session {
    pub(crate) peer: Peer,
    pub(crate) welcome: Welcome,
    pub(crate) geometry: RingGeometry,
    /// The descriptor of the session's memory.
    pub(crate) file: OwnedFd,
    pub(crate) memory: Arc<Mapping>,
    pub(crate) requests: Producer,
    pub(crate) completions: Consumer,
    pub(crate) bell: Bell,
}

impl Session {
    /// Opens a session, in the place of an earlier one of the same instance if one is named.
    pub(crate) fn open(path: &Path, number: u8, replaces: Option<(u64, u32)>) -> Self {
        let (last_epoch, last_client_slot) = replaces.unwrap_or((0, 0));
        let until = Instant::now() + PATIENCE;
        loop {
            let mut peer = Peer::connect(path);
            match peer.greet(Hello { last_epoch, last_client_slot, ..hello(number) }) {
                Ok((welcome, fds)) => return Self::on(peer, welcome, fds),
                // The daemon hears of closed sockets in its own time.
                Err(refused) => {
                    let full = refused.as_ref().is_none_or(|refused| refused.code == RefusalCode::Full as i32);
                    assert!(full && Instant::now() < until, "{refused:?}");
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    fn on(peer: Peer, welcome: Welcome, mut fds: Vec<OwnedFd>) -> Self {
        let geometry = welcome.geometry.expect("a geometry");
        let bell = Bell::from_fd(fds.pop().expect("a bell"));
        let file = fds.pop().expect("the memory");
        let memory = Arc::new(Mapping::new(file.as_fd(), 0, geometry.memory_bytes as usize).expect("mapped"));
        let ring = |at: u64| MemoryExtent::new(memory.clone(), at as usize, ring_bytes(geometry.ring_entries));
        let requests = ring(geometry.request_ring_offset).expect("within");
        let requests = Producer::new(requests, geometry.ring_entries).expect("a ring");
        let completions = ring(geometry.completion_ring_offset).expect("within");
        let completions = Consumer::new(completions, geometry.ring_entries).expect("a ring");
        Self { peer, welcome, geometry, file, memory, requests, completions, bell }
    }

    /// Opens a view and tells its number.
    pub(crate) fn view(&mut self, model: &str) -> u16 {
        match self.peer.ask(Body::OpenView(open_view(model))) {
            Heard::Answer(Body::ViewOpened(view), _) => u16::try_from(view.view).expect("small"),
            other => panic!("no view: {other:?}"),
        }
    }

    pub(crate) fn slab(&self, slab: u16) -> MemoryExtent {
        let at = self.geometry.slabs_offset as usize + usize::from(slab) * self.geometry.slab_bytes as usize;
        MemoryExtent::new(self.memory.clone(), at, self.geometry.slab_bytes as usize).expect("within")
    }

    /// The next completion that is the last of its request, or `None` when the session is over.
    pub(crate) fn last_completion(&mut self) -> Option<Completion> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spin = Duration::from_micros(20);
            let entry = match self.completions.spin_then_wait(&self.bell, spin, Some(deadline)) {
                Ok(entry) => entry.expect("the daemon answers every request"),
                Err(RingError::Wait(_)) => return None,
                Err(error) => panic!("the daemon's ring is corrupt: {error}"),
            };
            let completion = Completion::decode(&entry).expect("the daemon's completions are valid");
            assert_eq!(completion.epoch.get(), self.welcome.epoch);
            if completion.status != Status::Partial {
                return Some(completion);
            }
        }
    }

    /// Ends it with a word, so that nothing of it is kept.
    pub(crate) fn goodbye(mut self) {
        let answer = self.peer.ask(Body::Goodbye(Goodbye {}));
        assert!(matches!(answer, Heard::Answer(Body::Goodbye(_), _)), "{answer:?}");
    }

    /// What a successor names to get this one's place.
    pub(crate) fn place(&self) -> (u64, u32) {
        (self.welcome.epoch, self.welcome.client_slot)
    }
}
