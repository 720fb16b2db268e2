//! More connections, sessions and descriptors than anybody needs.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use kvd_proto::wire::session::{Body, RefusalCode, encode_frame};
use kvd_tests::DaemonOptions;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::node::{Node, within};
use crate::peer::{Heard, Peer, Session, hello};

const NUMBER: u8 = 203;
/// The most that Linux takes in one message.
const DESCRIPTORS: usize = 253;

#[test]
fn a_flood_of_connections_leaves_the_open_sessions_alone() {
    let mut node = Node::start("flood");
    let path = node.scratch.socket();
    for _ in 0..4 {
        let crowd: Vec<Peer> = (0..300).map(|_| Peer::connect(&path)).collect();
        drop(crowd);
    }
    // The crowd is gone, or was cut: there is room for an honest newcomer.
    Session::open(&path, NUMBER, None).goodbye();
    node.unharmed();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let mut node = Node::start("descriptors");
    let greeting = encode_frame(Body::Hello(hello(NUMBER))).expect("a frame");
    for many in [1, 4, 8, 16, DESCRIPTORS] {
        for _ in 0..20 {
            let mut peer = Peer::connect(&node.scratch.socket());
            let fds: Vec<BorrowedFd<'_>> = (0..many).map(|_| peer.socket.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            sendmsg(&peer.socket, &[IoSlice::new(&greeting)], &mut control, SendFlags::NOSIGNAL).expect("sent");
            assert!(matches!(peer.hear(), Heard::Answer(Body::Welcome(_) | Body::Refused(_), _) | Heard::Closed));
        }
    }
    node.unharmed();
}

#[test]
fn sessions_beyond_the_limit_are_refused_with_a_remedy() {
    let options = DaemonOptions::sized("256MiB", "512MiB").with("session.max", "5");
    let (mut node, ()) = Node::with("limit", &options, u64::MAX, |_| {});
    let path = node.scratch.socket();
    // One is the honest engine's.
    let mut open: Vec<Session> = (0..4).map(|_| Session::open(&path, NUMBER, None)).collect();
    for _ in 0..50 {
        let refused = Peer::connect(&path).greet(hello(NUMBER)).expect_err("the daemon is full");
        let refused = refused.expect("it says so");
        assert_eq!(refused.code, RefusalCode::Full as i32, "{refused:?}");
        assert!(refused.remedy.contains("session.max"), "{refused:?}");
    }
    open.pop().expect("four").goodbye();
    within("there is room again", || match Peer::connect(&path).greet(hello(NUMBER)) {
        Ok(_) => true,
        Err(refused) => {
            assert_eq!(refused.expect("it says so").code, RefusalCode::Full as i32);
            false
        }
    });
    // A view has its limit, too.
    let session = &mut open[0];
    for number in 0..256 {
        session.view(&format!("hostile-{number}"));
    }
    // Those that are open are no more views when they are opened again.
    session.view("hostile-0");
    let answer = session.peer.ask(Body::OpenView(crate::peer::open_view("hostile-256")));
    assert!(
        matches!(&answer, Heard::Answer(Body::Error(error), _) if error.code == RefusalCode::Full as i32),
        "{answer:?}"
    );
    open.into_iter().for_each(Session::goodbye);
    node.unharmed();
}

#[test]
fn session_memory_keeps_its_length() {
    let mut node = Node::start("sealed");
    let mut session = Session::open(&node.scratch.socket(), NUMBER, None);
    for bytes in [0, 4096, session.geometry.memory_bytes - 1, session.geometry.memory_bytes + 1] {
        assert_eq!(rustix::fs::ftruncate(&session.file, bytes), Err(rustix::io::Errno::PERM), "{bytes}");
    }
    session.view("hostile");
    session.goodbye();
    node.unharmed();
}
