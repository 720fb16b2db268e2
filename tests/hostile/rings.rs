//! Mutated ring entries, slabs and positions. As long as the ring is sound each request gets exactly one last completion,
//! whatever stands in it.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use kvd_nixl::sys::{Mapping, Memory as _};
use kvd_proto::wire::ring::{FLAG_LEASE, FLAG_PARENT, Op, Request, SLABS};
use kvd_proto::wire::session::{Body, GetSegment};
use kvd_proto::wire::slab::put_hash;
use kvd_tests::chain_hash;
use rand::Rng as _;
use rand::rngs::SmallRng;

use crate::node::Node;
use crate::peer::{Heard, Session};
use crate::{count, generator, mutate};

const NUMBER: u8 = 204;
/// Requests before their answers are taken.
const BATCH: usize = 32;
/// Batches of one session.
const BATCHES: usize = 24;

#[test]
fn mutated_requests_are_answered_once_each() {
    let mut random = generator("rings");
    let mut node = Node::start("rings");
    let path = node.scratch.socket();
    let (mut sent, mut place) = (0, None);
    while sent < count(14_000, 700_000) {
        let mut attacker = Attacker::join(&path, place, &mut random);
        for _ in 0..BATCHES {
            attacker.batch();
            sent += BATCH;
        }
        place = attacker.leave();
    }
    // The last one leaves in peace, so that nothing stays fenced for this living process.
    Session::open(&path, NUMBER, place).goodbye();
    node.unharmed();
}

/// A session and what it has learnt that makes its requests worth mutating.
struct Attacker<'a> {
    session: Session,
    random: &'a mut SmallRng,
    views: u16,
    leases: Vec<u64>,
    segment: Option<Mapping>,
}

impl<'a> Attacker<'a> {
    fn join(path: &Path, place: Option<(u64, u32)>, random: &'a mut SmallRng) -> Self {
        let mut session = Session::open(path, NUMBER, place);
        // One namespace of its own, and the one of the honest engine.
        let views = 1 + session.view("hostile").max(session.view("test"));
        let wanted = GetSegment { segment: random.random_range(0..4) };
        let segment = match session.peer.ask(Body::GetSegment(wanted)) {
            Heard::Answer(Body::SegmentFd(told), fds) => {
                Some(Mapping::new(fds[0].as_fd(), 0, told.bytes as usize).expect("mapped"))
            }
            _ => None,
        };
        Self { session, random, views, leases: vec![0], segment }
    }

    /// Sends requests, scribbles while they are served, takes the answers.
    fn batch(&mut self) {
        for _ in 0..BATCH {
            let entry = self.entry();
            assert!(self.session.requests.push(&entry).expect("a sound ring"), "the daemon takes requests");
        }
        // A bell that cannot be rung is a session that is over, which shows below.
        let _ = self.session.requests.wake(&self.session.bell);
        self.scribble();
        for _ in 0..BATCH {
            let last = self.session.last_completion().expect("a sound ring is never cut");
            if last.lease != 0 {
                let keep = self.random.random_range(0..16.min(self.leases.len() + 1));
                self.leases.truncate(16);
                self.leases.insert(keep.min(self.leases.len()), last.lease);
            }
        }
    }

    /// A request of any kind, mostly with something wrong in it.
    fn entry(&mut self) -> [u8; 64] {
        let op = Op::ALL[self.random.random_range(0..Op::ALL.len())];
        let slab = self.random.random_range(0..SLABS);
        let count = self.random.random_range(1..=24u32);
        let flags = match op {
            Op::Match => FLAG_LEASE,
            Op::Offer if self.random.random() => FLAG_PARENT,
            _ => 0,
        };
        let mut request = Request {
            op,
            flags,
            view: self.random.random_range(0..self.views),
            slab,
            first: 0,
            count,
            token: self.random.random(),
            lease: self.leases[self.random.random_range(0..self.leases.len())],
            deadline_us: self.random.random_range(1..5000),
            arg: 0,
        };
        if self.random.random_ratio(1, 2) {
            self.fill(slab, op, count);
        }
        match self.random.random_range(0..10) {
            0 => request.count = mutate::edge(self.random) as u32,
            1 => request.first = mutate::edge(self.random) as u32,
            2 => request.lease = mutate::edge(self.random),
            3 => request.slab = mutate::edge(self.random) as u16,
            4 => request.view = mutate::edge(self.random) as u16,
            5 => request.flags = self.random.random(),
            6 => request.deadline_us = mutate::edge(self.random) as u32,
            _ => {}
        }
        let mut entry = request.encode();
        match self.random.random_range(0..4) {
            0 => mutate::flip(&mut entry, self.random),
            1 if self.random.random_ratio(1, 4) => self.random.fill(&mut entry),
            _ => {}
        }
        entry
    }

    /// What such a request finds in its slab: hashes of honest chains and others, or entries of a commit.
    fn fill(&mut self, slab: u16, op: Op, count: u32) {
        let mut bytes = Vec::new();
        if op == Op::Commit {
            for index in 0..count {
                kvd_proto::wire::slab::put_commit(&mut bytes, index, &[self.random.random()]);
            }
        } else {
            let chain = if self.random.random() { self.random.random_range(0..8) } else { self.random.random() };
            let skip = u32::from(op == Op::Offer);
            (0..skip + count).for_each(|at| put_hash(&mut bytes, &chain_hash(chain, at.saturating_sub(skip))));
        }
        if self.random.random_ratio(1, 3) {
            mutate::any(&mut bytes, self.random);
        }
        self.session.slab(slab).write(0, &bytes).expect("a few kilobytes");
    }

    /// Changes slabs and, rarely, blocks of the arena under the daemon.
    fn scribble(&mut self) {
        let slab = self.session.slab(self.random.random_range(0..SLABS));
        for _ in 0..8 {
            let at = self.random.random_range(0..4096) * 8;
            slab.write(at, &mutate::edge(self.random).to_le_bytes()).expect("within a slab");
        }
        if let Some(segment) = &self.segment {
            let at = self.random.random_range(0..segment.len() - 8);
            segment.write(at, &self.random.random::<[u8; 8]>()).expect("within the segment");
        }
    }

    /// Leaves with or without a word, sometimes with positions that cannot be. The place of one that did not say it.
    fn leave(self) -> Option<(u64, u32)> {
        let place = self.session.place();
        if self.random.random_ratio(1, 3) {
            self.session.goodbye();
            return None;
        }
        let geometry = &self.session.geometry;
        for _ in 0..self.random.random_range(0..4) {
            let ring =
                if self.random.random() { geometry.request_ring_offset } else { geometry.completion_ring_offset };
            let at = ring as usize + 64 * self.random.random_range(0..4);
            self.session.memory.write(at, &mutate::edge(self.random).to_le_bytes()).expect("within");
            let _ = kvd_nixl::sys::Signal::signal(&self.session.bell);
        }
        Some(place)
    }
}

/// A request that is answered at once, whatever there is.
fn release(view: u16, token: u64) -> Request {
    Request { op: Op::Release, flags: 0, view, slab: 0, first: 0, count: 0, token, lease: 0, deadline_us: 0, arg: 0 }
}

#[test]
fn answers_that_are_never_taken_hold_nobody_up() {
    let mut node = Node::start("untaken");
    let mut session = Session::open(&node.scratch.socket(), NUMBER, None);
    let view = session.view("hostile");
    let mut pushed = 0u64;
    // Until both rings and what the daemon keeps aside are full.
    let mut idle = 0;
    while idle < 50 {
        if session.requests.push(&release(view, pushed).encode()).expect("a sound ring") {
            pushed += 1;
            idle = 0;
        } else {
            session.requests.wake(&session.bell).expect("the daemon lives");
            std::thread::sleep(Duration::from_millis(2));
            idle += 1;
        }
    }
    assert!(pushed < 1024, "{pushed} requests were taken from one who takes no answer");
    for token in 0..pushed {
        assert_eq!(session.last_completion().expect("the session goes on").token, token);
    }
    session.goodbye();
    node.unharmed();
}

#[test]
fn a_position_that_cannot_be_ends_its_session_only() {
    let mut node = Node::start("positions");
    for (at, value) in [(0, u64::MAX), (0, 1 << 40), (0, 257), (64, u64::MAX), (64, 1 << 20)] {
        let mut session = Session::open(&node.scratch.socket(), NUMBER, None);
        let view = session.view("hostile");
        let geometry = session.geometry;
        // The tail of requests is ours to write, and so is the head of completions.
        let ring = if at == 0 { geometry.request_ring_offset } else { geometry.completion_ring_offset };
        let word = session.memory.atomic_u64(ring as usize + at);
        if at == 64 {
            // Seen when it looks for room.
            let entry = Request {
                op: Op::Release,
                flags: 0,
                view,
                slab: 0,
                first: 0,
                count: 0,
                token: 1,
                lease: 0,
                deadline_us: 0,
                arg: 0,
            };
            for _ in 0..256 {
                session.requests.push(&entry.encode()).expect("a sound ring");
            }
            word.store(value, std::sync::atomic::Ordering::Release);
            session.requests.wake(&session.bell).expect("the daemon lives");
            let until = Instant::now() + Duration::from_secs(10);
            let mut more = 0;
            while more < 300 && Instant::now() < until {
                more += u32::from(session.requests.push(&entry.encode()).unwrap_or(true));
                let _ = session.requests.wake(&session.bell);
            }
        } else {
            word.store(value, std::sync::atomic::Ordering::Release);
        }
        let _ = kvd_nixl::sys::Signal::signal(&session.bell);
        assert!(matches!(session.peer.hear(), Heard::Closed), "{at} {value}");
    }
    node.unharmed();
}
