//! Peers that take their time: they are cut, or answered late, and nobody else waits.

use std::time::Instant;

use kvd_proto::wire::session::{Body, GetSegment, encode_frame};

use crate::node::Node;
use crate::peer::{Heard, Peer, Session, hello, open_view};

const NUMBER: u8 = 202;

fn closed(peer: &mut Peer) -> bool {
    matches!(peer.hear(), Heard::Closed | Heard::Answer(Body::Refused(_), _))
}

#[test]
fn silent_peers_are_cut_and_bytes_may_come_one_by_one() {
    let mut node = Node::start("slow");
    let path = node.scratch.socket();
    let greeting = encode_frame(Body::Hello(hello(NUMBER))).expect("a frame");
    let view = encode_frame(Body::OpenView(open_view("hostile"))).expect("a frame");
    let mut silent = Peer::connect(&path);
    let mut begun = Peer::connect(&path);
    assert!(begun.send(&greeting[..greeting.len() - 1]));
    let mut half = Session::open(&path, NUMBER, None);
    assert!(half.peer.send(&view[..view.len() / 2]));
    let mut idle = Session::open(&path, NUMBER, None);

    // One byte at a time is no crime.
    let mut bytewise = Peer::connect(&path);
    for byte in &greeting {
        assert!(bytewise.send(&[*byte]));
    }
    assert!(matches!(bytewise.hear(), Heard::Answer(Body::Welcome(_), _)));
    for byte in &view {
        assert!(bytewise.send(&[*byte]));
    }
    assert!(matches!(bytewise.hear(), Heard::Answer(Body::ViewOpened(_), _)));

    // But a Hello that trickles for ever is: single bytes do not renew the peer's time.
    let mut trickle = Peer::connect(&path);
    let endless = [(200_000u32).to_le_bytes().to_vec(), vec![0; 64 * 1024]].concat();
    let began = Instant::now();
    let mut cut = false;
    for byte in endless {
        cut = !trickle.send(&[byte]);
        if cut || began.elapsed().as_secs() > 15 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(cut, "a peer that trickles for 15 s is still there");

    assert!(closed(&mut silent));
    assert!(closed(&mut begun));
    assert!(closed(&mut half.peer));
    // A session that owes nothing may be silent for ever.
    assert_eq!(idle.view("hostile"), 0);
    idle.goodbye();
    drop(bytewise);
    node.unharmed();
}

#[test]
fn a_peer_that_never_reads_is_cut_and_costs_little() {
    let mut node = Node::start("unread");
    let mut session = Session::open(&node.scratch.socket(), NUMBER, None);
    // Each answer would carry a descriptor of the daemon's.
    let request = encode_frame(Body::GetSegment(GetSegment { segment: 0 })).expect("a frame");
    let many = request.repeat(1000);
    while session.peer.send(&many) {}
    drop(session);
    node.unharmed();
}
