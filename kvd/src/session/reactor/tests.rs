//! The sessions thread against raw sockets, the core played by a few lines.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use kvd_nixl::sys::{Mapping, Memory, recv_with_fds};
use kvd_proto::wire::session::{GetSegment, Refused, decode_frame, encode_frame};
use kvd_proto::{Epoch, Time};
use kvd_tiers::ClientSlot;

use super::*;
use crate::session::Joined;
use crate::session::calls::CALLS_WAITING_MAX;

/// What the played core was told, in words.
type Told = Receiver<String>;

struct Served {
    folder: tempfile::TempDir,
    told: Told,
    control: Sender<Control>,
    event: Arc<EventFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Served {
    fn new(sessions_max: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("s"), 0o600).unwrap();
        let (calls, received) = bounded(CALLS_WAITING_MAX);
        let (tell, told) = bounded(1000);
        thread::spawn(move || play_core(&received, &tell));
        let (control, commands) = bounded(16);
        let event = Arc::new(EventFd::new().unwrap());
        let counters = Arc::new(Counters::default());
        let reactor = Reactor::new(
            listener,
            CoreLink { calls, doorbell: Arc::new(EventFd::new().unwrap()) },
            (commands, event.clone()),
            SessionOptions { sessions_max, allowed_uids: vec![] },
            counters.clone(),
            vec![],
        );
        let thread = thread::spawn(move || reactor.unwrap().run());
        Self { folder, told, control, event, counters, thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn expect(&self, what: &str) {
        assert_eq!(self.told.recv_timeout(Duration::from_secs(5)).as_deref(), Ok(what));
    }

    fn order(&self, control: Control) {
        self.control.send(control).unwrap();
        self.event.signal().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.order(Control::Stop);
            thread.join().unwrap().unwrap();
        }
    }
}

/// Which one since the start, from 1.
fn number(session: SessionId) -> u64 {
    session.0 - SessionId::newcomer(0).0 + 1
}

fn play_core(calls: &Receiver<SessionCall>, tell: &Sender<String>) {
    for (n, call) in (0..).zip(calls) {
        let told = match call {
            SessionCall::Join(joining, answer) => {
                let joined = Joined {
                    client: ClientSlot::new(n % 64).unwrap(),
                    epoch: Epoch::new(9),
                    lease_bytes_max: 1,
                    match_deadline: Duration::from_millis(50),
                    load_deadline: Duration::from_secs(1),
                };
                if joining.client_name == "late" {
                    thread::sleep(Duration::from_millis(1500));
                }
                let _ = answer.send(Ok(joined));
                format!("join {} {}", number(joining.session), joining.client_name)
            }
            SessionCall::Segment(session, segment, answer) => {
                let refusal = Refusal::new(RefusalCode::NotFound, "no such segment", "ask for another");
                let _ = answer.send(Err(refusal));
                format!("segment {} {segment}", number(session))
            }
            SessionCall::Segments(session, answer) => {
                let _ = answer.send(Ok(vec![3, 5]));
                format!("segments {}", number(session))
            }
            SessionCall::OpenView(..) | SessionCall::SetPrefillRate(..) | SessionCall::Shards(..) => "view".into(),
            SessionCall::Left(session) => format!("left {}", number(session)),
            SessionCall::Detached(session) => format!("detached {}", number(session)),
            SessionCall::Died(session) => format!("died {}", number(session)),
        };
        if tell.send(told).is_err() {
            return;
        }
    }
}

fn connect(path: &Path) -> UnixStream {
    let socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn hello(name: &str) -> Body {
    let instance = vec![7; 16];
    Body::Hello(Hello { version_min: 1, version_max: 3, instance, client_name: name.into(), ..Hello::default() })
}

/// Says something and takes the answer with its descriptors; `None` if the daemon hung up.
fn say(socket: &mut UnixStream, body: Body) -> Option<(Body, Vec<OwnedFd>)> {
    socket.write_all(&encode_frame(body).unwrap()).unwrap();
    let mut buffer = vec![0; 65536];
    let received = recv_with_fds(socket.as_fd(), &mut buffer).ok()?;
    let (body, _) = decode_frame(&buffer[..received.bytes]).unwrap()?;
    Some((body, received.fds))
}

#[test]
fn a_session_opens_asks_and_says_goodbye() {
    let served = Served::new(4);
    let mut socket = connect(&served.path());
    let Some((Body::Welcome(welcome), fds)) = say(&mut socket, hello("one")) else { panic!("not welcome") };
    assert_eq!((welcome.version, welcome.epoch, fds.len()), (1, 9, 2));
    let memory = welcome.geometry.unwrap().memory_bytes as usize;
    assert_eq!(Mapping::new(fds[0].as_fd(), 0, memory).unwrap().len(), memory);
    served.expect("join 1 one");
    let Some((Body::Error(error), fds)) = say(&mut socket, Body::GetSegment(GetSegment { segment: 5 })) else {
        panic!()
    };
    assert_eq!((error.code(), fds.len()), (RefusalCode::NotFound, 0));
    served.expect("segment 1 5");
    assert!(matches!(say(&mut socket, Body::Goodbye(Goodbye {})), Some((Body::Goodbye(_), _))));
    served.expect("left 1");
    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn strangers_garbage_and_crowds_are_refused_and_others_unharmed() {
    let served = Served::new(2);
    let refused = |code: RefusalCode, answer: Option<(Body, Vec<OwnedFd>)>| match answer {
        Some((Body::Refused(refused @ Refused { .. }), _)) => assert_eq!(refused.code(), code),
        other => panic!("not refused: {other:?}"),
    };
    let mut good = connect(&served.path());
    assert!(matches!(say(&mut good, hello("good")), Some((Body::Welcome(_), _))));
    let old = Body::Hello(Hello { version_min: 7, version_max: 9, instance: vec![0; 16], ..Hello::default() });
    refused(RefusalCode::Version, say(&mut connect(&served.path()), old));
    refused(RefusalCode::Protocol, say(&mut connect(&served.path()), Body::Goodbye(Goodbye {})));
    let mut garbage = connect(&served.path());
    garbage.write_all(&[0xff; 64]).unwrap();
    let mut answer = Vec::new();
    garbage.read_to_end(&mut answer).unwrap();
    assert!(matches!(decode_frame(&answer).unwrap(), Some((Body::Refused(_), _))));
    let mut second = connect(&served.path());
    assert!(matches!(say(&mut second, hello("second")), Some((Body::Welcome(_), _))));
    refused(RefusalCode::Full, say(&mut connect(&served.path()), hello("third")));
    assert!(matches!(say(&mut good, Body::GetSegment(GetSegment { segment: 1 })), Some((Body::Error(_), _))));
    // A session that loses its manners is cut; its process is alive, so its slots stay fenced.
    assert!(matches!(say(&mut second, hello("again")), Some((Body::Refused(_), _))));
    for expected in ["join 1 good", "join 2 second", "segment 1 1", "detached 2"] {
        served.expect(expected);
    }
}

#[test]
fn a_silent_or_trickling_peer_is_cut_after_two_seconds() {
    let served = Served::new(2);
    let started = Instant::now();
    let mut silent = connect(&served.path());
    let mut trickling = connect(&served.path());
    let trickle = thread::spawn(move || {
        while trickling.write_all(&[0]).is_ok() && started.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(300));
        }
        started.elapsed()
    });
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0);
    assert!((Duration::from_millis(1900)..Duration::from_secs(4)).contains(&started.elapsed()));
    assert!(trickle.join().unwrap() < Duration::from_secs(4));
    // An open session may be silent for as long as it likes.
    let mut open = connect(&served.path());
    assert!(matches!(say(&mut open, hello("open")), Some((Body::Welcome(_), _))));
}

#[test]
fn a_forgotten_session_is_closed_and_a_cut_one_stays_watched() {
    let served = Served::new(4);
    let mut one = connect(&served.path());
    let mut two = connect(&served.path());
    say(&mut one, hello("one")).unwrap();
    say(&mut two, hello("two")).unwrap();
    served.expect("join 1 one");
    served.expect("join 2 two");
    served.order(Control::Cut(SessionId::newcomer(0)));
    served.expect("detached 1");
    served.order(Control::Forget(SessionId::newcomer(1)));
    assert_eq!(one.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(two.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(served.counters.sessions_cut.get(), 1);
}

#[test]
fn it_ends_with_a_core_that_is_gone() {
    let mut served = Served::new(4);
    // As when the core thread panics: nobody says stop, and whoever waits for the threads rings.
    served.control = bounded(1).0;
    served.event.signal().unwrap();
    served.thread.take().unwrap().join().unwrap().unwrap();
}

/// The core of a host that was paused answers too late: what it gave away must come back.
#[test]
fn a_join_that_is_answered_too_late_is_told_to_be_over() {
    let served = Served::new(4);
    let mut late = connect(&served.path());
    say(&mut late, hello("late")).unwrap();
    served.expect("join 1 late");
    served.expect("detached 1");
}

/// The socket of a dead engine lives on in its child: the death must be told all the same.
#[test]
fn death_is_told_though_a_child_keeps_the_socket() {
    let served = Served::new(4);
    // perl is part of every Debian and Ubuntu: it connects, says Hello from stdin, starts a child that keeps the socket, ends.
    let script = r#"use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0); connect($s, sockaddr_un($ARGV[0])) or die;
        binmode STDIN; local $/; syswrite($s, <STDIN>); sysread($s, my $answer, 4); exit 0 if fork; sleep 20;"#;
    let mut engine = Command::new("perl");
    let engine = engine.args(["-e", script]).arg(served.path()).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let Ok(mut engine) = engine else { return eprintln!("SKIPPED: no perl on this machine") };
    engine.stdin.take().unwrap().write_all(&encode_frame(hello("engine")).unwrap()).unwrap();
    served.expect("join 1 engine");
    let ended = Instant::now();
    assert!(engine.wait().unwrap().success());
    served.expect("died 1");
    assert!(ended.elapsed() < Duration::from_secs(1));
    assert!(Time::ZERO < clock::now());
}
