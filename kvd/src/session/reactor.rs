//! The sessions thread: one epoll over the listener, all sockets and all processes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, TryRecvError};
use kvd_nixl::sys::{EventFd, Pidfd, Signal, StartTime, peer_credentials};
use kvd_proto::wire::session::{
    Body, Error, Goodbye, Hello, ListSegments, ListShards, RefusalCode, Refused, SegmentFd, Segments, SetPrefillRate,
    ShardRange, Shards, ViewOpened, Welcome,
};
use kvd_proto::{Shard, Time};
use rustix::event::{Timespec, epoll};

use crate::core::clock;
use crate::metrics::counters::Counters;
use crate::session::connection::{Connection, Read, Stage};
use crate::session::listener::Accepted;
use crate::session::{
    Control, CoreLink, Joining, Listener, Refusal, SessionCall, SessionId, SessionLink, handshake, memory,
};

/// Connections that may be shaking hands beside the sessions that are open.
const HANDSHAKES_MAX: usize = 32;
/// Processes of detached sessions and of earlier epochs that are watched: one per client slot.
const WATCHED_MAX: usize = 64;
/// Connections accepted in one go.
const ACCEPTS_PER_TURN: usize = 16;
const EVENTS_PER_TURN: usize = 64;
/// How long accepting rests when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the sessions thread is told at start.
#[derive(Debug, Clone)]
pub(crate) struct SessionOptions {
    /// Sessions at most.
    pub(crate) sessions_max: usize,
    /// Users that may connect besides the daemon's own and root.
    pub(crate) allowed_uids: Vec<u32>,
}

/// A client of an earlier epoch that still lives and may still touch the arena.
pub(crate) struct Orphan {
    /// The name under which its death will be told.
    pub(crate) session: SessionId,
    pub(crate) pidfd: Pidfd,
}

/// What an event is about, packed into epoll's 64 bits: 8 bits of kind, 24 of generation, 32 of index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Listener,
    Control,
    Socket(Place),
    Process(Place),
}

/// A place in the table; the generation tells events of its earlier tenants apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    index: u32,
    generation: u32,
}

const GENERATION_MASK: u32 = (1 << 24) - 1;

impl Source {
    fn pack(self) -> epoll::EventData {
        let place = |kind: u64, place: Place| kind << 56 | u64::from(place.generation) << 32 | u64::from(place.index);
        epoll::EventData::new_u64(match self {
            Self::Listener => 0,
            Self::Control => 1 << 56,
            Self::Socket(at) => place(2, at),
            Self::Process(at) => place(3, at),
        })
    }

    fn unpack(data: epoll::EventData) -> Self {
        let bits = data.u64();
        let place = Place { index: bits as u32, generation: (bits >> 32) as u32 & GENERATION_MASK };
        match bits >> 56 {
            0 => Self::Listener,
            1 => Self::Control,
            2 => Self::Socket(place),
            _ => Self::Process(place),
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    connection: Option<Connection>,
}

/// The sessions thread's state. [`Reactor::run`] is its life.
pub(crate) struct Reactor {
    epoll: OwnedFd,
    listener: Listener,
    core: CoreLink,
    control: Receiver<Control>,
    control_event: Arc<EventFd>,
    options: SessionOptions,
    own_uid: u32,
    counters: Arc<Counters>,
    entries: Vec<Entry>,
    /// That said Hello since the start.
    sessions: u64,
    /// While set, the listener is not watched.
    accept_again_at: Option<Time>,
}

impl Reactor {
    pub(crate) fn new(
        listener: Listener,
        core: CoreLink,
        (control, control_event): (Receiver<Control>, Arc<EventFd>),
        options: SessionOptions,
        counters: Arc<Counters>,
        orphans: Vec<Orphan>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, Source::Listener.pack(), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &control_event, Source::Control.pack(), epoll::EventFlags::IN)?;
        let table = options.sessions_max + HANDSHAKES_MAX + WATCHED_MAX;
        let mut reactor = Self {
            epoll,
            listener,
            core,
            control,
            control_event,
            options,
            own_uid: rustix::process::geteuid().as_raw(),
            counters,
            entries: std::iter::repeat_with(Entry::default).take(table).collect(),
            sessions: 0,
            accept_again_at: None,
        };
        for orphan in orphans {
            reactor.insert(Connection::watch(orphan.session, orphan.pidfd))?;
        }
        Ok(reactor)
    }

    /// Serves until told to stop. An error is one of epoll or the listener: nothing a peer does comes to one.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_TURN);
        loop {
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                match Source::unpack(event.data) {
                    Source::Listener => self.accept()?,
                    Source::Control => {
                        if self.obey()? {
                            return Ok(());
                        }
                    }
                    Source::Socket(place) => self.on_socket(place),
                    Source::Process(place) => self.on_death(place),
                }
            }
            self.on_time()?;
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let cuts = self.entries.iter().filter_map(|entry| entry.connection.as_ref()?.cut_at());
        let next = cuts.chain(self.accept_again_at).min()?;
        let wait = next.since(clock::now());
        Some(Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) })
    }

    fn get(&mut self, place: Place) -> Option<&mut Connection> {
        let entry = self.entries.get_mut(place.index as usize)?;
        if entry.generation == place.generation { entry.connection.as_mut() } else { None }
    }

    fn insert(&mut self, connection: Connection) -> io::Result<Option<Place>> {
        let free = self.entries.iter().position(|entry| entry.connection.is_none());
        let Some(index) = free else { return Ok(None) };
        let place = Place { index: index as u32, generation: self.entries[index].generation };
        if let Some(socket) = connection.socket() {
            epoll::add(&self.epoll, socket, Source::Socket(place).pack(), epoll::EventFlags::IN)?;
        }
        epoll::add(&self.epoll, &connection.pidfd, Source::Process(place).pack(), epoll::EventFlags::IN)?;
        self.entries[index].connection = Some(connection);
        Ok(Some(place))
    }

    /// Forgets a connection; closing its descriptors takes them out of epoll.
    fn remove(&mut self, place: Place) {
        let entry = &mut self.entries[place.index as usize];
        entry.connection = None;
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
    }

    fn count(&self, what: impl Fn(Stage) -> bool) -> usize {
        self.entries.iter().filter_map(|entry| entry.connection.as_ref()).filter(|peer| what(peer.stage)).count()
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok(Accepted::Connection(stream)) => self.greet(stream),
                Ok(Accepted::Nobody) => return Ok(()),
                Ok(Accepted::Exhausted) => {
                    self.counters.accept_backoffs.add(1);
                    return self.pause_accepting();
                }
                Err(error) => {
                    tracing::error!(%error, "accepting a connection failed");
                    return self.pause_accepting();
                }
            }
        }
        Ok(())
    }

    fn pause_accepting(&mut self) -> io::Result<()> {
        if self.accept_again_at.is_none() {
            epoll::delete(&self.epoll, &self.listener)?;
        }
        self.accept_again_at = Some(clock::now().after(ACCEPT_PAUSE));
        Ok(())
    }

    /// A new peer: who is it, and is there room?
    fn greet(&mut self, stream: UnixStream) {
        let credentials = match peer_credentials(stream.as_fd()) {
            Ok(credentials) => credentials,
            Err(error) => return tracing::warn!(%error, "a peer without credentials was turned away"),
        };
        let pidfd = match Pidfd::from_peer(stream.as_fd()) {
            Ok(pidfd) => pidfd,
            Err(error) => return tracing::warn!(%error, "a peer whose process cannot be watched was turned away"),
        };
        let allowed =
            [self.own_uid, 0].contains(&credentials.uid) || self.options.allowed_uids.contains(&credentials.uid);
        let mut connection = Connection::new(stream, pidfd, credentials, clock::now());
        let refusal = if !allowed {
            let message = format!("user {} may not use this socket", credentials.uid);
            Some(Refusal::new(RefusalCode::Credentials, message, "run the engine as the daemon's user"))
        } else if self.count(|stage| matches!(stage, Stage::Greeting | Stage::Closing)) >= HANDSHAKES_MAX {
            Some(Refusal::new(RefusalCode::Full, "too many connections are being opened", "try again in a moment"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.counters.handshakes_failed.add(1);
            refuse(&mut connection, refusal);
            connection.flush();
            return;
        }
        match self.insert(connection) {
            Ok(Some(_)) => {}
            Ok(None) => self.counters.handshakes_failed.add(1),
            Err(error) => tracing::error!(%error, "a connection cannot be watched"),
        }
    }

    fn on_socket(&mut self, place: Place) {
        let Some(peer) = self.get(place) else { return };
        let mut state = if peer.is_writing() { peer.flush() } else { Read::Open };
        if state == Read::Open && !peer.is_writing() && !peer.has_message() && peer.stage != Stage::Closing {
            state = peer.read();
        }
        self.serve(place);
        let now = clock::now();
        let Some(peer) = self.get(place) else { return };
        if state == Read::Open {
            state = peer.flush();
        }
        peer.renew_patience(now);
        let done = peer.stage == Stage::Closing && !peer.is_writing();
        if state == Read::HungUp || done {
            self.hang_up(place);
        } else {
            self.watch(place);
        }
    }

    /// Watches a socket for room while answers wait, or messages that were read already and whose turn comes then; else
    /// for messages.
    fn watch(&mut self, place: Place) {
        let Some(Entry { connection: Some(peer), .. }) = self.entries.get(place.index as usize) else { return };
        let Some(socket) = peer.socket() else { return };
        let busy = peer.is_writing() || peer.has_message();
        let flags = if busy { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        if let Err(error) = epoll::modify(&self.epoll, socket, Source::Socket(place).pack(), flags) {
            tracing::error!(%error, "a connection cannot be watched any more");
            self.hang_up(place);
        }
    }

    /// Answers what a peer has asked.
    fn serve(&mut self, place: Place) {
        while let Some(peer) = self.get(place) {
            if !peer.has_room() || matches!(peer.stage, Stage::Closing | Stage::Detached(_)) {
                return;
            }
            match peer.next_message() {
                Ok(None) => return,
                Ok(Some(body)) => self.on_message(place, body),
                Err(error) => {
                    let remedy = "use a kvd-client of this or the previous version";
                    self.close_with(place, Refusal::new(RefusalCode::Protocol, error.to_string(), remedy));
                }
            }
        }
    }

    fn on_message(&mut self, place: Place, body: Body) {
        let Some(stage) = self.get(place).map(|peer| peer.stage) else { return };
        let answered = match (stage, body) {
            (Stage::Greeting, Body::Hello(hello)) => {
                let welcomed = self.welcome(place, &hello);
                welcomed.unwrap_or_else(|refusal| self.close_with(place, refusal));
                return;
            }
            (Stage::Open(session), Body::OpenView(view)) => handshake::describe(&view).and_then(|request| {
                let (payload_bytes, unit_bytes) = (request.payload_bytes, request.unit_bytes);
                let hash_bytes = request.hash_bytes as u32;
                let opened = self.core.ask(|answer| SessionCall::OpenView(session, Box::new(request), answer))?;
                let view = ViewOpened {
                    view: u32::from(opened.view),
                    payload_bytes,
                    meta_bytes: opened.meta_bytes,
                    unit_bytes,
                    hash_bytes,
                    checksum_algorithm: u32::from(opened.checksum_algorithm),
                };
                Ok((Body::ViewOpened(view), vec![]))
            }),
            (Stage::Open(session), Body::ListShards(ListShards { view })) => {
                let found = self.core.ask(|answer| SessionCall::Shards(session, view, answer));
                let ranges = |shards: Vec<Shard>| shards.iter().map(ShardRange::from).collect();
                found.map(|shards| (Body::Shards(Shards { view, shards: ranges(shards) }), vec![]))
            }
            (Stage::Open(session), Body::ListSegments(ListSegments {})) => {
                let found = self.core.ask(|answer| SessionCall::Segments(session, answer));
                found.map(|segments| (Body::Segments(Segments { segments }), vec![]))
            }
            (Stage::Open(session), Body::GetSegment(wanted)) => {
                let segment = wanted.segment;
                let found = self.core.ask(|answer| SessionCall::Segment(session, segment, answer));
                found.map(|(fd, bytes)| (Body::SegmentFd(SegmentFd { segment, bytes }), vec![fd]))
            }
            (Stage::Open(session), Body::SetPrefillRate(SetPrefillRate { view, tokens_per_second })) => {
                let rate = handshake::rate(tokens_per_second);
                let set = self.core.ask(|answer| SessionCall::SetPrefillRate(session, view, rate, answer));
                set.map(|()| (Body::SetPrefillRate(SetPrefillRate { view, tokens_per_second: rate }), vec![]))
            }
            (Stage::Open(session), Body::Goodbye(Goodbye {})) => {
                self.core.tell(SessionCall::Left(session));
                if let Some(peer) = self.get(place) {
                    peer.stage = Stage::Closing;
                }
                Ok((Body::Goodbye(Goodbye {}), vec![]))
            }
            _ => {
                let message = "a message that does not belong here";
                return self.close_with(place, Refusal::new(RefusalCode::Protocol, message, "say Hello first"));
            }
        };
        let Some(peer) = self.get(place) else { return };
        match answered {
            Ok((body, fds)) => peer.answer(body, fds),
            Err(refusal) => {
                let message = format!("{}; {}", refusal.message, refusal.remedy);
                peer.answer(Body::Error(Error { code: refusal.code as i32, message }), vec![]);
            }
        }
    }

    /// Opens a session for a peer that said Hello.
    fn welcome(&mut self, place: Place, hello: &Hello) -> Result<(), Refusal> {
        let greeting = handshake::greet(hello)?;
        if self.count(|stage| matches!(stage, Stage::Open(_))) >= self.options.sessions_max {
            let message = format!("{} sessions are open already", self.options.sessions_max);
            return Err(Refusal::new(RefusalCode::Full, message, "raise session.max, or close an engine"));
        }
        let no_memory = |error: memory::LinkError| {
            Refusal::new(RefusalCode::Full, error.to_string(), "see the daemon's limits on memory and descriptors")
        };
        let (link, client_end) = SessionLink::new().map_err(no_memory)?;
        let session = SessionId::newcomer(self.sessions);
        self.sessions += 1;
        let Some(credentials) = self.get(place).map(|peer| peer.credentials) else { return Ok(()) };
        let started = credentials.pid.and_then(|pid| Some((pid, StartTime::of(pid).ok().flatten()?)));
        let joining = Joining {
            session,
            instance: greeting.instance,
            role: greeting.role,
            client_name: greeting.client_name,
            version: greeting.version,
            uid: credentials.uid,
            process: started,
            replaces: greeting.replaces,
            link,
        };
        let joined = match self.core.ask(|answer| SessionCall::Join(Box::new(joining), answer)) {
            Ok(joined) => joined,
            Err(refusal) => {
                // A core that did not answer in time may yet serve the join: then it hears of a session whose socket is gone.
                if refusal.code == RefusalCode::Stopping
                    && let Some(peer) = self.get(place)
                {
                    peer.stage = Stage::Open(session);
                }
                return Err(refusal);
            }
        };
        let micros = |wait: Duration| u32::try_from(wait.as_micros()).unwrap_or(u32::MAX);
        let welcome = Welcome {
            version: greeting.version,
            features: greeting.features,
            epoch: joined.epoch.get(),
            client_slot: u32::from(joined.client.get()),
            geometry: Some(memory::geometry()),
            lease_bytes_max: joined.lease_bytes_max,
            match_deadline_us: micros(joined.match_deadline),
            load_deadline_us: micros(joined.load_deadline),
        };
        let Some(peer) = self.get(place) else { return Ok(()) };
        peer.stage = Stage::Open(session);
        peer.answer(Body::Welcome(welcome), vec![client_end.memory, client_end.bell]);
        self.counters.sessions_opened.add(1);
        Ok(())
    }

    /// Says why, then closes. An open session counts as hung up: its process may still touch the arena.
    fn close_with(&mut self, place: Place, refusal: Refusal) {
        let Some(peer) = self.get(place) else { return };
        tracing::warn!(code = ?refusal.code, message = refusal.message, pid = ?peer.credentials.pid, "a peer is turned away");
        match peer.stage {
            Stage::Greeting => {
                refuse(peer, refusal);
                peer.stage = Stage::Closing;
                self.counters.handshakes_failed.add(1);
            }
            Stage::Open(_) => {
                refuse(peer, refusal);
                peer.flush();
                self.counters.sessions_cut.add(1);
                self.hang_up(place);
            }
            Stage::Detached(_) | Stage::Closing => {}
        }
    }

    /// The socket is gone. The process of an open session is watched on.
    fn hang_up(&mut self, place: Place) {
        let Some(peer) = self.get(place) else { return };
        match peer.stage {
            Stage::Open(session) => {
                peer.close_socket();
                peer.stage = Stage::Detached(session);
                self.core.tell(SessionCall::Detached(session));
            }
            Stage::Greeting | Stage::Closing => self.remove(place),
            Stage::Detached(_) => {}
        }
    }

    fn on_death(&mut self, place: Place) {
        let Some(peer) = self.get(place) else { return };
        match peer.stage {
            Stage::Open(session) | Stage::Detached(session) => {
                self.core.tell(SessionCall::Died(session));
                self.counters.clients_died.add(1);
            }
            Stage::Greeting | Stage::Closing => {}
        }
        self.remove(place);
    }

    /// Does what the core says; `true` to stop.
    fn obey(&mut self) -> io::Result<bool> {
        self.control_event.drain()?;
        loop {
            let control = match self.control.try_recv() {
                Ok(control) => control,
                Err(TryRecvError::Empty) => return Ok(false),
                // A core that is gone tells nothing any more.
                Err(TryRecvError::Disconnected) => return Ok(true),
            };
            match control {
                Control::Stop => return Ok(true),
                Control::Cut(session) => {
                    if let Some(place) = self.find(session) {
                        self.counters.sessions_cut.add(1);
                        self.hang_up(place);
                    }
                }
                Control::Forget(session) => {
                    if let Some(place) = self.find(session) {
                        self.remove(place);
                    }
                }
            }
        }
    }

    fn find(&self, session: SessionId) -> Option<Place> {
        let stages = [Stage::Open(session), Stage::Detached(session)];
        let found = self
            .entries
            .iter()
            .position(|entry| entry.connection.as_ref().is_some_and(|peer| stages.contains(&peer.stage)));
        found.map(|index| Place { index: index as u32, generation: self.entries[index].generation })
    }

    /// Cuts who was too slow; accepts again after a pause.
    fn on_time(&mut self) -> io::Result<()> {
        let now = clock::now();
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            let late = entry.connection.as_ref().and_then(Connection::cut_at).is_some_and(|at| at <= now);
            if late {
                let place = Place { index: index as u32, generation: entry.generation };
                self.counters.handshakes_failed.add(1);
                self.hang_up(place);
            }
        }
        if self.accept_again_at.is_some_and(|at| at <= now) {
            self.accept_again_at = None;
            epoll::add(&self.epoll, &self.listener, Source::Listener.pack(), epoll::EventFlags::IN)?;
        }
        Ok(())
    }
}

fn refuse(peer: &mut Connection, refusal: Refusal) {
    let Refusal { code, message, remedy } = refusal;
    peer.answer(Body::Refused(Refused { code: code as i32, message, remedy: remedy.into() }), vec![]);
}

#[cfg(test)]
mod tests;
