//! Mutated frames: each is answered or its connection is closed, and nothing else happens.

use std::io::Write as _;
use std::path::Path;

use kvd_proto::wire::session::{
    Body, GetSegment, ListSegments, ListShards, SetPrefillRate, decode_frame, encode_frame,
};
use rand::Rng as _;
use rand::rngs::SmallRng;

use crate::node::Node;
use crate::peer::{Heard, Peer, Session, hello, open_view};
use crate::{count, generator, mutate};

/// What hostile sessions of this file call themselves.
const NUMBER: u8 = 201;
/// Requests in one go: more than the daemon reads at a time.
const REQUESTS: u32 = 5000;

#[test]
fn mutated_frames_are_answered_or_end_their_connection() {
    let mut random = generator("frames");
    let mut node = Node::start("frames");
    let path = node.scratch.socket();
    let mut sent = 0;
    while sent < count(6_000, 300_000) {
        sent += if random.random_ratio(1, 6) { greeting(&path, &mut random) } else { session(&path, &mut random) };
    }
    node.unharmed();
}

/// What must follow a frame of ours.
enum Due {
    /// An answer or a closed connection.
    Word,
    /// Nothing: the frame is not whole.
    Nothing,
}

/// Sends a frame; what must follow, or `None` if the daemon has closed.
fn throw(peer: &mut Peer, bytes: &[u8]) -> Option<Due> {
    if !peer.send(bytes) {
        return None;
    }
    Some(match decode_frame(bytes) {
        Ok(None) => Due::Nothing,
        Ok(Some(_)) | Err(_) => Due::Word,
    })
}

/// One mutated Hello; a session that it opens all the same is left without a word.
fn greeting(path: &Path, random: &mut SmallRng) -> u64 {
    let mut peer = Peer::connect(path);
    let valid = encode_frame(Body::Hello(hello(NUMBER))).expect("a frame");
    if let Some(Due::Word) = throw(&mut peer, &mutate::frame(&valid, random)) {
        match peer.hear() {
            Heard::Answer(Body::Welcome(_) | Body::Refused(_), _) | Heard::Closed => {}
            Heard::Answer(other, _) => panic!("a Hello is answered by {other:?}"),
        }
    }
    1
}

/// Mutated requests in an open session, until it ends; how many.
fn session(path: &Path, random: &mut SmallRng) -> u64 {
    let mut session = Session::open(path, NUMBER, None);
    for sent in 1..=64 {
        let valid = match random.random_range(0..6) {
            0 => Body::GetSegment(GetSegment { segment: random.random_range(0..8) }),
            1 => Body::SetPrefillRate(SetPrefillRate { view: 0, tokens_per_second: 1e4 }),
            2 => Body::ListShards(ListShards { view: random.random_range(0..2) }),
            3 => Body::ListSegments(ListSegments {}),
            _ => Body::OpenView(open_view("hostile")),
        };
        let bytes = mutate::frame(&encode_frame(valid).expect("a frame"), random);
        match throw(&mut session.peer, &bytes) {
            Some(Due::Word) => match session.peer.hear() {
                Heard::Answer(Body::Refused(_) | Body::Goodbye(_), _) | Heard::Closed => return sent,
                Heard::Answer(Body::Welcome(_) | Body::Hello(_), _) => panic!("a second welcome"),
                Heard::Answer(..) => {}
            },
            // Half a frame, and gone.
            Some(Due::Nothing) | None => return sent,
        }
        // What was behind the first frame of these bytes would be heard of later.
        if !matches!(decode_frame(&bytes), Ok(Some((_, used))) if used == bytes.len()) {
            return sent;
        }
    }
    64
}

#[test]
fn requests_sent_in_one_go_are_all_answered_in_order() {
    let mut node = Node::start("pipelined");
    let mut session = Session::open(&node.scratch.socket(), NUMBER, None);
    session.view("hostile");
    let mut bytes = Vec::new();
    for rate in 1..=REQUESTS {
        let request = SetPrefillRate { view: 0, tokens_per_second: f64::from(rate) };
        bytes.extend(encode_frame(Body::SetPrefillRate(request)).expect("a frame"));
    }
    let mut sender = session.peer.socket.try_clone().expect("a double");
    let sending = std::thread::spawn(move || sender.write_all(&bytes));
    for rate in 1..=REQUESTS {
        match session.peer.hear() {
            Heard::Answer(Body::SetPrefillRate(set), _) => assert_eq!(set.tokens_per_second, f64::from(rate)),
            other => panic!("answer {rate} is {other:?}"),
        }
    }
    sending.join().expect("it ends").expect("all was taken");
    session.goodbye();
    node.unharmed();
}

#[test]
fn a_huge_length_costs_the_daemon_nothing() {
    let mut node = Node::start("lengths");
    for length in [256 * 1024 + 1, 1 << 20, 1 << 31, u32::MAX] {
        let mut peer = Peer::connect(&node.scratch.socket());
        peer.send(&length.to_le_bytes());
        peer.send(&[0x5a; 4096]);
        match peer.hear() {
            Heard::Answer(Body::Refused(refused), _) => assert!(!refused.remedy.is_empty()),
            Heard::Closed => {}
            other => panic!("{length}: {other:?}"),
        }
    }
    node.unharmed();
}
