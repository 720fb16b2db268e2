//! What the sessions thread and the core say to each other.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use kvd_nixl::sys::{EventFd, Signal, StartTime};
use kvd_proto::wire::session::RefusalCode;
use kvd_proto::{Epoch, InstanceId, NamespaceDigest, Shard, UnitOrder};
use kvd_tiers::ClientSlot;

use crate::session::SessionLink;

/// Calls of the sessions thread that may wait; it makes one at a time, deaths aside.
pub(crate) const CALLS_WAITING_MAX: usize = 128;

/// How long the sessions thread waits for the core's answer. A turn of the core takes well under a millisecond; after this
/// long the core is stuck and the watchdog's business.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Names a session within one start of the daemon; never reused, unlike its client slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionId(pub(crate) u64);

impl SessionId {
    /// That of a client slot which an earlier daemon gave away. Its process may be invisible, so that nobody watches it.
    pub(crate) const fn survivor(slot: ClientSlot) -> Self {
        Self(slot.get() as u64)
    }

    /// That of the `number`th session since the start, from 0.
    pub(crate) const fn newcomer(number: u64) -> Self {
        Self(ClientSlot::COUNT as u64 + number)
    }
}

/// Why something was not done, in the words that the client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: RefusalCode,
    pub(crate) message: String,
    pub(crate) remedy: &'static str,
}

impl Refusal {
    pub(crate) fn new(code: RefusalCode, message: impl Into<String>, remedy: &'static str) -> Self {
        Self { code, message: message.into(), remedy }
    }
}

/// A process that has said a valid Hello.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) session: SessionId,
    pub(crate) instance: InstanceId,
    pub(crate) role: &'static str,
    pub(crate) client_name: String,
    pub(crate) version: u32,
    pub(crate) uid: u32,
    /// The process, where it can be seen from here.
    pub(crate) process: Option<(NonZeroU32, StartTime)>,
    /// The session that this one replaces.
    pub(crate) replaces: Option<(Epoch, ClientSlot)>,
    pub(crate) link: SessionLink,
}

/// What a joined client is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined {
    pub(crate) client: ClientSlot,
    pub(crate) epoch: Epoch,
    pub(crate) lease_bytes_max: u64,
    pub(crate) match_deadline: Duration,
    pub(crate) load_deadline: Duration,
}

/// A view that was checked as far as that goes without the ladder.
#[derive(Debug, Clone)]
pub(crate) struct ViewRequest {
    pub(crate) namespace: NamespaceDigest,
    /// For operators.
    pub(crate) model: String,
    pub(crate) group: u16,
    pub(crate) shard: Shard,
    pub(crate) payload_bytes: u32,
    pub(crate) unit_bytes: u32,
    pub(crate) units: u32,
    pub(crate) unit_order: UnitOrder,
    /// Some plane is whole in every shard of a layer.
    pub(crate) replicated: bool,
    pub(crate) block_tokens: u32,
    /// Offers carry token ids.
    pub(crate) token_ids: bool,
    pub(crate) hash_bytes: usize,
    /// 0 for unknown.
    pub(crate) prefill_tokens_per_second: f64,
}

/// An opened view's number in requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenedView {
    pub(crate) view: u16,
    pub(crate) meta_bytes: u32,
    pub(crate) checksum_algorithm: u8,
}

type Answer<T> = Sender<Result<T, Refusal>>;

/// From the sessions thread to the core.
pub(crate) enum SessionCall {
    /// A process wants in.
    Join(Box<Joining>, Answer<Joined>),
    /// It describes what it will read and write.
    OpenView(SessionId, Box<ViewRequest>, Answer<OpenedView>),
    /// It wants to know in which other shards blocks of a view's group are.
    Shards(SessionId, u32, Answer<Vec<Shard>>),
    /// It wants to know which segments it may map.
    Segments(SessionId, Answer<Vec<u32>>),
    /// It wants to map a segment.
    Segment(SessionId, u32, Answer<(OwnedFd, u64)>),
    /// It measured its speed.
    SetPrefillRate(SessionId, u32, f64, Answer<()>),
    /// It said goodbye: nothing of it touches the arena any more.
    Left(SessionId),
    /// Its socket is gone, its process is not.
    Detached(SessionId),
    /// Its process ended.
    Died(SessionId),
}

/// From the core to the sessions thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Close the socket of a session that misbehaves in its ring; its process is watched on.
    Cut(SessionId),
    /// Close what is left of a session that means nothing any more; its process is not watched for it.
    Forget(SessionId),
    /// Close everything and end.
    Stop,
}

/// The sessions thread's way to the core.
pub(crate) struct CoreLink {
    pub(crate) calls: Sender<SessionCall>,
    pub(crate) doorbell: Arc<EventFd>,
}

impl CoreLink {
    /// Makes a call and waits for its answer.
    pub(crate) fn ask<T>(&self, call: impl FnOnce(Answer<T>) -> SessionCall) -> Result<T, Refusal> {
        let (answer, receiver) = bounded(1);
        self.tell(call(answer));
        receiver.recv_timeout(ANSWER_WAIT).unwrap_or_else(|_| {
            Err(Refusal::new(RefusalCode::Stopping, "the daemon's core does not answer", "connect again in a moment"))
        })
    }

    /// Makes a call that has no answer. Waits for room: a death must not be lost, and the core never waits for us.
    pub(crate) fn tell(&self, call: SessionCall) {
        // A core that is gone has freed everything already.
        let _ = self.calls.send(call);
        let _ = self.doorbell.signal();
    }
}
